"""int8_qat against its NumPy oracle: forward, input gradient, weight gradient."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tinyjax
from experiments.measure import saved_bytes
from tests.networks import initial
from tests.oracles import int8_qat as oracle
from tinyjax import at, chain, identity, int8_qat, numerics, rewrite, where

NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv_apply(strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1):
    def apply(p, x):
        return lax.conv_general_dilated(
            x, p["w"], strides, padding, rhs_dilation=dilation,
            dimension_numbers=NUMBERS, feature_group_count=groups,
        )  # fmt: skip

    return apply, (strides, padding, dilation, groups)


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def run(tx, apply, w, x, g, key=None):
    """Output and both gradients of one site under a transform."""
    f = lambda w, x: rewrite(tx, apply).apply({}, {"w": w}, x, key=key)[0]
    y, pull = jax.vjp(jax.jit(f), jnp.asarray(w), jnp.asarray(x))
    dw, dx = pull(jnp.asarray(g))
    return y, dx, dw


def seed_of(key, path="w"):
    """The seed of one site: the key folded with the path, as the transform draws it."""
    return int(numerics.seed_of(numerics.fold_key(key, zlib.crc32(path.encode()))))


def close(got, want):
    """Equal codes and integer sums; the float32 scale product may round once more."""
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7 * 2, atol=1e-30)


SHAPES = [(4, 3, 5), (1, 7, 2), (9, 33, 17), (2, 1, 1)]


@pytest.mark.parametrize(
    ("shape", "bits"),
    [
        *((shape, 8) for shape in SHAPES),
        ((4, 3, 5), 6),
        ((9, 33, 17), 2),
        *(pytest.param(shape, b, marks=pytest.mark.slow) for shape in SHAPES for b in (6, 2)),
    ],
)
def test_dense_equals_the_oracle(rng, shape, bits):
    m, k, n = shape
    x, w, g = floats(rng, m, k), floats(rng, k, n), floats(rng, m, n)
    apply, key = lambda p, x: x @ p["w"], jax.random.key(3)
    nearest = int8_qat(bits=bits, gradient_rounding=numerics.nearest)
    close(run(nearest, apply, w, x, g), oracle.dot(x, w, g, bits))
    got = run(int8_qat(bits=bits), apply, w, x, g, key)
    close(got, oracle.dot(x, w, g, bits, seed=seed_of(key)))


CONVOLUTIONS = [
    (((2, 6, 5, 4), (3, 3, 4, 20)), {}),
    (((2, 12, 9, 3), (3, 3, 3, 18)), {}),
    (((1, 9, 8, 4), (3, 3, 4, 6)), {"strides": (2, 2)}),
    (((1, 9, 8, 4), (3, 3, 4, 18)), {"dilation": (2, 1), "padding": ((2, 2), (1, 1))}),
    (((2, 5, 6, 6), (3, 3, 1, 6)), {"groups": 6}),
    (((2, 5, 6, 6), (3, 3, 3, 4)), {"groups": 2, "padding": ((0, 0), (1, 0))}),
]
# Each of them with one rounding; with the other one it is slow.
ROUNDED = [
    pytest.param(*case, stochastic, marks=pytest.mark.slow if (i + stochastic) % 2 else ())
    for i, case in enumerate(CONVOLUTIONS)
    for stochastic in (True, False)
]


@pytest.mark.parametrize(("shapes", "options", "stochastic"), ROUNDED)
def test_convolution_equals_the_oracle(rng, shapes, options, stochastic):
    x, w = (floats(rng, *s) for s in shapes)
    apply, spec = conv_apply(**options)
    g, key = floats(rng, *jax.eval_shape(apply, {"w": w}, x).shape), jax.random.key(9)
    if stochastic:
        close(run(int8_qat(), apply, w, x, g, key), oracle.conv(x, w, g, 8, spec, seed_of(key)))
    else:
        nearest = int8_qat(gradient_rounding=numerics.nearest)
        close(run(nearest, apply, w, x, g), oracle.conv(x, w, g, 8, spec))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv(7, (4,), strides=2), (2, 11, 3)),
        pytest.param(nn.Conv(4, (2, 3, 2)), (1, 4, 5, 3, 2), marks=pytest.mark.slow),
        (nn.ConvTranspose(6, (3, 3), strides=(2, 2)), (2, 5, 4, 3)),
        pytest.param(nn.Dense(5), (2, 3, 4), marks=pytest.mark.slow),
        (nn.DenseGeneral((2, 3), axis=(-2, -1)), (4, 3, 5)),
        (nn.Conv(8, (3, 3), feature_group_count=4), (1, 6, 6, 8)),
        (nn.Dense(3), (4,)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v),
)
def test_layers_of_every_shape_stay_close_to_float(rng, layer, shape):
    x = jnp.asarray(floats(rng, *shape))
    variables = initial(layer, x)
    loss = lambda f: lambda v, x: jnp.sum(jnp.sin(f(v, x)))
    quantized = lambda v, x: rewrite(int8_qat(), layer.apply).apply(
        {}, v, x, key=jax.random.key(1)
    )[0]
    got = jax.jit(jax.grad(loss(quantized), (0, 1)))(variables, x)
    want = jax.jit(jax.grad(loss(layer.apply), (0, 1)))(variables, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
        assert cosine > 0.99


PRODUCTS = [("y",), ("dx",), ("dw",), ("y", "dx"), ("dx", "dw"), ()]


@pytest.mark.parametrize(
    ("kind", "products"),
    [
        # A single gradient is that of a convolution; the other products with the other kind: slow.
        *(
            pytest.param(
                kind,
                products,
                marks=()
                if (products in (("dx",), ("dw",))) == (kind == "conv")
                else pytest.mark.slow,
            )
            for kind in ("dense", "conv")
            for products in PRODUCTS
        ),
    ],
)
def test_each_product_is_int8_or_float(rng, kind, products):
    if kind == "dense":
        apply, x, w = (lambda p, x: x @ p["w"]), floats(rng, 5, 7), floats(rng, 7, 20)
    else:
        apply, x, w = conv_apply()[0], floats(rng, 2, 6, 5, 4), floats(rng, 3, 3, 4, 20)
    g = floats(rng, *apply({"w": w}, x).shape)
    nearest = dict(gradient_rounding=numerics.nearest)
    mixed = run(int8_qat(products=products, **nearest), apply, w, x, g)
    whole = run(int8_qat(**nearest), apply, w, x, g)
    exact = run(identity(), apply, w, x, g)
    for name, got, quantized, single in zip(("y", "dx", "dw"), mixed, whole, exact, strict=True):
        if name in products:
            close([got], [quantized])
        elif name == "dw":  # from the codes of x: half a step of 127
            assert 0 < np.linalg.norm(got - single) < 0.02 * np.linalg.norm(single)
        else:
            np.testing.assert_allclose(got, single, rtol=1e-5, atol=1e-5)
    f = lambda w, x: rewrite(int8_qat(products=products, **nearest), apply).apply({}, {"w": w}, x)[
        0
    ]
    macs = tinyjax.count_macs(lambda w, x: jax.vjp(f, w, x)[1](g), w, x)
    assert ("int8" in macs) == bool(products)
    assert ("float32" in macs) == (len(products) < 3)


def test_a_scale_per_row_is_folded_into_the_weight_gradient(rng):
    x, w, g = floats(rng, 6, 9), floats(rng, 9, 5), floats(rng, 6, 5)
    x *= np.exp(2 * rng.normal(size=(6, 1))).astype(np.float32)
    tx = int8_qat(scaling=tinyjax.per_row, gradient_rounding=numerics.nearest)
    y, _, dw = run(tx, lambda p, x: x @ p["w"], w, x, g)
    s_x, s_w = np.abs(x).max(1, keepdims=True) / 127, np.abs(w).max(0) / 127
    x_q, w_q = np.rint(x / s_x), np.rint(w / s_w)
    np.testing.assert_allclose(y, (x_q @ w_q) * (s_x * s_w), rtol=1e-5)
    folded = g * s_x
    s_g = np.abs(folded).max(0) / 127
    np.testing.assert_allclose(dw, (x_q.T @ np.rint(folded / s_g)) * s_g, rtol=1e-5)


def test_one_scale_for_each_tensor(rng):
    x, w, g = floats(rng, 6, 9), floats(rng, 9, 5), floats(rng, 6, 5)
    tx = int8_qat(
        weight_range=numerics.per_tensor,
        gradient_range=numerics.coarse,
        gradient_rounding=numerics.nearest,
    )
    y, dx, dw = run(tx, lambda p, x: x @ p["w"], w, x, g)
    s_x, s_w, s_g = (np.abs(t).max() / 127 for t in (x, w, g))
    x_q, w_q, g_q = np.rint(x / s_x), np.rint(w / s_w), np.rint(g / s_g)
    np.testing.assert_allclose(y, (x_q @ w_q) * (s_x * s_w), rtol=1e-5)
    np.testing.assert_allclose(dx, (g_q @ w_q.T) * (s_g * s_w), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dw, (x_q.T @ g_q) * (s_x * s_g), rtol=1e-5, atol=1e-6)


def test_clipped_gradients_saturate(rng):
    x, w, g = floats(rng, 6, 9), floats(rng, 9, 5), floats(rng, 6, 5)
    half = int8_qat(gradient_range=numerics.shrunk(0.5), gradient_rounding=numerics.nearest)
    _, _, dw = run(half, lambda p, x: x @ p["w"], w, x, g)
    s_x, s_g = np.abs(x).max() / 127, np.abs(g).max(0) * np.float32(0.5) / 127
    g_q = np.clip(np.rint(g / s_g), -127, 127)
    assert (np.abs(g_q) == 127).sum() > 5
    np.testing.assert_allclose(dw, (np.rint(x / s_x).T @ g_q) * (s_x * s_g), rtol=1e-5, atol=1e-6)


def test_owning_the_epilogue_changes_no_bit(rng):
    """With an epilogue whose derivative is kept exactly; what is not owned is applied outside."""
    x, w = floats(rng, 2, 8, 8, 4), floats(rng, 3, 3, 4, 24)
    b = floats(rng, 24)
    conv, _ = conv_apply()
    layer = lambda p, x: nn.max_pool(nn.relu(conv(p, x) + p["b"]), (2, 2), (2, 2))
    inner = int8_qat()

    def call(op, site, vars, key, x, w, epilogue, **overrides):
        return inner.call(op, site, vars, key, x, w, None, **overrides)

    outside = inner._replace(call=call)
    params, key = {"w": jnp.asarray(w), "b": jnp.asarray(b)}, jax.random.key(4)

    def gradients(tx):
        f = lambda p, x: rewrite(tx, layer).apply({}, p, x, key=key)[0]
        return jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(f(p, x))), (0, 1)))(
            params, x
        )

    jax.tree.map(np.testing.assert_array_equal, gradients(inner), gradients(outside))


def test_channels_first_is_channels_last(rng):
    x, w = floats(rng, 2, 3, 6, 5), floats(rng, 20, 3, 3, 3)
    first = lambda p, x: lax.conv_general_dilated(x, p["w"], (1, 1), "SAME")  # NCHW, OIHW
    apply, _ = conv_apply()
    forward = lambda apply: jax.jit(lambda w, x: rewrite(int8_qat(), apply).apply({}, {"w": w}, x))
    last, _ = forward(apply)(w.transpose(2, 3, 1, 0), x.transpose(0, 2, 3, 1))
    got, _ = forward(first)(w, x)
    np.testing.assert_array_equal(np.asarray(got).transpose(0, 2, 3, 1), last)


def test_low_precision_models_keep_their_dtype(rng):
    x, w = (jnp.asarray(floats(rng, 8, 8), jnp.bfloat16) for _ in range(2))
    y, dx, dw = run(
        int8_qat(), lambda p, x: x @ p["w"], w, x, jnp.ones((8, 8), jnp.bfloat16), jax.random.key(0)
    )
    assert {y.dtype, dx.dtype, dw.dtype} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(y.astype(jnp.float32), (x @ w).astype(jnp.float32), atol=0.3)


def test_the_mean_of_many_stochastic_gradients_converges(rng):
    x, w, g = floats(rng, 16, 24), floats(rng, 24, 12), floats(rng, 16, 12)
    g *= np.exp(rng.normal(size=(16, 1))).astype(np.float32)
    apply = lambda p, x: x @ p["w"]

    def gradients(key):
        f = lambda w, x: rewrite(int8_qat(bits=4), apply).apply({}, {"w": w}, x, key=key)[0]
        return jax.vjp(f, jnp.asarray(w), jnp.asarray(x))[1](jnp.asarray(g))

    keys = jax.random.split(jax.random.key(0), 256)
    dws, dxs = jax.jit(jax.vmap(gradients))(keys)
    # Codes of x and w are 4-bit here and the same in every draw, so compare with their mean.
    for draws in (dws, dxs):
        mean = draws.mean(0)
        one = jnp.linalg.norm(draws[0] - mean)
        half = jnp.linalg.norm(draws[:64].mean(0) - draws[64:].mean(0))
        # 64 and 192 independent draws: 0.144 of one; seven tenths more for chance.
        assert half < 0.25 * one


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_kept_for_backward_is_the_codes_of_x(rng, kind):
    if kind == "dense":
        apply, shape, w = (lambda p, x: x @ p["w"]), (16, 32), floats(rng, 32, 20)
    else:
        apply, shape, w = conv_apply()[0], (4, 8, 8, 8), floats(rng, 3, 3, 8, 20)
    x = 2 * jnp.asarray(floats(rng, *shape))
    # A layer before, so that x is not an input, which would not count.
    loss = lambda p, x: rewrite(int8_qat(), apply).apply({}, p, x * x)[0].sum()
    bytes_kept = saved_bytes(loss, {"w": jnp.asarray(w)}, x)
    assert x.size <= bytes_kept <= x.size + 16  # and a scale


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_bad_values_propagate(rng, bad, kind):
    if kind == "dense":
        apply, x, w = (lambda p, x: x @ p["w"]), floats(rng, 4, 6), floats(rng, 6, 20)
    else:
        apply, x, w = conv_apply()[0], floats(rng, 2, 5, 5, 3), floats(rng, 3, 3, 3, 20)
    g = np.ones(apply({"w": w}, x).shape, np.float32)
    tx, key = int8_qat(), jax.random.key(0)
    flat = x.copy().reshape(-1)
    flat[5] = bad
    y, _, dw = run(tx, apply, w, flat.reshape(x.shape), g, key)
    assert np.isnan(y).all()
    assert np.isnan(dw).all()
    sick = w.copy()
    sick[..., 3].flat[0] = bad
    y, dx, _ = run(tx, apply, sick, x, g, key)
    assert np.isnan(y[..., 3]).all()
    assert np.isfinite(np.delete(y, 3, -1)).all()
    assert np.isnan(dx).all()
    sick = g.copy()
    sick[..., 3].flat[0] = bad
    _, dx, dw = run(tx, apply, w, x, sick, key)
    assert np.isnan(dx).all()
    assert np.isnan(dw[..., 3]).all()
    assert np.isfinite(np.delete(dw, 3, -1)).all()


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-45])
def test_zeros_and_tiny_values_give_zeros(value):
    x, w, g = (
        np.full((2, 3), value, np.float32),
        np.ones((3, 2), np.float32),
        np.zeros((2, 2), np.float32),
    )
    y, dx, dw = run(int8_qat(), lambda p, x: x @ p["w"], w, x, g, jax.random.key(0))
    assert np.abs(y).max() <= 3.01 * (value and max(value, 2.0**-126))
    assert (dx == 0).all()
    assert (dw == 0).all()


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("dead", [0.0, 1e-40], ids=["zero", "subnormal"])
def test_a_dead_feature_does_not_disturb_the_others(rng, kind, dead):
    if kind == "dense":
        apply, x, w = (lambda p, x: x @ p["w"]), floats(rng, 16, 64), floats(rng, 64, 32) / 1000
    else:
        apply, x, w = conv_apply()[0], floats(rng, 2, 6, 6, 8), floats(rng, 3, 3, 8, 20) / 1000
    w[..., 5] = dead
    g = floats(rng, *apply({"w": w}, x).shape)
    _, dx, dw = run(int8_qat(), apply, w, x, g, jax.random.key(0))
    _, want_dx, want_dw = run(identity(), apply, w, x, g)
    # Two roundings of 7 bits: 0.01 for normal values, as without the dead feature.
    assert np.linalg.norm(dx - want_dx) < 0.02 * np.linalg.norm(want_dx)
    assert np.linalg.norm(dw - want_dw) < 0.02 * np.linalg.norm(want_dw)


def test_second_derivatives_are_refused(rng):
    w, x = jnp.asarray(floats(rng, 4, 4)), jnp.asarray(floats(rng, 2, 4))
    nearest = rewrite(
        int8_qat(gradient_rounding=numerics.nearest), lambda p, x: jnp.tanh(x @ p["w"])
    )
    slope = jax.jit(lambda w, x: jax.grad(lambda x: nearest.apply({}, {"w": w}, x)[0].sum())(x))
    assert np.isfinite(slope(w, x)).all()
    refused = pytest.raises(ValueError, match=r"site 'w' was differentiated twice.*where")
    with refused:
        jax.grad(lambda w: (slope(w, x) ** 2).sum())(w)
    with refused:
        jax.grad(lambda x: (slope(w, x) ** 2).sum())(x)
    with refused:
        jax.jit(jax.hessian(lambda x: nearest.apply({}, {"w": w}, x)[0].sum()))(x)


@pytest.mark.parametrize("choose", ["cond", "switch"])
def test_a_branch_chosen_by_an_epilogue(rng, choose):
    def apply(p, x):
        z = nn.relu(x @ p["w"])
        if choose == "cond":
            return lax.cond(jnp.any(jnp.isnan(z)), jnp.zeros_like, lambda z: z, z)
        return lax.switch(jnp.argmax(z[0]) % 2, [lambda z: z, jnp.sin], z)

    w, x = jnp.asarray(floats(rng, 5, 8)), jnp.asarray(floats(rng, 4, 5))
    nearest = rewrite(int8_qat(gradient_rounding=numerics.nearest), apply)
    got = jax.jit(jax.grad(lambda w: nearest.apply({}, {"w": w}, x)[0].sum()))(w)
    want = jax.jit(jax.grad(lambda w: apply({"w": w}, x).sum()))(w)
    assert jnp.vdot(got, want) > 0.99 * jnp.linalg.norm(got) * jnp.linalg.norm(want)


def test_a_row_does_not_see_the_others(rng):
    """Nor does its gradient, whatever the epilogue keeps."""
    x, w, g = (jnp.asarray(floats(rng, *s)) for s in ((16, 10), (10, 8), (16, 8)))
    tx = int8_qat(scaling=tinyjax.per_row, gradient_rounding=numerics.nearest)
    run = rewrite(tx, lambda p, x: nn.gelu(x @ p["w"]))
    dx = jax.jit(lambda x: jax.vjp(lambda x: run.apply({}, {"w": w}, x)[0], x)[1](g)[0])
    np.testing.assert_array_equal(dx(x.at[3].set(1e6))[4:], dx(x)[4:])


def test_nothing_comes_out_of_an_empty_exit(rng):
    w, x = jnp.asarray(floats(rng, 5, 8)), jnp.asarray(floats(rng, 4, 5))
    nearest = rewrite(
        int8_qat(gradient_rounding=numerics.nearest), lambda p, x: nn.gelu(x @ p["w"])[:, :0]
    )
    assert not jax.jit(jax.grad(lambda w: nearest.apply({}, {"w": w}, x)[0].sum()))(w).any()


@pytest.mark.parametrize("products", ["y", ("z",), ("y", "dz")])
def test_products_are_named(products):
    with pytest.raises(ValueError, match=r"products is .*: use some of"):
        int8_qat(products=products)


@pytest.mark.parametrize("bits", [1, 9, 8.0, None])
def test_bits(bits):
    with pytest.raises(ValueError, match="use an int from 2 to 8"):
        int8_qat(bits=bits)


@pytest.mark.parametrize(("x", "w"), [((0, 3), (3, 2)), ((2, 0), (0, 2)), ((2, 3), (3, 0))])
def test_empty_axes(x, w):
    with pytest.raises(ValueError, match=r"'w' has an empty axis .*: drop empty batches"):
        rewrite(int8_qat(), lambda p, x: x @ p["w"]).apply({}, {"w": jnp.ones(w)}, jnp.ones(x))


def test_it_goes_last_in_a_chain():
    tx = chain(int8_qat(), identity())
    with pytest.raises(
        ValueError, match=r"'w' int8_qat would bypass another transform.*put it last"
    ):
        rewrite(tx, lambda p, x: x @ p["w"]).apply({}, {"w": jnp.eye(2)}, jnp.ones((1, 2)))


def test_a_policy_per_site(rng):
    apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] @ p["c"]
    params = {k: jnp.asarray(floats(rng, 8, 8)) for k in "abc"}
    x = jnp.asarray(floats(rng, 4, 8))
    tx = chain(at("a", int8_qat(bits=8)), where(lambda site: site.path == "c", int8_qat(bits=4)))
    run = jax.jit(lambda p: rewrite(tx, apply).apply({}, p, x)[0])
    assert tinyjax.count_macs(run, params) == {"int8": 2 * 4 * 8 * 8, "float32": 4 * 8 * 8}
    by_hand = rewrite(where(lambda site: site.path == "c", int8_qat(bits=4)), apply)
    half = lambda p, x: by_hand.apply({}, p, x)[0]
    nested = jax.jit(rewrite(at("a", int8_qat()), half).apply)
    np.testing.assert_array_equal(run(params), nested({}, params, x)[0])
