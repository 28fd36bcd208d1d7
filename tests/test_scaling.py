"""Scales of activations: of rows, frozen, delayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import networks
from tinyjax import attach, calibrate, delayed, frozen, int8_qat, numerics, per_row, rewrite

APPLY = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
NEAREST = dict(gradient_rounding=numerics.nearest)


@pytest.fixture
def params(rng):
    return {k: jnp.asarray(rng.normal(size=(8, 8)).astype(np.float32)) for k in "ab"}


def floats(rng, *shape):
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("scaling", [frozen({"a": 4.0, "b": 1.0}), per_row], ids=["frozen", "row"])
def test_an_example_does_not_see_its_neighbours(rng, params, scaling):
    f = jax.jit(lambda x: rewrite(int8_qat(scaling=scaling), APPLY).apply({}, params, x)[0])
    x = floats(rng, 6, 8) * jnp.arange(1, 7, dtype=jnp.float32)[:, None]
    np.testing.assert_array_equal(f(x)[2:3], f(x[2:3]))
    plain = jax.jit(lambda x: rewrite(int8_qat(), APPLY).apply({}, params, x)[0])
    assert (plain(x)[2:3] != plain(x[2:3])).any()


def test_frozen_scales_clip_and_are_checked(params):
    with pytest.raises(ValueError, match=r"'b' has no frozen scale among \['a'\]"):
        rewrite(int8_qat(scaling=frozen({"a": 1.0})), APPLY).apply({}, params, jnp.ones((2, 8)))
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0 and finite"):
            frozen({"a": bad})


def test_calibration_tracks_the_largest_of_all_batches(rng, params):
    batches = [(floats(rng, 4, 8) * s,) for s in (1.0, 3.0, 2.0)]
    table = calibrate(APPLY, params, batches)
    hidden = [np.abs(jnp.tanh(x @ params["a"])).max() for (x,) in batches]
    want = {"a": max(np.abs(x).max() for (x,) in batches), "b": max(hidden)}
    assert table == pytest.approx({k: float(v) for k, v in want.items()}, rel=1e-6)
    out, _ = rewrite(int8_qat(scaling=frozen(table)), APPLY).apply({}, params, *batches[1])
    np.testing.assert_allclose(out, APPLY(params, *batches[1]), atol=0.2)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_calibration_needs_data_that_reach_somewhere(params, value):
    with pytest.raises(ValueError, match=r"the activation of 'a' reaches .*: calibrate with data"):
        calibrate(APPLY, params, [(jnp.full((2, 8), value, jnp.float32),)])
    with pytest.raises(ValueError, match="there are no batches"):
        calibrate(APPLY, params, [])


def test_delay_uses_the_past(rng, params):
    late = rewrite(int8_qat(scaling=delayed(0.5)), APPLY)
    now = rewrite(int8_qat(), APPLY)
    x = floats(rng, 4, 8)
    first, vars = late.apply(late.init(params, x), params, x)
    np.testing.assert_array_equal(first, now.apply({}, params, x)[0])
    before = vars
    again, vars = late.apply(vars, params, 0.1 * x)  # in the steps of the batch before
    fixed = {path: float(value) for path, value in before.items()}
    want, _ = rewrite(int8_qat(scaling=frozen(fixed)), APPLY).apply({}, params, 0.1 * x)
    np.testing.assert_allclose(again, want, rtol=1e-6)
    np.testing.assert_allclose(vars["a"], 0.5 * np.abs(x).max(), rtol=1e-6)
    nan, _ = late.apply(vars, params, x.at[0, 0].set(jnp.nan))
    assert np.isnan(nan).all()
    _, after = late.apply(vars, params, x.at[0, 0].set(jnp.nan))  # and is forgotten
    assert after == vars


def test_a_step_that_is_lifted_cannot_return_it(rng):
    batch = networks.batch_of(rng)
    state, step = networks.plain_case(batch)
    tx = int8_qat(scaling=delayed(), **NEAREST)
    ready = attach(tx, step, state, *batch)
    with pytest.raises(ValueError, match="changed"):
        tx(step)(ready, *batch)


@pytest.mark.parametrize("decay", [0, -0.5, 1.5, float("nan")])
def test_decay(decay):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        delayed(decay)


@pytest.mark.parametrize("scaling", [per_row, frozen({"a": 4.0, "b": 1.0}), delayed()])
def test_gradients_flow_through_every_scaling(rng, params, scaling):
    x = floats(rng, 4, 8)
    exact = jax.grad(lambda p: jnp.sum(jnp.sin(APPLY(p, x))))(params)
    tx = rewrite(int8_qat(scaling=scaling, **NEAREST), APPLY)
    vars = tx.init(params, x)
    got = jax.grad(lambda p: jnp.sum(jnp.sin(tx.apply(vars, p, x)[0])))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.3), got, exact)
