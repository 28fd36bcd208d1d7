"""Frames: bit-exact there and back, and no other byte string is taken for one."""

import dataclasses
import functools
import itertools
import json
import math
import struct
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codes import (
    MUTATIONS,
    assert_same,
    made,
    made_gains,
    mask_of,
    sent,
    signed,
)
from tinyjax import (
    GroupCode,
    SGQGradient,
    StepCode,
    global_step,
    numerics,
    sgq,
    sgq_decode,
    stripe_gains,
    stripe_groups,
    wire,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "shape", [(1, 2), (5, 2), (3, 4), (2, 3, 5, 6), (1, 1, 1, 2), (7, 1, 3, 4)]
)
def test_codes_come_back_bit_for_bit(shape, bits):
    for kind in (StepCode, GroupCode):
        code = made(kind, shape, bits, exact=True)
        codes = [code, made(kind, shape, bits, "bfloat16"), sent(shape), sent((), "float16")]
        for one in (*codes, sent(shape, mask=mask_of(code))):
            frame = wire.pack(one, code)
            back = wire.unpack(frame, code)
            assert_same(back, one)
            assert wire.pack(back, code) == frame


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize(
    "shape", [(1, 2), (5, 2), (3, 4), (2, 3, 5, 6), (1, 1, 1, 2), (7, 1, 3, 4)]
)
def test_codes_with_gains_come_back_bit_for_bit(shape, levels):
    code = made_gains(shape, levels)
    frame = wire.pack(code)
    rows, (n, *_, c) = math.prod(shape[:-1]), shape
    body = n * 2 * 2 + c + -(-rows // 2) * 2 + -(-rows // {3: 5, 4: 4}[levels]) * c
    assert len(frame) == 24 + 4 * len(shape) + body + 4
    assert_same(wire.unpack(frame), code)


@functools.cache
def coded(make, bits, exact):
    """Compiled: encoders of features and of their gradient, by the closed form, and a decoder."""
    codec = sgq(quantizer=make(bits=bits, exact=exact), gradient_step=numerics.bounded_step)
    return jax.jit(codec.encode), jax.jit(codec.encode_gradient), jax.jit(codec.decode)


def gains(bits, exact):
    """Of three or four levels."""
    assert not exact
    return stripe_gains(group_size=3, levels=bits)


groups = functools.partial(stripe_groups, group_size=3)
DTYPES = ("float32", "float16", "bfloat16")
ALL = [
    *itertools.product((global_step, groups), (2, 4, 8), (False, True), DTYPES),
    *itertools.product((gains,), (3, 4), (False,), DTYPES),
]
FEW = [
    (global_step, 4, True, "float32"),
    (global_step, 8, False, "bfloat16"),
    (groups, 2, True, "float16"),
    (groups, 4, False, "float32"),
    (gains, 3, False, "bfloat16"),
]


@pytest.mark.parametrize("options", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def test_round_trips_over_all_options(options):
    numbers = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, np.nan, np.inf])

    @given(st.sampled_from(options), numbers, st.integers(0, 2**32 - 1), st.booleans())
    @settings(max_examples=8 * len(options))
    def round_trip(option, scale, seed, relu):
        *how, dtype = option
        x = np.random.default_rng(seed).normal(size=(3, 5, 6))
        with np.errstate(invalid="ignore"):
            x = jnp.asarray(scale * (np.maximum(x, 0) if relu else x), jnp.float32).astype(dtype)
        encode, encode_gradient, decode = coded(*how)
        code = jax.device_get(encode(x))
        gradient = jax.device_get(encode_gradient(x[::-1], np.uint32(seed), code))
        arrived = wire.unpack(wire.pack(code))
        assert_same(arrived, code)
        assert_same(wire.unpack(wire.pack(gradient, code), arrived), gradient)
        back = np.asarray(decode(arrived))
        assert back.dtype == dtype
        if not np.isfinite(scale):
            assert np.isnan(back.astype(np.float32)).all() or relu
            assert np.isnan(sgq().decode_gradient(gradient).astype(np.float32)).all()

    round_trip()


def test_a_frame_is_as_long_as_its_format_says():
    header = 24 + 4 * 4 + 4
    shape, packed = (3, 5, 5, 8), (3 * 5 * 5 + 1) // 2 * 8
    code = made(StepCode, shape, 4, exact=True)
    assert len(wire.pack(made(GroupCode, shape, 4))) == header + 3 * 2 * (2 + 1) + 8 + packed
    assert len(wire.pack(code)) == header + 2 + 32 + 1 + packed
    assert len(wire.pack(sent((3, 5)))) == 24 + 4 * 2 + 4 + 4 + 15
    mask = mask_of(code)
    assert 0 < mask.sum() < mask.size
    assert len(wire.pack(sent(shape, mask=mask), code)) == header + 8 + mask.sum()


def test_a_masked_gradient_is_read_with_its_own_features_only():
    shape = (3, 5, 4)
    code, loose = (made(StepCode, shape, 4, exact=exact) for exact in (True, False))
    other = dataclasses.replace(code, packed=code.packed[::-1])
    gradient = sent(shape, mask=mask_of(code))
    frame = wire.pack(gradient, code)
    for wrong in (None, loose, made(StepCode, (3, 4, 5), 4, exact=True), gradient):
        with pytest.raises(ValueError, match="was given no exact features of that shape: give"):
            wire.unpack(frame, wrong)
        with pytest.raises(ValueError, match="was given no exact features of that shape: give"):
            wire.pack(gradient, wrong)
    with pytest.raises(ValueError, match="no SGQ frame, or not of these features"):
        wire.unpack(frame, other)
    with pytest.raises(ValueError, match="is not 0 where its features are: pack it with"):
        wire.pack(gradient, other)
    # Codes that agree on what is 0 are one mask, whatever made them.
    encode = jax.jit(stripe_groups(group_size=2, exact=True))
    same = encode(jnp.asarray(mask_of(code), jnp.float32))
    assert_same(wire.unpack(frame, same), gradient)


# --- golden frames -------------------------------------------------------------------------------


def golden():
    """Codes by name, each with the features it is read with."""
    step = made(StepCode, (2, 3, 3, 4), 4, "float32", True)
    group = made(GroupCode, (2, 3, 4), 2, "bfloat16", True)
    yield "step_4bit", step, None
    yield "step_2bit_odd", made(StepCode, (1, 5), 2, "float16", False), None
    yield "step_8bit", made(StepCode, (3, 2), 8, "bfloat16", False), None
    yield "groups_4bit", made(GroupCode, (2, 3, 3, 4), 4, "float32", False), None
    yield "groups_2bit_exact", group, None
    yield "gains_3_levels", made_gains((2, 3, 3, 4), 3, "float32"), None
    yield "gains_4_levels_odd", made_gains((3, 2), 4, "float16"), None
    yield "gradient", sent((2, 3, 3, 4), "float32"), None
    yield "gradient_scalar", sent((), "float16"), None
    for name, code in (("step", step), ("groups", group)):
        yield f"gradient_masked_by_{name}", sent(code.shape, code.dtype, mask_of(code)), code


CODES = {name: (code, known) for name, code, known in golden()}


@pytest.mark.parametrize("name", CODES)
def test_golden_frames_are_written_and_read_exactly(name):
    code, known = CODES[name]
    want = json.loads((GOLDEN / "wire_v2.json").read_text())[name]
    assert wire.pack(code, known).hex() == want["frame"]
    back = wire.unpack(bytes.fromhex(want["frame"]), known)
    assert_same(back, code)
    decode = sgq().decode_gradient if isinstance(code, SGQGradient) else sgq_decode
    values = np.asarray(decode(back)).astype("<f4")
    assert values.tobytes().hex() == want["float32"]


# --- every other byte string ---------------------------------------------------------------------


def accepted(data, known=None):
    """Whether bytes are taken for a frame; any error but a ValueError is one of the test."""
    try:
        code = wire.unpack(data, known)
    except ValueError:
        return False
    assert wire.pack(code, known) == data  # a frame of this very code, and so not wrong
    return True


def fuzz(rng, count):
    """Mutated frames, half of them with their checksum mended; how many were accepted."""
    known = made(StepCode, (2, 3, 4), 4, exact=True)
    codes = [made(kind, (2, 3, 5, 4), bits) for kind in (StepCode, GroupCode) for bits in (2, 4, 8)]
    codes += [known, sent((2, 3, 4)), sent((2, 3, 4), mask=mask_of(known))]
    codes += [made_gains((2, 3, 5, 4), levels) for levels in (3, 4)]
    frames = [wire.pack(code, known) for code in codes]
    found = 0
    for turn in range(count):
        frame = frames[turn % len(frames)]
        data = MUTATIONS[turn % len(MUTATIONS)](rng, frame, frames)
        if turn // 2 % 2:
            found += accepted(signed(data[:-4]), known)
        else:
            assert data in frames or not accepted(data, known)
    return found


def test_no_mutated_frame_is_accepted_wrong(rng):
    assert 0 < fuzz(rng, 50_000) < 25_000


@pytest.mark.slow
def test_no_mutated_frame_of_a_million_is_accepted_wrong(rng):
    assert fuzz(rng, 1_000_000) > 0


def test_reading_takes_no_more_memory_than_a_few_times_the_frame():
    shape = (16, 32, 8, 16)
    code = made(StepCode, shape, 4, exact=True)
    frames = [(wire.pack(code), None), (wire.pack(sent(shape, mask=mask_of(code)), code), code)]
    lies = [
        signed(frame[:24] + struct.pack("<I", size) + frame[28:-4])
        for frame, _ in frames
        for size in (2**32 - 1, 2**31, 17)
    ]
    lies += [
        signed(frame[:20] + struct.pack("<I", 2**32 - 1) + frame[24:-4]) for frame, _ in frames
    ]
    tracemalloc.start()
    try:
        for data, known in frames + [(lie, code) for lie in lies]:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            taken = accepted_only(data, known)
            assert taken == ((data, known) in frames)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 2**14 + (1 if known is None else 4) * math.prod(shape)
            assert taken or peak - before < 2**14 + len(data)
    finally:
        tracemalloc.stop()


def accepted_only(data, known):
    try:
        wire.unpack(data, known)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("data", [b"", b"SGQR", bytes(64), b"\x80\x04N.", signed(b"")])
def test_garbage_is_refused(data):
    assert not accepted(data)


def a_frame(
    kind, bits, dtype, groups, shape, body, magic=b"SGQR", version=2, stage=0, flags=0, zero=0,
    state=0, nought=0, length=None,
):  # fmt: skip
    length = len(body) if length is None else length
    first = (magic, version, kind, stage, flags, bits, dtype, len(shape), zero)
    head = struct.pack("<4sBBBBBBBBIHHI", *first, state, groups, nought, length)
    return signed(head + struct.pack(f"<{len(shape)}I", *shape) + body)


ONE = struct.pack("<HB", 0x3F80, 0)  # the scale 1.0 and the zero point 0
GOOD = dict(kind=1, bits=4, dtype=0, groups=1, shape=(1, 2), body=ONE + b"\0\0\1\2")
HALVES = np.arange(4, dtype=np.float16).view(np.uint16).astype("<u2").tobytes()
STEP = dict(kind=0, bits=2, dtype=0, groups=0, shape=(1, 2))
STEP |= {"body": ONE[:2] + HALVES + b"\0\1\2"}


def step_body(scale=ONE[:2], zero_point=b"\0", packed=b"\1\2", **centroids):
    values = bytearray(HALVES)
    for place, bits in centroids.items():
        values[2 * int(place[1:]) : 2 * int(place[1:]) + 2] = struct.pack("<H", bits)
    return STEP | {"body": scale + bytes(values) + zero_point + packed}


GRADIENT = dict(kind=2, groups=0, bits=8)
GAINS = dict(kind=4, bits=3)  # a scale, two ids, a gain, two codes


def gains_body(scale=ONE[:2], ids=b"\0\0", gain=b"\7", packed=b"\2\1"):
    return GAINS | {"body": scale + ids + gain + packed}


def test_the_smallest_frame_is_accepted():
    assert accepted(a_frame(**GOOD))
    assert accepted(a_frame(**STEP))
    assert accepted(a_frame(**GOOD | gains_body()))
    assert accepted(a_frame(**GOOD | gains_body(scale=b"\x00\x7f") | {"bits": 4}))  # 2**127
    assert accepted(a_frame(**step_body(c3=0x4D00)))  # 20.0 is not too far for code 3
    assert accepted(a_frame(2, 8, 2, 0, (2,), struct.pack("<f", 0.5) + b"\x01\xff"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"SGQ1"}, "unknown to this version"),
        ({"version": 1}, "unknown to this version"),
        ({"version": 3}, "unknown to this version"),
        ({"zero": 1}, "unknown to this version"),
        ({"nought": 1}, "unknown to this version"),
        ({"flags": 2}, "unknown to this version"),
        ({"stage": 2}, "unknown to this version"),
        ({"state": 1}, "there is no state that it could have"),
        ({"kind": 3}, "a state has nothing else in its header"),
        ({"kind": 5}, "a key frame has nothing else in its header"),
        ({"kind": 6}, "a difference has one sample, a stream and a side of cells"),
        ({"kind": 7}, "its kind, bits or axes"),
        ({"bits": 3}, "its kind, bits or axes"),
        ({"shape": (2,)}, "its kind, bits or axes"),
        ({"dtype": 3}, "its dtype or shape"),
        ({"shape": (0, 2)}, "its dtype or shape"),
        ({"shape": (1,) * 9}, "unknown to this version"),
        ({"groups": 0}, "its groups are not equal"),
        ({"groups": 3}, "its groups are not equal"),
        ({"shape": (2**32 - 1,) * 8}, "whose body of 7 is not as long"),
        ({"shape": (2**32 - 1, 2)}, "whose body of 7 is not as long"),
        ({"body": GOOD["body"][:-1]}, "whose body of 6 is not as long"),
        ({"body": GOOD["body"] + b"\0"}, "whose body of 8 is not as long"),
        ({"length": 2**32 - 1}, "whose header asks for 4294967331"),
        ({"length": 6}, "whose header asks for 42"),
        ({"body": b"\x7f\0" + GOOD["body"][2:]}, "a scale is out of range"),
        ({"body": b"\xc1\x7f" + GOOD["body"][2:]}, "a scale is out of range"),
        ({"body": b"\x80\xbf" + GOOD["body"][2:]}, "a scale is out of range"),
        ({"body": ONE[:2] + b"\x10\0\0\1\2"}, "a zero point is no code"),
        ({"body": ONE + b"\0\1\1\2"}, "its groups are not equal"),
        ({"body": ONE + b"\0\1\1\x12"}, "its groups are not equal"),
        ({"body": ONE + b"\0\0\1\x12"}, "its padding is not zero"),
        (GRADIENT | {"bits": 4}, "a gradient has 8 bits"),
        (GRADIENT | {"body": bytes(6)}, "step is not positive"),
        (GRADIENT | {"body": struct.pack("<f", 1) + b"\x80\0"}, "it has a code -128"),
        (GRADIENT | {"flags": 1, "body": bytes(7)}, "whose body of 7 is not as long"),
        (GRADIENT | {"flags": 1, "body": bytes(11)}, "whose body of 11 is not as long"),
        (STEP | {"groups": 1}, "one step has no groups"),
        (step_body(scale=b"\x7f\x0d"), "a scale is out of range"),  # below 2**-100
        (step_body(scale=b"\x80\x79"), "a scale is out of range"),  # 2**116
        (step_body(zero_point=b"\4"), "a zero point is no code"),
        (step_body(zero_point=b"\1"), "a centroid is out of range"),  # that of 0.0 is 1.0
        (step_body(c0=0x8000), "a centroid is out of range"),  # -0.0
        (step_body(c1=0x0001), "a centroid is out of range"),  # subnormal
        (step_body(c1=0x4C81), "a centroid is out of range"),  # 18.02
        (step_body(c1=0x7C00), "a centroid is out of range"),
        (step_body(c1=0x7E00), "a centroid is out of range"),
        (step_body(packed=b"\1\x12"), "its padding is not zero"),
        (gains_body() | {"bits": 2}, "its kind, bits or axes"),
        (gains_body() | {"flags": 1}, "with gains are neither exact nor compressed"),
        (gains_body() | {"stage": 1}, "with gains are neither exact nor compressed"),
        (gains_body() | {"groups": 0}, "its groups are not equal"),
        (gains_body() | {"shape": (2, 2)}, "whose body of 7 is not as long"),
        (gains_body(scale=b"\x7f\x0d"), "a scale is out of range"),  # below 2**-100
        (gains_body(scale=b"\x01\x7f"), "a scale is out of range"),  # above 2**127
        (gains_body(ids=b"\0\1"), "its groups are not equal"),
        (gains_body(gain=b"\x17"), "its padding is not zero"),
        (gains_body(packed=b"\5\1"), "its padding is not zero"),
        (gains_body(packed=b"\xf3\1"), "a byte is no five levels"),
        (gains_body(packed=b"\4\1") | {"bits": 4}, "its padding is not zero"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        wire.unpack(a_frame(**{**GOOD, **changes}))


def test_a_checksum_of_something_else_is_said():
    frame = a_frame(**GOOD)
    with pytest.raises(ValueError, match="whose checksum is another: have the code packed and"):
        wire.unpack(frame[:-1] + bytes([frame[-1] ^ 1]))


def test_what_is_no_code_is_not_packed():
    with pytest.raises(ValueError, match="pack was given dict: give it a code"):
        wire.pack({})
    with pytest.raises(ValueError, match="unpack was given str: give it the bytes"):
        wire.unpack("SGQR")
    for quantizer in (stripe_groups(group_size=2), global_step()):
        many = jax.jit(jax.vmap(quantizer))(jnp.ones((3, 2, 4)))
        with pytest.raises(ValueError, match=r"of this code is .* pack each code of a vmap"):
            wire.pack(many)
    code = made(StepCode, (2, 4), 4)
    with pytest.raises(ValueError, match="has no frame, since its kind, bits or axes are none"):
        wire.pack(dataclasses.replace(code, bits=3))
