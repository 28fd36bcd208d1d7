"""``python -m benchmarks.gpu int8``: int8 against bfloat16 and float32.

What a figure means:

``products``
    A dense or convolution layer's three products, ``forward``, ``dgrad`` and ``wgrad``: ``int8_ms``
    (int8 operands, int32 sums, as ``tinyjax.numerics`` computes them on this backend),
    ``bf16_ms``, ``f32_ms`` (XLA's defaults, so TF32 where a GPU has it), and the trillions of
    operations per second of int8. ``integers_equal``: whether the int32 sums, on the first samples,
    are those of float64 on the CPU, which are exact.
``codes``
    Share of the int8 codes of a random tensor that the device makes as the CPU does, to nearest
    and stochastically. Float division may differ in its last bit.
``steps``
    A train step of ``vgg6`` (see ``benchmarks int8``), SGD with momentum: through ``int8_qat()``,
    with parameters and images cast to bfloat16 in the loss, and in float32.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.rows import Row, call, medians
from experiments import train
from experiments.models import Vgg6
from tinyjax import attach, int8_qat, numerics

__all__ = ["rows"]

Array = jax.Array
FLOATS = {"bf16": jnp.bfloat16, "f32": jnp.float32}
ONE_BY_ONE = numerics.ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
SAME = numerics.ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
HALVED = numerics.ConvSpec((2, 2), ((0, 1), (0, 1)), (1, 1), 1)


class Dense(NamedTuple):
    """``[rows, depth] x [depth, features]``."""

    rows: int
    depth: int
    features: int


class Conv(NamedTuple):
    """A ``taps x taps`` convolution of ``n`` square maps."""

    n: int
    size: int
    channels: int
    features: int
    taps: int = 3
    spec: numerics.ConvSpec = SAME


FULL = {
    "dense 4096": Dense(4096, 4096, 4096),
    "dense 8192x1024x4096": Dense(8192, 1024, 4096),
    "conv 3-64 at 32": Conv(128, 32, 3, 64),
    "conv 64-64 at 32": Conv(128, 32, 64, 64),
    "conv 128-128 at 16": Conv(128, 16, 128, 128),
    "conv 256-256 at 8": Conv(128, 8, 256, 256),
    "conv 256-256 at 28": Conv(128, 28, 256, 256),
    "conv 64-128 at 32, stride 2": Conv(128, 32, 64, 128, spec=HALVED),
    "conv 256-512 at 14, 1x1": Conv(128, 14, 256, 512, 1, ONE_BY_ONE),
}
SMOKE = {
    "dense": Dense(8, 24, 20),
    "conv, stride 2": Conv(4, 6, 8, 20, spec=HALVED),
}


class Products(NamedTuple):
    """A layer: shapes of ``x``, ``w``, ``g``, its op on floats, and its three int8 products."""

    shapes: tuple[tuple[int, ...], ...]
    op: Callable[[Array, Array], Array]
    int8: dict[str, Callable[..., Any]]
    macs: int


def rows(smoke: bool, rounds: int) -> Iterator[tuple[str, Row]]:
    """Each figure with the name of the list that it belongs to.

    Args:
      smoke: tiny sizes.
      rounds: runs of each program.
    """
    layers, batch, model = (SMOKE, 4, Vgg6((20,))) if smoke else (FULL, 128, Vgg6())
    for name, layer in layers.items():
        for row in _layer(name, _products(layer), rounds):
            yield "products", row
    yield "codes", _codes(1 << (10 if smoke else 22))
    yield "steps", _step(model, batch, rounds)


def _products(layer: Dense | Conv) -> Products:
    if isinstance(layer, Dense):
        m, k, f = layer
        three: dict[str, Callable[..., Any]] = {
            "forward": lambda x, w, g: numerics.dot(x, w),
            "dgrad": lambda x, w, g: numerics.dot_dx(g, w),
            "wgrad": lambda x, w, g: numerics.dot_dw(x, g),
        }
        return Products(((m, k), (k, f), (m, f)), jnp.matmul, three, m * k * f)
    n, size, c, f, taps, spec = layer
    space, window = (size, size), (taps, taps)
    out = spec.out_space(space, window)

    def op(x: Array, w: Array) -> Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, spec.strides, spec.padding, dimension_numbers=numbers)

    three = {
        "forward": lambda x, w, g: numerics.conv(x, w, spec),
        "dgrad": lambda x, w, g: numerics.conv_dx(g, w, spec, space),
        "wgrad": lambda x, w, g: numerics.conv_dw(x, g, spec, window),
    }
    shapes = ((n, *space, c), (*window, c, f), (n, *out, f))
    return Products(shapes, op, three, n * out[0] * out[1] * taps**2 * c * f)


def _float(op: Callable[[Array, Array], Array], which: str) -> Callable[..., Array]:
    """One of the three products as autodiff writes it."""
    if which == "forward":
        return lambda x, w, g: op(x, w)
    if which == "dgrad":
        return lambda x, w, g: jax.vjp(lambda x: op(x, w), x)[1](g)[0]
    return lambda x, w, g: jax.vjp(lambda w: op(x, w), w)[1](g)[0]


def _layer(name: str, layer: Products, rounds: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    codes = [rng.integers(-127, 128, shape, np.int8) for shape in layer.shapes]
    rows = []
    for which, product in layer.int8.items():
        programs = {"int8": (jax.jit(product), [jnp.asarray(c) for c in codes])}
        for key, dtype in FLOATS.items():
            floats = [jnp.asarray(c, dtype) for c in codes]
            programs[key] = (jax.jit(_float(layer.op, which)), floats)
        calls = {key: call(program, args) for key, (program, args) in programs.items()}
        ms = medians(calls, rounds)
        rows.append(
            {
                "layer": name,
                "product": which,
                **ms,
                "int8_tops": 2e-9 * layer.macs / ms["int8_ms"],
                "speedup_bf16": ms["bf16_ms"] / ms["int8_ms"],
                "speedup_f32": ms["f32_ms"] / ms["int8_ms"],
                "integers_equal": _equal(product, _float(layer.op, which), codes),
            }
        )
    return rows


def _equal(product: Callable[..., Any], exact: Callable[..., Array], codes: list[Any]) -> bool:
    """Whether the sums are those of float64 on the CPU, for the first few samples or rows."""
    x, w, g = codes
    few = (x[:4], w, g[:4]) if x.ndim == 4 else (x[:256], w, g[:256])
    found = sum(np.asarray(part, np.int64) for part in jax.jit(product)(*few))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        right = jax.jit(exact)(*(jnp.asarray(a, jnp.float64) for a in few))
        return bool(np.array_equal(found, np.asarray(right)))


def _codes(size: int) -> dict[str, float]:
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)

    def codes(rounding: Any, device: jax.Device) -> np.ndarray:
        def run(x: Array) -> Array:
            scale = numerics.symmetric_scale(numerics.abs_max(x))
            return numerics.quantize(x, scale, rounding=rounding, seed=jnp.uint32(1))

        return np.asarray(jax.jit(run)(jax.device_put(x, device)))

    here, there = jax.devices()[0], jax.devices("cpu")[0]
    roundings = {"nearest": numerics.nearest, "stochastic": numerics.stochastic}
    return {
        name: float((codes(rounding, here) == codes(rounding, there)).mean())
        for name, rounding in roundings.items()
    }


def _step(model: Vgg6, batch: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, batch), jnp.int32)
    state = train.create_state(model, np.asarray(images), learning_rate=0.01, steps=1000, seed=0)
    apply, tx = state.apply_fn, int8_qat()

    def low(variables: Any, x: Array) -> Array:
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
        return apply(variables, x.astype(jnp.bfloat16)).astype(jnp.float32)

    arms = {
        "int8": (tx(train.train_step), attach(tx, train.train_step, state, images, labels)),
        "bf16": (train.train_step, state.replace(apply_fn=low)),
        "f32": (train.train_step, state),
    }
    calls = {
        key: call(jax.jit(step), (state, images, labels)) for key, (step, state) in arms.items()
    }
    ms = medians(calls, rounds)
    return {
        "step": "vgg6",
        "batch": batch,
        **ms,
        "speedup_bf16": ms["bf16_ms"] / ms["int8_ms"],
        "speedup_f32": ms["f32_ms"] / ms["int8_ms"],
    }
