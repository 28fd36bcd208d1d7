"""Integer products against int64, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import integer as oracle
from tinyjax import numerics


def codes(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def whole(parts):
    """The parts of a product, added in int64."""
    return sum(np.asarray(part, np.int64) for part in parts)


SIZES = [(1, 1, 1), (2, 3, 5), (7, 16, 1), (1, 33, 20), (32, 64, 48), (17, 129, 65), (64, 31, 8)]


@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_products_equal_int64(rng, m, k, n):
    x, w, g = codes(rng, m, k), codes(rng, k, n), codes(rng, m, n)
    for jit in (jax.jit, lambda f: f):
        np.testing.assert_array_equal(whole(jit(numerics.dot)(x, w)), oracle.dot(x, w))
        np.testing.assert_array_equal(whole(jit(numerics.dot_dx)(g, w)), oracle.dot(g, w.T))
        np.testing.assert_array_equal(whole(jit(numerics.dot_dw)(x, g)), oracle.dot(x.T, g))


def test_the_longest_contraction_is_safe_and_the_next_is_split():
    assert numerics.MAX_CONTRACTION * 127**2 < 2**31 <= (numerics.MAX_CONTRACTION + 1) * 127**2
    for k, parts in ((numerics.MAX_CONTRACTION, 1), (numerics.MAX_CONTRACTION + 1, 2)):
        x, w = np.full((1, k), 127, np.int8), np.full((k, 1), 127, np.int8)
        for got in (numerics.dot(x, w), numerics.dot_dx(x, w.T), numerics.dot_dw(x.T, w)):
            assert len(got) == parts
            np.testing.assert_array_equal(whole(got), oracle.dot(x, w))


def test_total_adds_the_parts_in_float32(rng):
    parts = tuple(rng.integers(-(2**23), 2**23, (5,)).astype(np.int32) for _ in range(3))
    a, b, c = (p.astype(np.float32) for p in parts)
    np.testing.assert_array_equal(numerics.total(parts), (a + b) + c)


def test_zero_point_term_is_exact(rng):
    x, w, z = codes(rng, 9, 33), codes(rng, 33, 4), np.int32(-90)
    (y,) = numerics.dot(x, w)
    want = (x.astype(np.int64) - z) @ w.astype(np.int64)
    np.testing.assert_array_equal(y - numerics.zero_point_term(w, z), want)


def test_zero_point_term_serves_a_padded_convolution(rng):
    x, w, z = codes(rng, 2, 5, 5, 3), codes(rng, 3, 3, 3, 4), np.int32(50)
    filled = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.int8(z))
    valid = numerics.ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    (y,) = numerics.conv(filled, w, valid)
    same = valid._replace(padding=((1, 1), (1, 1)))
    want = oracle.conv(x.astype(np.int64) - z, w, same)
    np.testing.assert_array_equal(y - numerics.zero_point_term(w.reshape(27, 4), z), want)


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.int8), "quantize both to int8"),
        (np.zeros((2, 3), np.int8), np.zeros((4, 2), np.int8), "do not multiply"),
        (np.zeros((3,), np.int8), np.zeros((3, 2), np.int8), "do not multiply"),
    ],
)
def test_bad_operands(x, w, message):
    with pytest.raises(ValueError, match=message):
        numerics.dot(jnp.asarray(x), jnp.asarray(w))
