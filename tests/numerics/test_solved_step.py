"""The step of gradients against float64: the bound holds, and it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import sgq as closed
from tests.oracles import step as oracle
from tinyjax import numerics

solve = jax.jit(numerics.solved_step, static_argnums=1)


def gradients(rng):
    """Of several shapes and tails, as float32."""
    for shape in ((4, 5, 6, 8), (1000,), (3, 7), (2, 2, 300)):
        normal = rng.normal(size=shape)
        yield normal
        yield normal * (rng.random(shape) < 0.2)
        yield rng.standard_t(2.5, size=shape) * 1e-6
        yield np.sign(normal) * rng.lognormal(sigma=1.5, size=shape) * 1e8


@pytest.mark.parametrize("error", [0.1, 0.3, 1.0])
def test_the_bound_holds_in_float64_and_is_reached(rng, error):
    for g in gradients(rng):
        g = g.astype(np.float32)
        d, first = float(solve(jnp.asarray(g), error)), closed.bounded_step(g, error)
        budget = error**2 * (g.astype(np.float64) ** 2).sum()
        squared = oracle.expected_error(g, d) * d**2
        assert d >= first * (1 - 1e-5)
        if first <= np.abs(g).max() / 127 * (1 + 1e-5):
            continue  # int8 has too few codes: see below
        # What is lost by 16.16 fixed point and float32 sums is far below a 1000th.
        assert squared <= budget
        # The search ends where a step that is a 1000th larger would be too large, or at 8 times.
        if d < 7.99 * first:
            assert oracle.expected_error(g, d * 1.002) * (d * 1.002) ** 2 > 0.99 * budget


def test_it_is_the_finest_step_where_int8_has_too_few_codes(rng):
    g = (rng.normal(size=1000) * 1e-4).astype(np.float32)
    g[7] = 1.0
    np.testing.assert_allclose(solve(jnp.asarray(g), 1e-4), 1 / 127, rtol=1e-5)


@pytest.mark.parametrize("step", [numerics.solved_step, numerics.bounded_step])
def test_what_is_masked_does_not_count(rng, step):
    g = rng.normal(size=(10, 40)).astype(np.float32)
    mask = rng.random(g.shape) < 0.4
    found = step(jnp.where(mask, g, 0), 0.3, jnp.int32(mask.sum()))
    np.testing.assert_allclose(found, step(jnp.asarray(g[mask]), 0.3), rtol=1e-4)


@pytest.mark.parametrize("g", [np.zeros((3, 4)), np.full(4, 8e37), np.full(4, -1e-38), np.ones(())])
def test_extremes_have_a_step(g):
    d = float(solve(jnp.asarray(g, jnp.float32), 0.3))
    assert 0 < d < np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_has_none(bad):
    assert not np.isfinite(solve(jnp.array([1.0, bad]), 0.3))


def test_expected_error_is_that_of_the_rounding(rng):
    g = jnp.asarray(rng.normal(size=400), jnp.float32)
    d = jnp.float32(0.5)
    seeds = jnp.arange(2000, dtype=jnp.uint32)
    rounded = jax.jit(
        jax.vmap(lambda s: numerics.quantize(g, d, rounding=numerics.stochastic, seed=s))
    )(seeds)
    squared = np.square(np.asarray(rounded, np.float64) - np.asarray(g) / 0.5).sum(1)
    want = numerics.expected_error(g, d)
    # Each sum has a deviation below sqrt(400) / 8; four of their mean's.
    assert abs(squared.mean() - want) < 4 * np.sqrt(400) / 8 / np.sqrt(2000)
    np.testing.assert_allclose(want, oracle.expected_error(np.asarray(g), 0.5), rtol=1e-4)
