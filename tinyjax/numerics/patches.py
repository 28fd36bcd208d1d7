"""Frames in square patches: which patches hold a flag, and windows around a patch.

A frame of ``h x w`` positions is cut into ``ceil(h / p) x ceil(w / q)`` cells of ``p x q``; the
last ones may be cut off by the border. A *window* is a cell with a halo: ``low`` positions before
it and ``high`` after it, along each axis; what lies outside the frame holds no flag.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Pair", "differs", "origins", "read_window", "spread", "tiles", "window_any"]

Array = jax.Array
Pair = tuple[int, ...]  # of height and width


def tiles(size: Pair, cell: Pair) -> Pair:
    """How many cells cover a frame, along each axis.

    Example:
      >>> tiles((30, 32), (16, 16))
      (2, 2)
    """
    return math.ceil(size[0] / cell[0]), math.ceil(size[1] / cell[1])


def origins(count: int, cell: int, size: int) -> list[int]:
    """Where each of ``count`` whole cells begins on an axis; the last one is moved inside.

    Example:
      >>> origins(3, 16, 40)
      [0, 16, 24]
    """
    return [min(i * cell, size - cell) for i in range(count)]


def differs(a: Array, b: Array) -> Array:
    """Where two arrays differ, NaN from everything; bool of their shape.

    Example:
      >>> import jax.numpy as jnp
      >>> differs(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 3.0, jnp.nan])).tolist()
      [False, True, True]
    """
    return ~(a == b)


def window_any(
    flags: Array,
    cell: Pair,
    low: Pair = (0, 0),
    high: Pair = (0, 0),
    grid: Pair | None = None,
) -> Array:
    """Which windows hold a flag.

    Args:
      flags: bool ``[h, w, c]``.
      cell: ``(p, q)``.
      low: halo before each cell; negative to leave positions out.
      high: halo after each cell, likewise.
      grid: how many windows along each axis; as many as cover the frame by default.

    Returns:
      bool ``[*grid]``.

    Example:
      >>> import jax.numpy as jnp
      >>> flags = jnp.zeros((4, 6, 1), bool).at[1, 2, 0].set(True)
      >>> window_any(flags, (2, 2)).astype(int).tolist()
      [[0, 1, 0], [0, 0, 0]]
      >>> window_any(flags, (2, 2), (1, 1), (0, 1)).astype(int).tolist()
      [[1, 1, 0], [1, 1, 0]]
    """
    h, w, c = flags.shape
    rows, cols = grid or tiles((h, w), cell)
    # Few channels would make for short inner loops, so they stay joined to columns at first.
    found = _along(flags.reshape(h, w * c), 0, rows, cell[0], low[0], high[0])
    return _along(found.reshape(rows, w, c).any(2), 1, cols, cell[1], low[1], high[1])


def _along(flags: Array, axis: int, count: int, cell: int, low: int, high: int) -> Array:
    """Windows along one axis: an OR of runs of whole cells, so that every pass is contiguous."""
    size, length = flags.shape[axis], cell + low + high
    reach = math.ceil(length / cell)
    config = [(0, 0, 0)] * flags.ndim
    config[axis] = (low, (count + reach - 1) * cell - low - size, 0)
    shape = (*flags.shape[:axis], count + reach - 1, cell, *flags.shape[axis + 1 :])
    cells = lax.pad(flags, jnp.zeros((), flags.dtype), config).reshape(shape)
    found = jnp.zeros((), bool)
    for i in range(reach):
        run = lax.slice_in_dim(cells, i, i + count, axis=axis)
        run = lax.slice_in_dim(run, 0, min(cell, length - i * cell), axis=axis + 1)
        found = found | run.any(axis + 1)
    return found


def spread(mask: Array, cell: Pair, size: Pair) -> Array:
    """Each cell's flag at all of its positions: bool ``[rows, cols] -> [h, w]``.

    Example:
      >>> import jax.numpy as jnp
      >>> spread(jnp.array([[True, False]]), (1, 2), (1, 3)).astype(int).tolist()
      [[1, 1, 0]]
    """
    rows = jnp.repeat(mask, cell[0], axis=0)[: size[0]]
    return jnp.repeat(rows, cell[1], axis=1)[:, : size[1]]


def read_window(
    x: Array, start: tuple[Array, Array], size: Pair, beyond: tuple[Pair, ...]
) -> Array:
    """A window that may reach outside the frame, where it holds zeros.

    Args:
      x: ``[1, h, w, c]``.
      start: row and column where the window begins, int32; may be negative.
      size: of the window.
      beyond: for each axis, how far any window of this kind reaches out before and after.

    Returns:
      ``[1, *size, c]``.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
      >>> read_window(x, (-1, 1), (2, 3), ((1, 0), (0, 1)))[0, :, :, 0].tolist()
      [[0.0, 0.0, 0.0], [1.0, 2.0, 0.0]]
    """
    held = [min(s, h) for s, h in zip(size, x.shape[1:3], strict=True)]
    inside = [
        jnp.clip(jnp.asarray(o, jnp.int32), 0, h - s)
        for o, h, s in zip(start, x.shape[1:3], held, strict=True)
    ]
    part = lax.dynamic_slice(x, (0, *inside, 0), (1, *held, x.shape[3]))
    padded = lax.pad(
        part, jnp.zeros((), x.dtype), ((0, 0, 0), *((a, b, 0) for a, b in beyond), (0, 0, 0))
    )
    shift = [o - i + pair[0] for o, i, pair in zip(start, inside, beyond, strict=True)]
    return lax.dynamic_slice(padded, (0, *shift, 0), (1, *size, x.shape[3]))
