"""A quantizer of features whose messages all have the same length, in about two bits an element.

With ``s_nk`` for the largest feature of group ``k`` of channels in sample ``n``, a gain ``i`` for
each stripe (one place of a sample in one group) and ``L`` levels::

    a = s_nk 2^((i - 15) / 3),  i = 1 ... 15;  a = 0,  i = 0        q = Q((L - 1) min(x / a, 1))
    x^ = a q / (L - 1)

which is ``4 / size + log2(L)`` bits an element, 1.85 at 16 channels and three levels.

References:
  Zhou, Guo, Liu, Zhang, Zhang, Guo, Xu, Liu, Qu, Hierarchical Channel-spatial Encoding for
  Communication-efficient Collaborative Learning, NeurIPS 2022: a reconstruction of its spatial
  level from its abstract. A gain for a vector and a shape of few levels is gain-shape vector
  quantization: Sabin, Gray, Product code vector quantizers for waveform and voice coding, IEEE
  Transactions on Acoustics, Speech, and Signal Processing 32(3), 1984.
"""

from __future__ import annotations

import jax.numpy as jnp

from tinyjax.base import Array
from tinyjax.codes import GainCode
from tinyjax.numerics import by_range, gain_quantize, levels_per_byte, pack_bits, pack_levels
from tinyjax.numerics.grouping import Grouping
from tinyjax.transforms.checks import check_features, count_groups
from tinyjax.transforms.quantizers import Quantizer

__all__ = ["stripe_gains"]

_MAX_SIZE = 512  # squared errors of a stripe fit int32


def stripe_gains(
    *, group_size: int = 16, levels: int = 3, grouping: Grouping = by_range
) -> Quantizer:
    """Quantizes features after a relu to few levels of a gain that each stripe has for itself.

    Args:
      group_size: channels in a group, up to 512; divides ``c`` into at most 256 groups.
      levels: of a feature, from 0.0 to the gain: 3 or 4.
      grouping: as for :func:`tinyjax.stripe_groups`.

    Returns:
      A quantizer, ``x [n, ..., c] -> code``, for :func:`tinyjax.sgq`. 0.0 is exact, and whatever is
      small in its stripe becomes 0.0. A group with NaN, Inf or anything negative comes out as NaN:
      the levels are for what a relu lets pass.

    Raises:
      ValueError: if a setting is out of range; on use, if ``x`` is of another shape or dtype, or
        its channels do not make such groups.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.array([[8.0, 0.0, 4.0, 1.0], [0.0, 2.0, 0.0, 0.25]])
      >>> tinyjax.sgq_decode(tinyjax.stripe_gains(group_size=4)(x)).tolist()
      [[8.0, 0.0, 4.0, 0.0], [0.0, 2.0, 0.0, 0.0]]

    References:
      Zhou et al., NeurIPS 2022, reconstructed from its abstract; Sabin, Gray, 1984 (see the
      module).
    """
    if type(group_size) is not int or not 0 < group_size <= _MAX_SIZE:
        raise ValueError(f"group_size is {group_size!r}: use an int from 1 to {_MAX_SIZE}")
    levels_per_byte(levels)

    def quantizer(x: Array) -> GainCode:
        check_features(x)
        groups = count_groups(x.shape[-1], group_size)
        n, c, x32 = x.shape[0], x.shape[-1], x.astype(jnp.float32)
        ids = grouping(x32, group_size)
        q, gains, scale = gain_quantize(x32.reshape(n, -1, c), ids, groups, levels)
        gains = pack_bits(gains.reshape(-1, groups), 4)
        packed, ids = pack_levels(q.reshape(-1, c), levels), ids.astype(jnp.uint8)
        return GainCode(packed, gains, scale, ids, tuple(x.shape), levels, x.dtype.name)

    return quantizer
