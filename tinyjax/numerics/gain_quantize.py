"""One of 16 gains per stripe, and a few levels from 0.0 to it for each of its elements.

A *stripe* is what one group of channels holds at one place of a sample. Its gain is on a ladder,
three steps to an octave, below the largest element of its group in that sample; gain 0 says that
the whole stripe is 0.0. Nothing depends on how often a code occurs, so that every message of a
shape has the same length.

Gains and levels are chosen in integers, 1024ths of the largest element, to which ``x / scale`` is
rounded once: no fused multiply-add and no order of additions can change a code, so NumPy, eager and
jit agree bit for bit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax.numerics.group_quantize import upper_half, widened
from tinyjax.numerics.grouping import channel_reach
from tinyjax.numerics.layout import row_major

__all__ = ["gain_dequantize", "gain_quantize"]

Array = jax.Array

_UNIT = 1024  # parts of the scale
_LADDER = (0, *(round(_UNIT * 2 ** ((i - 15) / 3)) for i in range(1, 16)))  # gains, in parts
_STARTS = (32, *_LADDER[1:15])  # a stripe whose largest is above the i-th of them has gain i + 1 up
_TRIED = 4  # gains, from the first that reaches the largest element down
_LEAST = 2.0**-100  # a scale: nothing that is decoded is subnormal
_TOO_LARGE = 2.0**127  # a magnitude: no scale is Inf
_NORMAL = 2.0**-126  # what is smaller is 0.0 on some machines


def gain_quantize(x: Array, ids: Array, groups: int, levels: int) -> tuple[Array, Array, Array]:
    """Codes of ``x`` with a gain per stripe, and a scale per sample and group.

    Of the smallest gain that reaches the largest element of a stripe and the three below it, the
    one with the least squared error is taken; what lies beyond it has the last level.

    Args:
      x: float32 ``[n, m, c]``, nothing below 0.
      ids: int32 ``[c]``, every id below ``groups`` equally often: see :func:`by_range`.
      groups: how many there are; divides ``c`` into 512 channels each at most.
      levels: of an element, 3 or 4: the first is 0.0, the last the gain.

    Returns:
      ``(q, gains, scale)``: uint8 ``[n, m, c]`` below ``levels``; uint8 ``[n, m, groups]`` below
      16; uint16 ``[n, groups]``, the bits of a bfloat16: the largest element, rounded up, from
      ``2**-100`` on. A group with NaN, Inf, ``2**127`` or more, or anything below 0 (subnormal
      numbers are 0.0) has scale NaN, and its codes mean nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[[8.0, 0.0, 4.0], [0.0, 2.0, 1.0]]])
      >>> q, gains, scale = gain_quantize(x, jnp.zeros(3, jnp.int32), 1, levels=3)
      >>> widened(scale).tolist(), gains.tolist(), q.tolist()
      ([[8.0]], [[[15], [9]]], [[[2, 0, 1], [0, 2, 1]]])
    """
    n, m, c = x.shape
    below, above = channel_reach(x)
    above = jnp.where(below >= jnp.float32(_NORMAL), jnp.float32(jnp.nan), above)
    scale = _scales(above, ids, groups)
    inverse = row_major((jnp.float32(1) / widened(scale))[:, ids])
    t = jnp.rint(x * inverse[:, None] * jnp.float32(_UNIT)).astype(jnp.int32)
    t = lax.clamp(jnp.int32(0), t, jnp.int32(_UNIT))
    stripes = t[..., jnp.argsort(ids)].reshape(n, m, groups, c // groups)
    gains = _gains(stripes, levels)
    q = _codes(t, jnp.asarray(_LADDER, jnp.int32)[gains][..., ids], levels)
    return q.astype(jnp.uint8), gains.astype(jnp.uint8), scale


def gain_dequantize(q: Array, gains: Array, scale: Array, ids: Array, levels: int) -> Array:
    """``scale * gain * q / (levels - 1)``.

    Args:
      q: uint8 ``[n, m, c]``, below ``levels``.
      gains: uint8 ``[n, m, groups]``, below 16.
      scale: uint16 ``[n, groups]``, the bits of a bfloat16.
      ids: int32 ``[c]``.
      levels: 3 or 4.

    Returns:
      float32 ``[n, m, c]``; NaN where the scale is.

    Example:
      >>> import jax.numpy as jnp
      >>> q, gains, eight = jnp.uint8([[[2, 0, 1]]]), jnp.uint8([[[12]]]), jnp.uint16([[0x4100]])
      >>> gain_dequantize(q, gains, eight, jnp.zeros(3, jnp.int32), levels=3).tolist()
      [[[4.0, 0.0, 2.0]]]
    """
    # Made once, in float64: what a code stands for is a constant of the format.
    shares = np.outer(_LADDER, np.arange(levels)) / (_UNIT * (levels - 1))
    place = gains.astype(jnp.int32)[..., ids] * jnp.int32(levels) + q.astype(jnp.int32)
    share = jnp.asarray(shares.ravel(), jnp.float32)[place]
    return share * row_major(widened(scale)[:, ids])[:, None]


def _scales(largest: Array, ids: Array, groups: int) -> Array:
    """Scale bits uint16 ``[n, groups]`` from each channel's largest ``[n, c]``, or its NaN."""
    # Bits of magnitudes are ordered as the magnitudes, with NaN on top, which maxima pass over.
    bits = lax.bitcast_convert_type(jnp.abs(largest), jnp.int32)[:, jnp.argsort(ids)]
    bits = jnp.max(bits.reshape(len(largest), groups, -1), axis=2)
    reach = lax.bitcast_convert_type(bits, jnp.float32)
    reach = jnp.where(reach < jnp.float32(_TOO_LARGE), reach, jnp.float32(jnp.nan))
    return upper_half(jnp.where(reach < jnp.float32(_LEAST), jnp.float32(_LEAST), reach))


def _gains(stripes: Array, levels: int) -> Array:
    """The gain of each stripe: int32 ``[n, m, groups]`` of parts ``[n, m, groups, size]``."""
    largest = jnp.max(stripes, axis=-1, keepdims=True)
    first = jnp.sum(largest > jnp.asarray(_STARTS, jnp.int32), axis=-1, dtype=jnp.int32)
    tried = [jnp.maximum(first - jnp.int32(k), jnp.int32(0)) for k in range(_TRIED)]
    errors = jnp.stack([_error(stripes, gain, levels) for gain in tried])
    best = jnp.argmin(errors, axis=0)[None]  # of equal errors that of the largest gain
    return jnp.take_along_axis(jnp.stack(tried), best, axis=0)[0]


def _error(stripes: Array, gain: Array, levels: int) -> Array:
    """Squared errors of stripes at a gain each, in parts of a step between levels: int32."""
    reach = jnp.asarray(_LADDER, jnp.int32)[gain][..., None]
    rest = jnp.int32(levels - 1) * stripes - _codes(stripes, reach, levels) * reach
    return jnp.sum(jnp.square(rest), axis=-1, dtype=jnp.int32)


def _codes(parts: Array, reach: Array, levels: int) -> Array:
    """The nearest level, the upper one of two as near; what is beyond has the last: int32."""
    t, k = jnp.int32(2 * (levels - 1)) * parts, levels - 1
    passed = [(t >= jnp.int32(2 * i + 1) * reach).astype(jnp.int32) for i in range(k)]
    code = sum(passed[1:], passed[0])
    return jnp.where(reach > 0, code, jnp.int32(0))
