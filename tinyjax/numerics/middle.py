"""Zero points without a quantizer that knows them: where to shift to, and what to add back."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tinyjax.numerics.quantize import abs_max, dequantize, qmax, quantize, symmetric_scale

__all__ = ["middle", "through_codes"]

Array = jax.Array


def middle(x: Array, bits: int = 8) -> Array:
    """The last ``c`` from 0 to the middle of a tensor's range for which ``0.0 - c`` is a code.

    With ``step = max|x - c| / qmax(bits)``, the scale that a symmetric quantizer of ``x - c``
    takes, ``c`` is an integer times ``step``. So what was 0 before the shift (padding, the zeros
    of a relu) is 0 after it, and a one-sided tensor uses all codes instead of half of them: this
    is affine quantization with an integer zero point, by a quantizer that knows none.

    Args:
      x: float array; its range is widened to hold 0.
      bits: of the codes, 2 to 8.

    Returns:
      float32 scalar; 0 for a tensor of zeros, NaN if the range is not finite. A NaN in ``x``
      stays in ``x - c``.

    Raises:
      ValueError: if ``bits`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> float(middle(jnp.array([0.0, 1.0, 254.0])))
      127.0
      >>> float(middle(jnp.array([-3.0, 3.0])))
      0.0

    References:
      Jacob et al., `Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference <https://arxiv.org/abs/1712.05877>`_, 2018, for the
      integer zero point; this form of it is ours.
    """
    limit = qmax(bits)
    x = x.astype(jnp.float32)
    high = jnp.max(x, initial=0.0)
    low = jnp.min(x, initial=0.0)
    reach = jnp.maximum(high, -low)
    # With c = k step and the far end at limit steps from it, reach = (limit + |k|) step.
    width = jnp.where(high > low, high - low, jnp.float32(1))
    k = jnp.trunc(jnp.float32(limit) * ((high + low) / width))
    return k * (reach / (jnp.float32(limit) + jnp.abs(k)))


def through_codes(w: Array, axis: Sequence[int], bits: int = 8) -> Array:
    """A weight as it is after quantization per feature; differentiated as the identity.

    Args:
      w: float array.
      axis: axes that share a scale: those that the op sums over.
      bits: 2 to 8.

    Returns:
      float32 of the same shape.

    Raises:
      ValueError: if ``bits`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> through_codes(jnp.array([[127.0, 1.2], [254.0, 1.2]]), axis=(1,)).tolist()
      [[127.0, 1.0], [254.0, 2.0]]

    References:
      Bengio et al., `Estimating or Propagating Gradients Through Stochastic Neurons
      <https://arxiv.org/abs/1308.3432>`_, 2013, for the derivative.
    """
    w = w.astype(jnp.float32)
    scale = symmetric_scale(abs_max(w, axis), bits)
    return w + jax.lax.stop_gradient(dequantize(quantize(w, scale, bits=bits), scale) - w)
