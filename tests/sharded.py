"""A train step whose batch lies on several devices, and the integers inside one layer of it."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests import networks
from tinyjax import attach, int8_qat, numerics

NETS = ("conv", "dense")
BATCH = PartitionSpec("data")


def mesh_of(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    """All devices of all processes, along the batch."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(kind,))


def dense_apply(params: Any, x: jax.Array) -> jax.Array:
    """Three dense layers on flattened images."""
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ params["w1"] + params["b1"])
    return jax.nn.relu(x @ params["w2"] + params["b2"]) @ params["w3"]


def conv_apply(params: Any, x: jax.Array) -> jax.Array:
    """Wide, strided and depthwise convolutions, then a dense layer."""

    def conv(x: jax.Array, w: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    x = jax.nn.relu(conv(x, params["w1"]) + params["b1"])
    x = jax.nn.relu(conv(x, params["w2"], stride=2) + params["b2"])
    x = jax.nn.relu(conv(x, params["w3"], groups=20))
    return x.reshape(x.shape[0], -1) @ params["w4"]


def step(state: Any, x: jax.Array, weights: jax.Array) -> Any:
    """The loss is a sum of outputs times whole numbers, so that its gradient has no rounding."""
    loss_fn = lambda params: jnp.sum(state.apply_fn(params, x) * weights)
    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


def case(net: str) -> tuple[Any, Any, tuple[jax.Array, jax.Array]]:
    """``(lifted step, state, batch)``; gradients are rounded stochastically."""
    rng = np.random.default_rng(5)
    x, _ = networks.batch_of(rng, n=8)
    weights = jnp.asarray(rng.integers(-3, 4, (8, 5)), jnp.float32)
    shapes = {
        "conv": {"w1": (3, 3, 3, 20), "w2": (3, 3, 20, 20), "w3": (3, 3, 1, 20), "w4": (320, 5)},
        "dense": {"w1": (192, 40), "w2": (40, 24), "w3": (24, 5)},
    }[net]
    params = {k: jnp.asarray(rng.normal(size=s) / 5, jnp.float32) for k, s in shapes.items()}
    params |= {f"b{i}": jnp.zeros(shapes[f"w{i}"][-1]) for i in (1, 2)}
    apply = {"conv": conv_apply, "dense": dense_apply}[net]
    # With a power of two, a fused multiply-add rounds as its two operations do: programs differ in
    # where they have one.
    optimizer = optax.sgd(0.125, momentum=0.9)
    state = train_state.TrainState.create(apply_fn=apply, params=params, tx=optimizer)
    tx = int8_qat()
    return tx(step), attach(tx, step, state, x, weights), (x, weights)


def kernels(state: Any) -> dict[str, Any]:
    """The weights that integer products reach; a bias gradient is a float sum over the batch."""
    return {name: leaf for name, leaf in state.params.model.items() if name[0] == "w"}


def layer(net: str) -> tuple[numerics.Form, tuple[jax.Array, jax.Array, jax.Array]]:
    """The form of one layer, and ``(x, w, g)`` for it in canonical form."""
    rng = np.random.default_rng(6)
    shapes = {
        "conv": [(8, 6, 6, 20), (3, 3, 20, 24), (8, 6, 6, 24)],
        "narrow": [(8, 7, 7, 3), (3, 3, 3, 6), (8, 4, 4, 6)],
        "dense": [(8, 40), (40, 24), (8, 24)],
    }[net]
    x, w, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    if net == "dense":
        return numerics.dot_form(x.shape, w.shape, (((1,), (0,)), ((), ()))), (x, w, g)
    numbers = jax.lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
    strides = (2, 2) if net == "narrow" else (1, 1)
    form = numerics.conv_form(
        x.shape, w.shape, numbers, strides, ((1, 1), (1, 1)), (1, 1), (1, 1), 1
    )
    return form, (x, w, g)


def integers(form: numerics.Form, x: jax.Array, w: jax.Array, g: jax.Array) -> dict[str, Any]:
    """The codes and int32 sums of a layer's three products, as ``int8_qat`` makes them."""
    seed = jnp.uint32(7)

    def codes(t: jax.Array, scale: jax.Array, rounding: Any = numerics.nearest) -> jax.Array:
        return numerics.quantize(t, scale, rounding=rounding, seed=seed)

    s_w = numerics.symmetric_scale(numerics.abs_max(w, range(w.ndim - 1)))
    s_r, s_g = map(numerics.symmetric_scale, numerics.fine(g, s_w.reshape(-1)))
    x_q = codes(x, numerics.symmetric_scale(numerics.abs_max(x)))
    w_q = codes(w, s_w)
    g_r = codes(g * s_w.reshape(-1), s_r, numerics.stochastic)
    g_q = codes(g, s_g, numerics.stochastic)
    return {
        "x_q": x_q,
        "w_q": w_q,
        "g_r": g_r,
        "g_q": g_q,
        "y": form.y(x_q, w_q),
        "dx": form.dx(g_r, w_q),
        "dw": form.dw(x_q, g_q),
    }


def whole(state: Any, found: dict[str, Any]) -> dict[str, jax.Array]:
    """What has to be the same however many devices there are, an array a name."""
    return kernels(state) | {name: jax.tree.leaves(value)[0] for name, value in found.items()}


def placed(mesh: jax.sharding.Mesh, tree: Any, spec: PartitionSpec) -> Any:
    """The arrays of a tree on a mesh; every process has the whole of them."""
    sharding = NamedSharding(mesh, spec)

    def put(leaf: Any) -> Any:
        if not hasattr(leaf, "shape"):
            return leaf
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree)


# The compiler of older releases does not know how a layout constraint is partitioned, and gathers
# its operand: the same integers, more traffic.
PARTITIONED = jax.__version_info__ >= (0, 12)


def collectives(program: jax.stages.Compiled) -> list[tuple[str, str]]:
    """``(what, dtypes)`` of every exchange between devices in a compiled program."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (\S+|\(.*?\)) ({kinds})(?:-start)?\(", program.as_text())
    return [(what, " ".join(sorted(set(re.findall(r"[a-z]+\d+(?=\[)", t))))) for t, what in found]
