"""Quantization, from its definitions, in NumPy float32 (products and roundings one at a time)."""

import numpy as np

F32 = np.float32


def scale(x, bits, axis=None):
    """Largest magnitude over ``axis`` (kept) times 1 / largest code, within 2**-126 and 2**126."""
    largest = np.abs(x.astype(F32)).max(axis=axis, keepdims=True, initial=F32(0))
    s = largest * F32(1 / (2 ** (bits - 1) - 1))
    s = np.where(s < F32(2.0**-126), F32(2.0**-126), s)
    return np.where(s >= F32(2.0**126), F32(np.inf), s).astype(F32)


def nearest(t):
    """Halves to even."""
    return np.rint(t).astype(np.int64)


def bits_of(shape, seed):
    """The index hash, with 64-bit integers cut to 32 bits by hand."""
    mask = np.uint64(0xFFFFFFFF)
    h = (
        np.arange(np.prod(shape), dtype=np.uint64) * np.uint64(0x9E3779B9) + np.uint64(seed)
    ) & mask
    h = ((h ^ (h >> np.uint64(16))) * np.uint64(0x21F0AAAD)) & mask
    h = ((h ^ (h >> np.uint64(15))) * np.uint64(0x735A2D97)) & mask
    return (h ^ (h >> np.uint64(15))).reshape(shape)


def stochastic(t, seed):
    """floor(t + u) with t in 16.16 fixed point and u the top 16 bits of the hash."""
    fixed = np.rint(t.astype(F32) * F32(65536)).astype(np.int64)
    noise = (bits_of(t.shape, seed) >> np.uint64(16)).astype(np.int64)
    return np.floor_divide(fixed + noise, 65536)


def quantize(x, s, bits, zero_point=None, seed=None):
    """Codes of ``x`` at scale ``s``: nearest, or stochastic if there is a seed."""
    limit = 2 ** (bits - 1) - 1
    reach = limit if zero_point is None else 2 * limit
    inverse = (F32(1) / s.astype(F32)).astype(F32)
    t = np.clip((x.astype(F32) * inverse).astype(F32), F32(-reach), F32(reach))
    q = nearest(t) if seed is None else stochastic(t, seed)
    return np.clip(q + (0 if zero_point is None else zero_point), -limit, limit)
