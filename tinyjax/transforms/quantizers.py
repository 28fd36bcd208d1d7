"""Quantizers of features: from ``[n, ..., c]`` to integer codes, and what decodes them.

With ``Q`` for rounding and ``r_q`` for the mean of what code ``q`` took, in steps::

    global step:     q = clip(z + sign(x) floor(|x| / D + 0.4), 0, 2^b - 1)   x^ = D r_q
                     D = 0.5 sqrt(mean x^2)
    stripe groups:   q = clip(z_nk + Q(x / s_nk), 0, 2^b - 1)                 x^ = s_nk (q - z_nk)
                     s_nk = range of group k of channels in sample n / (2^b - 1)

Where nothing is negative ``z`` is 0, and one side of zero takes all codes.

References:
  Zhou, Guo, Liu, Zhang, Zhang, Guo, Xu, Liu, Qu, Hierarchical Channel-spatial Encoding for
  Communication-efficient Collaborative Learning, NeurIPS 2022: the groups are a reconstruction
  from its abstract. One step for everything is what rate-distortion theory asks for where an
  entropy coder follows: Sullivan, Efficient scalar quantization of exponential and Laplacian
  random variables, IEEE Transactions on Information Theory 42(5), 1996, also for the wider cell
  around 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from tinyjax.base import Array
from tinyjax.codes import FeatureCode, GainCode, GroupCode, StepCode, plain
from tinyjax.numerics import (
    MAX_STEP,
    by_range,
    group_quantize,
    pack_bits,
    per_byte,
    step_quantize,
    unpack_bits,
    unpack_levels,
)
from tinyjax.numerics.grouping import Grouping
from tinyjax.transforms.checks import check_features, count_groups

__all__ = ["Quantizer", "global_step", "nonzero", "stripe_groups", "symbols"]

Quantizer = Callable[[Array], FeatureCode]


def global_step(
    *, step: float = 0.5, bits: int = 4, offset: float = 0.4, exact: bool = False
) -> Quantizer:
    """Quantizes all features with one step, decoded at the mean of what each code took.

    Args:
      step: in root mean squares of the features, above 0 and at most 8.
      bits: of a code: 2, 4 or 8. What lies beyond the codes takes the last of them.
      offset: added before rounding down, from 0 up to 0.5: 0.5 rounds to nearest, less widens the
        cell around 0.
      exact: whether only 0.0 has the code of 0.0. A gradient is then sent only for the other
        places, which is exact after a relu.

    Returns:
      A quantizer, ``x [n, ..., c] -> code``, for :func:`tinyjax.sgq`. 0.0 is exact; features with
      NaN, Inf or a magnitude of ``2**112`` or more come out as NaN, all of them.

    Raises:
      ValueError: if a setting is out of range; on use, if ``x`` is of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> code = tinyjax.global_step()(jnp.array([[0.0, 1.0, 2.0, 3.0]]))
      >>> tinyjax.sgq_decode(code).round(2).tolist()
      [[0.0, 1.0, 2.0, 3.0]]

    References:
      Sullivan, Efficient scalar quantization of exponential and Laplacian random variables, IEEE
      Transactions on Information Theory 42(5), 1996.
    """
    per_byte(bits)
    if not 0 < step <= MAX_STEP:
        raise ValueError(f"step is {step!r}: use a number above 0, at most {MAX_STEP:g}")
    if not 0 <= offset <= 0.5:
        raise ValueError(f"offset is {offset!r}: use a number from 0 to 0.5")

    def quantizer(x: Array) -> StepCode:
        check_features(x)
        flat = x.astype(jnp.float32).reshape(-1, x.shape[-1])
        q, scale, zero_point, centroids = step_quantize(
            flat, bits, step=step, offset=offset, exact=exact
        )
        packed, shape, dtype = pack_bits(q, bits), tuple(x.shape), x.dtype.name
        return StepCode(packed, scale, zero_point, centroids, shape, bits, dtype, exact)

    return quantizer


def stripe_groups(
    *, group_size: int = 16, bits: int = 4, grouping: Grouping = by_range, exact: bool = False
) -> Quantizer:
    """Quantizes features in groups of similar channels that share a scale in each sample.

    Args:
      group_size: channels in a group; divides ``c`` into at most 256 groups.
      bits: of a code: 2, 4 or 8.
      grouping: ``(x, group_size) -> ids``: :func:`tinyjax.numerics.by_range`,
        :func:`~tinyjax.numerics.by_cosine` (slower), :func:`~tinyjax.numerics.in_order`,
        :func:`~tinyjax.numerics.at_random`, or one found before:
        :func:`~tinyjax.numerics.fixed`.
      exact: whether only 0.0 has the code of 0.0: see :func:`tinyjax.global_step`.

    Returns:
      A quantizer, ``x [n, ..., c] -> code``, for :func:`tinyjax.sgq`. 0.0 is exact, and everything
      else within a step of its group; a group with NaN or Inf comes out as NaN.

    Raises:
      ValueError: if a setting is out of range; on use, if ``x`` is of another shape or dtype, or
        its channels do not make such groups.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.array([[0.0, 15.0, 0.1, 1.5], [3.0, 5.0, 1.0, 0.0]])
      >>> tinyjax.sgq_decode(tinyjax.stripe_groups(group_size=2)(x))[0, :2].tolist()
      [0.0, 15.0]

    References:
      Zhou et al., NeurIPS 2022, reconstructed from its abstract (see the module).
    """
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ValueError(f"group_size is {group_size!r}: use an int from 1 up")
    per_byte(bits)

    def quantizer(x: Array) -> GroupCode:
        check_features(x)
        groups = count_groups(x.shape[-1], group_size)
        n, c, x32 = x.shape[0], x.shape[-1], x.astype(jnp.float32)
        ids = grouping(x32, group_size)
        q, scale, zero_point = group_quantize(x32.reshape(n, -1, c), ids, groups, bits, exact=exact)
        packed, ids = pack_bits(q.reshape(-1, c), bits), ids.astype(jnp.uint8)
        shape, dtype = tuple(x.shape), x.dtype.name
        return GroupCode(packed, scale, zero_point, ids, shape, bits, dtype, exact)

    return quantizer


def symbols(code: FeatureCode) -> Array:
    """The codes one by one: uint8 ``[rows, c]``, rows being the places of all samples in order.

    Example:
      >>> import jax.numpy as jnp
      >>> symbols(global_step()(jnp.array([[0.0, 1.0, 2.0, 3.0]]))).tolist()
      [[0, 1, 2, 3]]
    """
    rows, packed = math.prod(code.shape[:-1]), jnp.asarray(plain(code.packed))
    if isinstance(code, GainCode):
        return unpack_levels(packed, code.levels, rows)
    return unpack_bits(packed, code.bits, rows)


def nonzero(code: FeatureCode) -> Array:
    """Where features do not have the code of 0.0: bool, of their shape.

    Example:
      >>> import jax.numpy as jnp
      >>> nonzero(global_step()(jnp.array([[0.0, 1.0, 2.0, 3.0]]))).tolist()
      [[False, True, True, True]]
    """
    zero_point = jnp.uint8(0) if isinstance(code, GainCode) else jnp.asarray(code.zero_point)
    if isinstance(code, GroupCode):
        zero_point = zero_point[:, jnp.asarray(code.ids).astype(jnp.int32)][:, None]
    n, *_, c = code.shape
    return (symbols(code).reshape(n, -1, c) != zero_point).reshape(code.shape)
