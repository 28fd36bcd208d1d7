"""Grouping, group quantization, packing and the gradient's step against the NumPy oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import sgq as oracle
from tinyjax import numerics

BOTH = (jax.jit, lambda f: f)
dequantize = jax.jit(numerics.group_dequantize)


def features(rng, n, m, c, signed=False):
    """Channels of different loudness, some silent; post-ReLU unless signed."""
    x = rng.normal(size=(n, m, c)) * 10.0 ** rng.integers(-3, 4, size=c)
    x = x * (rng.random(c) < 0.9)
    return (x if signed else np.maximum(x, 0)).astype(np.float32)


@pytest.mark.parametrize("grouping", ["by_range", "by_cosine"])
@pytest.mark.parametrize(
    ("c", "size"),
    [
        *((12, size) for size in (1, 12)),
        (35, 5),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((6, 3), (64, 16))),
    ],
)
def test_groupings_equal_the_oracle(rng, grouping, c, size):
    found = getattr(numerics, grouping)
    for signed in (False, True):
        x = features(rng, 3, 7, c, signed)
        want = getattr(oracle, grouping)(x, size)
        for wrap in BOTH if c == 35 else BOTH[:1]:
            ids = wrap(lambda x: found(x, size))(jnp.asarray(x))
            np.testing.assert_array_equal(ids, want)
            assert ids.dtype == jnp.int32
        np.testing.assert_array_equal(numerics.fixed(want)(jnp.asarray(x), size), want)


def test_groups_in_order_and_at_random_are_balanced():
    x = jnp.ones((2, 12))
    np.testing.assert_array_equal(numerics.in_order(x, 4), np.repeat([0, 1, 2], 4))
    first, again, other = (np.asarray(numerics.at_random(s)(x, 4)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    for ids in (first, other):
        assert np.bincount(ids).tolist() == [4, 4, 4]


@pytest.mark.parametrize("grouping", [numerics.by_range, numerics.by_cosine])
@pytest.mark.parametrize("fill", [0.0, 1.0, np.nan, np.inf])
def test_groups_are_balanced_whatever_is_in_them(rng, grouping, fill):
    x = features(rng, 2, 5, 12)
    x[:, :, ::3] = fill
    ids = jax.jit(lambda x: grouping(x, 4))(jnp.asarray(x))
    assert np.bincount(ids).tolist() == [4, 4, 4]
    assert np.bincount(grouping(jnp.full((2, 12), fill), 4)).tolist() == [4, 4, 4]


def test_cosine_puts_together_what_points_the_same_way(rng):
    directions = rng.normal(size=(100, 4))
    x = np.repeat(directions, 8, axis=1) * 10.0 ** rng.integers(-2, 3, size=32)
    x = x + 0.01 * np.abs(x).max(axis=0) * rng.normal(size=x.shape)
    ids = np.asarray(numerics.by_cosine(jnp.asarray(x, jnp.float32), 8))
    assert all(len(set(ids[8 * k : 8 * k + 8])) == 1 for k in range(4))


@pytest.mark.parametrize("ids", [[0, 0, 1], [0, 0, 0, 1], [0, 0, 2, 2], [[0, 0, 1, 1]]])
def test_a_fixed_grouping_must_fit(ids):
    with pytest.raises(ValueError, match="do not put 4 channels into groups of 2: calibrate"):
        numerics.fixed(ids)(jnp.ones((3, 4)), 2)


ALONE = np.arange(5)  # a group per channel


@functools.lru_cache
def compiled(bits, exact):
    """Compiled once for all examples of a property."""
    return jax.jit(lambda x: numerics.group_quantize(x, jnp.asarray(ALONE), 5, bits, exact=exact))


@given(
    hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(-(2.0**125), 2.0**125, width=32)),
    st.sampled_from(((2, False), (2, True), (4, False), (4, True), (8, False))),
)
def test_group_codes_equal_the_oracle_and_err_by_a_step_at_most(x, how):
    want = oracle.group_quantize(x, ALONE, 5, *how)
    q, scale, zero_point = compiled(*how)(jnp.asarray(x))
    np.testing.assert_array_equal(scale, oracle.bits_of(want[1]))
    np.testing.assert_array_equal(zero_point, want[2])
    np.testing.assert_array_equal(q, want[0])
    back = np.asarray(dequantize(q, scale, zero_point, jnp.asarray(ALONE)))
    np.testing.assert_array_equal(back, oracle.group_dequantize(*want, ALONE))
    assert (np.abs(back.astype(np.float64) - x) <= want[1][:, None].astype(np.float64)).all()
    assert (back[x == 0] == 0).all()
    if how[1]:
        zero = np.asarray(zero_point)[:, None]
        np.testing.assert_array_equal(q == zero, np.abs(x) < 2.0**-126)


def test_not_a_number_stays_in_its_group_and_sample(rng):
    x = features(rng, 3, 6, 8, signed=True)
    x[0, 2, 1], x[1, 3, 5], x[2, :, 7] = np.nan, -np.inf, 3e38
    ids = jnp.asarray(np.arange(8) % 2)
    for wrap in BOTH:
        coded = wrap(lambda x: numerics.group_quantize(x, ids, 2, 4))(jnp.asarray(x))
        assert (np.asarray(coded[0]) < 16).all()  # or they would spill into their neighbours
        lost = np.isnan(wrap(numerics.group_dequantize)(*coded, ids))
        np.testing.assert_array_equal(lost[:, 0, :2], [[0, 1], [0, 1], [0, 1]])
        np.testing.assert_array_equal(lost, np.broadcast_to(lost[:, :1], lost.shape))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8])
def test_packing(rng, bits, rows):
    q = rng.integers(0, 2**bits, size=(rows, 3)).astype(np.uint8)
    packed = jax.jit(numerics.pack_bits, static_argnums=1)(q, bits)
    np.testing.assert_array_equal(packed, oracle.pack(q.astype(np.int64), bits))
    back = jax.jit(numerics.unpack_bits, static_argnums=(1, 2))(packed, bits, rows)
    np.testing.assert_array_equal(back, q)
    values = rng.normal(size=2**bits).astype(np.float32)
    found = jax.jit(numerics.look_up_bits, static_argnums=(1, 2))(packed, bits, rows, values)
    np.testing.assert_array_equal(found, values[q])


@pytest.mark.parametrize("error", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_the_step_of_a_gradient(rng, error, size):
    g = (rng.normal(size=(4, 5, 6)) * size).astype(np.float32)
    got = numerics.bounded_step(jnp.asarray(g), error)
    # A mean of 120 squares in float32, and five roundings after it: each 2**-24 at most.
    np.testing.assert_allclose(got, oracle.bounded_step(g, error), rtol=125 * 2**-24)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_step_of_a_broken_gradient_is_no_number(bad):
    g = jnp.ones((3, 4)).at[1, 2].set(bad)
    assert not np.isfinite(numerics.bounded_step(g, 0.3))
    assert numerics.bounded_step(jnp.zeros((3, 4)), 0.3) > 0
