"""One step for a whole tensor; codes of 2, 4 or 8 bits with a measured value for each code.

The step is a fraction of the root mean square. A value goes to code ``zero_point + sign floor(|x|
/ step + offset)``, and what lies beyond the codes to the last one. With an offset below 1/2 the
cell around 0 is wider, as suits values that are the rarer the larger they are; a code then stands
for the mean of what it took, its *centroid*, and not for the middle of its cell. 0.0 stays 0.0.

Where values are on one side of 0 the zero point is at that end of the codes. Otherwise each side
gets the codes it reaches, and at least half of them if it reaches as many.

``x / step`` is rounded once, to a 256th; everything after that is in integers, centroids included,
so that no fused multiply-add and no order of additions can change a code: given the step, NumPy,
eager and jit agree bit for bit. The step itself is the root of a float sum, rounded up to 8
significant bits.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax.numerics.group_quantize import beside_zero, upper_half, widened
from tinyjax.numerics.packing import look_up_bits

__all__ = ["MAX_STEP", "step_codes", "step_dequantize", "step_quantize", "step_values"]

Array = jax.Array

MAX_STEP = 8  # root mean squares
_LEAST = 2.0**-100  # a step: no product with a centroid is subnormal
_TOO_LARGE = 2.0**112  # a magnitude: no product with a centroid overflows
_NAN = 0x7FC0  # bits of a bfloat16
_PLAIN = (2.0**-20, 2.0**40)  # magnitudes of which float32 holds the squares, and their sum
_SHIFT = 8
_UNIT = 1 << _SHIFT  # parts of a step
_WHOLE = 1.5 * 2**23  # beside it float32 holds whole numbers
_BLOCK = (32, 16)  # elements whose measures are taken by 16 at a time
_SAMPLE = 1 << 15  # elements that centroids are measured on; their sums fit int32
_BEYOND = 16  # steps: how far past its cell the centroid of the last code may lie


def step_quantize(
    x: Array, bits: int, *, step: float = 0.5, offset: float = 0.4, exact: bool = False
) -> tuple[Array, Array, Array, Array]:
    """Codes of ``x`` with one step, one zero point, and a centroid for each code.

    Args:
      x: float32 ``[m, c]``, not empty.
      bits: up to 8.
      step: in root mean squares of ``x``, above 0 and at most ``MAX_STEP``.
      offset: added before rounding down, in steps: 0.5 is to nearest.
      exact: whether only 0.0 has the code of 0.0: what is smaller than half a step then has a
        neighbouring code. Subnormal numbers count as 0.0.

    Returns:
      ``(q, scale, zero_point, centroids)``: uint8 ``[m, c]`` below ``2**bits``; uint16 scalar, the
      step as bits of a bfloat16, from ``2**-100`` up; uint8 scalar; uint16 ``[2**bits]``, bits of
      float16, in steps. With NaN, Inf or a magnitude of ``2**112`` or more in ``x`` the scale is
      NaN, and the codes mean nothing. Centroids are of all elements, or of about 32,768 in rows
      spread over ``x`` if there are more; a code that none of them has stands for its middle.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.0, 1.0, 1.5, 2.0]])
      >>> q, scale, zero_point, centroids = step_quantize(x, 4, step=0.74)
      >>> float(widened(scale)), q.tolist(), int(zero_point)
      (1.0, [[0, 1, 1, 2]], 0)
      >>> step_values(scale, centroids)[:4].tolist()
      [0.0, 1.25, 2.0, 3.0]
    """
    lift = int(np.rint(offset * _UNIT))
    below, above, rms = _measured(x)
    target = jnp.maximum(rms * jnp.float32(step), jnp.float32(_LEAST))
    scale = upper_half(target)
    inverse = jnp.float32(1) / widened(scale)
    zero_point = _placed(below * inverse, above * inverse, below, above, lift, bits, exact)
    # Written down, or XLA would place it again for each element.
    inverse, zero_point = lax.optimization_barrier((inverse, zero_point))
    q = _coded(x, inverse, zero_point, lift, bits, exact)
    some = _sampled(x)
    some_q, parts = _coded(some, inverse, zero_point, lift, bits, exact), _parts(some * inverse)
    centroids = _centroids(some_q, parts, zero_point, bits)
    return q, scale, zero_point.astype(jnp.uint8), centroids


def step_codes(
    x: Array,
    scale: Array,
    zero_point: Array,
    bits: int,
    *,
    offset: float = 0.4,
    exact: bool = False,
) -> tuple[Array, Array]:
    """Codes of ``x`` with the step and zero point of another tensor, frozen.

    Args:
      x: float32 ``[m, c]``.
      scale: uint16 scalar, the step as bits of a bfloat16.
      zero_point: uint8 scalar.
      bits: up to 8.
      offset: as :func:`step_quantize` was given it.
      exact: likewise.

    Returns:
      ``(q, scale)``: uint8 ``[m, c]``, those of :func:`step_quantize` where ``x`` is what it was
      given; what lies beyond the codes takes the last of them. The scale is NaN if it was, or if
      ``x`` has NaN, Inf or a magnitude of ``2**112`` or more; then the codes mean nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> q, scale = step_codes(jnp.array([[1.0, 9.0]]), jnp.uint16(0x3F80), jnp.uint8(0), 2)
      >>> q.tolist(), float(widened(scale))
      ([[1, 3]], 1.0)
    """
    inverse = jnp.float32(1) / widened(scale)
    inverse, place = lax.optimization_barrier((inverse, zero_point.astype(jnp.int32)))
    q = _coded(x, inverse, place, int(np.rint(offset * _UNIT)), bits, exact)
    # A comparison with NaN is False.
    sound = jnp.all(jnp.abs(x) < jnp.float32(_TOO_LARGE))
    return q, jnp.where(sound, scale, jnp.uint16(_NAN))


def step_values(scale: Array, centroids: Array) -> Array:
    """What each code stands for: exact products, so the same on every machine.

    Args:
      scale: uint16 scalar, the bits of a bfloat16.
      centroids: uint16 ``[2**bits]``, bits of float16.

    Returns:
      float32 ``[2**bits]``; NaN where the scale is.

    Example:
      >>> import jax.numpy as jnp
      >>> step_values(jnp.uint16(0x4000), jnp.uint16([0, 0x3C00])).tolist()
      [0.0, 2.0]
    """
    # 11 significant bits times 8.
    return lax.bitcast_convert_type(centroids, jnp.float16).astype(jnp.float32) * widened(scale)


def step_dequantize(packed: Array, scale: Array, centroids: Array, rows: int) -> Array:
    """The values of codes.

    Args:
      packed: uint8 ``[ceil(rows * bits / 8), c]``, codes from
        :func:`tinyjax.numerics.pack_bits`.
      scale: uint16 scalar, the bits of a bfloat16.
      centroids: uint16 ``[2**bits]``, bits of float16.
      rows: of the codes.

    Returns:
      float32 ``[rows, c]``; NaN where the scale is.

    Example:
      >>> import jax.numpy as jnp
      >>> centroids = jnp.uint16([0, 0x3C00, 0, 0])
      >>> step_dequantize(jnp.uint8([[1, 4]]), jnp.uint16(0x4000), centroids, rows=2).tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """
    bits = len(centroids).bit_length() - 1
    return look_up_bits(packed, bits, rows, step_values(scale, centroids))


def _measured(x: Array) -> tuple[Array, Array, Array]:
    """How far ``x`` reaches below and above 0, and its root mean square: NaN if there is none."""
    cut = x.size - x.size % math.prod(_BLOCK)
    flat = x.reshape(-1)
    blocks, rest = _swept(flat[:cut].reshape(-1, *_BLOCK)), _swept(flat[cut:].reshape(1, -1, 1))
    least = jnp.minimum(jnp.min(blocks[0], initial=0.0), jnp.min(rest[0]))
    most = jnp.maximum(jnp.max(blocks[1], initial=0.0), jnp.max(rest[1]))
    total = jnp.sum(blocks[2]) + jnp.sum(rest[2])
    # As in abs_max: the maximum passes over NaN, the sum does not.
    unknown = jnp.where(jnp.isnan(total), jnp.float32(jnp.nan), jnp.float32(0))
    below, above = unknown - least, most + unknown
    largest = jnp.maximum(below, above)
    largest = jnp.where(largest < jnp.float32(_TOO_LARGE), largest, jnp.float32(jnp.nan))
    usual = (largest > jnp.float32(_PLAIN[0])) & (largest < jnp.float32(_PLAIN[1]))
    rms = lax.cond(
        usual,
        lambda: jnp.sqrt(total * jnp.float32(1 / x.size)),
        lambda: _root_mean_square(x, largest),
    )
    return lax.optimization_barrier((below, above, rms))


def _swept(x: Array) -> tuple[Array, Array, Array]:
    """Least (or 0), most (or 0) and sum of squares along the middle axis, in one pass."""

    def further(so_far: tuple[Array, ...], more: tuple[Array, ...]) -> tuple[Array, ...]:
        (least, most, total), (low, high, square) = so_far, more
        # Comparisons as processors do them, in one instruction.
        least, most = jnp.where(low < least, low, least), jnp.where(high > most, high, most)
        return least, most, total + square

    zero = jnp.float32(0)
    # Written down, or XLA would do the small sums again for each of the many that read them.
    return lax.optimization_barrier(
        lax.reduce((x, x, jnp.square(x)), (zero, zero, zero), further, (1,))
    )


def _root_mean_square(x: Array, largest: Array) -> Array:
    """That of numbers whose squares are out of range; NaN if the largest is."""
    # In units of a power of two near the largest, in which no square overflows.
    unit = jnp.maximum(largest, jnp.float32(_LEAST))
    power = lax.bitcast_convert_type(unit, jnp.uint32) & jnp.uint32(0x7F800000)
    unit = lax.bitcast_convert_type(power, jnp.float32)
    squares = jnp.sum(jnp.sum(jnp.square(x * (jnp.float32(1) / unit)), axis=0))
    rms = unit * jnp.sqrt(squares * jnp.float32(1 / x.size))
    return jnp.where(jnp.isnan(largest), largest, rms)


def _placed(
    low: Array, high: Array, below: Array, above: Array, lift: int, bits: int, exact: bool
) -> Array:
    """The zero point, int32, where values reach ``low`` and ``high`` steps to either side."""
    levels = jnp.int32(2**bits - 1)
    low, high = (_rounded(_parts(reach), lift) for reach in (low, high))
    if exact:
        low = jnp.maximum(low, (below > 0).astype(jnp.int32))
        high = jnp.maximum(high, (above > 0).astype(jnp.int32))
    room = jnp.maximum(levels - high, jnp.int32(2 ** (bits - 1)))
    return lax.clamp(jnp.int32(0), jnp.minimum(low, room), levels)


def _coded(x: Array, inverse: Array, zero_point: Array, lift: int, bits: int, exact: bool) -> Array:
    """Codes uint8: ``_rounded(_parts(x * inverse)) + zero_point``, clipped, in few operations.

    Rounding keeps the order, so clipping may come first. What is added to ``t`` then is so large
    that float32 has nothing below 1 beside it, and brings the zero point.
    """
    least = (-zero_point * _UNIT).astype(jnp.float32)
    most = ((2**bits - 1 - zero_point) * _UNIT).astype(jnp.float32)
    t = x * (inverse * jnp.float32(_UNIT))
    t = jnp.where(t > least, t, least)
    t = jnp.where(t < most, t, most)
    whole = lax.bitcast_convert_type(t + (jnp.float32(_WHOLE) - least), jnp.uint32)
    up = jnp.where(t < 0, jnp.uint32(_UNIT - 1 - lift), jnp.uint32(lift))
    q = ((whole + up) >> jnp.uint32(_SHIFT)) & jnp.uint32(2**bits - 1)
    if exact:
        signed = beside_zero(x, q.astype(jnp.int32) - zero_point)
        q = lax.clamp(jnp.int32(0), signed + zero_point, jnp.int32(2**bits - 1))
    return q.astype(jnp.uint8)


def _parts(t: Array) -> Array:
    """Steps as a whole number of parts: the one rounding."""
    t = lax.clamp(jnp.float32(-(2.0**14)), t, jnp.float32(2.0**14))
    return jnp.rint(t * jnp.float32(_UNIT)).astype(jnp.int32)


def _rounded(parts: Array, lift: int) -> Array:
    """``sign floor(|t| + offset)``."""
    up = jnp.where(parts < 0, jnp.int32(_UNIT - 1 - lift), jnp.int32(lift))
    return (parts + up) >> jnp.int32(_SHIFT)


def _sampled(x: Array) -> Array:
    """Rows spread over ``x``, all of them if there are few: fixed, and in step with no pattern."""
    m, c = x.shape
    count = max(1, min(m, _SAMPLE // c))
    if count == m:
        return x[:, :_SAMPLE]
    place = np.arange(count, dtype=np.int64)
    start, jitter = place * m // count, (place * 2654435761 >> 7) % (m // count)
    return x[start + jitter, :_SAMPLE]


def _centroids(q: Array, parts: Array, zero_point: Array, bits: int) -> Array:
    """Means of what each code took, uint16 ``[2**bits]``."""
    codes = q.reshape(-1).astype(jnp.int32)
    middle = lax.iota(jnp.int32, 2**bits) - zero_point
    rest = parts.reshape(-1) - (codes - zero_point) * jnp.int32(_UNIT)
    rest = lax.clamp(jnp.int32(-_BEYOND * _UNIT), rest, jnp.int32(_BEYOND * _UNIT))
    one = jnp.stack([rest, jnp.ones_like(rest)], axis=1)
    total, count = jnp.zeros((2**bits, 2), jnp.int32).at[codes].add(one).T
    count = jnp.maximum(count, jnp.int32(1)) * jnp.int32(_UNIT)
    mean = middle.astype(jnp.float32) + total.astype(jnp.float32) / count.astype(jnp.float32)
    # Nothing subnormal, which machines treat differently; and 0.0 is 0.0.
    empty = (jnp.abs(mean) < jnp.float32(2.0**-14)) | (middle == 0)
    half = jnp.where(empty, jnp.float32(0), mean).astype(jnp.float16)
    return lax.bitcast_convert_type(half, jnp.uint16)
