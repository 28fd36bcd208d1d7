"""Evaluates a block: on whole frames, or on the window around one of its cells.

In a window every operation runs without padding, so the window shrinks from operation to
operation until the cell is left. What padding would have put outside the frame is put there again
where a window reaches out. Several windows are computed at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax import compat
from tinyjax.blocks.divide import Blocks
from tinyjax.blocks.local import POOLS, Halo, Step, Var, widen
from tinyjax.blocks.partition import Block
from tinyjax.numerics.conv_taps import ConvSpec
from tinyjax.numerics.patches import Pair, origins, read_window
from tinyjax.numerics.window_conv import with_gradients

__all__ = [
    "Index",
    "begin",
    "compute",
    "corner",
    "finish",
    "reach",
    "read_in",
    "run_before",
    "run_frame",
    "run_windows",
    "window_at",
]

Array = jax.Array
Env = Mapping[Var, Any]
Index = tuple[Array, Array]  # row and column of a cell, int32


def begin(blocks: Blocks, values: Sequence[Any]) -> dict[Var, Any]:
    """The values of a function's inputs, and of what follows from them without the frame."""
    env = dict(zip([*blocks.jaxpr.constvars, *blocks.jaxpr.invars], values, strict=True))
    _evaluate(blocks.early, env)
    return env


def run_before(block: Block, env: Env) -> dict[Var, Any]:
    """``env`` and what is evaluated in full before a block."""
    env = dict(env)
    _evaluate(block.before, env)
    return env


def finish(blocks: Blocks, env: Env) -> list[Any]:
    """The outputs of a function from those of its blocks."""
    env = dict(env)
    _evaluate(blocks.tail, env)
    return [compat.read(env, v) for v in blocks.jaxpr.outvars]


def _evaluate(eqns: Sequence[compat.Eqn], env: dict[Var, Any]) -> None:
    for eqn in eqns:
        outs = _bind(eqn, [compat.read(env, v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))


def run_frame(block: Block, env: Env) -> list[Array]:
    """The outputs of a block from whole frames in ``env``: ``[1, h, w, c]`` each."""
    local = dict(env)
    _evaluate([eqn for step in block.steps for eqn in step.eqns], local)
    return [local[v] for v in block.outs]


def run_windows(block: Block, env: Env, indices: Sequence[Index]) -> list[Array]:
    """Some cells of each output of a block, from whole frames in ``env``: ``[n, *cell, c]``.

    Each belongs at its :func:`corner` of ``block.outs[0]``.
    """
    windows = [
        lax.concatenate([read_in(block, env[v], v, index) for index in indices], 0)
        for v in block.ins
    ]
    return compute(block, windows, env, indices)


def corner(block: Block, v: Var, index: Index) -> Index:
    """Where a cell begins in tensor ``v``: the last cells of the outputs are moved inside."""
    out = block.outs[0]
    places = (
        jnp.minimum(i * jnp.int32(c), jnp.int32(h - c))
        for i, c, h in zip(index, block.cells[out], block.sizes[out], strict=True)
    )
    row, col = (
        _scaled(o, a, b) for o, a, b in zip(places, block.cells[v], block.cells[out], strict=True)
    )
    return row, col


def _scaled(place: Any, mine: int, its: int) -> Any:
    """A place in a tensor of these cells from one in the outputs, whose cells are its."""
    common = math.gcd(mine, its)
    return place // (its // common) * (mine // common)


def _corners(block: Block, v: Var, axis: int) -> np.ndarray:
    """Where the cells begin in tensor ``v`` along one axis: int ``[grid[axis]]``."""
    cell, size = block.cells[block.outs[0]][axis], block.sizes[block.outs[0]][axis]
    places = np.array(origins(block.grid[axis], cell, size))
    return _scaled(places, block.cells[v][axis], cell)


def _beyond(block: Block, v: Var, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each window of tensor ``v`` reaches out of the frame, before and after."""
    (low, high), start = (pair[axis] for pair in block.halos[v]), _corners(block, v, axis)
    return low - start, start + block.cells[v][axis] + high - block.sizes[v][axis]


def compute(
    block: Block, windows: Sequence[Array], env: Env, indices: Sequence[Index]
) -> list[Array]:
    """Cells of each output of a block: ``[n, *cell, c]``.

    Args:
      block: the block.
      windows: those of ``block.ins`` around the cells, ``[n, rows, cols, c]``.
      env: holds what else is read: parameters, and what follows from them.
      indices: the ``n`` cells.
    """
    found = dict(zip(block.ins, windows, strict=True))
    for step in block.steps:
        want = widen(step.geometry, block.halos[step.out])
        ins = {v: _crop(found[v], block.halos[v], want) for v in step.reads}
        if step.geometry is not None and step.geometry.outside is not None:
            (v,) = step.reads
            ins[v] = _pad_again(block, v, ins[v], want, indices, step.geometry.outside)
        found[step.out] = _step(block, step, ins, env)
    # A tensor that is kept may also be read here, with a halo.
    return [_crop(found[v], block.halos[v], Halo((0, 0), (0, 0))) for v in block.outs]


def read_in(block: Block, x: Array, v: Var, index: Index) -> Array:
    """The window of a kept tensor around a cell; zeros where it reaches out of the frame."""
    start, size = window_at(block, v, index)
    return read_window(x, start, size, reach(block, v))


def window_at(block: Block, v: Var, index: Index) -> tuple[Index, Pair]:
    """Where the window of a tensor begins, which may be outside the frame, and its size."""
    (low, high), cell = block.halos[v], block.cells[v]
    row, col = corner(block, v, index)
    size: Pair = (cell[0] + low[0] + high[0], cell[1] + low[1] + high[1])
    return (row - jnp.int32(low[0]), col - jnp.int32(low[1])), size


def reach(block: Block, v: Var) -> tuple[Pair, Pair]:
    """How far any window of a tensor reaches out of the frame, before and after, on each axis."""
    rows, cols = (
        tuple(max(0, int(side.max())) for side in _beyond(block, v, axis)) for axis in (0, 1)
    )
    return rows, cols


def _crop(window: Array, have: Halo, want: Halo) -> Array:
    """The part of a window that one reader asks for."""
    starts = [a - b for a, b in zip(have.low, want.low, strict=True)]
    ends = [h - (a - b) for h, a, b in zip(window.shape[1:3], have.high, want.high, strict=True)]
    return lax.slice(window, (0, *starts, 0), (window.shape[0], *ends, window.shape[3]))


def _pad_again(
    block: Block,
    v: Var,
    window: Array,
    halo: Halo,
    indices: Sequence[Index],
    outside: float,
) -> Array:
    """Puts what padding holds wherever a window lies outside the frame."""
    inside = jnp.ones((), bool)
    for axis, places in enumerate(zip(*(corner(block, v, i) for i in indices), strict=True)):
        first = jnp.stack(places) - jnp.int32(halo.low[axis])
        at = jnp.arange(window.shape[axis + 1], dtype=jnp.int32) + first[:, None]
        held = (at >= 0) & (at < jnp.int32(block.sizes[v][axis]))
        inside = inside & (held[:, :, None, None] if axis == 0 else held[:, None, :, None])
    return jnp.where(inside, window, jnp.asarray(outside, window.dtype))


def _step(block: Block, step: Step, ins: Mapping[Var, Array], env: Env) -> Array:
    """Evaluates one operation on windows, which hold what it pads a frame with."""
    if step.geometry is not None:
        (x,), halo = ins.values(), block.halos[step.out]
        sides = [sum(side) for side in zip(block.cells[step.out], *halo, strict=True)]
        if step.eqn.primitive.name not in (compat.CONV, *POOLS):
            return _repeat(x, step.geometry.up, halo.low, sides)
        # Between positions that are spread apart, a window may begin and end anywhere.
        along = zip(
            *step.geometry[:3], step.geometry.up, halo.low, sides, x.shape[1:3], strict=True
        )
        margins = []
        for stride, before, extent, up, low, side, held in along:
            first = (stride * low + before) % up
            last = (side - 1) * stride + extent - (up * (held - 1) + 1) - first
            margins.append((first, last))
        rest = len(step.eqn.params["padding"]) // 2 - 1  # a pool pads samples and channels too
        padding = (*((0, 0),) * rest, *margins, *((0, 0),) * rest)
        others = [compat.read(env, v) for v in step.eqn.invars[1:]]
        (out,) = _bind(step.eqn, [x, *others], padding=padding)
        return out
    shape = next(iter(ins.values())).shape[:3]
    args = [
        ins[v] if not compat.is_literal(v) and v in ins else _resized(compat.read(env, v), shape)
        for v in step.eqn.invars
    ]
    (out,) = _bind(step.eqn, args)
    return out


def _bind(eqn: compat.Eqn, args: Sequence[Any], **overrides: Any) -> list[Any]:
    """Evaluates an equation, with its derivative.

    A relu is jax's own, whose derivative at 0 is not that of max, and convolutions have gradients
    that are fast in loops and branches.
    """
    if compat.custom(eqn) == "jax.relu" and eqn.primitive.name == "max":
        return [jax.nn.relu(args[0])]
    run = lambda *args: compat.bind(eqn, args, **overrides)
    p = {**eqn.params, **overrides}
    plain = (
        eqn.primitive.name == compat.CONV
        and tuple(p["dimension_numbers"]) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
        and set(p["lhs_dilation"]) == {1}
        and p["batch_group_count"] == 1
        and all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in eqn.invars)
    )
    if not plain:
        return run(*args)
    padding = tuple(p["padding"])
    shape = p["window_strides"], padding, p["rhs_dilation"], p["feature_group_count"]
    return [with_gradients(lambda *args: run(*args)[0], ConvSpec(*shape))(*args)]


def _repeat(x: Array, times: Pair, low: Pair, sides: Sequence[int]) -> Array:
    """A window, upsampled, of which these sides are left, ``low`` before its cell."""
    starts = [-side % u for side, u in zip(low, times, strict=True)]
    rows = lax.slice_in_dim(
        jnp.repeat(x, times[0], axis=1), starts[0], starts[0] + sides[0], axis=1
    )
    cols = jnp.repeat(rows, times[1], axis=2)
    return lax.slice_in_dim(cols, starts[1], starts[1] + sides[1], axis=2)


def _resized(constant: Any, shape: Pair) -> Any:
    """An operand that is the same at all positions of a frame, for windows of this shape."""
    given = jnp.shape(constant)
    if len(given) != 4 or given[1:3] == (1, 1):
        return constant
    return jnp.broadcast_to(constant[:, :1, :1], (*shape, given[3]))
