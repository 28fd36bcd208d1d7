"""Gains, levels and their packing against the NumPy oracle, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import gains as oracle
from tests.oracles import sgq
from tinyjax import numerics

BOTH = (jax.jit, lambda f: f)


def features(rng, n, m, c):
    """Post-ReLU; channels and places of different loudness, some of both silent."""
    x = rng.normal(size=(n, m, c)) * 4.0 ** rng.integers(-3, 4, size=c)
    x = x * 2.0 ** rng.integers(-8, 1, size=(n, m, 1)) * (rng.random((n, m, 1)) < 0.9)
    return np.maximum(x * (rng.random(c) < 0.9), 0).astype(np.float32)


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize(("n", "m", "groups", "size"), [(2, 9, 3, 4), (1, 1, 1, 1), (3, 5, 5, 1)])
def test_codes_equal_the_oracle(rng, n, m, groups, size, levels):
    ids = rng.permutation(np.repeat(np.arange(groups), size))
    x = features(rng, n, m, groups * size)
    q, gains, scale = want = oracle.gain_quantize(x, ids, groups, levels)
    for wrap in BOTH if (size, levels) == (4, 3) else BOTH[:1]:
        encode = wrap(lambda x, ids: numerics.gain_quantize(x, ids, groups, levels))
        found = encode(jnp.asarray(x), jnp.asarray(ids, jnp.int32))
        for got, right in zip(found, (q, gains, sgq.bits_of(scale)), strict=True):
            np.testing.assert_array_equal(got, right)
        decode = wrap(lambda *code: numerics.gain_dequantize(*code, levels))
        back = decode(*found, jnp.asarray(ids, jnp.int32))
        np.testing.assert_array_equal(back, oracle.gain_dequantize(*want, ids, levels))
    assert (back[x == 0] == 0).all()


encode = jax.jit(numerics.gain_quantize, static_argnums=(2, 3))


@given(
    hnp.arrays(np.float32, (1, 4, 3), elements=st.floats(0, 2.0**126, width=32)),
    st.sampled_from([3, 4]),
)
def test_an_element_is_within_half_a_level_of_a_stripe(x, levels):
    ids = jnp.zeros(3, jnp.int32)
    q, gains, scale = encode(x, ids, 1, levels)
    back = np.asarray(numerics.gain_dequantize(q, gains, scale, ids, levels), np.float64)
    largest = x.max(axis=2).astype(np.float64)
    scale = np.float64(numerics.widened(scale)[0, 0])
    # The first gain is at most a rung, 1.276, above the largest element, which was rounded to a
    # 1024th; there all are within half a level, and the one taken has no larger sum of squares.
    level = 1.276 * (largest + scale / 2048) / (levels - 1)
    far = np.sqrt(3) * level / 2 + scale / 1024
    # Below the ladder all is 0.0.
    far = np.where(largest < 0.032 * scale, np.maximum(far, largest), far)
    assert (np.abs(back - x).max(axis=2) <= far).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 2.0**127])
def test_what_the_levels_are_not_for_is_no_number(rng, bad):
    x = features(rng, 2, 3, 4)
    x[1, 2, 3] = bad
    ids = jnp.array([0, 1, 0, 1])

    @jax.jit
    def there_and_back(x):
        return numerics.gain_dequantize(*numerics.gain_quantize(x, ids, 2, 3), ids, 3)

    back = np.asarray(there_and_back(x))
    assert np.isnan(back[1][:, [1, 3]]).all()
    assert np.isfinite(back[1][:, [0, 2]]).all()
    assert np.isfinite(back[0]).all()


def test_minus_zero_and_what_is_subnormal_are_zero():
    x = jnp.array([[[-0.0, -1e-40, 1e-40, 0.0]]])
    for wrap in BOTH:
        ids = jnp.zeros(4, jnp.int32)
        q, gains, scale = wrap(lambda x: numerics.gain_quantize(x, ids, 1, 4))(x)  # noqa: B023
        assert not q.any()
        assert not gains.any()
        assert numerics.widened(scale) == 2.0**-100


def test_the_widest_group_does_not_overflow():
    """Errors of 512 elements that all lie between levels, tried at the smallest of four gains."""
    x = jnp.concatenate([jnp.full((1, 4, 256), 1.0), jnp.full((1, 4, 256), 0.25)], axis=2)
    ids = jnp.zeros(512, jnp.int32)
    found = jax.jit(lambda x: numerics.gain_quantize(x, ids, 1, 4))(x)
    want = oracle.gain_quantize(np.asarray(x), np.asarray(ids), 1, 4)
    np.testing.assert_array_equal(found[0], want[0])
    np.testing.assert_array_equal(found[1], want[1])


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 11, 20])
@pytest.mark.parametrize("levels", [3, 4])
def test_packing_equals_the_oracle_and_comes_back(rng, rows, levels):
    q = rng.integers(0, levels, (rows, 3)).astype(np.uint8)
    for wrap in BOTH if rows == 11 else BOTH[:1]:
        packed = wrap(lambda q: numerics.pack_levels(q, levels))(jnp.asarray(q))
        np.testing.assert_array_equal(packed, oracle.pack(q, levels))
        back = wrap(lambda p: numerics.unpack_levels(p, levels, rows))(packed)
        np.testing.assert_array_equal(back, q)
        assert back.dtype == packed.dtype == jnp.uint8


def test_four_levels_are_two_bits(rng):
    q = jnp.asarray(rng.integers(0, 4, (7, 3)), jnp.uint8)
    np.testing.assert_array_equal(numerics.pack_levels(q, 4), numerics.pack_bits(q, 2))


@pytest.mark.parametrize("levels", [2, 5, 3.5, "3"])
def test_other_levels_are_refused(levels):
    with pytest.raises(ValueError, match=r"levels is .*: use 3 or 4, which fill a byte"):
        numerics.levels_per_byte(levels)
