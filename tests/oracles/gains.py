"""A gain per stripe and a few levels, stripe by stripe, in NumPy."""

import math

import numpy as np

from tests.oracles.quantize import F32
from tests.oracles.sgq import round_up


def reach_of(gain):
    """What a gain stands for, in 1024ths of the scale: three steps to an octave."""
    return round(1024 * 2 ** ((gain - 15) / 3)) if gain else 0


def parts_of(x, scale):
    """x / scale in 1024ths: float32 reciprocal and product, then one rounding to an integer."""
    return int(np.rint(F32(F32(x * F32(F32(1) / scale)) * F32(1024))))


def first_of(largest):
    """The smallest gain that reaches so many parts, by the logarithm."""
    gain = math.ceil(15 + 3 * math.log2(largest / 1024)) if largest else 0
    gain = min(max(gain, 0), 15)
    while 0 < gain < 15 and reach_of(gain) < largest:  # where the ladder was rounded down
        gain += 1
    return gain - (gain > 1 and reach_of(gain - 1) >= largest)  # and up


def coded(parts, gain, levels):
    """The nearest level of each element, and the squared error in (levels - 1)ths of parts."""
    reach, last = reach_of(gain), levels - 1
    if not gain:
        return [0] * len(parts), sum((last * t) ** 2 for t in parts)
    codes = [min((2 * t * last + reach) // (2 * reach), last) for t in parts]
    return codes, sum((last * t - q * reach) ** 2 for t, q in zip(parts, codes, strict=True))


def gain_quantize(x, ids, groups, levels):
    """Codes [n, m, c], gains [n, m, groups], scales (as float32) [n, groups] of x [n, m, c]."""
    n, m, _ = x.shape
    q, gains = np.zeros(x.shape, np.int64), np.zeros((n, m, groups), np.int64)
    scales = np.zeros((n, groups), F32)
    for sample, place, group in np.ndindex(n, m, groups):
        own = ids == group
        scale = round_up(max(x[sample][:, own].max(), F32(2.0**-100)))
        parts = [parts_of(v, scale) for v in x[sample, place, own]]
        first = first_of(max(parts))
        best = min((max(first - k, 0) for k in range(4)), key=lambda g: coded(parts, g, levels)[1])
        q[sample, place, own] = coded(parts, best, levels)[0]
        gains[sample, place, group], scales[sample, group] = best, scale
    return q, gains, scales


def gain_dequantize(q, gains, scales, ids, levels):
    """float32 [n, m, c]: a constant of the format for each gain and level, times the scale."""
    share = lambda gain, code: F32(reach_of(gain) * code / (1024 * (levels - 1)))
    shares = np.array([[share(gain, code) for code in range(levels)] for gain in range(16)])
    return (shares[gains[..., ids], q] * scales[:, None, ids]).astype(F32)


def pack(q, levels):
    """Rows of codes into bytes: row r to byte row r % height, times levels ** (r // height)."""
    height = -(-len(q) // {3: 5, 4: 4}[levels])
    packed = np.zeros((height, *q.shape[1:]), np.uint8)
    for row, codes in enumerate(q):
        packed[row % height] += (codes * levels ** (row // height)).astype(np.uint8)
    return packed
