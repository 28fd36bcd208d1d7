"""Sweeps over chosen cells: loops whose length is decided on the device, or known beforehand.

A product on a window first reads and packs its weights, and one window does not keep all cores
busy, so several windows go through it at once; what is left over goes one by one. More at once
would waste the cache. A mask that is a NumPy array gives loops of fixed length over fixed cells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax.blocks.local import Var
from tinyjax.blocks.partition import AT_ONCE, Block
from tinyjax.blocks.windows import Index, corner, run_frame, run_windows
from tinyjax.numerics.patches import differs, read_part, spread, window_any, write_part

__all__ = ["active_cells", "effective_input", "for_each", "run_block"]

Array = jax.Array
Mask = Array | np.ndarray  # bool; NumPy's is known before anything is traced


def active_cells(block: Block, changed: Mapping[Var, Mask]) -> Mask:
    """The cells of a block whose windows hold a change; NumPy's if all that changed is."""

    def found() -> Array:
        cells = jnp.zeros(block.grid, bool)
        for v in moving:
            flags, halo = jnp.asarray(changed[v])[0], block.halos[v]
            cells |= window_any(flags, block.cells[v], halo.low, halo.high, block.grid)
        return cells

    moving = [v for v in block.ins if v in changed]  # maps that no frame changes are not
    if all(isinstance(changed[v], np.ndarray) for v in moving):
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
    limits: Mapping[Var, Array],
) -> tuple[list[Array], dict[Var, Array]]:
    """The outputs of a block with some cells, or all, computed anew.

    Args:
      block: the block.
      env: values of what it reads.
      old: its outputs before.
      cells: bool ``[rows, cols]``, the cells to compute.
      whole: bool scalar: compute all, as the function itself does.
      watched: tensors of which it matters where they change.
      limits: of some of these, how far a position may move and keep its value: float32 scalars.

    Returns:
      The outputs, and where the watched ones changed: bool ``[1, h, w, 1]``.
    """
    kept = [v for v in block.outs if v in watched]
    shapes = [(1, *block.sizes[v], 1) for v in kept]

    def entire(old: list[Array]) -> tuple[list[Array], list[Array]]:
        outs, flags = [], []
        for v, before, new in zip(block.outs, old, run_frame(block, env), strict=True):
            new, marks = _held(before, new, limits.get(v)) if v in watched else (new, None)
            outs.append(new)
            flags += [] if marks is None else [marks]
        return outs, flags

    def sparse(old: list[Array]) -> tuple[list[Array], list[Array]]:
        known = [v in watched for v in block.outs]
        put = functools.partial(_put_cells, block, known, [limits.get(v) for v in block.outs])
        carry = old, [jnp.zeros(shape, bool) for shape in shapes]
        some = lambda indices, carry: put(run_windows(block, env, indices), indices, carry)
        return for_each(cells, some, carry, AT_ONCE)

    outs, flags = lax.cond(whole, entire, sparse, old)
    return outs, dict(zip(kept, flags, strict=True))


def _held(old: Array, new: Array, limit: Array | None) -> tuple[Array, Array]:
    """A whole tensor behind its limit, and where it changed: ``_put`` for whole frames.

    Without a limit all counts as changed: comparing would cost what is saved behind it.
    """
    everywhere = jnp.ones((*new.shape[:3], 1), bool)
    if limit is None:
        return new, everywhere

    def compared() -> tuple[Array, Array]:
        marks = _moved(old, new, limit)
        return jnp.where(marks, new, old), marks

    return lax.cond(limit > 0, compared, lambda: (new, everywhere))


def _moved(old: Array, new: Array, limit: Array) -> Array:
    """Where a position moved by more than a limit in any channel: bool ``[1, h, w, 1]``."""
    moved = jnp.abs(new.astype(jnp.float32) - old.astype(jnp.float32))
    return (~(moved <= limit)).any(3, keepdims=True)


def _put_cells(
    block: Block,
    watched: list[bool],
    limits: list[Array | None],
    news: list[Array],
    indices: Sequence[Index],
    carry: tuple[list[Array], list[Array]],
) -> tuple[list[Array], list[Array]]:
    """Writes some cells and marks where the watched outputs changed."""
    olds, flags = carry
    places = [corner(block, block.outs[0], index) for index in indices]
    rest, outs, marked = iter(flags), [], []
    for old, new, seen, limit in zip(olds, news, watched, limits, strict=True):
        if seen:
            old, marks = _put(old, next(rest), new, places, limit=limit)
            marked.append(marks)
        outs.append(old if seen else _write(old, new, places))
    return outs, marked


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
      ``[1, h, w, c]``; bool ``[1, h, w, 1]``, of a NumPy mask NumPy's: all of its patches.
    """
    shape = (1, *x.shape[1:3], 1)
    one = functools.partial(_one_patch, x, patch)
    ref, flags = lax.cond(
        whole,
        lambda ref: (x, jnp.ones(shape, bool)),
        lambda ref: for_each(taken, one, (ref, jnp.zeros(shape, bool))),
        ref,
    )
    if not isinstance(taken, np.ndarray):
        return ref, flags
    with jax.ensure_compile_time_eval():
        wide = spread(jnp.asarray(taken), (patch, patch), shape[1:3])
        return ref, np.asarray(wide).reshape(shape)


def _one_patch(
    x: Array, patch: int, indices: Sequence[Index], carry: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Takes one patch of ``x``; one at the border, moved inside, leaves its neighbour alone."""
    (index,) = indices
    corner = [i * jnp.int32(patch) for i in index]
    row, col = (
        jnp.minimum(o, jnp.int32(h - patch)) for o, h in zip(corner, x.shape[1:3], strict=True)
    )
    own = jnp.ones((), bool)
    for axis, (start, first) in enumerate(zip((row, col), corner, strict=True)):
        own = own & (
            lax.broadcasted_iota(jnp.int32, (1, patch, patch, 1), axis + 1) + start >= first
        )
    return _put(*carry, read_part(x, (row, col), (patch, patch)), [(row, col)], own)


def _put(
    whole: Array,
    flags: Array,
    news: Array,
    places: Sequence[Index],
    own: Array | bool = True,
    limit: Array | None = None,
) -> tuple[Array, Array]:
    """Writes parts into a frame where they differ, and marks where they do.

    Args:
      whole: ``[1, h, w, c]``.
      flags: bool ``[1, h, w, 1]``; what an overlapping part has marked stays marked.
      news: the parts, ``[n, rows, cols, c]``. Where two of them overlap, the last one is written,
        and the mark is of that.
      places: where each begins.
      own: bool ``[n, rows, cols, 1]``: where they may write.
      limit: float32 scalar: a position of which no value moves by more stays as it is.

    Returns:
      ``whole`` and ``flags``, updated.
    """
    read = lambda a: lax.concatenate([read_part(a, at, news.shape[1:3]) for at in places], 0)
    old = read(whole)
    differ = differs(old, news) & own
    if limit is not None:
        # At 0 the comparison decides alone: a difference may be too small for its own dtype.
        differ = differ & ((limit <= 0) | _moved(old, news, limit))
    marks = differ.any(3, keepdims=True) | read(flags)
    # Nothing may change without a mark, and -0.0 compares equal to 0.0.
    parts = jnp.where(differ, news, old)
    # Without a barrier between reading and writing, XLA copies the whole frame in every turn.
    parts, marks, whole, flags = lax.optimization_barrier((parts, marks, whole, flags))
    return _write(whole, parts, places), _write(flags, marks, places)


def _write(whole: Array, parts: Array, places: Sequence[Index]) -> Array:
    for i, at in enumerate(places):
        whole = write_part(whole, lax.slice_in_dim(parts, i, i + 1), at)
    return whole


def for_each(
    cells: Mask, some: Callable[[list[Index], Any], Any], carry: Any, at_once: int = 1
) -> Any:
    """``some([(row, col), ...], carry) -> carry`` for all chosen cells.

    So many at a time as ``at_once`` says, and what is left over one by one.
    """
    cols = cells.shape[1]
    if isinstance(cells, np.ndarray):
        ids = np.flatnonzero(cells).astype(np.int32)
        count = len(ids)
    else:
        ids = jnp.nonzero(cells.ravel(), size=cells.size, fill_value=0)[0].astype(jnp.int32)
        count = jnp.sum(cells, dtype=jnp.int32)
    if len(ids) == 0:
        return carry
    place = lambda k: (jnp.asarray(ids)[k] // cols, jnp.asarray(ids)[k] % cols)
    turns = count // at_once if 1 < at_once <= len(ids) else 0
    if isinstance(turns, jax.Array) or turns:
        batch = lambda k, carry: some([place(k * at_once + i) for i in range(at_once)], carry)
        carry = lax.fori_loop(0, turns, batch, carry)
    return lax.fori_loop(turns * at_once, count, lambda k, carry: some([place(k)], carry), carry)
