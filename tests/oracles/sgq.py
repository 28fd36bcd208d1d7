"""Grouping, group quantization and packing of channels, element by element, in NumPy."""

import numpy as np

from tests.oracles.quantize import F32, quantize, scale


def reaches(x):
    """How far each channel of each sample [n, m, c] reaches below and above zero."""
    return np.maximum(-x.min(axis=1), F32(0)), np.maximum(x.max(axis=1), F32(0))


def by_range(x, size):
    """Channels [n, m, c] sorted by range over the batch, cut into runs."""
    below, above = reaches(x)
    order = np.argsort(below.max(axis=0) + above.max(axis=0), kind="stable")
    ids = np.zeros(x.shape[-1], np.int64)
    for rank, channel in enumerate(order):
        ids[channel] = rank // size
    return ids


def by_cosine(x, size):
    """The loudest free channel opens a group, its most similar free channels join it."""
    x = x.reshape(-1, x.shape[-1])
    q = quantize(x, scale(x, 8, (0,)), 8).astype(np.int64)
    products = (q.T @ q).astype(F32)
    peak = np.abs(x).max(axis=0)
    ids = np.full(x.shape[-1], -1)
    for group in range(len(ids) // size):
        opener = max(np.flatnonzero(ids < 0), key=lambda i: peak[i])
        ids[opener] = group
        for _ in range(size - 1):

            def closeness(j, opener=opener):
                p = products[opener, j]
                return p * np.abs(p) / np.maximum(products[j, j], F32(1))

            ids[max(np.flatnonzero(ids < 0), key=closeness)] = group
    return ids


def round_up(value):
    """The smallest number with 8 significant bits that is not below a positive float32."""
    exponent = np.floor(np.log2(np.float64(value)))
    unit = 2.0 ** (exponent - 7)
    return F32(np.ceil(np.float64(value) / unit) * unit)


def group_quantize(x, ids, groups, bits, exact=False):
    """Codes [n, m, c], scales (as float32) and zero points [n, groups] of x [n, m, c].

    If exact, there is a code on each side of that of 0 on which there is anything, and what is
    rounded to 0 but is none takes it.
    """
    levels = 2**bits - 1
    q = np.zeros(x.shape, np.int64)
    scales = np.zeros((len(x), groups), F32)
    zero_points = np.zeros((len(x), groups), np.int64)
    for n in range(len(x)):
        for group in range(groups):
            part = x[n][:, ids == group]
            below, above = max(F32(0), -part.min()), max(F32(0), part.max())
            step = F32(F32(below + above) * F32(1 / levels))
            step = round_up(max(step, F32(2.0**-126)))
            inverse = F32(1) / step
            zero_point = min(int(np.rint(F32(below * inverse))), levels)
            codes = np.rint((part * inverse).astype(F32)).astype(np.int64)
            if exact:
                zero_point = min(max(zero_point, int(below > 0)), levels - int(above > 0))
                codes[(codes == 0) & (part >= 2.0**-126)] = 1
                codes[(codes == 0) & (part <= -(2.0**-126))] = -1
            codes = codes + zero_point
            q[n][:, ids == group] = np.clip(codes, 0, levels)
            scales[n, group], zero_points[n, group] = step, zero_point
    return q, scales, zero_points


def group_dequantize(q, scales, zero_points, ids):
    """float32 [n, m, c]."""
    return ((q - zero_points[:, None, ids]).astype(F32) * scales[:, None, ids]).astype(F32)


def pack(q, bits):
    """Rows of codes into bytes: row r goes to byte row r % height, at bit bits * (r // height)."""
    height = int(np.ceil(len(q) * bits / 8))
    packed = np.zeros((height, *q.shape[1:]), np.uint8)
    for row, codes in enumerate(q):
        packed[row % height] += (codes << (bits * (row // height))).astype(np.uint8)
    return packed


def bits_of(scales):
    """The upper halves of float32 numbers, as integers."""
    return scales.view(np.uint32) >> 16


def bounded_step(g, error):
    """2 error |g| / sqrt(n), or max |g| / 127 where that is larger, in float64."""
    g = g.astype(np.float64)
    closed = 2 * error * np.linalg.norm(g.ravel()) / np.sqrt(g.size)
    return max(closed, np.abs(g).max() / 127)
