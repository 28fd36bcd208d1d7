"""Scales, rounding and codes against the NumPy oracle, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import quantize as oracle
from tinyjax import numerics

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 5), (4, 6, 6, 3)]


CODED = {*((shape, 8) for shape in SHAPES), *(((2, 1, 3, 5), bits) for bits in range(2, 8))}


@pytest.mark.parametrize(
    ("shape", "bits"),
    [
        pytest.param(shape, bits, marks=() if (shape, bits) in CODED else pytest.mark.slow)
        for shape in SHAPES
        for bits in range(2, 9)
    ],
)
def test_codes_equal_the_oracle(rng, shape, bits):
    x = (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    scale = numerics.symmetric_scale(numerics.abs_max(jnp.asarray(x)), bits)
    np.testing.assert_array_equal(scale, oracle.scale(x, bits))
    # Outside jit for one shape: the operations of another one are compiled again.
    for jit in (jax.jit, lambda f: f) if shape == (2, 1, 3, 5) else (jax.jit,):
        near = jit(lambda x, s: numerics.quantize(x, s, bits=bits))(x, scale)
        np.testing.assert_array_equal(near, oracle.quantize(x, np.asarray(scale), bits))
        rough = jit(
            lambda x, s: numerics.quantize(
                x, s, bits=bits, rounding=numerics.stochastic, seed=jnp.uint32(12345)
            )
        )(x, scale)
        want = oracle.quantize(x, np.asarray(scale), bits, seed=12345)
        np.testing.assert_array_equal(rough, want)
        assert near.dtype == rough.dtype == jnp.int8


@pytest.mark.parametrize("axis", [(0,), (1,), (0, 1), (0, 2), (0, 1, 2), ()])
def test_scales_along_axes(rng, axis):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    got = numerics.symmetric_scale(numerics.abs_max(jnp.asarray(x), axis))
    np.testing.assert_array_equal(got, oracle.scale(x, 8, axis))


@functools.partial(jax.jit, static_argnames="bits")
def there_and_back(x, bits):
    """Scale, codes and what they stand for, in one program for each shape."""
    scale = numerics.symmetric_scale(numerics.abs_max(x), bits)
    q = numerics.quantize(x, scale, bits=bits)
    return scale, q, numerics.dequantize(q, scale)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(width=32)),
    st.integers(2, 8),
)
def test_any_float_is_coded_within_half_a_step_or_is_nan(x, bits):
    scale, q, back = map(np.asarray, there_and_back(x, bits))
    limit = numerics.qmax(bits)
    assert np.abs(q.astype(np.int32)).max(initial=0) <= limit
    if np.isfinite(x).all() and (scale < 2.0**126).all():
        # Half a step, plus rounding of the reciprocal, the product and the result: 3 half ulps
        # of codes up to `limit`. Below the smallest normal scale everything rounds to zero.
        step = np.float64(scale.reshape(()))
        slack = step * (0.5 + 2 * limit * 2.0**-23)
        small = np.abs(x).max() / limit < np.finfo(np.float32).tiny
        assert small or (np.abs(back.astype(np.float64) - x) <= slack).all()
    else:
        assert np.isnan(back).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 77, 4095])
def test_one_bad_value_poisons_the_scale(bad, where):
    x = np.ones(4096, np.float32)
    x[where] = bad
    assert np.isnan(jax.jit(numerics.abs_max)(x)).all()
    scale, _ = jax.jit(numerics.affine_range)(x)
    assert np.isnan(scale)


def test_stochastic_rounding_is_unbiased():
    t = jnp.linspace(-3.0, 3.0, 41, dtype=jnp.float32)
    seeds = jnp.arange(4096, dtype=jnp.uint32)
    many = jax.vmap(lambda seed: numerics.stochastic(t, seed))(seeds)
    mean = np.asarray(many, np.float64).mean(0)
    # Each mean of 4096 draws has a deviation of at most 0.5 / 64; six of them.
    np.testing.assert_allclose(mean, t, atol=6 * 0.5 / 64)
    assert np.abs(np.asarray(many) - np.asarray(t)).max() < 1


def test_stochastic_rounding_is_exact_over_its_random_bits():
    fixed = np.int64(round(0.3 * 65536))
    assert np.floor_divide(fixed + np.arange(65536), 65536).sum() == fixed


def test_random_bits_differ_by_seed_and_index():
    a, b = (np.asarray(numerics.hash_bits((64, 64), jnp.uint32(s))) for s in (1, 2))
    np.testing.assert_array_equal(a, oracle.bits_of((64, 64), 1))
    assert len(np.unique(a)) > 4090
    ones = np.unpackbits((a ^ b).view(np.uint8)).mean()
    assert 0.48 < ones < 0.52


@pytest.mark.parametrize("bits", [8, 5, 2])
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 3.0), (-4.0, -2.0), (0.0, 0.0)])
def test_affine_keeps_zero_exact_and_covers_the_range(rng, bits, low, high):
    x = rng.uniform(low, high, size=(50,)).astype(np.float32)
    x[0] = 0.0
    scale, zero_point = numerics.affine_range(jnp.asarray(x), bits)
    q = numerics.quantize(jnp.asarray(x), scale, bits=bits, zero_point=zero_point)
    want = oracle.quantize(x, np.asarray(scale), bits, zero_point=int(zero_point))
    np.testing.assert_array_equal(q, want)
    back = numerics.dequantize(q, scale, zero_point)
    assert back[0] == 0.0
    # The zero point is rounded, so one end may be cut by half a step more.
    assert np.abs(np.asarray(back) - x).max() <= float(scale) * (1 + 1e-5)


@pytest.mark.parametrize("bits", [1, 9, 0, -8, 8.0, True, "8"])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=r"bits is .*: use an int from 2 to 8"):
        numerics.qmax(bits)


def test_stochastic_needs_a_seed():
    with pytest.raises(ValueError, match=r"no seed: pass key=.*attach"):
        numerics.stochastic(jnp.zeros(3))
