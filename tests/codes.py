"""Codes made from integers alone, and mutations of their frames."""

import struct
import zlib

import jax
import numpy as np

from tests.oracles import gains as oracle
from tinyjax import GainCode, SGQGradient, StepCode
from tinyjax.codes import GroupCode


def packed_rows(q, bits):
    """Codes ``[rows, c]`` as a frame has them."""
    height = -(-len(q) * bits // 8)
    packed = np.zeros((height, q.shape[1]), np.uint8)
    for row, codes in enumerate(q.astype(int)):
        packed[row % height] += (codes << bits * (row // height)).astype(np.uint8)
    return packed


def made(kind, shape, bits, dtype="float32", exact=False, q=None):
    """A code of features from integers alone, of two groups if it has any."""
    rows, c = int(np.prod(shape[:-1])), shape[-1]
    q = (np.arange(rows * c) * 7 // 3 % 2**bits) if q is None else q
    packed = packed_rows(q.reshape(rows, c), bits)
    meta = dict(shape=shape, bits=bits, dtype=dtype, exact=exact)
    if kind is StepCode:
        centroids = (np.arange(2**bits) - 1 + np.arange(2**bits) % 4 / 16).astype(np.float16)
        centroids[1] = 0
        return StepCode(
            packed,
            np.asarray(np.uint16(0x3E20)),
            np.asarray(np.uint8(1)),
            centroids.view(np.uint16),
            **meta,
        )
    groups = 2
    scale = (0x3F00 + np.arange(shape[0] * groups)).astype(np.uint16).reshape(-1, groups)
    scale[-1, -1] = 0x7FC0
    zero_point = (np.arange(scale.size) % 2**bits).astype(np.uint8).reshape(scale.shape)
    ids = (np.arange(c) % groups).astype(np.uint8)
    return GroupCode(packed, scale, zero_point, ids, **meta)


def made_gains(shape, levels, dtype="float32"):
    """A code with gains likewise."""
    rows, (n, *_, c), groups = int(np.prod(shape[:-1])), shape, 2
    packed = oracle.pack((np.arange(rows * c) * 7 // 3 % levels).reshape(rows, c), levels)
    gains = packed_rows((np.arange(rows * groups) * 5 % 16).reshape(rows, groups), 4)
    scale = (0x3F00 + np.arange(n * groups)).astype(np.uint16).reshape(n, groups)
    scale[-1, -1] = 0x7FC0
    ids = (np.arange(c) % groups).astype(np.uint8)
    return GainCode(packed, gains, scale, ids, shape, levels, dtype)


def sent(shape, dtype="float32", mask=None, most=127):
    """A gradient likewise."""
    codes = ((np.arange(int(np.prod(shape))) * 37) % (2 * most + 1) - most).astype(np.int8)
    codes = codes.reshape(shape)
    codes = codes if mask is None else np.where(mask, codes, 0).astype(np.int8)
    return SGQGradient(codes, np.asarray(np.float32(0.15625)), shape, dtype, mask is not None)


def mask_of(code):
    """Where the gradient of features is sent."""
    rows, (n, *_, c) = int(np.prod(code.shape[:-1])), code.shape
    height = len(code.packed)
    place = np.arange(rows)
    q = code.packed[place % height] >> (place // height * code.bits)[:, None] & (2**code.bits - 1)
    zero = code.zero_point if isinstance(code, StepCode) else code.zero_point[:, None, code.ids]
    return (q.reshape(n, -1, c) != zero).reshape(code.shape)


def signed(data):
    """Bytes with the checksum they need."""
    return data + struct.pack("<I", zlib.crc32(data))


def assert_same(back, code):
    assert jax.tree.structure(back) == jax.tree.structure(code)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(code), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


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
    data[rng.integers(4, min(40, len(data)))] = rng.integers(256)
    return bytes(data)


MUTATIONS = (flip, truncate, extend, splice, lie)
