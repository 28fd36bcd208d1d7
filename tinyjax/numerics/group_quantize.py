"""One scale for all elements of a group of channels in one sample; codes of 2, 4 or 8 bits.

``x ~ scale (q - zero_point)`` with an integer zero point, so that 0.0 stays exactly 0.0 and signed
tensors work; where nothing is negative the zero point is 0. A scale is 16 bits, the upper half of
a float32, rounded up so that the largest element still has a code.

Every step rounds once, between integers and floats that meet exactly, so that no fused
multiply-add can change a code: NumPy, eager and jit agree bit for bit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.grouping import channel_reach
from tinyjax.numerics.layout import row_major

__all__ = ["beside_zero", "group_dequantize", "group_quantize", "upper_half", "widened"]

Array = jax.Array

_NAN = 0x7FC0  # the one way to write NaN in 16 bits


def group_quantize(
    x: Array, ids: Array, groups: int, bits: int, *, exact: bool = False
) -> tuple[Array, Array, Array]:
    """Codes of ``x`` with a scale and a zero point per sample and group.

    Args:
      x: float32 ``[n, m, c]``.
      ids: int32 ``[c]``, every id below ``groups`` equally often: see :func:`by_range`.
      groups: how many there are; divides ``c``.
      bits: up to 8.
      exact: whether only 0.0 has the code of 0.0: what is smaller than half a step then has a
        neighbouring code. Subnormal numbers count as 0.0.

    Returns:
      ``(q, scale, zero_point)``: uint8 ``[n, m, c]`` below ``2**bits``; uint16 ``[n, groups]``,
      the bits of a bfloat16; uint8 ``[n, groups]``. A group with NaN or Inf, or with a range of
      ``2**127`` or more, has scale NaN, and its codes mean nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[[-5.0, 0.0, 0.0, 60.0], [10.0, 1.0, 8.0, 4.0]]])
      >>> q, scale, zero_point = group_quantize(x, jnp.array([0, 0, 1, 1]), 2, bits=4)
      >>> widened(scale).tolist(), zero_point.tolist(), q.tolist()
      ([[1.0, 4.0]], [[5, 0]], [[[0, 5, 0, 15], [15, 6, 2, 1]]])
    """
    # Laid out here and below, since XLA would otherwise work them out again for every element.
    below, above = map(row_major, channel_reach(x))
    scale, zero_point = _scales(below, above, ids, groups, bits, exact)
    inverse = row_major((jnp.float32(1) / widened(scale))[:, ids])
    offset = row_major(zero_point[:, ids])
    t = jnp.rint(x * inverse[:, None]).astype(jnp.int32)
    t = (beside_zero(x, t) if exact else t) + offset[:, None]
    q = lax.clamp(jnp.int32(0), t, jnp.int32(2**bits - 1)).astype(jnp.uint8)
    return q, scale, zero_point.astype(jnp.uint8)


def group_dequantize(q: Array, scale: Array, zero_point: Array, ids: Array) -> Array:
    """``scale (q - zero_point)``.

    Args:
      q: uint8 ``[n, m, c]``.
      scale: uint16 ``[n, groups]``, the bits of a bfloat16.
      zero_point: uint8 ``[n, groups]``.
      ids: int32 ``[c]``.

    Returns:
      float32 ``[n, m, c]``; NaN where the scale is.

    Example:
      >>> import jax.numpy as jnp
      >>> q, one, five = jnp.uint8([[[0, 5, 15]]]), jnp.uint16([[0x3F80]]), jnp.uint8([[5]])
      >>> group_dequantize(q, one, five, jnp.zeros(3, jnp.int32)).tolist()
      [[[-5.0, 0.0, 10.0]]]
    """
    step = row_major(widened(scale)[:, ids])
    offset = row_major(zero_point.astype(jnp.float32)[:, ids])
    return (q.astype(jnp.float32) - offset[:, None]) * step[:, None]


def upper_half(scale: Array) -> Array:
    """Positive float32 as the bits of a bfloat16, rounded up; NaN and Inf as one NaN.

    Args:
      scale: float32, positive or NaN, below the largest bfloat16 or Inf.

    Returns:
      uint16 of the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> widened(upper_half(jnp.array([1.0, 1.0001, jnp.inf]))).tolist()
      [1.0, 1.0078125, nan]
    """
    # In integers: what rounds to nearest may leave the largest element without a code.
    up = (lax.bitcast_convert_type(scale, jnp.uint32) + jnp.uint32(0xFFFF)) >> jnp.uint32(16)
    return jnp.where(jnp.isfinite(scale), up, jnp.uint32(_NAN)).astype(jnp.uint16)


def widened(scale: Array) -> Array:
    """The bits of a bfloat16 as float32.

    Example:
      >>> import jax.numpy as jnp
      >>> widened(jnp.uint16([0x3F80])).tolist()
      [1.0]
    """
    return lax.bitcast_convert_type(scale.astype(jnp.uint32) << jnp.uint32(16), jnp.float32)


def beside_zero(x: Array, q: Array) -> Array:
    """Signed codes of which 0 is that of 0.0 alone: 1 or -1 for what else had it.

    Subnormal numbers keep 0, as XLA takes them for 0.0 on some machines.

    Args:
      x: float32.
      q: int32 of the same shape.

    Returns:
      int32 of the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> beside_zero(jnp.array([0.0, 0.1, -0.1, 3.0]), jnp.int32([0, 0, 0, 3])).tolist()
      [0, 1, -1, 3]
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    normal = (bits & jnp.uint32(0x7F800000)) != 0
    side = jnp.where(bits >> jnp.uint32(31) != 0, jnp.int32(-1), jnp.int32(1))
    return jnp.where(normal & (q == 0), side, q)


def _scales(
    below: Array, above: Array, ids: Array, groups: int, bits: int, exact: bool
) -> tuple[Array, Array]:
    """Scale bits uint16 and zero point int32 ``[n, groups]`` from each channel's reach."""
    below, above = (_largest(reach, ids, groups) for reach in (below, above))
    reach, levels = below + above, 2**bits - 1
    reach = jnp.where(reach < jnp.float32(2.0**127), reach, jnp.float32(jnp.nan))
    # Multiplied and floored at the smallest number with a reciprocal: see symmetric_scale.
    step = reach * jnp.float32(1 / levels)
    scale = upper_half(jnp.where(step < jnp.float32(2.0**-126), jnp.float32(2.0**-126), step))
    zero_point = jnp.rint(below * (jnp.float32(1) / widened(scale))).astype(jnp.int32)
    least, most = jnp.int32(0), jnp.int32(levels)
    if exact:  # a code on each side on which there is anything
        least, most = (below > 0).astype(jnp.int32), most - (above > 0).astype(jnp.int32)
    return scale, lax.clamp(least, zero_point, most)


def _largest(reach: Array, ids: Array, groups: int) -> Array:
    """The largest magnitude of each group, or its NaN: float32 ``[n, c]`` to ``[n, groups]``."""
    # Only this small array is put in order of group; the features stay where they are. Bits of
    # magnitudes are ordered as the magnitudes, with NaN on top, which float maxima pass over.
    bits = lax.bitcast_convert_type(jnp.abs(reach), jnp.int32)[:, jnp.argsort(ids)]
    largest = jnp.max(bits.reshape(len(reach), groups, -1), axis=2)
    return lax.bitcast_convert_type(largest, jnp.float32)
