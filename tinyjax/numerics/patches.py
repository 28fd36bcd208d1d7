"""Frames in cells: which cells hold a flag, and windows around a cell.

A frame of ``h x w`` positions is cut into ``ceil(h / p) x ceil(w / q)`` cells of ``p x q``; the
last ones may be cut off by the border. A *window* is a cell with a halo: ``low`` positions before
it and ``high`` after it, along each axis; what lies outside the frame holds no flag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "Pair",
    "add_window",
    "differs",
    "origins",
    "read_part",
    "read_window",
    "spread",
    "tiles",
    "window_any",
    "write_part",
]

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
    # XLA:CPU computes an OR of bytes many at a time, one of bools one by one. Few channels would
    # make for short inner loops, so they stay joined to columns at first: the barrier keeps it so.
    joined = flags.reshape(h, w * c).astype(jnp.uint8)
    found = lax.optimization_barrier(_along(joined, 0, rows, cell[0], low[0], high[0]))
    found = lax.reduce_or(found.reshape(rows, w, c), (2,))
    return _along(found, 1, cols, cell[1], low[1], high[1]) != 0


def _along(flags: Array, axis: int, count: int, cell: int, low: int, high: int) -> Array:
    """Windows along one axis: an OR of runs of whole cells, so that every pass is contiguous.

    ``flags`` are bytes.
    """
    size, length = flags.shape[axis], cell + low + high
    reach = math.ceil(length / cell)
    config = [(0, 0, 0)] * flags.ndim
    config[axis] = (low, (count + reach - 1) * cell - low - size, 0)
    shape = (*flags.shape[:axis], count + reach - 1, cell, *flags.shape[axis + 1 :])
    cells = lax.pad(flags, jnp.zeros((), flags.dtype), config).reshape(shape)
    found = jnp.zeros((), flags.dtype)
    for i in range(reach):
        run = lax.slice_in_dim(cells, i, i + count, axis=axis)
        run = lax.slice_in_dim(run, 0, min(cell, length - i * cell), axis=axis + 1)
        found = found | lax.reduce_or(run, (axis + 1,))
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


def read_part(x: Array, at: tuple[Array, Array], size: Pair) -> Array:
    """``[1, *size, c]`` of ``[1, h, w, c]``, from row and column ``at`` (int32), inside the frame.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
      >>> read_part(x, (jnp.int32(1), jnp.int32(0)), (1, 2))[0, :, :, 0].tolist()
      [[3.0, 4.0]]
    """
    return lax.dynamic_slice(x, _start(at), (1, *size, x.shape[3]))


def write_part(x: Array, part: Array, at: tuple[Array, Array]) -> Array:
    """``x`` with ``part`` in it, from row and column ``at`` on.

    Example:
      >>> import jax.numpy as jnp
      >>> x, at = jnp.zeros((1, 2, 2, 1)), (jnp.int32(1), jnp.int32(0))
      >>> write_part(x, jnp.ones((1, 1, 2, 1)), at)[0, :, :, 0].tolist()
      [[0.0, 0.0], [1.0, 1.0]]
    """
    return lax.dynamic_update_slice(x, part, _start(at))


def _start(at: Sequence[Array]) -> tuple[Array, ...]:
    return (jnp.int32(0), *at, jnp.int32(0))


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
      >>> x, start = jnp.arange(9.0).reshape(1, 3, 3, 1), (jnp.int32(-1), jnp.int32(1))
      >>> read_window(x, start, (2, 3), ((1, 0), (0, 1)))[0, :, :, 0].tolist()
      [[0.0, 0.0, 0.0], [1.0, 2.0, 0.0]]
    """
    held, inside = _inside(x, start, size)
    shift = [o - i for o, i in zip(start, inside, strict=True)]
    return _shifted(read_part(x, inside, held), shift, size, beyond)


def add_window(
    x: Array, window: Array, start: tuple[Array, Array], beyond: tuple[Pair, ...]
) -> Array:
    """``x`` with a window added to it, of which what lies outside the frame is dropped.

    Args:
      x: ``[1, h, w, c]``.
      window: ``[1, *size, c]``.
      start: row and column where the window begins, int32; may be negative.
      beyond: for each axis, how far any window of this kind reaches out before and after.

    Returns:
      ``[1, h, w, c]``.

    Example:
      >>> import jax.numpy as jnp
      >>> x, start = jnp.zeros((1, 3, 3, 1)), (jnp.int32(-1), jnp.int32(1))
      >>> add_window(x, jnp.ones((1, 2, 3, 1)), start, ((1, 0), (0, 1)))[0, :, :, 0].tolist()
      [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    held, inside = _inside(x, start, window.shape[1:3])
    shift = [i - o for o, i in zip(start, inside, strict=True)]
    part = _shifted(window, shift, held, tuple((b, a) for a, b in beyond))
    return write_part(x, read_part(x, inside, held) + part, inside)


def _inside(x: Array, start: tuple[Array, Array], size: Pair) -> tuple[Pair, tuple[Array, Array]]:
    """The size of a window as far as it fits into a frame, and where it begins, moved inside."""
    held = tuple(map(min, size, x.shape[1:3]))
    row, col = (
        lax.clamp(jnp.int32(0), o, jnp.int32(h - s))
        for o, h, s in zip(start, x.shape[1:3], held, strict=True)
    )
    return held, (row, col)


def _shifted(part: Array, shift: Sequence[Array], size: Pair, beyond: tuple[Pair, ...]) -> Array:
    """``[1, *size, c]`` of a part from ``shift`` on; zeros up to ``beyond`` it on each side."""
    margins = ((0, 0, 0), *((a, b, 0) for a, b in beyond), (0, 0, 0))
    padded = lax.pad(part, jnp.zeros((), part.dtype), margins)
    row, col = (o + jnp.int32(a) for o, (a, _) in zip(shift, beyond, strict=True))
    return read_part(padded, (row, col), size)
