"""SGQ: features and gradients that cross a cut in the network, in few bits.

An SGQ-style codec *reconstructed from the abstract*: the body of the paper was not at hand, so
what is between its words is ours. Features ``x`` cross by a quantizer (``tinyjax.global_step``, or
``tinyjax.stripe_groups`` and ``tinyjax.stripe_gains`` after the abstract). With ``Q~`` for rounding
up and down at random, gradients ``g`` cross back as::

    g^ = D Q~(g / D)        D: E|g^ - g|^2 = D^2 sum f (1 - f) = e^2 |g|^2,  f = g / D mod 1

so ``E[g^] = g`` and ``E|g^ - g| <= e |g|`` wherever int8 has enough codes for that ``D``; see
:func:`tinyjax.numerics.solved_step` for where it has not. Expectations are over the rounding.

Where a quantizer is *exact*, code 0 says that a feature is 0.0. After a relu the gradient of those
places does not matter, and it is 0 in ``g^``: the rest is sent, as unbiased as before.

References:
  Zhou, Guo, Liu, Zhang, Zhang, Guo, Xu, Liu, Qu, Hierarchical Channel-spatial Encoding for
  Communication-efficient Collaborative Learning, NeurIPS 2022 (abstract only).
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from tinyjax.base import Array, Codec
from tinyjax.codes import FeatureCode, GroupCode, SGQGradient, StepCode, plain
from tinyjax.numerics import (
    dequantize,
    gain_dequantize,
    group_dequantize,
    quantize,
    solved_step,
    step_dequantize,
    stochastic,
    unpack_bits,
)
from tinyjax.numerics.solved_step import GradientStep
from tinyjax.transforms.quantizers import Quantizer, global_step, nonzero, symbols

__all__ = ["sgq", "sgq_decode", "sgq_encode"]

_DEFAULT = global_step()


def sgq_encode(x: Array, *, quantizer: Quantizer = _DEFAULT) -> FeatureCode:
    """Encodes features.

    Args:
      x: float32, float16 or bfloat16 ``[n, ..., c]``, samples first and channels last.
      quantizer: :func:`tinyjax.global_step`, :func:`tinyjax.stripe_groups` or
        :func:`tinyjax.stripe_gains`.

    Returns:
      The code: a :class:`tinyjax.StepCode`, :class:`tinyjax.GroupCode` or
      :class:`tinyjax.GainCode`.

    Raises:
      ValueError: if ``x`` is not of such a shape and dtype, or does not fit the quantizer.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.array([[0.0, 15.0, 0.1, 1.5], [3.0, 5.0, 1.0, 0.0]])
      >>> code = tinyjax.sgq_encode(x, quantizer=tinyjax.stripe_groups(group_size=2))
      >>> tinyjax.sgq_decode(code)[0, :2].tolist()
      [0.0, 15.0]

    References:
      Zhou et al., NeurIPS 2022, reconstructed from its abstract (see the module).
    """
    return quantizer(x)


def sgq_decode(code: FeatureCode) -> Array:
    """The features of a code, whichever quantizer made it.

    Args:
      code: from :func:`sgq_encode`, or from ``tinyjax.wire.unpack``.

    Returns:
      ``[n, ..., c]``, shape and dtype of what was encoded.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.array([[-1.0, 2.0]], jnp.bfloat16)
      >>> tinyjax.sgq_decode(tinyjax.sgq_encode(x)).tolist()
      [[-1.0, 2.0]]

    References:
      Zhou et al., NeurIPS 2022, reconstructed from its abstract (see the module).
    """
    x = _values(code).reshape(code.shape)
    if code.dtype == "float16":  # what is rounded up may be past the largest of them
        most = jnp.float32(jnp.finfo(jnp.float16).max)
        x = jnp.where(jnp.abs(x) > most, jnp.sign(x) * most, x)
    return x.astype(code.dtype)


def _values(code: FeatureCode) -> Array:
    """What the codes stand for, float32 of as many elements."""
    scale, (n, *space, c) = jnp.asarray(code.scale), code.shape
    if isinstance(code, StepCode):
        packed, centroids = jnp.asarray(plain(code.packed)), jnp.asarray(code.centroids)
        return step_dequantize(packed, scale, centroids, n * math.prod(space))
    q, ids = symbols(code).reshape(n, -1, c), jnp.asarray(code.ids).astype(jnp.int32)
    if isinstance(code, GroupCode):
        return group_dequantize(q, scale, jnp.asarray(code.zero_point), ids)
    gains = unpack_bits(jnp.asarray(code.gains), 4, math.prod(code.shape[:-1]))
    return gain_dequantize(q, gains.reshape(n, q.shape[1], -1), scale, ids, code.levels)


def sgq(
    *,
    quantizer: Quantizer = _DEFAULT,
    error: float = 0.3,
    gradient_step: GradientStep = solved_step,
) -> Codec:
    """The codec of both directions: features by a quantizer, gradients without bias.

    Args:
      quantizer: of features: :func:`tinyjax.global_step`, :func:`tinyjax.stripe_groups` or
        :func:`tinyjax.stripe_gains`. If it is exact, gradients are masked: 0 where the features
        are, and not sent there.
      error: of a gradient (of what is left of it, if it is masked), relative to its norm, root
        mean square, at most; above 0, up to 1.
      gradient_step: :func:`tinyjax.numerics.solved_step`, or the faster and finer closed form
        :func:`tinyjax.numerics.bounded_step`.

    Returns:
      A codec for :func:`tinyjax.link` and :func:`tinyjax.send`.

    Raises:
      ValueError: if a setting is out of range; on use, if it does not fit the features.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> codec = tinyjax.sgq(quantizer=tinyjax.stripe_groups(group_size=2))
      >>> codec.decode(codec.encode(jnp.array([[0.0, 15.0]]))).tolist()
      [[0.0, 15.0]]

    References:
      Zhou et al., NeurIPS 2022, reconstructed from its abstract (see the module).
    """
    if not 0 < error <= 1:
        raise ValueError(f"error is {error!r}: use a number above 0, at most 1")

    def encode_gradient(g: Array, seed: Array, code: FeatureCode) -> SGQGradient:
        sent, count = g.astype(jnp.float32), None
        if code.exact:
            mask = nonzero(code)
            # A product with 0, so that NaN and Inf are not hidden.
            sent = jnp.where(mask, sent, jnp.float32(0) * sent)
            count = jnp.sum(mask, dtype=jnp.int32)
        step = gradient_step(sent, error, count)
        codes = quantize(sent, step, rounding=stochastic, seed=seed)
        return SGQGradient(codes, step, tuple(g.shape), g.dtype.name, code.exact)

    def decode_gradient(code: SGQGradient) -> Array:
        codes = jnp.asarray(plain(code.codes))
        return dequantize(codes, jnp.asarray(code.step)).astype(code.dtype)

    return Codec(quantizer, sgq_decode, encode_gradient, decode_gradient)
