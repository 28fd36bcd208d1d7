"""int8_frozen: the integers of int8_qat, and in patches the same bits as in the frame."""

from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tinyjax
from tests.moving import conv, follow, one_sentence, video
from tinyjax import calibrate, chain, frozen, int8_frozen, int8_qat, numerics, pass_skip, rewrite


def network(rng, channels, widths, depthwise=False):
    params, sizes = {}, [channels, *widths]
    for i, (a, b) in enumerate(pairwise(sizes)):
        k = int(rng.choice([1, 3, 3, 5])) if i else 3
        params[f"w{i}"] = jnp.asarray(rng.normal(size=(k, k, a, b)) / (k * a**0.5), jnp.float32)
        params[f"b{i}"] = jnp.asarray(rng.normal(size=b), jnp.float32)
    if depthwise:
        params["d"] = jnp.asarray(rng.normal(size=(3, 3, 1, sizes[1])) / 3, jnp.float32)
    params["head"] = jnp.asarray(rng.normal(size=(sizes[-1], 5)), jnp.float32)

    def apply(params, x):
        for i in range(len(widths)):
            x = nn.relu(conv(x, params[f"w{i}"], stride=2 if i == 1 else 1) + params[f"b{i}"])
            if depthwise and i == 0:
                x = x + conv(x, params["d"], groups=x.shape[3])
        return x @ params["head"]

    return apply, params


def in_int8(apply, table):
    int8 = rewrite(int8_frozen(table=table), apply)
    return lambda params, x: int8.apply({}, params, x)[0]


SLOW = pytest.mark.slow  # each case is a network of its own, which compiles for seconds


@pytest.mark.parametrize(
    ("shape", "depthwise"),
    [
        ((32, 32, 3), False),
        ((29, 43, 1), True),
        pytest.param((32, 32, 3), True, marks=SLOW),
        pytest.param((29, 43, 1), False, marks=SLOW),
        pytest.param((21, 40, 4), False, marks=SLOW),
        pytest.param((21, 40, 4), True, marks=SLOW),
    ],
    ids=str,
)
def test_integers_are_those_of_int8_qat(shape, depthwise, rng):
    apply, params = network(rng, shape[2], [8, 20, 6], depthwise)
    x = video(rng, shape)[0]
    table = calibrate(apply, params, [(x,)])
    both = [
        rewrite(int8_frozen(table=table), apply),
        rewrite(int8_qat(scaling=frozen(table), gradient_rounding=numerics.nearest), apply),
    ]
    got, want = (jax.jit(lambda p, x, r=r: r.apply({}, p, x)[0])(params, x) for r in both)
    # Integers are equal; a bias may be fused with a scale into one rounding, and be so again.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    alone = lambda params, x: conv(x, params["w0"])
    got, want = (
        jax.jit(rewrite(tx, alone).apply)({}, params, x)[0]
        for tx in (
            int8_frozen(table={"w0": 2.0}, bits=5),
            int8_qat(scaling=frozen({"w0": 2.0}), bits=5, gradient_rounding=numerics.nearest),
        )
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("shape", "depthwise", "seed"),
    [
        ((37, 51, 1), True, 0),
        *(
            pytest.param((40, 56, 3), *rest, marks=SLOW)
            for rest in ((False, 0), (False, 1), (True, 0), (True, 1))
        ),
        *(
            pytest.param((37, 51, 1), *rest, marks=SLOW)
            for rest in ((True, 1), (False, 0), (False, 1))
        ),
    ],
    ids=str,
)
def test_skipping_in_int8_is_exact_to_the_last_bit(shape, depthwise, seed):
    rng = np.random.default_rng(seed)
    apply, params = network(rng, shape[2], [6, 18, 18, 4], depthwise)
    frames = video(rng, shape, 6)
    int8 = in_int8(apply, calibrate(apply, params, [(frames[0],)]))
    for x, out, of_ref, _ in follow(int8, params, frames, patch=8, dense_above=1.0):
        np.testing.assert_array_equal(out, of_ref)
        if x is frames[-1]:
            np.testing.assert_array_equal(out, jax.jit(int8)(params, x))


def test_patches_are_computed_on_integers(rng):
    apply, params = network(rng, 3, [16, 16])
    frame = video(rng, (48, 48, 3))[0]
    int8 = in_int8(apply, calibrate(apply, params, [(frame,)]))
    skipping = rewrite(pass_skip(patch=8), int8)
    state = skipping.init(params, frame)
    text = jax.jit(skipping.apply).lower(state, params, frame).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert any("xi8>" in line and "->" in line and "xi32>" in line for line in products)


def test_nan_reaches_its_windows_alone(rng):
    apply, params = network(rng, 2, [4])
    frame = video(rng, (32, 32, 2))[0]
    int8 = in_int8(apply, calibrate(apply, params, [(frame,)]))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        hurt = frame.at[0, 10, 12, 1].set(bad)
        found = [out for _, out, _, _ in follow(int8, params, [frame, hurt, frame], patch=8)]
        lost = np.isnan(found[1][0]).all(-1)
        wanted = np.zeros((32, 32), bool)
        wanted[9:12, 11:14] = True
        np.testing.assert_array_equal(lost, wanted)
        np.testing.assert_array_equal(found[2], found[0])


def test_what_is_refused(rng):
    apply, params = network(rng, 2, [4])
    frame = jnp.ones((1, 32, 32, 2))
    table = {"w0": 1.0, "head": 1.0}
    int8 = in_int8(apply, table)
    alone = rewrite(int8_frozen(table={"w0": 1.0}), apply)
    behind = rewrite(chain(int8_frozen(table=table), int8_frozen(table=table)), apply)
    loss = lambda params: int8(params, frame).sum()
    transposed = in_int8(lambda p, x: jnp.einsum("nhwc,fc->nhwf", x, p["w"]), {"w": 1.0})
    cases = {
        "bits is 9": lambda: int8_frozen(table=table, bits=9),
        "the magnitude of 'w0' is 0.0": lambda: int8_frozen(table={"w0": 0.0}),
        "int8_frozen was differentiated at": lambda: jax.grad(loss)(params),
        "site 'head' has no frozen scale": lambda: alone.apply({}, params, frame),
        "would bypass another transform": lambda: behind.apply({}, params, frame),
        "in another layout": lambda: transposed({"w": jnp.ones((3, 2))}, frame),
    }
    for message, act in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            act()
        one_sentence(error)


def test_dynamic_scales_are_refused_by_pass_skip(rng):
    apply, params = network(rng, 2, [4])
    frame = jnp.ones((1, 32, 32, 2))
    int8 = rewrite(int8_qat(gradient_rounding=numerics.nearest), apply)
    skipping = rewrite(pass_skip(patch=8), lambda p, x: int8.apply({}, p, x)[0])
    with pytest.raises(ValueError, match="no product of this function can be") as error:
        skipping.init(params, frame)
    one_sentence(error)
    assert tinyjax.int8_frozen is int8_frozen
