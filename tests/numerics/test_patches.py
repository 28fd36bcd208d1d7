"""Patches and windows against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import patches as oracle
from tinyjax.numerics import patches

window_any = jax.jit(patches.window_any, static_argnums=(1, 2, 3, 4))
read_window = jax.jit(patches.read_window, static_argnums=(1, 2, 3))
add_window = jax.jit(patches.add_window, static_argnums=(2, 3))


@settings(max_examples=12)  # every shape compiles anew
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(-1, 9), st.integers(-1, 9)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 2**32 - 1),
)
def test_window_any(shape, cell, low, high, grid, seed):
    if min(c + lo + hi for c, lo, hi in zip(cell, low, high, strict=True)) < 1:
        low = (0, 0)
    flags = np.random.default_rng(seed).random(shape) < 0.05
    got = window_any(jnp.asarray(flags), cell, low, high, grid)
    np.testing.assert_array_equal(got, oracle.window_any(flags, cell, low, high, grid))


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 15), st.integers(1, 15)),
    st.tuples(st.integers(-6, 12), st.integers(-6, 12)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_windows_are_read_and_added(shape, size, start, more):
    x = np.arange(1, 2 * np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape, 2)
    beyond = tuple(
        (max(0, -o) + extra, max(0, o + s - h) + extra)
        for o, s, h, extra in zip(start, size, shape, more, strict=True)
    )
    got = read_window(jnp.asarray(x), start, size, beyond)
    np.testing.assert_array_equal(got, oracle.read_window(x, start, size))
    window = np.arange(1, got.size + 1, dtype=np.float32).reshape(got.shape)
    added = add_window(jnp.asarray(x), jnp.asarray(window), start, beyond)
    np.testing.assert_array_equal(added, oracle.add_window(x, window, start))


@pytest.mark.parametrize(("size", "cell"), [((9, 7), (4, 4)), ((8, 8), (4, 2)), ((3, 5), (1, 5))])
def test_spread_and_window_any_are_inverse(size, cell, rng):
    mask = rng.random(patches.tiles(size, cell)) < 0.5
    wide = patches.spread(jnp.asarray(mask), cell, size)
    assert wide.shape == size
    np.testing.assert_array_equal(patches.window_any(wide[..., None], cell), mask)


def test_nan_differs_from_itself_and_zero_does_not_from_minus_zero():
    a = jnp.array([jnp.nan, 0.0, 1.0, jnp.inf])
    b = jnp.array([jnp.nan, -0.0, 1.0, jnp.inf])
    assert jax.jit(patches.differs)(a, b).tolist() == [True, False, False, False]
