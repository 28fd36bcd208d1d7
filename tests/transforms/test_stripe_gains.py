"""The quantizer of gains: codes against the oracle, at a cut, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

from tests.codes import packed_rows
from tests.oracles import gains as oracle
from tests.oracles import sgq as grouping
from tinyjax import (
    at,
    attach,
    chain,
    int8_qat,
    link,
    numerics,
    send,
    sgq,
    sgq_decode,
    sgq_encode,
    stripe_gains,
)
from tinyjax.transforms.quantizers import nonzero, symbols

decode = jax.jit(sgq_decode)


def features(rng, shape):
    """After a relu; channels of different loudness."""
    return np.maximum(rng.normal(size=shape) * rng.lognormal(size=shape[-1]), 0).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "size", "levels"),
    [((2, 3, 5, 12), 4, 3), ((3, 7, 6), 6, 4), ((5, 4), 1, 3), ((1, 1, 2, 2, 3), 3, 4)],
)
def test_codes_equal_the_oracle(rng, shape, size, levels):
    x = features(rng, shape)
    code = jax.jit(stripe_gains(group_size=size, levels=levels))(x)
    flat, groups = x.reshape(len(x), -1, shape[-1]), shape[-1] // size
    ids = grouping.by_range(flat, size)
    q, gains, scales = oracle.gain_quantize(flat, ids, groups, levels)
    np.testing.assert_array_equal(code.ids, ids)
    np.testing.assert_array_equal(code.scale, grouping.bits_of(scales))
    np.testing.assert_array_equal(code.packed, oracle.pack(q.reshape(-1, shape[-1]), levels))
    np.testing.assert_array_equal(code.gains, packed_rows(gains.reshape(-1, groups), 4))
    back = oracle.gain_dequantize(q, gains, scales, ids, levels)
    np.testing.assert_array_equal(decode(code), back.reshape(shape))
    np.testing.assert_array_equal(symbols(code), q.reshape(-1, shape[-1]))
    np.testing.assert_array_equal(nonzero(code), q.reshape(shape) != 0)
    assert not code.exact


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow), "bfloat16"]
)
def test_dtypes_come_back_eager_jit_and_vmap_agree(rng, dtype):
    x = jnp.asarray(features(rng, (3, 5, 8))).astype(dtype)
    encode = stripe_gains(group_size=4)
    code = jax.jit(encode)(x)
    back = decode(code)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    assert (back[x == 0] == 0).all()
    if dtype == "float32":
        each = jax.jit(jax.vmap(lambda x: sgq_decode(encode(x[None]))[0]))(x)
        jax.tree.map(np.testing.assert_array_equal, sgq_encode(x, quantizer=encode), code)
        alone = jax.jit(lambda x: sgq_decode(encode(x)))
        for one, found in zip(x, each, strict=True):  # whose groups are its own
            np.testing.assert_array_equal(found, alone(one[None])[0])


def test_more_levels_and_smaller_groups_are_closer(rng):
    x = features(rng, (4, 16, 64))

    def lost(size, levels):
        back = np.asarray(decode(jax.jit(stripe_gains(group_size=size, levels=levels))(x)))
        return np.sum((back - x) ** 2) / np.sum(x**2)

    assert max(lost(16, 4), lost(4, 3)) < lost(16, 3) < 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_what_it_is_not_for_comes_out_as_none(rng, bad):
    x = features(rng, (2, 3, 8))
    x[1, 2, 5] = bad
    code = jax.jit(stripe_gains(group_size=4))(x)
    back = np.asarray(decode(code))
    lost = np.asarray(code.ids) == code.ids[5]
    assert np.isnan(back[1][:, lost]).all()
    assert np.isfinite(back[1][:, ~lost]).all()
    assert np.isfinite(back[0]).all()


def test_a_link_sends_gradients_everywhere(rng):
    codec, key = sgq(quantizer=stripe_gains(group_size=2)), jax.random.key(3)
    x = jnp.asarray(features(rng, (3, 5, 4)))
    g = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    y, back = jax.vjp(jax.jit(lambda x: link(codec, x, key)), x)
    code = jax.jit(codec.encode)(x)
    np.testing.assert_array_equal(y, codec.decode(code))
    sent = jax.jit(codec.encode_gradient)(g, numerics.seed_of(key), code)
    assert not sent.masked
    np.testing.assert_allclose(back(g)[0], codec.decode_gradient(sent), rtol=1e-5)


def test_a_step_trains_across_a_cut_in_one_trace(rng):
    traces = []

    def apply(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    @jax.jit
    def step(state, x, y):
        traces.append(1)
        loss = lambda p: jnp.mean((state.apply_fn(p, x) - y) ** 2)
        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((32, 6), (6, 2)))
    shapes = {"a": (6, 16), "b": (16, 2)}
    params = {k: jnp.asarray(rng.normal(size=s) / 3, jnp.float32) for k, s in shapes.items()}
    state = train_state.TrainState.create(apply_fn=apply, params=params, tx=optax.sgd(0.05))
    tx = chain(at("b", send(sgq(quantizer=stripe_gains(group_size=4)))), int8_qat())
    state, losses = attach(tx, step, state, x, x @ w), []
    traces.clear()
    lifted = tx(step)
    for _ in range(20):
        state, loss = lifted(state, x, x @ w)
        losses.append(float(loss))
    assert len(traces) == 1
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        ((2, 3, 20), {}, "16, which does not cut 20 channels .* divisor of 20"),
        ((2, 4), {"group_size": 0}, "group_size is 0: use an int from 1 to 512"),
        ((2, 4), {"group_size": 513}, "group_size is 513: use an int from 1 to 512"),
        ((2, 4), {"group_size": True}, "group_size is True: use an int"),
        ((2, 4), {"group_size": 2, "levels": 2}, "levels is 2: use 3 or 4, which fill a byte"),
        ((4,), {"group_size": 2}, r"was given float32 \[4\]: give it features"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(x, settings, message):
    with pytest.raises(ValueError, match=message) as found:
        stripe_gains(**settings)(jnp.ones(x))
    assert "\n" not in str(found.value)
