"""One step for a whole tensor, element by element, in NumPy; and the error of random rounding."""

import math

import numpy as np

from tests.oracles.sgq import round_up

F32 = np.float32


def rms_step(x, step):
    """``step`` root mean squares in float64, before it is rounded up to 8 bits."""
    return step * math.sqrt(np.mean(x.astype(np.float64) ** 2))


def step_of(x, step):
    return round_up(max(rms_step(x, step), 2.0**-100))


def parts_of(x, d):
    """x / d in 256ths: float32 reciprocal and product, then one rounding to an integer."""
    inverse = F32(1) / F32(d)
    with np.errstate(over="ignore"):  # at the step of another tensor
        t = F32(x * inverse)
    t = np.clip(t, F32(-(2**14)), F32(2**14))
    return int(np.rint(F32(t * F32(256))))


def side_of(parts, offset):
    """sign floor(|t| + offset), in 256ths."""
    code = (abs(parts) + round(offset * 256)) // 256
    return code if parts > 0 else -code


def code_of(x, d, offset, exact):
    code = side_of(parts_of(x, d), offset)
    if exact and code == 0 and abs(x) >= 2.0**-126:
        return 1 if x > 0 else -1
    return code


def zero_point_of(x, d, bits, offset, exact):
    """What the negative side needs, if the other leaves it, and half of the codes in any case."""
    levels = 2**bits - 1
    below, above = max(F32(0), -x.min()), max(F32(0), x.max())
    low, high = -code_of(-below, d, offset, exact), code_of(above, d, offset, exact)
    return min(low, max(levels - high, 2 ** (bits - 1)), levels)


def sampled(x):
    """The rows that centroids are measured on."""
    m, c = x.shape
    count = max(1, min(m, 32768 // c))
    if count == m:
        return x[:, :32768]
    rows = [i * m // count + (i * 2654435761 // 128) % (m // count) for i in range(count)]
    return x[rows, :32768]


def step_codes(x, d, zero_point, bits, offset=0.4, exact=False):
    """Codes of x [m, c] at a step and zero point that may be another tensor's."""
    coded = lambda v: code_of(v, d, offset, exact) + zero_point
    return np.array([[min(max(coded(v), 0), 2**bits - 1) for v in row] for row in x])


def step_quantize(x, d, bits, offset=0.4, exact=False):
    """Codes of x [m, c] at step d, the zero point, and centroids as float16."""
    zero_point = zero_point_of(x, d, bits, offset, exact)
    q = step_codes(x, d, zero_point, bits, offset, exact)
    sums, counts = [0] * 2**bits, [0] * 2**bits
    some = sampled(x)
    codes = step_codes(some, d, zero_point, bits, offset, exact)
    for v, k in zip(some.ravel(), codes.ravel().tolist(), strict=True):
        rest = parts_of(v, d) - 256 * (k - zero_point)
        sums[k] += min(max(rest, -4096), 4096)
        counts[k] += 1
    centroids = np.zeros(2**bits, np.float16)
    for k in range(2**bits):
        mean = F32(k - zero_point) + F32(sums[k]) / F32(256 * max(counts[k], 1))
        if k != zero_point and abs(mean) >= 2.0**-14:
            centroids[k] = np.float16(F32(mean))
    return q, zero_point, centroids


def step_dequantize(q, d, centroids):
    """Products that float32 holds exactly."""
    values = centroids.astype(np.float64) * float(d)
    assert (values == values.astype(F32)).all()
    return values.astype(F32)[q]


def expected_error(g, d):
    """sum f (1 - f) in float64."""
    t = np.abs(g.astype(np.float64)) / float(d)
    f = t - np.floor(t)
    return float((f * (1 - f)).sum())
