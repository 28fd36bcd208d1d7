"""Between floats and small integers: scales, rounding, quantize, dequantize.

Symmetric, ``x ~ scale * q`` with ``q`` in ``[-qmax, qmax]`` and ``qmax = 2**(bits - 1) - 1``; the
value ``-128`` is never used, because its asymmetry biases gradients. Affine,
``x ~ scale * (q - zero_point)`` with an integer zero point, so that 0.0 stays exact.

NaN or Inf in a tensor makes its scale NaN or Inf, and so everything computed with it NaN:
nothing turns into a confident number.

References:
  Zhou et al., `Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for
  Tiny On-device Learning <https://www.usenix.org/conference/atc21/presentation/zhou-qihua>`_,
  USENIX ATC 2021. Chen et al., `INT v.s. FP <https://arxiv.org/abs/2510.25602>`_, 2025, for the
  symmetric range.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.rounding import Rounding, nearest

__all__ = [
    "abs_max",
    "affine_range",
    "bounded_step",
    "dequantize",
    "finite_or_nan",
    "qmax",
    "quantize",
    "symmetric_scale",
]

Array = jax.Array


def qmax(bits: int) -> int:
    """The largest magnitude of a signed ``bits``-bit code in the symmetric range.

    Raises:
      ValueError: unless ``2 <= bits <= 8``.

    Example:
      >>> qmax(8), qmax(4), qmax(2)
      (127, 7, 1)
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits!r}: use an int from 2 to 8, since codes are kept in int8")
    return 2 ** (bits - 1) - 1


def abs_max(x: Array, axis: Sequence[int] | None = None) -> Array:
    """Largest magnitude, axes kept: float32; NaN if one is NaN or Inf (or their sum is), 0 if none.

    Args:
      x: float array.
      axis: axes to reduce; all by default.

    Returns:
      float32, the reduced axes of size 1.

    Example:
      >>> import jax.numpy as jnp
      >>> abs_max(jnp.array([[1.0, -3.0], [jnp.nan, 2.0]]), axis=(1,)).ravel().tolist()
      [3.0, nan]
    """
    axes = tuple(range(x.ndim)) if axis is None else tuple(axis)
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
    # XLA's float maximum on CPU passes over NaN; a sum does not, and costs half a pass.
    return largest + jnp.float32(0) * jnp.sum(x, axis=axes, keepdims=True)


def symmetric_scale(largest: Array, bits: int = 8) -> Array:
    """Scale that maps ``largest`` to ``qmax(bits)``, from ``2**-126`` up.

    Zero gets that smallest scale, so that it weighs nothing where scales are compared; a scale
    of ``2**126`` or more is Inf. Beyond these there is no reciprocal in float32.

    Args:
      largest: magnitudes, as from :func:`abs_max`.
      bits: 2 to 8.

    Returns:
      float32 of the same shape, positive or NaN or Inf.

    Example:
      >>> import jax.numpy as jnp
      >>> symmetric_scale(jnp.array([254.0, 0.0])).tolist()
      [2.0, 1.1754943508222875e-38]
    """
    # Multiplied, since XLA turns a division by a constant into just that, but not everywhere.
    scale = largest.astype(jnp.float32) * jnp.float32(1 / qmax(bits))
    scale = jnp.where(scale < jnp.float32(2.0**-126), jnp.float32(2.0**-126), scale)
    return jnp.where(scale >= jnp.float32(2.0**126), jnp.float32(jnp.inf), scale)


def quantize(
    x: Array,
    scale: Array,
    *,
    bits: int = 8,
    zero_point: Array | None = None,
    rounding: Rounding = nearest,
    seed: Array | None = None,
) -> Array:
    """``clip(round(x / scale) + zero_point, -qmax, qmax)`` as int8.

    Args:
      x: float array.
      scale: float32, broadcasts against ``x``.
      bits: 2 to 8.
      zero_point: int32, broadcasts against ``x``; 0 (symmetric) if not given.
      rounding: :func:`nearest` or :func:`stochastic`, or another function like them.
      seed: uint32 scalar for the rounding.

    Returns:
      int8 of the shape of ``x``. Where ``scale`` is NaN or Inf the codes mean nothing, and
      :func:`dequantize` gives NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> quantize(jnp.array([-1.0, 0.1, 9.0]), jnp.float32(0.5)).tolist()
      [-2, 0, 18]
    """
    limit = qmax(bits)
    reach = limit if zero_point is None else 2 * limit  # a zero point moves codes by up to limit
    t = x.astype(jnp.float32) * (jnp.float32(1) / scale)
    q = rounding(lax.clamp(jnp.float32(-reach), t, jnp.float32(reach)), seed)
    if zero_point is not None:
        q = lax.clamp(jnp.int32(-limit), q + zero_point, jnp.int32(limit))
    return q.astype(jnp.int8)


def dequantize(q: Array, scale: Array, zero_point: Array | None = None) -> Array:
    """``scale * (q - zero_point)`` in float32; NaN where the scale is NaN or Inf.

    Example:
      >>> import jax.numpy as jnp
      >>> dequantize(jnp.int8([-2, 0]), jnp.float32(0.5)).tolist()
      [-1.0, 0.0]
    """
    q = q.astype(jnp.int32)
    return finite_or_nan(scale) * (q if zero_point is None else q - zero_point).astype(jnp.float32)


def finite_or_nan(scale: Array) -> Array:
    """The scale, with NaN for Inf: times any code, it gives what nobody takes for a number.

    Example:
      >>> import jax.numpy as jnp
      >>> finite_or_nan(jnp.array([2.0, jnp.inf])).tolist()
      [2.0, nan]
    """
    return jnp.where(jnp.isfinite(scale), scale, jnp.float32(jnp.nan))


def affine_range(x: Array, bits: int = 8) -> tuple[Array, Array]:
    """Scale and zero point that map the range of a whole tensor, 0 included, to the codes.

    Args:
      x: float array.
      bits: 2 to 8.

    Returns:
      ``(scale, zero_point)``: float32 and int32 scalars.

    Example:
      >>> import jax.numpy as jnp
      >>> scale, zero_point = affine_range(jnp.array([0.0, 254.0]))
      >>> float(scale), int(zero_point)
      (1.0, -127)

    References:
      Jacob et al., `Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference <https://arxiv.org/abs/1712.05877>`_, 2018, eq. 1.
    """
    limit = qmax(bits)
    x = x.astype(jnp.float32)
    low = jnp.minimum(jnp.min(x, initial=0.0), 0.0)
    high = jnp.maximum(jnp.max(x, initial=0.0), 0.0)
    scale = symmetric_scale((high - low) / 2, bits)
    zero_point = jnp.rint(jnp.float32(limit) - high * (jnp.float32(1) / scale))
    unknown = jnp.float32(0) * jnp.sum(x)  # NaN if NaN or Inf is in x
    return scale + unknown, jnp.clip(zero_point, -limit, limit).astype(jnp.int32)


def bounded_step(g: Array, error: float, count: Array | None = None) -> Array:
    """The step at which int8 codes of a tensor, rounded stochastically, err by ``error`` at most.

    Rounding ``n`` elements up and down at random with step ``D`` has the expected squared error
    ``D**2 sum f (1 - f) <= n D**2 / 4``, with ``f`` the fractional parts. So ``D = 2 error |g| /
    sqrt(n)`` keeps the root mean square error below ``error |g|``. Where int8 has too few codes
    for that step, ``D`` is ``max |g| / 127`` instead, and the bound is ``D sqrt(n) / 2``.

    Args:
      g: float array.
      error: relative to the norm of ``g``, above 0.
      count: int32 scalar, how many elements may be other than 0, where it is known; else all.

    Returns:
      float32 scalar; NaN or Inf if ``g`` has one. It is a float sum, so its last bits depend on
      the order in which a machine adds.

    Example:
      >>> import jax.numpy as jnp
      >>> g = jnp.array([3.0, -3.0, 3.0, -3.0])
      >>> float(bounded_step(g, 0.5)), round(float(bounded_step(g, 0.001) * 127), 3)
      (3.0, 3.0)

    References:
      Alistarh et al., `QSGD <https://arxiv.org/abs/1610.02132>`_, 2017, for unbiased rounding; the
      closed form is ours.
    """
    finest = symmetric_scale(abs_max(g)).reshape(())
    # In units of the finest step, in which no square overflows or vanishes.
    squares = jnp.sum(jnp.square(g.astype(jnp.float32) * (jnp.float32(1) / finest)))
    n = jnp.int32(g.size) if count is None else jnp.maximum(count, jnp.int32(1))
    rms = jnp.sqrt(squares / n.astype(jnp.float32))
    return finest * jnp.maximum(jnp.float32(1), jnp.float32(2 * error) * rms)
