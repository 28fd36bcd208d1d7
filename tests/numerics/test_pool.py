"""The pooling rule against XLA's own window reduction, values and gradients, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tinyjax import numerics

CASES = [
    ((2, 4, 6, 3), (1, 2, 2, 1)),
    ((1, 7, 5, 2), (1, 2, 2, 1)),
    ((1, 9, 9, 2), (1, 3, 3, 1)),
    ((2, 5, 4), (1, 2, 1)),
    ((3, 2, 6, 6), (1, 1, 2, 3)),
    ((1, 4, 4, 4, 2), (1, 2, 2, 2, 1)),
    ((6,), (2,)),
]


def reference(x, window):
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


@pytest.mark.parametrize(("shape", "window"), CASES)
@pytest.mark.parametrize("levels", [3, 1000], ids=["many ties", "few ties"])
def test_equal_to_reduce_window(rng, shape, window, levels):
    x = jnp.asarray(rng.integers(-levels, levels, shape).astype(np.float32))
    y, pull = jax.vjp(lambda x: numerics.max_pool(x, window), x)
    want, pull_want = jax.vjp(lambda x: reference(x, window), x)
    np.testing.assert_array_equal(y, want)
    g = jnp.asarray(rng.normal(size=y.shape).astype(np.float32))
    np.testing.assert_array_equal(*(jax.jit(p)(g)[0] for p in (pull, pull_want)))


def test_equal_signed_zeros_and_infinities():
    x = jnp.array([0.0, -0.0, -0.0, 0.0, -jnp.inf, -jnp.inf, jnp.inf, 1.0], jnp.float32)
    y, pull = jax.vjp(lambda x: numerics.max_pool(x, (2,)), x)
    want, pull_want = jax.vjp(lambda x: reference(x, (2,)), x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(pull(jnp.ones(4))[0], pull_want(jnp.ones(4))[0])


@pytest.mark.parametrize("place", range(4))
def test_nan_wins(place):
    x = jnp.ones(4).at[place].set(jnp.nan)
    assert jnp.isnan(jax.jit(lambda x: numerics.max_pool(x, (4,)))(x)).all()


def test_saved_for_backward_is_two_bits_per_output():
    _, pull = jax.vjp(lambda x: numerics.max_pool(x, (1, 2, 2, 1)), jnp.ones((2, 8, 8, 3)))
    saved = [leaf for leaf in jax.tree.leaves(pull) if leaf.size > 1]
    assert [(leaf.dtype, leaf.shape) for leaf in saved] == [(jnp.uint8, (2, 1, 4, 3))]


@pytest.mark.parametrize("window", [(2,), (0, 2), (5, 1), (2, 2, 2)])
def test_windows_that_do_not_fit(window):
    with pytest.raises(ValueError, match="does not fit"):
        numerics.max_pool(jnp.ones((4, 4)), window)


def test_too_many_places():
    with pytest.raises(ValueError, match="over 127 places"):
        numerics.max_pool(jnp.ones((12, 12)), (12, 12))
