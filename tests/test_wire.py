"""Frames: bit-exact there and back, and no other byte string is taken for one."""

import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyjax import sgq, sgq_decode, sgq_encode, wire


def features(rng, shape, bits=4, size=2):
    return sgq_encode(jnp.asarray(rng.normal(size=shape), jnp.float32), group_size=size, bits=bits)


def gradient(rng, shape):
    g = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return sgq().encode_gradient(g, jnp.uint32(5))


def signed(data):
    """Bytes with the checksum they need."""
    return data + struct.pack("<I", zlib.crc32(data))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "shape", [(1, 2), (3, 4), (5, 2), (2, 3, 5, 6), (1, 1, 1, 2), (7, 1, 3, 4)]
)
def test_codes_come_back_bit_for_bit(rng, shape, bits):
    for code in (features(rng, shape, bits), gradient(rng, shape), gradient(rng, ())):
        frame = wire.pack(code)
        back = wire.unpack(frame)
        assert jax.tree.structure(back) == jax.tree.structure(code)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(code), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(a, b)
        assert wire.pack(back) == frame
    code = features(rng, shape, bits)
    np.testing.assert_array_equal(sgq_decode(wire.unpack(wire.pack(code))), sgq_decode(code))


def test_what_is_no_number_travels():
    code = sgq_encode(jnp.full((2, 4), jnp.nan), group_size=2)
    assert np.isnan(sgq_decode(wire.unpack(wire.pack(code)))).all()
    lost = sgq().encode_gradient(jnp.full((2, 4), jnp.inf), jnp.uint32(0))
    assert np.isnan(sgq().decode_gradient(wire.unpack(wire.pack(lost)))).all()


def test_a_frame_is_as_long_as_its_format_says(rng):
    frame = wire.pack(features(rng, (3, 5, 5, 8)))
    header, side, codes = 12 + 4 * 4, 3 * 4 * (2 + 1) + 8, (3 * 5 * 5 + 1) // 2 * 8
    assert len(frame) == header + side + codes + 4
    assert len(wire.pack(gradient(rng, (3, 5)))) == 12 + 4 * 2 + 4 + 15 + 4


# --- every other byte string ---------------------------------------------------------------------


def accepted(data):
    """Whether bytes are taken for a frame; any error but a ValueError is one of the test."""
    try:
        code = wire.unpack(data)
    except ValueError:
        return False
    assert wire.pack(code) == data  # a frame of this very code, and so not wrong
    return True


def flip(rng, frame, frames):
    data = bytearray(frame)
    for _ in range(rng.integers(1, 5)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(data)


def truncate(rng, frame, frames):
    return frame[: rng.integers(len(frame))]


def extend(rng, frame, frames):
    return frame + rng.bytes(rng.integers(1, 9))


def splice(rng, frame, frames):
    other = frames[rng.integers(len(frames))]
    return frame[: rng.integers(len(frame))] + other[rng.integers(len(other)) :]


def lie(rng, frame, frames):
    data = bytearray(frame)
    data[rng.integers(4, 32)] = rng.integers(256)
    return bytes(data)


@pytest.mark.parametrize("mutate", [flip, truncate, extend, splice, lie])
@pytest.mark.parametrize("fixed", [False, True], ids=["", "with the checksum mended"])
def test_no_mutated_frame_is_accepted_wrong(rng, mutate, fixed):
    frames = [wire.pack(features(rng, (2, 3, 5, 4), bits)) for bits in (2, 4, 8)]
    frames.append(wire.pack(gradient(rng, (2, 3, 4))))
    for turn in range(2000):  # 20,000 in all
        frame = frames[turn % len(frames)]
        data = mutate(rng, frame, frames)
        if fixed:
            accepted(signed(data[:-4]))
        else:
            assert data in frames or not accepted(data)


@pytest.mark.parametrize("data", [b"", b"SGQR", bytes(64), b"\x80\x04N.", signed(b"")])
def test_garbage_is_refused(data):
    assert not accepted(data)


def a_frame(kind, bits, dtype, groups, shape, body, magic=b"SGQR", version=1, zero=0):
    head = struct.pack("<4sBBBBBBH", magic, version, kind, bits, dtype, len(shape), zero, groups)
    return signed(head + struct.pack(f"<{len(shape)}I", *shape) + body)


ONE = struct.pack("<HB", 0x3F80, 0)  # the scale 1.0 and the zero point 0
GOOD = dict(kind=0, bits=4, dtype=0, groups=1, shape=(1, 2), body=ONE + b"\0\0\1\2")


def test_the_smallest_frame_is_accepted():
    assert accepted(a_frame(**GOOD))
    assert accepted(a_frame(1, 8, 2, 0, (2,), struct.pack("<f", 0.5) + b"\x01\xff"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"SGQ1"}, "unknown to this version"),
        ({"version": 2}, "unknown to this version"),
        ({"zero": 1}, "unknown to this version"),
        ({"kind": 2}, "its kind, bits or axes"),
        ({"bits": 3}, "its kind, bits or axes"),
        ({"shape": (2,)}, "its kind, bits or axes"),
        ({"dtype": 3}, "its dtype or shape"),
        ({"shape": (0, 2)}, "its dtype or shape"),
        ({"shape": (1,) * 9}, "unknown to this version"),
        ({"groups": 0}, "its groups are not equal"),
        ({"groups": 3}, "its groups are not equal"),
        ({"shape": (2**32 - 1,) * 8}, "whose header asks for"),
        ({"shape": (2**32 - 1, 2)}, "whose header asks for"),
        ({"body": GOOD["body"][:-1]}, "whose header asks for 31"),
        ({"body": GOOD["body"] + b"\0"}, "whose header asks for 31"),
        ({"body": b"\x7f\0" + GOOD["body"][2:]}, "a scale is out of range"),
        ({"body": b"\xc1\x7f" + GOOD["body"][2:]}, "a scale is out of range"),
        ({"body": b"\x80\xbf" + GOOD["body"][2:]}, "a scale is out of range"),
        ({"body": ONE[:2] + b"\x10\0\0\1\2"}, "a zero point is no code"),
        ({"body": ONE + b"\0\1\1\2"}, "its groups are not equal"),
        ({"body": ONE + b"\0\0\1\x12"}, "its padding is not zero"),
        ({"kind": 1, "groups": 0}, "a gradient has 8 bits"),
        ({"kind": 1, "groups": 0, "bits": 8, "body": bytes(6)}, "step is not positive"),
        (
            {"kind": 1, "groups": 0, "bits": 8, "body": struct.pack("<f", 1) + b"\x80\0"},
            "it has a code -128",
        ),
    ],
)
def test_what_is_wrong_with_a_frame_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        wire.unpack(a_frame(**{**GOOD, **changes}))


def test_a_checksum_of_something_else_is_said():
    frame = a_frame(**GOOD)
    with pytest.raises(ValueError, match="whose checksum is another: have the code packed and"):
        wire.unpack(frame[:-1] + bytes([frame[-1] ^ 1]))


def test_what_is_no_code_is_not_packed(rng):
    with pytest.raises(ValueError, match="pack was given dict: give it a code"):
        wire.pack({})
    with pytest.raises(ValueError, match="unpack was given str: give it the bytes"):
        wire.unpack("SGQR")
    encode = lambda x: sgq_encode(x, group_size=2)
    many = jax.vmap(encode)(jnp.ones((3, 2, 4)))
    with pytest.raises(ValueError, match=r"scale of this code is .* pack each code of a vmap"):
        wire.pack(many)
