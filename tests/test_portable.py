"""Steps that leave the process through ``jax.export`` and make the same integers elsewhere."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from tests import sharded
from tinyjax import portable
from tinyjax.numerics import row_major

CONSTRAINT = "LayoutConstraint"

# All that the other side has: jax, numpy, the bytes of the step, the arrays.
LOADER = """
import sys
import jax, numpy as np
from jax import export
data, before, after = sys.argv[1:]
step = export.deserialize(bytearray(open(data, "rb").read()))
arrays = np.load(before)
state = [arrays[f"state{i}"] for i in range(int(arrays["length"]))]
for _ in range(2):
    state = step.call(state, arrays["x"], arrays["weights"])
np.savez(after, **{f"state{i}": np.asarray(leaf) for i, leaf in enumerate(state)})
assert not {"tinyjax", "flax", "optax"} & set(sys.modules)
"""


def flat_case(net):
    """A train step of arrays, its arrays, its batch, and how to make a state of arrays."""
    step, state, batch = sharded.case(net)
    arrays, tree = jax.tree.flatten(state.replace(step=jnp.int32(0)))
    restored = lambda arrays: jax.tree.unflatten(tree, arrays)
    return lambda arrays, *b: jax.tree.leaves(step(restored(arrays), *b)), arrays, batch, restored


def same(found, right):
    """The kernels bit for bit; bias gradients are float sums, which a compiler may reorder."""
    for name, value in sharded.kernels(right).items():
        np.testing.assert_array_equal(found.params.model[name], value, err_msg=name)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("net", ["dense", pytest.param("conv", marks=pytest.mark.slow)])
def test_a_step_is_loaded_in_another_process(tmp_path, net):
    flat, arrays, batch, restored = flat_case(net)
    with pytest.raises(ValueError, match=CONSTRAINT):
        export.export(jax.jit(flat))(arrays, *batch).serialize()
    data, before, after = (tmp_path / name for name in ("step", "before.npz", "after.npz"))
    data.write_bytes(export.export(jax.jit(portable(flat)))(arrays, *batch).serialize())
    named = {f"state{i}": np.asarray(leaf) for i, leaf in enumerate(arrays)}
    x, weights = batch
    np.savez(before, x=x, weights=weights, length=len(arrays), **named)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, data, before, after],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found, native = np.load(after), jax.jit(flat)
    right = native(native(arrays, *batch), *batch)
    same(restored([found[f"state{i}"] for i in range(len(arrays))]), restored(right))


@pytest.mark.parametrize("net", ["dense", pytest.param("conv", marks=pytest.mark.slow)])
def test_a_portable_step_is_the_step(net):
    flat, arrays, batch, restored = flat_case(net)
    lowered = jax.jit(portable(flat)).lower(arrays, *batch)
    assert CONSTRAINT in jax.jit(flat).lower(arrays, *batch).as_text()
    assert CONSTRAINT not in lowered.as_text()
    found = lowered.compile()(arrays, *batch)
    same(restored(found), restored(jax.jit(flat)(arrays, *batch)))


def turned(x):
    return row_major(x.T)


def in_custom_vjp(x):
    f = jax.custom_vjp(turned)
    f.defvjp(lambda x: (turned(x), None), lambda kept, g: (turned(g),))
    return f(x)


def in_custom_jvp(x):
    f = jax.custom_jvp(turned)
    f.defjvp(lambda x, t: (turned(x[0]), turned(t[0])))
    return f(x)


def in_shards(x):
    spec = sharded.BATCH
    return jax.shard_map(turned, mesh=sharded.mesh_of(), in_specs=spec, out_specs=spec)(x)


PLACES = {
    "plain": turned,
    "jit": jax.jit(turned),
    "nested": jax.jit(lambda x: jax.jit(turned)(x) + jax.checkpoint(turned)(x)),
    "checkpoint": jax.grad(lambda x: jax.checkpoint(lambda x: turned(x) ** 3)(x).sum()),
    "scan": lambda x: lax.scan(lambda c, _: (turned(c), turned(c)), x, None, length=3),
    "while": lambda x: lax.while_loop(lambda c: c[0, 0] < 9, lambda c: turned(c) + 1, x),
    "cond": lambda x: lax.cond(x[0, 0] > 0, turned, lambda x: x, x),
    "vmap": jax.vmap(turned),
    "custom_vjp": in_custom_vjp,
    "custom_jvp": in_custom_jvp,
    "gradient of a custom_vjp": jax.grad(lambda x: (in_custom_vjp(x) ** 2).sum()),
    "shard_map": in_shards,
}


@pytest.mark.parametrize("place", PLACES)
def test_goes_everywhere(place):
    fun = PLACES[place]
    x = jnp.arange(16.0).reshape((2, 2, 4) if place == "vmap" else (4, 4))
    assert CONSTRAINT in jax.jit(fun).lower(x).as_text()
    lowered = jax.jit(portable(fun)).lower(x)
    assert CONSTRAINT not in lowered.as_text()
    jax.tree.map(np.testing.assert_array_equal, lowered.compile()(x), jax.jit(fun)(x))


def test_arguments_and_results_are_pytrees_and_the_rest_is_static():
    def fun(tree, *, scale, name="double"):
        assert isinstance(name, str)
        return {"y": turned(tree["x"]) * scale, "none": None}

    x = jnp.arange(6.0).reshape(2, 3)
    out = portable(fun)({"x": x}, scale=2, name="b")
    assert out["none"] is None
    np.testing.assert_array_equal(out["y"], 2 * x.T)


def test_gradients_go_through():
    x = jnp.arange(6.0).reshape(2, 3)
    got = jax.jit(jax.grad(lambda x: (portable(in_custom_vjp)(x) ** 2).sum()))(x)
    np.testing.assert_array_equal(got, 2 * x)
