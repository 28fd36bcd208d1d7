"""Which channels are alike: a group id per channel, every group of the same size.

A grouping is a function ``(x, group_size) -> ids`` of ``x [n, ..., c]``, with ids int32 ``[c]``
below ``c / group_size``. Channels stay where they are: moving them in memory costs several times
what quantizing them does. Balanced groups keep all shapes static.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax.numerics.integer_ops import dot_dw, total
from tinyjax.numerics.quantize import abs_max, quantize, symmetric_scale

__all__ = ["Grouping", "at_random", "by_cosine", "by_range", "channel_reach", "fixed", "in_order"]

Array = jax.Array
Grouping = Callable[[Array, int], Array]  # (x [n, ..., c], group_size) -> int32 [c]


def channel_reach(x: Array) -> tuple[Array, Array]:
    """How far each channel of each sample reaches below and above zero.

    Args:
      x: float32 ``[n, ..., c]``.

    Returns:
      ``(below, above)``: magnitudes, float32 ``[n, c]``; NaN if NaN or Inf is there.

    Example:
      >>> import jax.numpy as jnp
      >>> below, above = channel_reach(jnp.array([[[1.0, -3.0], [2.0, -4.0]]]))
      >>> below.tolist(), above.tolist()
      ([[0.0, 4.0]], [[2.0, 0.0]])
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    # As in abs_max: XLA's maximum passes over NaN, the sum does not.
    unknown = jnp.float32(0) * jnp.sum(x, axis=1)
    below = unknown - jnp.min(x, axis=1, initial=0.0)
    return below, jnp.max(x, axis=1, initial=0.0) + unknown


def by_range(x: Array, group_size: int) -> Array:
    """Groups channels of similar range, so that they can share a scale.

    The range of a channel is over all samples. Channels are ranked by counting how many rank
    before them, which is faster here than sorting; of equal ranges the first channel is first.

    Args:
      x: float ``[n, ..., c]``.
      group_size: channels in a group; divides ``c``.

    Returns:
      int32 ``[c]``: group 0 has the smallest ranges.

    Example:
      >>> import jax.numpy as jnp
      >>> by_range(jnp.array([[9.0, 1.0, 8.0, 2.0]]), 2).tolist()
      [1, 0, 1, 0]

    References:
      The permutation-free form of channel reordering by range: Yuan et al., `RPTQ
      <https://arxiv.org/abs/2304.01089>`_, 2023.
    """
    below, above = channel_reach(x.astype(jnp.float32))
    reach = jnp.max(below, axis=0) + jnp.max(above, axis=0)
    # NaN compares with nothing, and groups must be balanced all the same.
    reach = jnp.where(jnp.isnan(reach), jnp.float32(jnp.inf), reach)
    place = lax.iota(jnp.int32, reach.size)
    first = (reach == reach[:, None]) & (place < place[:, None])
    rank = jnp.sum((reach < reach[:, None]) | first, axis=1, dtype=jnp.int32)
    return rank // group_size


def by_cosine(x: Array, group_size: int) -> Array:
    """Groups channels that point the same way: balanced, greedy.

    The free channel with the largest peak opens a group and its most similar free channels join,
    until all are taken. Similarity is the cosine of the channels' int8 codes, with integer
    products and compared without a root, so that the groups are the same on every machine. It
    takes as many dependent steps as there are channels: calibrate once and use :func:`fixed`
    where time counts.

    Args:
      x: float ``[n, ..., c]``.
      group_size: channels in a group; divides ``c``.

    Returns:
      int32 ``[c]``.

    Example:
      >>> import jax.numpy as jnp
      >>> by_cosine(jnp.array([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.1, 9.0]]), 2).tolist()
      [1, 0, 1, 0]

    References:
      Zhou et al., Hierarchical Channel-spatial Encoding for Communication-efficient Collaborative
      Learning, NeurIPS 2022, groups by "inter-channel similarity" according to its abstract;
      measure and algorithm are a reconstruction.
    """
    c = x.shape[-1]
    peak = abs_max(x.reshape(-1, c), axis=(0,))
    q = quantize(x.reshape(-1, c), symmetric_scale(peak))
    products = total(dot_dw(q, q))  # [c, c]
    # sign(p) p^2 / |j|^2 orders the j's as the cosine with i does: |i| is the same for all.
    closeness = products * jnp.abs(products) / jnp.maximum(jnp.diagonal(products), jnp.float32(1))

    def join(turn: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        ids, opener = carry
        free = ids < 0
        loudest = jnp.argmax(jnp.where(free, peak[0], jnp.float32(-1))).astype(jnp.int32)
        opener = jnp.where(turn % group_size == 0, loudest, opener)
        nearest = jnp.argmax(jnp.where(free, closeness[opener], -jnp.inf)).astype(jnp.int32)
        chosen = jnp.where(turn % group_size == 0, opener, nearest)
        return ids.at[chosen].set((turn // group_size).astype(jnp.int32)), opener

    start = (jnp.full(c, -1, jnp.int32), jnp.int32(0))
    return lax.fori_loop(jnp.int32(0), jnp.int32(c), join, start)[0]


def fixed(ids: Sequence[int] | np.ndarray | Array) -> Grouping:
    """A grouping that was found before, on a calibration batch say.

    Args:
      ids: int ``[c]``, concrete; every id from 0 on equally often.

    Returns:
      A grouping that looks at nothing but the number of channels.

    Raises:
      ValueError: when the grouping is used, if ``ids`` is not a grouping of this many channels
        into groups of this size.

    Example:
      >>> import jax.numpy as jnp
      >>> calibrated = by_range(jnp.array([[9.0, 1.0, 8.0, 2.0]]), 2)
      >>> fixed(calibrated)(jnp.ones((3, 4)), 2).tolist()
      [1, 0, 1, 0]
    """
    known = np.asarray(ids)

    def grouping(x: Array, group_size: int) -> Array:
        c = x.shape[-1]
        balanced = np.repeat(np.arange(c // group_size), group_size)
        if known.shape != (c,) or not np.array_equal(np.sort(known), balanced):
            raise ValueError(
                f"fixed(ids) was given {known.size} ids that do not put {c} channels into groups "
                f"of {group_size}: calibrate on features of the same shape and group_size"
            )
        return jnp.asarray(known, jnp.int32)

    return grouping


def in_order(x: Array, group_size: int) -> Array:
    """Groups neighbouring channels, whatever is in them.

    Args:
      x: float ``[n, ..., c]``.
      group_size: channels in a group; divides ``c``.

    Returns:
      int32 ``[c]``.

    Example:
      >>> import jax.numpy as jnp
      >>> in_order(jnp.ones((3, 4)), 2).tolist()
      [0, 0, 1, 1]
    """
    return lax.iota(jnp.int32, x.shape[-1]) // jnp.int32(group_size)


def at_random(seed: int) -> Grouping:
    """Groups channels at random, the same way in every call: what a grouping has to beat.

    Args:
      seed: an int from 0 up; another seed, other groups.

    Returns:
      A grouping that looks at nothing but the number of channels.

    Example:
      >>> import jax.numpy as jnp
      >>> sorted(at_random(0)(jnp.ones((3, 4)), 2).tolist())
      [0, 0, 1, 1]
    """

    def grouping(x: Array, group_size: int) -> Array:
        order = np.random.default_rng(seed).permutation(x.shape[-1])
        return jnp.asarray(order // group_size, jnp.int32)

    return grouping
