"""The SGQ codec: codes against the oracle, gradients within their bound, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import quantize as rounding
from tests.oracles import sgq as oracle
from tinyjax import (
    GroupCode,
    StepCode,
    global_step,
    numerics,
    sgq,
    sgq_decode,
    sgq_encode,
    stripe_groups,
)
from tinyjax.transforms.quantizers import nonzero, symbols


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
    np.testing.assert_array_equal(jax.jit(sgq_decode)(code), back)


@pytest.mark.parametrize(
    ("bits", "count"),
    [(2, 2), (4, 4), (8, 2), *(pytest.param(b, 40, marks=pytest.mark.slow) for b in (2, 4, 8))],
)
def test_codes_equal_the_oracle_over_many_shapes(rng, bits, count):
    for turn, (shape, size) in enumerate(shapes(rng, count)):  # compiled each: that is slow
        x = features(rng, shape, signed=turn % 2 == 0)
        code = jax.jit(stripe_groups(group_size=size, bits=bits))(x)
        check(code, x, size, bits, "by_range")


@pytest.mark.parametrize(
    "grouping", ["by_range", pytest.param("by_cosine", marks=pytest.mark.slow)]
)
def test_eager_and_jit_and_vmap_agree(rng, grouping):
    x = features(rng, (3, 5, 7, 12), signed=True)
    encode = stripe_groups(group_size=4, grouping=getattr(numerics, grouping))
    eager, jitted = encode(jnp.asarray(x)), (jit := jax.jit(encode))(x)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)
    check(eager, x, 4, 4, grouping)
    each = jax.jit(jax.vmap(encode))(x[:, None])
    back = jax.jit(jax.vmap(sgq_decode))(each)
    for i in range(len(x)):
        alone = jit(x[i : i + 1])
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a, i=i: a[i], each), alone)
        np.testing.assert_array_equal(back[i], jax.jit(sgq_decode)(alone))


def test_a_calibrated_grouping_is_used_as_it_is(rng):
    x = features(rng, (4, 6, 6, 16))
    ids = jax.jit(numerics.by_cosine, static_argnums=1)(x, 4)
    found = jax.jit(stripe_groups(group_size=4, grouping=numerics.by_cosine))(x)
    given = jax.jit(stripe_groups(group_size=4, grouping=numerics.fixed(ids)))(x)
    jax.tree.map(np.testing.assert_array_equal, found, given)


QUANTIZERS = {
    "step": global_step(),
    "step, exact": global_step(exact=True),
    "groups": stripe_groups(group_size=2),
    "groups, exact": stripe_groups(group_size=2, exact=True),
}
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@each_quantizer
def test_dtypes_come_back_and_zero_is_exact(rng, quantizer, dtype):
    x = jnp.asarray(features(rng, (2, 4, 4, 8), signed=True)).astype(dtype).at[:, 1].set(0)
    there_and_back = jax.jit(lambda x: sgq_decode(sgq_encode(x, quantizer=quantizer)))
    back = there_and_back(x)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    assert (back[:, 1] == 0).all()
    top = jnp.full((1, 2), jnp.finfo(jnp.float16).max, "float16")
    assert np.isfinite(there_and_back(top)).all()


def test_post_relu_features_have_zero_point_0(rng):
    x = jnp.asarray(features(rng, (2, 4, 4, 8)))
    for quantizer, kind in ((global_step(), StepCode), (stripe_groups(group_size=2), GroupCode)):
        code = jax.jit(quantizer)(x)
        assert (code.zero_point == 0).all()
        assert isinstance(code, kind)


@pytest.mark.parametrize("signed", [False, True], ids=["relu", "signed"])
@each_quantizer
def test_symbols_and_the_mask_are_those_of_the_features(rng, quantizer, signed):
    x = features(rng, (3, 5, 3, 4), signed) * (rng.random((3, 5, 3, 4)) < 0.7)
    x[0, 0, 0] = [1e-6, 1e-30, -1e-6 * signed, 0]  # far below half a step
    code = jax.jit(quantizer)(x)
    back = np.asarray(sgq_decode(code))
    mask = np.asarray(nonzero(code))
    assert symbols(code).shape == (45, 4)
    assert mask.shape == x.shape
    assert (back[~mask] == 0).all()
    assert (x[back < 0] <= 0).all()
    assert (x[back > 0] >= 0).all()
    if code.exact:
        np.testing.assert_array_equal(mask, x != 0)
    else:
        assert not mask[0, 0, 0].any()


def test_one_step_is_half_the_root_mean_square_and_codes_stand_for_their_means(rng):
    x = features(rng, (4, 9, 9, 8))
    code = jax.jit(global_step())(x)
    rms = np.sqrt(np.mean(np.square(x, dtype=np.float64)))
    assert 0.5 * rms <= numerics.widened(code.scale) <= 0.505 * rms
    q, back = np.asarray(symbols(code)).reshape(x.shape), np.asarray(sgq_decode(code))
    for k in range(1, 15):
        if (q == k).any():
            np.testing.assert_allclose(back[q == k][0], x[q == k].mean(), rtol=2e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_none_anywhere_with_one_step(rng, bad):
    x = features(rng, (3, 3, 3, 8))
    x[1, 2, 2, 5] = bad
    for exact in (False, True):
        codec = sgq(quantizer=global_step(exact=exact))
        code = jax.jit(codec.encode)(x)
        assert np.isnan(jax.jit(codec.decode)(code)).all()
        broken = np.full(x.shape, np.nan, np.float32)
        lost = jax.jit(codec.encode_gradient)(broken, jnp.uint32(0), code)
        assert np.isnan(jax.jit(codec.decode_gradient)(lost)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_comes_out_as_none(rng, bad):
    x = features(rng, (3, 3, 3, 8))
    x[1, 2, 2, 5] = bad
    code = jax.jit(stripe_groups(group_size=2))(x)
    back = np.asarray(jax.jit(sgq_decode)(code))
    lost = np.asarray(code.ids) == code.ids[5]
    assert np.isnan(back[1][..., lost]).all()
    assert np.isfinite(back[1][..., ~lost]).all()
    assert np.isfinite(back[[0, 2]]).all()


# --- gradients -----------------------------------------------------------------------------------

SLOW = pytest.mark.slow
CODE = global_step()(jnp.ones((1, 1)))  # which only a masked gradient depends on
STEPS = {"solved": numerics.solved_step, "closed": numerics.bounded_step}


@pytest.mark.parametrize("gradient_step", STEPS.values(), ids=STEPS)
def test_gradient_codes_equal_the_oracle_at_their_step(rng, gradient_step):
    g = (rng.normal(size=(3, 5, 4)) * 1e-3).astype(np.float32)
    g[:, 1] = 0
    codec = sgq(gradient_step=gradient_step)
    code = jax.jit(codec.encode_gradient)(g, jnp.uint32(7), CODE)
    np.testing.assert_allclose(code.step, gradient_step(jnp.asarray(g), 0.3), rtol=1e-5)
    want = rounding.quantize(g, np.asarray(code.step), 8, seed=7)
    np.testing.assert_array_equal(code.codes, want)
    back = codec.decode_gradient(code)
    assert (back[:, 1] == 0).all()
    np.testing.assert_array_equal(back, want.astype(np.float32) * np.asarray(code.step))


BOUNDS = [  # each step and mask at the usual error, both steps at the others; the rest is slow
    pytest.param(
        error,
        STEPS[step],
        masked,
        id=f"{error}-{step}-{'masked' * masked}",
        marks=() if error == 0.3 or masked == (error == 1.0) == (step == "closed") else SLOW,
    )
    for error in (0.1, 0.3, 1.0)
    for step in STEPS
    for masked in (False, True)
]


@pytest.mark.parametrize(("error", "gradient_step", "masked"), BOUNDS)
def test_gradients_are_unbiased_within_their_bound(rng, error, gradient_step, masked):
    g = rng.normal(size=(8, 6, 6, 4)).astype(np.float32) * (rng.random((8, 6, 6, 4)) < 0.5)
    x = features(rng, g.shape)
    codec = sgq(quantizer=global_step(exact=masked), error=error, gradient_step=gradient_step)
    code = jax.jit(codec.encode)(x)
    seeds = jax.vmap(numerics.seed_of)(jax.random.split(jax.random.key(1), 400))
    across = lambda s: codec.decode_gradient(codec.encode_gradient(jnp.asarray(g), s, code))
    crossed = jax.jit(jax.vmap(across))(seeds)
    g = np.where(x != 0, g, 0) if masked else g
    norm = np.linalg.norm(g)
    step = jax.jit(codec.encode_gradient)(g, seeds[0], code).step
    assert step > np.abs(g).max() / 127  # the codes suffice
    # The mean of 400 has a root mean square error below error / sqrt(400); a thousand elements
    # make the realised one close to it, and 1.5 leaves room for the chance of one test.
    assert np.linalg.norm(crossed.mean(0) - g) / norm <= 1.5 * error / np.sqrt(400)
    squares = np.square(np.asarray(crossed) - g).reshape(400, -1).sum(1)
    # The solved step uses the bound up: four deviations of a mean of 400 sums.
    assert squares.mean() <= error**2 * norm**2 + 4 * squares.std() / np.sqrt(400)
    assert gradient_step is numerics.bounded_step or squares.mean() > 0.97 * error**2 * norm**2
    assert (np.asarray(crossed)[:, g == 0] == 0).all()


def test_a_gradient_of_few_large_elements_keeps_the_coarser_bound(rng):
    g = (rng.normal(size=1000) * 1e-4).astype(np.float32)
    g[7] = 1.0
    codec = sgq(error=1e-4)
    code = jax.jit(codec.encode_gradient)(g, jnp.uint32(3), CODE)
    np.testing.assert_allclose(code.step, 1 / 127, rtol=1e-5)
    assert (np.abs(codec.decode_gradient(code) - g) <= code.step).all()
    seeds = jnp.arange(200, dtype=jnp.uint32)
    across = lambda s: codec.decode_gradient(codec.encode_gradient(g, s, CODE))
    crossed = jax.jit(jax.vmap(across))(seeds)
    squares = np.square(np.asarray(crossed) - g).sum(1)
    assert np.sqrt(squares.mean()) <= code.step * np.sqrt(1000) / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@each_quantizer
def test_a_broken_gradient_comes_out_as_nan(quantizer, bad):
    g = jnp.ones((3, 4)).at[1, 2].set(bad)  # where the features are 0, too
    codec = sgq(quantizer=quantizer)
    code = jax.jit(codec.encode)(jnp.ones((3, 4)).at[1, 2].set(0))
    sent = jax.jit(codec.encode_gradient)(g, jnp.uint32(0), code)
    assert np.isnan(jax.jit(codec.decode_gradient)(sent)).all()


def test_an_exact_link_changes_no_gradient_of_a_relu_but_by_rounding(rng):
    x = jnp.asarray(rng.normal(size=(4, 5, 5, 8)), jnp.float32)
    g = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    codec = sgq(quantizer=global_step(exact=True))
    features, back = jax.vjp(jax.nn.relu, x)
    sent = jnp.where(jax.jit(lambda x: nonzero(codec.encode(x)))(features), g, 0)
    np.testing.assert_array_equal(back(sent)[0], back(g)[0])


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
        stripe_groups(**settings)(x)
    assert "\n" not in str(found.value)


def test_bad_settings_are_refused_where_they_are_made():
    for error in (0, -1, 2, float("nan")):
        with pytest.raises(ValueError, match=r"error is .* use a number above 0, at most 1"):
            sgq(error=error)
    for make in (stripe_groups, global_step):
        with pytest.raises(ValueError, match="bits is 5: use 2, 4 or 8"):
            make(bits=5)
    with pytest.raises(ValueError, match="group_size is True: use an int"):
        stripe_groups(group_size=True)
    for step in (0, -1, 9, float("nan")):
        with pytest.raises(ValueError, match=r"step is .* use a number above 0, at most 8"):
            global_step(step=step)
    for offset in (-0.1, 0.6, float("nan")):
        with pytest.raises(ValueError, match=r"offset is .* use a number from 0 to 0.5"):
            global_step(offset=offset)
    with pytest.raises(ValueError, match=r"was given int32 \[2, 4\]: give it features"):
        global_step()(jnp.ones((2, 4), jnp.int32))
