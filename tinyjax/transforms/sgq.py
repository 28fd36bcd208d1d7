"""SGQ: features and gradients that cross a cut in the network, in few bits.

An SGQ-style codec *reconstructed from the abstract*: the body of the paper was not at hand, so
what is between its words is ours. With ``Q`` for rounding to nearest, ``Q~`` for rounding up and
down at random, and channels in groups ``k`` of similar ones, features ``x`` of sample ``n`` and
gradients ``g`` cross as::

    x^ = s_nk (clip(Q(x / s_nk) + z_nk, 0, 2^b - 1) - z_nk)     s_nk: range of the group / (2^b - 1)
    g^ = D Q~(g / D)                                            D = 2 e |g| / sqrt(size of g)

so ``E[g^] = g`` and ``E|g^ - g|^2 <= e^2 |g|^2`` wherever int8 has enough codes for that ``D``; see
:func:`tinyjax.numerics.bounded_step` for where it has not.

References:
  Zhou, Guo, Liu, Zhang, Zhang, Guo, Xu, Liu, Qu, Hierarchical Channel-spatial Encoding for
  Communication-efficient Collaborative Learning, NeurIPS 2022 (abstract only). Its spatial level
  is not here.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from tinyjax.base import Array, Codec
from tinyjax.codes import DTYPES, MAX_GROUPS, SGQCode, SGQGradient
from tinyjax.numerics import (
    bounded_step,
    by_range,
    dequantize,
    group_dequantize,
    group_quantize,
    pack_bits,
    per_byte,
    quantize,
    stochastic,
    unpack_bits,
)
from tinyjax.numerics.grouping import Grouping

__all__ = ["sgq", "sgq_decode", "sgq_encode"]


def sgq_encode(
    x: Array, *, group_size: int = 16, bits: int = 4, grouping: Grouping = by_range
) -> SGQCode:
    """Encodes features: each group of similar channels shares a scale in each sample.

    Args:
      x: float32, float16 or bfloat16 ``[n, ..., c]``, samples first and channels last.
      group_size: channels in a group; divides ``c`` into at most 256 groups.
      bits: of a code: 2, 4 or 8.
      grouping: ``(x, group_size) -> ids``: :func:`tinyjax.numerics.by_range`,
        :func:`~tinyjax.numerics.by_cosine` (slower), or one found before:
        :func:`~tinyjax.numerics.fixed`.

    Returns:
      The code. 0.0 is exact, and everything else within a step of its group; a group with NaN or
      Inf comes out as NaN.

    Raises:
      ValueError: if ``x`` is not of such a shape and dtype, or one of the settings does not fit it.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.array([[0.0, 15.0, 0.1, 1.5], [3.0, 5.0, 1.0, 0.0]])
      >>> tinyjax.sgq_decode(tinyjax.sgq_encode(x, group_size=2))[0, :2].tolist()
      [0.0, 15.0]

    References:
      Zhou et al., NeurIPS 2022, reconstructed from its abstract (see the module).
    """
    _check(group_size, bits)
    groups = _groups(x, group_size)
    x32 = x.astype(jnp.float32)
    ids = grouping(x32, group_size)
    n, c = x.shape[0], x.shape[-1]
    q, scale, zero_point = group_quantize(x32.reshape(n, -1, c), ids, groups, bits)
    packed = pack_bits(q.reshape(-1, c), bits)
    return SGQCode(
        packed, scale, zero_point, ids.astype(jnp.uint8), tuple(x.shape), bits, x.dtype.name
    )


def sgq_decode(code: SGQCode) -> Array:
    """The features of a code.

    Args:
      code: from :func:`sgq_encode`, or from ``tinyjax.wire.unpack``.

    Returns:
      ``[n, ..., c]``, shape and dtype of what was encoded.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.array([[-1.0, 2.0]], jnp.bfloat16)
      >>> tinyjax.sgq_decode(tinyjax.sgq_encode(x, group_size=2, bits=2)).tolist()
      [[-1.0, 2.0]]

    References:
      Zhou et al., NeurIPS 2022, reconstructed from its abstract (see the module).
    """
    n, *_, c = code.shape
    q = unpack_bits(jnp.asarray(code.packed), code.bits, math.prod(code.shape[:-1]))
    ids = jnp.asarray(code.ids).astype(jnp.int32)
    scale, zero_point = jnp.asarray(code.scale), jnp.asarray(code.zero_point)
    x = group_dequantize(q.reshape(n, -1, c), scale, zero_point, ids).reshape(code.shape)
    if code.dtype == "float16":  # a scale is rounded up, past the largest of them perhaps
        most = jnp.float32(jnp.finfo(jnp.float16).max)
        x = jnp.where(jnp.abs(x) > most, jnp.sign(x) * most, x)
    return x.astype(code.dtype)


def sgq(
    *, group_size: int = 16, bits: int = 4, grouping: Grouping = by_range, error: float = 0.3
) -> Codec:
    """The codec of both directions: features in groups, gradients without bias.

    Args:
      group_size: channels in a group: see :func:`sgq_encode`.
      bits: of a feature's code: 2, 4 or 8. Gradients take 8.
      grouping: see :func:`sgq_encode`.
      error: of a gradient, relative to its norm, root mean square, at most; above 0, up to 1.

    Returns:
      A codec for :func:`tinyjax.link` and :func:`tinyjax.send`.

    Raises:
      ValueError: if a setting is out of range; on use, if it does not fit the features.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> codec = tinyjax.sgq(group_size=2)
      >>> codec.decode(codec.encode(jnp.array([[0.0, 15.0]]))).tolist()
      [[0.0, 15.0]]

    References:
      Zhou et al., NeurIPS 2022, reconstructed from its abstract (see the module).
    """
    _check(group_size, bits)
    if not 0 < error <= 1:
        raise ValueError(f"error is {error!r}: use a number above 0, at most 1")

    def encode(x: Array) -> SGQCode:
        return sgq_encode(x, group_size=group_size, bits=bits, grouping=grouping)

    def encode_gradient(g: Array, seed: Array) -> SGQGradient:
        step = bounded_step(g, error)
        return SGQGradient(quantize(g, step, rounding=stochastic, seed=seed), step, g.dtype.name)

    def decode_gradient(code: SGQGradient) -> Array:
        return dequantize(jnp.asarray(code.codes), jnp.asarray(code.step)).astype(code.dtype)

    return Codec(encode, sgq_decode, encode_gradient, decode_gradient)


def _check(group_size: int, bits: int) -> None:
    """Refuses settings that fit no features."""
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ValueError(f"group_size is {group_size!r}: use an int from 1 up")
    per_byte(bits)


def _groups(x: Array, group_size: int) -> int:
    """How many groups the channels of ``x`` make; refuses what makes none."""
    if x.dtype.name not in DTYPES or x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"SGQ was given {x.dtype.name} {list(x.shape)}: give it features [n, ..., c] of at "
            f"least one sample in one of {', '.join(DTYPES)}"
        )
    groups, rest = divmod(x.shape[-1], group_size)
    if rest or groups > MAX_GROUPS:
        raise ValueError(
            f"group_size is {group_size}, which does not cut {x.shape[-1]} channels into at most "
            f"{MAX_GROUPS} equal groups: choose a divisor of {x.shape[-1]}"
        )
    return groups
