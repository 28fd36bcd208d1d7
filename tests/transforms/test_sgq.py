"""The SGQ codec: codes against the oracle, gradients within their bound, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import quantize as rounding
from tests.oracles import sgq as oracle
from tinyjax import SGQCode, numerics, sgq, sgq_decode, sgq_encode


def features(rng, shape, signed=False):
    """Channels of different loudness; post-ReLU unless signed."""
    x = rng.normal(size=shape) * rng.lognormal(size=shape[-1])
    return (x if signed else np.maximum(x, 0)).astype(np.float32)


def shapes(rng, count):
    """Shapes of two to five axes, odd sizes among them, with a divisor of the channels."""
    for _ in range(count):
        size, groups = (int(k) for k in rng.integers(1, 7, size=2))
        space = rng.integers(1, 6, size=rng.integers(0, 4))
        yield (int(rng.integers(1, 5)), *map(int, space), size * groups), size


def as_oracle(x, size, bits, grouping):
    """What the oracle makes of features: ids, packed codes, scales, zero points, decoded."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    ids = getattr(oracle, grouping)(flat, size)
    q, scales, zero_points = coded = oracle.group_quantize(flat, ids, x.shape[-1] // size, bits)
    packed = oracle.pack(q.reshape(-1, x.shape[-1]), bits)
    return ids, packed, scales, zero_points, oracle.group_dequantize(*coded, ids).reshape(x.shape)


def check(code, x, size, bits, grouping):
    ids, packed, scales, zero_points, back = as_oracle(x, size, bits, grouping)
    np.testing.assert_array_equal(code.ids, ids)
    np.testing.assert_array_equal(code.scale, oracle.bits_of(scales))
    np.testing.assert_array_equal(code.zero_point, zero_points)
    np.testing.assert_array_equal(code.packed, packed)
    np.testing.assert_array_equal(sgq_decode(code), back)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_codes_equal_the_oracle_over_many_shapes(rng, bits, count):
    for turn, (shape, size) in enumerate(shapes(rng, count)):  # compiled each: that is slow
        x = features(rng, shape, signed=turn % 2 == 0)
        code = jax.jit(lambda x, size=size: sgq_encode(x, group_size=size, bits=bits))(x)
        check(code, x, size, bits, "by_range")


@pytest.mark.parametrize("grouping", ["by_range", "by_cosine"])
def test_eager_and_jit_and_vmap_agree(rng, grouping):
    x = features(rng, (3, 5, 7, 12), signed=True)
    encode = lambda x: sgq_encode(x, group_size=4, grouping=getattr(numerics, grouping))
    eager, jitted = encode(jnp.asarray(x)), jax.jit(encode)(x)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)
    check(eager, x, 4, 4, grouping)
    each = jax.jit(jax.vmap(encode))(x[:, None])
    back = jax.jit(jax.vmap(sgq_decode))(each)
    for i in range(len(x)):
        alone = encode(jnp.asarray(x[i : i + 1]))
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a, i=i: a[i], each), alone)
        np.testing.assert_array_equal(back[i], sgq_decode(alone))


def test_a_calibrated_grouping_is_used_as_it_is(rng):
    x = features(rng, (4, 6, 6, 16))
    ids = numerics.by_cosine(jnp.asarray(x), 4)
    found = sgq_encode(x, group_size=4, grouping=numerics.by_cosine)
    given = jax.jit(lambda x: sgq_encode(x, group_size=4, grouping=numerics.fixed(ids)))(x)
    jax.tree.map(np.testing.assert_array_equal, found, given)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_come_back_and_zero_is_exact(rng, dtype):
    x = jnp.asarray(features(rng, (2, 4, 4, 8), signed=True)).astype(dtype).at[:, 1].set(0)
    back = jax.jit(lambda x: sgq_decode(sgq_encode(x, group_size=2)))(x)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    assert (back[:, 1] == 0).all()
    top = jnp.full((1, 2), jnp.finfo(jnp.float16).max, "float16")
    assert jnp.isfinite(sgq_decode(sgq_encode(top, group_size=2))).all()


def test_post_relu_features_have_zero_point_0(rng):
    code = sgq_encode(features(rng, (2, 4, 4, 8)), group_size=2)
    assert (code.zero_point == 0).all()
    assert isinstance(code, SGQCode)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_comes_out_as_none(rng, bad):
    x = features(rng, (3, 3, 3, 8))
    x[1, 2, 2, 5] = bad
    for wrap in (jax.jit, lambda f: f):
        code = wrap(lambda x: sgq_encode(x, group_size=2))(jnp.asarray(x))
        back = np.asarray(wrap(sgq_decode)(code))
        lost = np.asarray(code.ids) == code.ids[5]
        assert np.isnan(back[1][..., lost]).all()
        assert np.isfinite(back[1][..., ~lost]).all()
        assert np.isfinite(back[[0, 2]]).all()


# --- gradients -----------------------------------------------------------------------------------


def test_gradient_codes_equal_the_oracle_at_their_step(rng):
    g = (rng.normal(size=(3, 5, 4)) * 1e-3).astype(np.float32)
    g[:, 1] = 0
    code = jax.jit(sgq().encode_gradient)(g, jnp.uint32(7))
    want = rounding.quantize(g, np.asarray(code.step), 8, seed=7)
    np.testing.assert_array_equal(code.codes, want)
    back = sgq().decode_gradient(code)
    assert (back[:, 1] == 0).all()
    np.testing.assert_array_equal(back, want.astype(np.float32) * np.asarray(code.step))


@pytest.mark.parametrize("error", [0.1, 0.3, 1.0])
def test_gradients_are_unbiased_within_their_bound(rng, error):
    g = rng.normal(size=(8, 6, 6, 4)).astype(np.float32) * (rng.random((8, 6, 6, 4)) < 0.5)
    codec = sgq(error=error)
    seeds = jax.vmap(numerics.seed_of)(jax.random.split(jax.random.key(1), 400))
    crossed = jax.jit(jax.vmap(lambda s: codec.decode_gradient(codec.encode_gradient(g, s))))(seeds)
    norm = np.linalg.norm(g)
    assert codec.encode_gradient(g, seeds[0]).step > np.abs(g).max() / 127  # the closed form
    # The mean of 400 has a root mean square error below error / sqrt(400); 1152 elements make
    # the realised one close to it, and 1.5 leaves room for the chance of one test.
    assert np.linalg.norm(crossed.mean(0) - g) / norm <= 1.5 * error / np.sqrt(400)
    squares = np.square(np.asarray(crossed) - g).reshape(400, -1).sum(1)
    assert squares.mean() <= error**2 * norm**2
    assert (np.asarray(crossed)[:, g == 0] == 0).all()


def test_a_gradient_of_few_large_elements_keeps_the_coarser_bound(rng):
    g = (rng.normal(size=1000) * 1e-4).astype(np.float32)
    g[7] = 1.0
    codec = sgq(error=0.01)
    code = codec.encode_gradient(jnp.asarray(g), jnp.uint32(3))
    np.testing.assert_allclose(code.step, 1 / 127, rtol=1e-6)
    assert (np.abs(codec.decode_gradient(code) - g) <= code.step).all()
    seeds = jnp.arange(200, dtype=jnp.uint32)
    crossed = jax.vmap(lambda s: codec.decode_gradient(codec.encode_gradient(g, s)))(seeds)
    squares = np.square(np.asarray(crossed) - g).sum(1)
    assert np.sqrt(squares.mean()) <= code.step * np.sqrt(1000) / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_gradient_comes_out_as_nan(bad):
    g = jnp.ones((3, 4)).at[1, 2].set(bad)
    codec = sgq()
    assert jnp.isnan(codec.decode_gradient(codec.encode_gradient(g, jnp.uint32(0)))).all()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        ((2, 3, 20), {"group_size": 16}, "16, which does not cut 20 channels .* divisor of 20"),
        ((2, 3, 257), {"group_size": 1}, "does not cut 257 channels into at most 256 equal"),
        ((2, 3, 4), {"group_size": 0}, "group_size is 0: use an int from 1 up"),
        ((2, 3, 4), {"group_size": 2.0}, "group_size is 2.0: use an int"),
        ((2, 3, 4), {"group_size": 2, "bits": 3}, "bits is 3: use 2, 4 or 8"),
        ((4,), {"group_size": 2}, r"was given float32 \[4\]: give it features \[n, ..., c\]"),
        ((0, 4), {"group_size": 2}, "at least one sample"),
        (jnp.ones((2, 4), jnp.int32), {"group_size": 2}, "int32 .* one of float32, float16"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(x, settings, message):
    x = jnp.ones(x) if isinstance(x, tuple) else x
    with pytest.raises(ValueError, match=message) as found:
        sgq_encode(x, **settings)
    assert "\n" not in str(found.value)


def test_bad_settings_are_refused_where_they_are_made():
    for error in (0, -1, 2, float("nan")):
        with pytest.raises(ValueError, match=r"error is .* use a number above 0, at most 1"):
            sgq(error=error)
    with pytest.raises(ValueError, match="bits is 5: use 2, 4 or 8"):
        sgq(bits=5)
    with pytest.raises(ValueError, match="group_size is True: use an int"):
        sgq(group_size=True)
