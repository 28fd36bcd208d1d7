"""A codec at a cut: what comes across, in which direction, in which layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests import networks
from tinyjax import (
    at,
    attach,
    chain,
    count_macs,
    global_step,
    int8_qat,
    link,
    numerics,
    rewrite,
    send,
    sgq,
    stripe_groups,
)

KEY = jax.random.key(3)
CODEC = sgq(quantizer=stripe_groups(group_size=2))
CODECS = {
    "groups": CODEC,
    "step": sgq(),
    "groups, exact": sgq(quantizer=stripe_groups(group_size=2, exact=True)),
    "step, exact": sgq(quantizer=global_step(exact=True)),
}
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


# Outside jit one of them shows it, and the others are slow.
@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        *((name, jax.jit) for name in CODECS),
        *(
            pytest.param(name, lambda f: f, marks=pytest.mark.slow if name != "step" else ())
            for name in CODECS
        ),
    ],
)
def test_a_link_encodes_both_directions(rng, name, wrap):
    codec = CODECS[name]
    x = jnp.asarray(np.maximum(rng.normal(size=(3, 5, 4)), 0), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)
    y, back = wrap(lambda x: jax.vjp(lambda x: link(codec, x, KEY), x))(x)
    code = jax.jit(codec.encode)(x)
    np.testing.assert_array_equal(y, jax.jit(codec.decode)(code))
    seed = numerics.seed_of(KEY)
    want = jax.jit(lambda w: codec.decode_gradient(codec.encode_gradient(w, seed, code)))(w)
    got = wrap(back)(w)[0]
    np.testing.assert_allclose(got, want, rtol=1e-5)  # the step is a float sum
    assert (np.asarray(got)[x == 0] == 0).all() == code.exact
    assert not np.any(wrap(back)(jnp.zeros_like(w))[0])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("groups", "step, exact") else ())
        for name in CODECS
    ],
)
def test_a_link_under_vmap_is_a_link_per_example(rng, name):
    codec = CODECS[name]
    x = jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32)
    loss = lambda x: jnp.sum(jnp.sin(link(codec, x, KEY)))
    got = jax.jit(jax.vmap(jax.grad(loss)))(x)
    alone = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(got, np.stack([alone(each) for each in x]), rtol=1e-5)


@each_codec
def test_a_link_needs_a_key_and_has_no_second_derivative(codec):
    x = jnp.ones((2, 4))
    with pytest.raises(ValueError, match=r"a link was given no key.* attach\(tx, step, state"):
        link(codec, x, None)
    loss = lambda x: jnp.sum(link(codec, x, KEY) ** 3)
    with pytest.raises(ValueError, match="differentiated twice, and rounding has no second"):
        jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2)))(x)
    with pytest.raises(ValueError, match="differentiated twice, and rounding has no second"):
        jax.jit(jax.hessian(lambda x: jnp.sum(link(codec, x, KEY))))(x)


DOTS = {
    "x @ w": (((2, 3), (3, 4)), lambda w, x: x @ w, lambda x: x),
    "(w @ x.T).T": (((2, 3), (4, 3)), lambda w, x: (w @ x.T).T, lambda x: x),
    "two channel axes": (
        ((2, 3, 4), (3, 4, 5)),
        lambda w, x: jnp.einsum("nab,abf->nf", x, w),
        lambda x: x.reshape(2, 12),
    ),
    "a vector": (((4,), (4, 3)), lambda w, x: x @ w, lambda x: x[None]),
}


@pytest.mark.parametrize("name", DOTS)
def test_what_a_dot_contracts_are_the_channels(rng, name):
    (x, w), apply, canonical = DOTS[name]
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, w))
    flat = canonical(x)
    codec = sgq(quantizer=stripe_groups(group_size=flat.shape[-1]))
    sent = jax.jit(lambda x: codec.decode(codec.encode(x)))(flat).reshape(x.shape)
    got, _ = jax.jit(rewrite(send(codec), apply).apply)({}, w, x, key=KEY)
    np.testing.assert_allclose(got, jax.jit(apply)(w, sent), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_channels_of_a_convolution_are_found_by_its_layout(rng, layout):
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 4)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32)
    turn = (lambda x: x) if layout == "NHWC" else (lambda x: x.transpose(0, 3, 1, 2))
    numbers = (layout, "HWIO", layout)

    def apply(w, x):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    got, _ = jax.jit(rewrite(send(CODEC), apply).apply)({}, w, turn(x), key=KEY)
    want = jax.jit(lambda x: apply(w, turn(CODEC.decode(CODEC.encode(x)))))(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_split_step_trains_in_int8(rng):
    batch = networks.batch_of(rng)
    state, step = networks.plain_case(batch)
    tx = chain(at("w2", send(sgq())), int8_qat())
    ready = attach(tx, step, state, *batch)
    lifted = tx(jax.jit(step))
    assert set(count_macs(lifted, ready, *batch)) == {"int8"}
    losses = []
    for _ in range(15):
        ready, metrics = lifted(ready, *batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


def test_a_train_step_without_a_key_is_refused(rng):
    batch = networks.batch_of(rng)
    state, step = networks.plain_case(batch)
    with pytest.raises(ValueError, match="a link was given no key"):
        at("w2", send(sgq()))(step)(state, *batch)
