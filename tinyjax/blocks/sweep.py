"""Sweeps over chosen cells: a loop whose length is decided on the device, or known beforehand.

One cell at a time: on a CPU that is as fast as several at once, wastes nothing, and keeps windows
in cache. A mask that is a NumPy array gives a loop of fixed length over fixed cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax.blocks.divide import Block
from tinyjax.blocks.local import Var
from tinyjax.blocks.windows import corner, run_frame, run_window
from tinyjax.numerics.patches import Pair, differs, spread, window_any

__all__ = ["active_cells", "known", "recompute", "renew", "take", "take_all"]

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


def renew(
    block: Block, env: Mapping[Var, Any], watched: set[Var], old: list[Array]
) -> tuple[list[Array], dict[Var, Array]]:
    """The outputs of a block computed whole, all of which count as changed: no comparison."""
    del old
    flags = {v: jnp.ones((*block.sizes[v], 1), bool) for v in block.outs if v in watched}
    return run_frame(block, env), flags


def recompute(
    block: Block, env: Mapping[Var, Any], watched: set[Var], cells: Mask, old: list[Array]
) -> tuple[list[Array], dict[Var, Array]]:
    """The outputs of a block with some cells computed anew.

    Args:
      block: the block.
      env: values of what it reads.
      watched: tensors of which it matters where they change.
      cells: bool ``[rows, cols]``, the cells to compute.
      old: its outputs before.

    Returns:
      The outputs, and where the watched ones changed.
    """
    seen = [v in watched for v in block.outs]
    flags = [jnp.zeros((*block.sizes[v], 1), bool) for v in block.outs if v in watched]

    def one(index: tuple[Array, Array], carry: Any) -> Any:
        outs, flags = carry
        new = run_window(block, env, index)
        at = corner(block, block.outs[0], index)
        marks = [
            differs(_part(out, at, part), part).any(3)[0, ..., None]
            for out, part, watch in zip(outs, new, seen, strict=True)
            if watch
        ]
        # A cell at the border lies over its neighbour: what that one marked stays marked.
        marks = [
            m | lax.dynamic_slice(f, (*at, 0), m.shape) for m, f in zip(marks, flags, strict=True)
        ]
        # Without a barrier between reading and writing, XLA copies the whole output in every turn.
        marks, new, outs = lax.optimization_barrier((marks, list(new), outs))
        outs = [lax.dynamic_update_slice(o, n, (0, *at, 0)) for o, n in zip(outs, new, strict=True)]
        return outs, [
            lax.dynamic_update_slice(f, m, (*at, 0)) for f, m in zip(flags, marks, strict=True)
        ]

    outs, flags = _for_each(cells, one, (old, flags))
    return outs, dict(zip([v for v in block.outs if v in watched], flags, strict=True))


def take(x: Array, taken: Mask, patch: int, ref: Array) -> tuple[Array, Array]:
    """The effective input with the patches that were taken, and where it changed.

    Args:
      x: the frame, ``[1, h, w, c]``.
      taken: bool ``[rows, cols]``.
      patch: side of a patch.
      ref: the effective input before.

    Returns:
      ``ref`` with ``x`` in these patches; bool ``[h, w, 1]``.
    """
    size = ref.shape[1:3]

    def one(index: tuple[Array, Array], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        ref, flags = carry
        begin = [i * jnp.int32(patch) for i in index]
        at = [jnp.minimum(o, jnp.int32(h - patch)) for o, h in zip(begin, size, strict=True)]
        new = lax.dynamic_slice(x, (0, *at, 0), (1, patch, patch, x.shape[3]))
        old = _part(ref, at, new)
        own = jnp.ones((patch, patch, 1), bool)  # a patch at the border lies over its neighbour
        for axis in (0, 1):
            place = lax.broadcasted_iota(jnp.int32, own.shape, axis) + at[axis]
            own = own & (place >= begin[axis])
        marks = (differs(old, new).any(3)[0, ..., None] & own) | _marks(flags, at, own)
        new, marks, ref = lax.optimization_barrier((jnp.where(own, new, old), marks, ref))
        ref = lax.dynamic_update_slice(ref, new, (0, *at, 0))
        return ref, lax.dynamic_update_slice(flags, marks, (*at, 0))

    return _for_each(taken, one, (ref, jnp.zeros((*size, 1), bool)))


def take_all(x: Array, ref: Array) -> tuple[Array, Array]:
    """The frame itself as the effective input; all of it counts as changed."""
    return x, jnp.ones((*ref.shape[1:3], 1), bool)


def known(taken: np.ndarray, patch: int, size: Pair) -> np.ndarray:
    """All positions of patches known beforehand, bool ``[h, w, 1]``: each may have changed."""
    with jax.ensure_compile_time_eval():
        return np.asarray(spread(jnp.asarray(taken), (patch, patch), size))[..., None]


def _for_each(cells: Mask, one: Callable[[tuple[Array, Array], Any], Any], carry: Any) -> Any:
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
