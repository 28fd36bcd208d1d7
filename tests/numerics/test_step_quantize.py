"""One step for a tensor against the NumPy oracle: codes, centroids, zero points, no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import step as oracle
from tinyjax import numerics

BOTH = (jax.jit, lambda f: f)
quantize = jax.jit(
    numerics.step_quantize, static_argnums=1, static_argnames=("step", "offset", "exact")
)

frozen_codes = jax.jit(numerics.step_codes, static_argnums=3, static_argnames=("offset", "exact"))


@jax.jit
def dequantize(q, scale, centroids):
    packed = numerics.pack_bits(q, len(centroids).bit_length() - 1)
    return numerics.step_dequantize(packed, scale, centroids, len(q))


def tensor(rng, m, c, kind):
    """Of a kind that cuts have: after a relu, after a gelu, on both sides, on the wrong one."""
    x = rng.normal(size=(m, c)) * rng.lognormal(size=c)
    x = {
        "relu": np.maximum(x, 0),
        "gelu": x / (1 + np.exp(-1.7 * x)),
        "signed": x,
        "negative": np.minimum(x, 0),
        "skewed": np.where(x > 0, x**3, 0.3 * x),
        "zero": 0 * x,
    }[kind]
    return x.astype(np.float32)


numbers = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-4, 4, width=32)
KINDS = ("relu", "gelu", "signed", "negative", "skewed", "zero")


def check(found, x, bits, step, offset, exact):
    q, scale, zero_point, centroids = map(np.asarray, found)
    d = np.asarray(numerics.widened(jnp.asarray(scale)))
    # A float sum of n squares is off by far less than 1e-5; rounded up, the step is one of two.
    exact_step = oracle.rms_step(x, step)
    assert d in (oracle.round_up(max(exact_step * f, 2.0**-100)) for f in (1 - 1e-5, 1 + 1e-5))
    want = oracle.step_quantize(x, d, bits, offset, exact)
    np.testing.assert_array_equal(q, want[0])
    assert zero_point == want[1]
    np.testing.assert_array_equal(centroids, want[2].view(np.uint16))
    back = np.asarray(dequantize(*map(jnp.asarray, (q, scale, centroids))))
    np.testing.assert_array_equal(back, oracle.step_dequantize(q, d, want[2]))
    assert (back[x == 0] == 0).all()
    if exact:
        np.testing.assert_array_equal(q == zero_point, x == 0)


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_equal_the_oracle(rng, kind, exact):
    for bits, shape, step, offset in (
        (4, (37, 12), 0.5, 0.4),
        (2, (5, 7), 0.8, 0.5),
        (8, (9, 1), 0.05, 0.25),
    ):
        x = tensor(rng, *shape, kind)
        found = quantize(x, bits, step=step, offset=offset, exact=exact)
        check(found, x, bits, step, offset, exact)


def test_eager_and_jit_and_vmap_agree(rng):
    x = np.stack([tensor(rng, 5, 7, kind) for kind in KINDS])
    call = lambda x: numerics.step_quantize(x, 4, exact=True)
    each = jax.jit(jax.vmap(call))(x)
    for i, one in enumerate(x):
        alone = quantize(one, 4, exact=True)
        jax.tree.map(np.testing.assert_array_equal, alone, call(jnp.asarray(one)))
        jax.tree.map(np.testing.assert_array_equal, alone, jax.tree.map(lambda a, i=i: a[i], each))


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_at_the_step_of_another_tensor_equal_the_oracle(rng, kind, exact):
    for bits, shape, offset in ((4, (9, 12), 0.4), (2, (5, 7), 0.5), (8, (11, 1), 0.25)):
        known, x = tensor(rng, *shape, "signed"), tensor(rng, *shape, kind)
        x = x.repeat(2, axis=0) * np.float32([[1.0], [40.0]] * len(x))  # some beyond the codes
        own, scale, zero_point, _ = quantize(known, bits, offset=offset, exact=exact)
        q, found = frozen_codes(x, scale, zero_point, bits, offset=offset, exact=exact)
        d = np.asarray(numerics.widened(scale))
        want = oracle.step_codes(x, d, int(zero_point), bits, offset, exact)
        np.testing.assert_array_equal(q, want)
        assert (q.dtype, int(found)) == (jnp.uint8, int(scale))
        again, _ = frozen_codes(known, scale, zero_point, bits, offset=offset, exact=exact)
        np.testing.assert_array_equal(again, own)


@given(
    hnp.arrays(np.float32, (2, 3), elements=numbers),
    st.sampled_from([2.0**-100, 0.37, 1.0, 2.0**60]),
    st.integers(0, 3),
    st.booleans(),
)
def test_any_numbers_at_any_step(x, d, zero_point, exact):
    x[np.abs(x) < 2.0**-126] = 0
    d = oracle.round_up(d)
    scale = jnp.uint16(np.float32(d).view(np.uint32) >> 16)
    q, found = frozen_codes(x, scale, jnp.uint8(zero_point), 2, exact=exact)
    np.testing.assert_array_equal(q, oracle.step_codes(x, d, zero_point, 2, exact=exact))
    assert int(found) == int(scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -(2.0**112)])
def test_no_number_at_the_step_of_another_tensor(rng, bad):
    x = tensor(rng, 5, 6, "signed")
    _, scale, zero_point, _ = quantize(x, 4)
    for one, before in ((x, jnp.uint16(0x7FC0)), (np.where(x == x[2, 3], bad, x), scale)):
        _, found = frozen_codes(one.astype(np.float32), before, zero_point, 4)
        assert int(found) == 0x7FC0


@pytest.mark.parametrize("shape", [(600, 64), (1, 33000)])
def test_centroids_of_large_tensors_are_of_a_sample_that_is_all_over_it(rng, shape):
    x = tensor(rng, *shape, "relu")
    found = quantize(x, 4)
    check(found, x, 4, 0.5, 0.4, False)


@pytest.mark.parametrize("shape", [(131, 9), (64, 8), (1, 511)])
def test_nothing_is_overlooked(rng, shape):
    x = tensor(rng, *shape, "signed")
    for place, far in ((0, 40.0), (-1, -40.0)):
        one = x.copy()
        one.flat[place] = far
        check(quantize(one, 4), one, 4, 0.5, 0.4, False)
        one.flat[place] = np.nan
        q, scale, _, centroids = quantize(one, 4)
        assert np.isnan(dequantize(q, scale, centroids)).all()


def test_the_sample_is_spread_and_in_step_with_no_width():
    rows = [int(r) for r in oracle.sampled(np.arange(2**18).reshape(-1, 1)).ravel()]
    assert len(set(rows)) == 2**15
    assert np.diff([0, *rows, 2**18]).max() <= 16
    for width in (7, 8, 14, 16, 32):
        count = np.bincount(np.asarray(rows) % width, minlength=width)
        assert count.min() > 0.5 * count.mean()


@given(hnp.arrays(np.float32, (3, 4), elements=numbers), st.sampled_from([2, 4, 8]), st.booleans())
def test_any_numbers(x, bits, exact):
    x[np.abs(x) < 2.0**-126] = 0  # which count as 0.0
    found = quantize(x, bits, exact=exact)
    check(found, x, bits, 0.5, 0.4, exact)


@pytest.mark.parametrize("wrap", BOTH)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**112, -(2.0**127)])
def test_what_is_no_number_makes_all_none(rng, bad, wrap):
    x = tensor(rng, 5, 6, "signed")
    x[2, 3] = bad
    q, scale, _, centroids = wrap(lambda x: numerics.step_quantize(x, 4))(jnp.asarray(x))
    assert np.isnan(dequantize(q, scale, centroids)).all()


def test_a_subnormal_number_counts_as_0():
    x = jnp.asarray(np.float32([[1.0, 1e-40, -1e-40, 0.0]]))
    q, *_ = quantize(x, 4, exact=True)
    assert (q[0, 1:] == q[0, 3]).all()


def test_signs_get_the_codes_they_reach():
    def reach(low, high):
        return int(quantize(np.float32([[low, high] + [1.0] * 98]), 4, step=1.0)[2])

    assert reach(0.0, 9.0) == 0
    assert reach(-2.0, 90.0) == 0  # far below the step
    assert reach(-1.5, 3.0) == 1
    assert reach(-5.0, 1.0) == 4
    assert reach(-30.0, 30.0) in (7, 8)
