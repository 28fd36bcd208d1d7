"""Evaluates a block: on whole frames, or on the window around one of its cells.

In a window every operation runs without padding, so the window shrinks from operation to
operation until the cell is left. What padding would have put outside the frame is put there again
where a window reaches out; windows well inside the frame, most of them, skip that work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax import compat
from tinyjax.blocks.divide import Block, Blocks
from tinyjax.blocks.local import Halo, Step, Var, widen
from tinyjax.numerics.patches import Pair, origins, read_part, read_window

__all__ = ["Index", "begin", "corner", "finish", "run_frame", "run_window"]

Array = jax.Array
Env = Mapping[Var, Any]
Index = tuple[Array, Array]  # row and column of a cell, int32


def begin(blocks: Blocks, values: Sequence[Any]) -> dict[Var, Any]:
    """The values of a function's inputs, and of what follows from them without the frame."""
    env = dict(zip([*blocks.jaxpr.constvars, *blocks.jaxpr.invars], values, strict=True))
    _evaluate(blocks.early, env)
    return env


def finish(blocks: Blocks, env: Env) -> list[Any]:
    """The outputs of a function from those of its blocks."""
    env = dict(env)
    _evaluate(blocks.tail, env)
    return [compat.read(env, v) for v in blocks.jaxpr.outvars]


def _evaluate(eqns: Sequence[compat.Eqn], env: dict[Var, Any]) -> None:
    for eqn in eqns:
        outs = compat.bind(eqn, [compat.read(env, v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))


def run_frame(block: Block, env: Env) -> list[Array]:
    """The outputs of a block from whole frames in ``env``: ``[1, h, w, c]`` each."""
    local = dict(env)
    _evaluate([step.eqn for step in block.steps], local)
    return [local[v] for v in block.outs]


def run_window(block: Block, env: Env, index: Index) -> list[Array]:
    """One cell of each output of a block, from whole frames in ``env``: ``[1, *cell, c]`` each.

    It belongs at :func:`corner` of ``block.outs[0]``.
    """
    rows, cols = (_inside(block, axis) for axis in (0, 1))
    inner = lambda: _window(block, env, index, at_border=False)
    outer = lambda: _window(block, env, index, at_border=True)
    if not (rows.any() and cols.any()):
        return outer()  # the inner branch could not even be traced: windows exceed the frame
    return lax.cond(jnp.asarray(rows)[index[0]] & jnp.asarray(cols)[index[1]], inner, outer)


def corner(block: Block, v: Var, index: Index) -> Index:
    """Where a cell begins in tensor ``v``: the last cells of the outputs are moved inside."""
    out = block.outs[0]
    places = (
        jnp.minimum(i * jnp.int32(c), jnp.int32(h - c))
        for i, c, h in zip(index, block.cells[out], block.sizes[out], strict=True)
    )
    ratios = (a // b for a, b in zip(block.cells[v], block.cells[out], strict=True))
    row, col = (o * jnp.int32(ratio) for o, ratio in zip(places, ratios, strict=True))
    return row, col


def _corners(block: Block, v: Var, axis: int) -> np.ndarray:
    """Where the cells begin in tensor ``v`` along one axis: int ``[grid[axis]]``."""
    cell, size = block.cells[block.outs[0]][axis], block.sizes[block.outs[0]][axis]
    ratio = block.cells[v][axis] // cell
    return ratio * np.array(origins(block.grid[axis], cell, size))


def _beyond(block: Block, v: Var, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each window of tensor ``v`` reaches out of the frame, before and after."""
    (low, high), start = (pair[axis] for pair in block.halos[v]), _corners(block, v, axis)
    return low - start, start + block.cells[v][axis] + high - block.sizes[v][axis]


def _inside(block: Block, axis: int) -> np.ndarray:
    """Along one axis, the cells whose windows of every tensor lie in the frame: bool."""
    out = [np.maximum(*_beyond(block, v, axis)) > 0 for v in block.halos]
    return ~np.any(out, axis=0)


def _window(block: Block, env: Env, index: Index, *, at_border: bool) -> list[Array]:
    windows = {v: _read(block, env[v], v, index, at_border) for v in block.ins}
    for step in block.steps:
        want = widen(step.geometry, block.halos[step.out])
        ins = {v: _crop(windows[v], block.halos[v], want) for v in step.reads}
        if at_border and step.geometry is not None and step.geometry.outside is not None:
            (v,) = step.reads
            ins[v] = _pad_again(block, v, ins[v], want, index, step.geometry.outside)
        windows[step.out] = _bind(step, ins, env)
    # A tensor that is kept may also be read here, with a halo.
    return [_crop(windows[v], block.halos[v], Halo((0, 0), (0, 0))) for v in block.outs]


def _read(block: Block, x: Array, v: Var, index: Index, at_border: bool) -> Array:
    """The window of a kept tensor."""
    (low, high), cell = block.halos[v], block.cells[v]
    row, col = corner(block, v, index)
    start = (row - jnp.int32(low[0]), col - jnp.int32(low[1]))
    size: Pair = (cell[0] + low[0] + high[0], cell[1] + low[1] + high[1])
    if not at_border:
        return read_part(x, start, size)
    before, after = zip(*(_beyond(block, v, axis) for axis in (0, 1)), strict=True)
    beyond = tuple(
        (max(0, int(a.max())), max(0, int(b.max()))) for a, b in zip(before, after, strict=True)
    )
    return read_window(x, start, size, beyond)


def _crop(window: Array, have: Halo, want: Halo) -> Array:
    """The part of a window that one reader asks for."""
    starts = [a - b for a, b in zip(have.low, want.low, strict=True)]
    ends = [h - (a - b) for h, a, b in zip(window.shape[1:3], have.high, want.high, strict=True)]
    return lax.slice(window, (0, *starts, 0), (1, *ends, window.shape[3]))


def _pad_again(
    block: Block, v: Var, window: Array, halo: Halo, index: Index, outside: float
) -> Array:
    """Puts what padding holds wherever a window lies outside the frame."""
    inside = jnp.ones((), bool)
    for axis, place in enumerate(corner(block, v, index)):
        at = lax.broadcasted_iota(jnp.int32, window.shape, axis + 1)
        at = at + (place - jnp.int32(halo.low[axis]))
        inside = inside & (at >= 0) & (at < jnp.int32(block.sizes[v][axis]))
    return jnp.where(inside, window, jnp.asarray(outside, window.dtype))


def _bind(step: Step, ins: Mapping[Var, Array], env: Env) -> Array:
    """Evaluates one operation on windows, without padding."""
    if step.geometry is not None:
        padding = ((0, 0),) * len(step.eqn.params["padding"])
        others = [compat.read(env, v) for v in step.eqn.invars[1:]]
        (out,) = compat.bind(step.eqn, [ins[step.reads[0]], *others], padding=padding)
        return out
    size = next(iter(ins.values())).shape[1:3]
    args = [
        ins[v] if not compat.is_literal(v) and v in ins else _resized(compat.read(env, v), size)
        for v in step.eqn.invars
    ]
    (out,) = compat.bind(step.eqn, args)
    return out


def _resized(constant: Any, size: Pair) -> Any:
    """An operand that is the same at all positions of a frame, for a window of this size."""
    shape = jnp.shape(constant)
    if len(shape) != 4 or shape[1:3] == (1, 1):
        return constant
    return jnp.broadcast_to(constant[:, :1, :1], (shape[0], *size, shape[3]))
