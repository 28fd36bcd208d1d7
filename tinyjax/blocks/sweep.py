"""Sweeps over chosen cells: a loop whose length is decided on the device, or known beforehand.

One cell at a time: on a CPU that is as fast as several at once, wastes nothing, and keeps windows
in cache. A mask that is a NumPy array gives a loop of fixed length over fixed cells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax.blocks.divide import Block
from tinyjax.blocks.local import Var
from tinyjax.blocks.windows import Index, corner, run_frame, run_window
from tinyjax.numerics.patches import differs, spread, window_any

__all__ = ["active_cells", "effective_input", "run_block"]

Array = jax.Array
Mask = Array | np.ndarray  # bool; NumPy's is known before anything is traced


def active_cells(block: Block, changed: Mapping[Var, Mask]) -> Mask:
    """The cells of a block whose windows hold a change; NumPy's if all that changed is."""

    def found() -> Array:
        cells = jnp.zeros(block.grid, bool)
        for v in block.ins:
            flags, halo = jnp.asarray(changed[v]), block.halos[v]
            cells |= window_any(flags, block.cells[v], halo.low, halo.high, block.grid)
        return cells

    if all(isinstance(changed[v], np.ndarray) for v in block.ins):
        with jax.ensure_compile_time_eval():
            return np.asarray(found())
    return found()


def run_block(
    block: Block,
    env: Mapping[Var, Any],
    old: list[Array],
    cells: Mask,
    whole: Any,
    watched: set[Var],
) -> tuple[list[Array], dict[Var, Array]]:
    """The outputs of a block with some cells, or all, computed anew.

    Args:
      block: the block.
      env: values of what it reads.
      old: its outputs before.
      cells: bool ``[rows, cols]``, the cells to compute.
      whole: bool scalar: compute all, as the function itself does.
      watched: tensors of which it matters where they change.

    Returns:
      The outputs, and where the watched ones changed: bool ``[h, w, 1]``.
    """
    kept = [v for v in block.outs if v in watched]
    shapes = [(*block.sizes[v], 1) for v in kept]

    def entire(old: list[Array]) -> tuple[list[Array], list[Array]]:
        del old  # all counts as changed: comparing would cost what is saved behind it
        return run_frame(block, env), [jnp.ones(shape, bool) for shape in shapes]

    def sparse(old: list[Array]) -> tuple[list[Array], list[Array]]:
        one = functools.partial(_one_cell, block, env, [v in watched for v in block.outs])
        return _for_each(cells, one, (old, [jnp.zeros(shape, bool) for shape in shapes]))

    outs, flags = lax.cond(whole, entire, sparse, old)
    return outs, dict(zip(kept, flags, strict=True))


def _one_cell(
    block: Block,
    env: Mapping[Var, Any],
    watched: list[bool],
    index: Index,
    carry: tuple[list[Array], list[Array]],
) -> tuple[list[Array], list[Array]]:
    """Computes one cell anew and marks where the watched outputs changed."""
    outs, flags = carry
    at = corner(block, block.outs[0], index)
    new = run_window(block, env, index)
    pairs = zip(outs, new, watched, strict=True)
    marks = [_changed(_part(out, at, part), part) for out, part, seen in pairs if seen]
    # A cell at the border lies over its neighbour: what that one marked stays marked.
    marks = [mark | _marks(flag, at, mark) for mark, flag in zip(marks, flags, strict=True)]
    # Without a barrier between reading and writing, XLA copies the whole output in every turn.
    marks, new, outs = lax.optimization_barrier((marks, new, outs))
    outs = [lax.dynamic_update_slice(o, n, (0, *at, 0)) for o, n in zip(outs, new, strict=True)]
    flags = [lax.dynamic_update_slice(f, m, (*at, 0)) for f, m in zip(flags, marks, strict=True)]
    return outs, flags


def effective_input(
    x: Array, ref: Array, taken: Mask, whole: Any, patch: int
) -> tuple[Array, Mask]:
    """The effective input of a frame, and where it changed.

    Args:
      x: the frame, ``[1, h, w, c]``.
      ref: the effective input before.
      taken: bool ``[rows, cols]``, the patches that come from ``x``.
      whole: bool scalar: take all of ``x``.
      patch: side of a patch.

    Returns:
      ``[1, h, w, c]``; bool ``[h, w, 1]``, of a mask known beforehand all of its patches, NumPy's.
    """
    shape = (*x.shape[1:3], 1)
    one = functools.partial(_one_patch, x, patch)
    ref, flags = lax.cond(
        whole,
        lambda ref: (x, jnp.ones(shape, bool)),
        lambda ref: _for_each(taken, one, (ref, jnp.zeros(shape, bool))),
        ref,
    )
    if not isinstance(taken, np.ndarray):
        return ref, flags
    with jax.ensure_compile_time_eval():
        return ref, np.asarray(spread(jnp.asarray(taken), (patch, patch), shape[:2]))[..., None]


def _one_patch(
    x: Array, patch: int, index: Index, carry: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Takes one patch of ``x``; one at the border, moved inside, leaves its neighbour alone."""
    ref, flags = carry
    begin = [i * jnp.int32(patch) for i in index]
    at = [jnp.minimum(o, jnp.int32(h - patch)) for o, h in zip(begin, x.shape[1:3], strict=True)]
    new = lax.dynamic_slice(x, (0, *at, 0), (1, patch, patch, x.shape[3]))
    old = _part(ref, at, new)
    own = jnp.ones((patch, patch, 1), bool)
    for axis in (0, 1):
        place = lax.broadcasted_iota(jnp.int32, own.shape, axis) + at[axis]
        own = own & (place >= begin[axis])
    marks = (_changed(old, new) & own) | _marks(flags, at, own)
    new, marks, ref = lax.optimization_barrier((jnp.where(own, new, old), marks, ref))
    ref = lax.dynamic_update_slice(ref, new, (0, *at, 0))
    return ref, lax.dynamic_update_slice(flags, marks, (*at, 0))


def _for_each(cells: Mask, one: Callable[[Index, Any], Any], carry: Any) -> Any:
    """``one((row, col), carry) -> carry`` for every chosen cell."""
    rows, cols = cells.shape
    if isinstance(cells, np.ndarray):
        ids, count = jnp.asarray(np.flatnonzero(cells), jnp.int32), int(cells.sum())
    else:
        ids = jnp.nonzero(cells.ravel(), size=rows * cols, fill_value=0)[0].astype(jnp.int32)
        count = jnp.sum(cells, dtype=jnp.int32)
    if len(ids) == 0:
        return carry
    turn = lambda k, carry: one((ids[k] // cols, ids[k] % cols), carry)
    return lax.fori_loop(0, count, turn, carry)


def _part(whole: Array, at: Any, part: Array) -> Array:
    """Where ``part`` lies in a frame, what is there now."""
    return lax.dynamic_slice(whole, (0, *at, 0), part.shape)


def _marks(flags: Array, at: Any, part: Array) -> Array:
    """The flags where ``part`` lies."""
    return lax.dynamic_slice(flags, (*at, 0), part.shape)


def _changed(old: Array, new: Array) -> Array:
    """Where any channel differs: bool ``[h, w, 1]``, of ``[1, h, w, c]``."""
    return differs(old, new).any(3)[0, ..., None]
