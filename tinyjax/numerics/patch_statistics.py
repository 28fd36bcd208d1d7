"""What a gate may know of patches: how far they moved, and how far a change reaches.

Skips are floats, 1.0 where a patch is skipped and 0.0 where it is taken, so that a gate can be
trained through them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax.numerics.patches import tiles

__all__ = ["asleep", "channel_groups", "patch_statistics"]

Array = jax.Array


def channel_groups(channels: int, most: int = 8) -> list[int]:
    """How many channels each group has: at most so many groups, as even as can be.

    Example:
      >>> channel_groups(3), channel_groups(20)
      ([1, 1, 1], [3, 3, 3, 3, 2, 2, 2, 2])
    """
    count = min(most, channels)
    return [channels // count + (i < channels % count) for i in range(count)]


def patch_statistics(x: Array, ref: Array, patch: int) -> Array:
    """How far each patch moved: largest, mean and mean square of ``|x - ref|`` by channel group.

    Patches at the border have fewer positions, and are judged by those.

    Args:
      x: ``[h, w, c]``.
      ref: likewise.
      patch: side of a patch.

    Returns:
      float32 ``[rows, cols, 3 * groups]``: the largest of all groups, their means, their mean
      squares, for up to 8 groups of neighbouring channels.

    Example:
      >>> import jax.numpy as jnp
      >>> ref = jnp.zeros((2, 4, 1))
      >>> patch_statistics(ref.at[0, 3].set(-2.0), ref, 2).tolist()
      [[[0.0, 0.0, 0.0], [2.0, 0.5, 1.0]]]
    """
    moved = jnp.abs(x.astype(jnp.float32) - ref.astype(jnp.float32))
    (h, w, c), (rows, cols) = moved.shape, tiles(moved.shape[:2], (patch, patch))
    inside = [  # positions of each patch, along each axis
        np.minimum(patch, side - patch * np.arange(count)) for side, count in ((h, rows), (w, cols))
    ]
    groups = channel_groups(c)
    share = jnp.asarray(1 / (np.multiply.outer(*inside)[:, :, None] * groups), jnp.float32)
    # Zeros beyond the border change no sum, and no largest of what is not negative. Rows are cut
    # before anything else, or XLA takes four times as long.
    moved = jnp.pad(moved, ((0, rows * patch - h), (0, cols * patch - w), (0, 0)))
    moved = moved.reshape(rows, patch, cols * patch * c)

    def reduced(values: Array, reduce: Callable[..., Array]) -> Array:
        # Few channels would make for short inner loops, so they stay joined to columns at first.
        found = reduce(reduce(values, axis=1).reshape(rows, cols, patch, c), axis=2)
        ends = np.cumsum(groups)
        parts = [found[:, :, end - n : end] for n, end in zip(groups, ends, strict=True)]
        return jnp.stack([reduce(part, axis=2) for part in parts], 2)

    total, squares = reduced(moved, jnp.sum), reduced(jnp.square(moved), jnp.sum)
    return jnp.concatenate([reduced(moved, jnp.max), total * share, squares * share], 2)


def asleep(skips: Array, reach: int = 1) -> Array:
    """The patches which no change wakes, if each one wakes all up to ``reach`` patches away.

    The least of the skips around. Its derivative is shared by all that are least, along columns and
    then along rows: of a product it would be 0 wherever two patches near are taken.

    Args:
      skips: float32 ``[..., rows, cols]``, 1 where a patch is skipped.
      reach: patches, 0 or more.

    Returns:
      float32 of the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> asleep(jnp.ones((1, 4)).at[0, 0].set(0.0)).tolist()
      [[0.0, 0.0, 1.0, 1.0]]
    """
    for axis in (skips.ndim - 2, skips.ndim - 1):
        margins = [(0, 0, 0)] * skips.ndim
        margins[axis] = (reach, reach, 0)
        padded = lax.pad(skips, jnp.asarray(jnp.inf, skips.dtype), margins)
        near = partial(lax.slice_in_dim, padded, axis=axis)
        size = skips.shape[axis]
        skips = jnp.min(jnp.stack([near(i, i + size) for i in range(2 * reach + 1)]), 0)
    return skips
