"""Integer convolutions and their gradients against int64 loops, exactly."""

import jax
import numpy as np
import pytest

from tests.numerics.test_integer_ops import codes, whole
from tests.oracles import integer as oracle
from tinyjax import numerics
from tinyjax.numerics import conv_columns, conv_taps, integer_conv
from tinyjax.numerics.conv_taps import ConvSpec

# (batch, space, taps, channels, features, spec): the library form, its edges, and the tap form.
CASES = {
    "same": (2, (6, 5), (3, 3), 8, 24, ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 1)),
    "large map": (2, (12, 9), (3, 3), 4, 20, ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 1)),
    "valid": (1, (9, 11), (3, 2), 3, 32, ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    "full": (1, (4, 4), (3, 3), 20, 5, ConvSpec((1, 1), ((2, 2), (2, 2)), (1, 1), 1)),
    "pointwise": (3, (9, 9), (1, 1), 17, 33, ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    "narrow": (2, (7, 7), (3, 3), 3, 5, ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 1)),
    "stride": (2, (9, 8), (3, 3), 4, 20, ConvSpec((2, 2), ((0, 1), (1, 1)), (1, 1), 1)),
    "stride with rest": (1, (10, 7), (3, 3), 18, 4, ConvSpec((3, 2), ((1, 1), (0, 0)), (1, 1), 1)),
    "dilated": (1, (9, 9), (3, 3), 5, 18, ConvSpec((1, 1), ((2, 2), (2, 2)), (2, 2), 1)),
    "dilated stride": (1, (13, 9), (2, 3), 5, 18, ConvSpec((2, 1), ((1, 0), (3, 2)), (3, 2), 1)),
    "cropping": (1, (8, 8), (3, 3), 4, 20, ConvSpec((1, 1), ((-1, 1), (0, -2)), (1, 1), 1)),
    "depthwise": (2, (7, 6), (3, 3), 6, 6, ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 6)),
    "depthwise stride": (1, (8, 9), (5, 3), 4, 4, ConvSpec((2, 2), ((2, 2), (1, 1)), (1, 1), 4)),
    "multiplier": (1, (5, 5), (3, 3), 4, 12, ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 4)),
    "groups": (2, (5, 6), (3, 3), 8, 40, ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 2)),
    "groups stride": (1, (7, 7), (3, 3), 12, 6, ConvSpec((2, 2), ((1, 1), (1, 1)), (1, 1), 3)),
    "one axis": (2, (11,), (4,), 5, 20, ConvSpec((2,), ((1, 2),), (1,), 1)),
    "three axes": (1, (4, 5, 3), (2, 3, 2), 3, 4, ConvSpec((1, 2, 1), ((1, 0),) * 3, (1, 1, 1), 1)),
    "asymmetric": (2, (8, 5), (4, 1), 3, 17, ConvSpec((1, 1), ((1, 2), (0, 0)), (1, 1), 1)),
}


def check(rng, n, space, taps, c, f, spec, jit=jax.jit):
    out = spec.out_space(space, taps)
    assert out == oracle.out_space(space, taps, spec)
    x, w = codes(rng, n, *space, c), codes(rng, *taps, c // spec.groups, f)
    g = codes(rng, n, *out, f)

    def products(x, w, g):
        y, dx = numerics.conv(x, w, spec), numerics.conv_dx(g, w, spec, space)
        return y, dx, numerics.conv_dw(x, g, spec, taps)

    y, dx, dw = jit(products)(x, w, g)
    np.testing.assert_array_equal(whole(y), oracle.conv(x, w, spec))
    np.testing.assert_array_equal(whole(dx), oracle.conv_dx(g, w, spec, space))
    np.testing.assert_array_equal(whole(dw), oracle.conv_dw(x, g, spec, taps))


@pytest.mark.parametrize("case", CASES)
def test_equal_to_int64(rng, case):
    check(rng, *CASES[case])


@pytest.mark.parametrize(
    "case",
    ["same", *(pytest.param(c, marks=pytest.mark.slow) for c in ("depthwise", "stride", "groups"))],
)
def test_equal_outside_jit(rng, case):
    check(rng, *CASES[case], jit=lambda f: f)


def random_case(rng, most=12):
    """A convolution along one to three axes, with so many taps at most: each is compiled."""
    axes = int(rng.integers(1, 4))
    taps = tuple(int(k) for k in rng.integers(1, 4, axes))
    while np.prod(taps) > most:
        taps = tuple(int(k) for k in rng.integers(1, 4, axes))
    dilation = tuple(int(d) for d in rng.integers(1, 3, axes))
    space = tuple(
        int((k - 1) * d + rng.integers(1, 6)) for k, d in zip(taps, dilation, strict=True)
    )
    padding = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (axes, 2)))
    groups = int(rng.choice([1, 1, 2, 3]))
    c, f = groups * int(rng.integers(1, 5)), groups * int(rng.integers(1, 12))
    strides = tuple(int(s) for s in rng.integers(1, 3, axes))
    return int(rng.integers(1, 4)), space, taps, c, f, ConvSpec(strides, padding, dilation, groups)


@pytest.mark.parametrize("seed", range(40))
def test_random_shapes(seed):
    rng = np.random.default_rng(1000 + seed)
    check(rng, *random_case(rng))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_many_random_shapes(seed):
    rng = np.random.default_rng(seed)
    check(rng, *random_case(rng, most=27))


def test_contractions_that_int32_cannot_hold_are_split(rng, monkeypatch):
    for module in (conv_columns, conv_taps, integer_conv):
        monkeypatch.setattr(module, "MAX_CONTRACTION", 40)
    monkeypatch.setattr("tinyjax.numerics.integer_ops.MAX_CONTRACTION", 40)
    spec = CASES["same"][-1]
    x, w, g = codes(rng, 3, 6, 5, 8), codes(rng, 3, 3, 8, 24), codes(rng, 3, 6, 5, 24)
    y, dx, dw = (
        numerics.conv(x, w, spec),
        numerics.conv_dx(g, w, spec, (6, 5)),
        numerics.conv_dw(x, g, spec, (3, 3)),
    )
    assert min(len(y), len(dx), len(dw)) > 1
    np.testing.assert_array_equal(whole(y), oracle.conv(x, w, spec))
    np.testing.assert_array_equal(whole(dx), oracle.conv_dx(g, w, spec, (6, 5)))
    np.testing.assert_array_equal(whole(dw), oracle.conv_dw(x, g, spec, (3, 3)))


def test_a_large_batch_of_large_maps_is_split(rng):
    spec = CASES["same"][-1]
    x, g = np.full((3, 300, 300, 1), 127, np.int8), np.full((3, 300, 300, 1), 127, np.int8)
    parts = numerics.conv_dw(x, g, spec, (3, 3))
    assert len(parts) > 1
    assert whole(parts)[1, 1, 0, 0] == 3 * 300 * 300 * 127**2


@pytest.mark.parametrize(
    ("x", "w", "groups", "message"),
    [
        (np.zeros((1, 4, 4, 3)), np.zeros((3, 3, 3, 2)), 1, "quantize both to int8"),
        (np.zeros((1, 4, 4, 3), np.int8), np.zeros((3, 3, 2, 2), np.int8), 1, "do not meet"),
        (np.zeros((1, 4, 3), np.int8), np.zeros((3, 3, 3, 2), np.int8), 1, "do not fit"),
        (
            np.zeros((1, 4, 4, 4), np.int8),
            np.zeros((3, 3, 2, 3), np.int8),
            2,
            "divide its features",
        ),
    ],
)
def test_bad_operands(x, w, groups, message):
    with pytest.raises(ValueError, match=message):
        numerics.conv(x, w, ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), groups))
