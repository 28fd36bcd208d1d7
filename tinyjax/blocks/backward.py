"""The derivative of a frame that was computed in part: it runs where the frame was computed.

What was kept has no derivative. So the cotangent of an active cell goes back to its windows, cell
by cell as in :mod:`tinyjax.blocks.sweep`, and the cotangents of all other cells are dropped. All
that is needed is what the state holds after the frame: inputs of blocks, and which cells are new.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax import compat
from tinyjax.blocks.divide import Blocks
from tinyjax.blocks.local import Var
from tinyjax.blocks.partition import AT_ONCE, Block
from tinyjax.blocks.state import SkipState
from tinyjax.blocks.sweep import for_each
from tinyjax.blocks.windows import (
    Index,
    begin,
    compute,
    corner,
    finish,
    reach,
    read_in,
    run_before,
    run_frame,
    window_at,
)
from tinyjax.numerics.patches import Pair, add_window, read_part, spread, write_part

__all__ = ["no_cotangents", "pull_back"]

Array = jax.Array
Cotangents = dict[Var, Any]


def pull_back(
    blocks: Blocks, state: SkipState, values: Sequence[Any], outs: Sequence[Any], patch: int
) -> list[Any]:
    """The cotangents of a function's inputs from those of its outputs.

    Args:
      blocks: the function, divided.
      state: what is carried after the frame.
      values: its constants and inputs.
      outs: cotangents of its outputs.
      patch: side of the frame's patches.

    Returns:
      As many as ``values``; float0 of integers.

    Raises:
      ValueError: if there is a custom derivative in it other than relu's.
    """
    _refuse_custom(blocks)
    env = begin(blocks, values)
    env[blocks.frame] = state.ref
    env |= dict(zip((v for b in blocks.blocks for v in b.outs), state.cuts, strict=True))
    for block in blocks.blocks:
        env = run_before(block, env)
    whole: Cotangents = {}
    tail = functools.partial(finish, blocks)
    _add(whole, _pulled(tail, env, _read_by(blocks.tail, blocks.jaxpr.outvars), outs))
    for block, active in zip(reversed(blocks.blocks), reversed(state.active), strict=True):
        given = [whole.pop(v, None) for v in block.outs]
        if any(ct is not None for ct in given):
            filled = [
                jnp.zeros(v.aval.shape, v.aval.dtype) if ct is None else ct
                for v, ct in zip(block.outs, given, strict=True)
            ]
            _add(whole, _block(block, env, active, filled))
        _add(whole, _before(block, env, whole))
    if (ct := whole.get(blocks.frame)) is not None:
        taken = spread(state.age == 0, (patch, patch), ct.shape[1:3])
        whole[blocks.frame] = jnp.where(taken[None, :, :, None], ct, 0)
    names = [*blocks.jaxpr.constvars, *blocks.jaxpr.invars]
    made = [v for eqn in blocks.early for v in eqn.outvars if v in whole]

    def early(env: Mapping[Var, Any]) -> list[Any]:
        found = begin(blocks, [env[v] for v in names])
        return [found[v] for v in made]

    given = [whole.pop(v) for v in made]
    _add(whole, _pulled(early, dict(zip(names, values, strict=True)), names, given))
    zeros = no_cotangents(list(values))
    return [whole.get(v, zero) for v, zero in zip(names, zeros, strict=True)]


def no_cotangents(tree: Any) -> Any:
    """Zeros for what has no derivative: float0 for integers, as jax wants them."""

    def zeros(a: Any) -> Any:
        floats = jnp.issubdtype(jnp.result_type(a), jnp.inexact)
        return jnp.zeros_like(a) if floats else np.zeros(jnp.shape(a), jax.dtypes.float0)

    return jax.tree.map(zeros, tree)


def _refuse_custom(blocks: Blocks) -> None:
    names = {compat.custom(eqn) for eqn in blocks.jaxpr.eqns} - {None, "jax.relu"}
    if names:
        raise ValueError(
            f"pass_skip was differentiated through {', '.join(sorted(map(str, names)))}, whose "
            "custom derivative would be lost: use an operation without one inside, or "
            "differentiate the function itself"
        )


def _is_float(v: Any) -> bool:
    return not compat.is_literal(v) and jnp.issubdtype(v.aval.dtype, jnp.floating)


def _read_by(eqns: Sequence[compat.Eqn], more: Iterable[Any] = ()) -> list[Var]:
    """The floats that equations read, or that are asked for, and that they do not make."""
    made = {v for eqn in eqns for v in eqn.outvars}
    atoms = [*(v for eqn in eqns for v in eqn.invars), *more]
    return list(dict.fromkeys(v for v in atoms if _is_float(v) and v not in made))


def _add(whole: Cotangents, more: Mapping[Var, Any]) -> None:
    for v, ct in more.items():
        whole[v] = whole[v] + ct if v in whole else ct


def _pulled(run: Any, env: Mapping[Var, Any], names: Sequence[Var], outs: Any) -> Cotangents:
    """Cotangents of ``env[name]`` from those of ``run(env)``; of floats alone."""
    floats = [v for v in names if _is_float(v)]
    fun = lambda *values: run({**env, **dict(zip(floats, values, strict=True))})
    _, pull = jax.vjp(fun, *(env[v] for v in floats))
    return dict(zip(floats, pull(outs), strict=True))


def _before(block: Block, env: Mapping[Var, Any], whole: Cotangents) -> Cotangents:
    """Cotangents of what is read in full before a block, from those of what that makes."""
    made = [v for eqn in block.before for v in eqn.outvars if v in whole]
    run = lambda env: [run_before(block, env)[v] for v in made]
    return _pulled(run, env, _read_by(block.before), [whole.pop(v) for v in made]) if made else {}


def _block(block: Block, env: Mapping[Var, Any], active: Array, outs: list[Array]) -> Cotangents:
    """Cotangents of what a block reads: of whole frames, and of parameters."""
    ins = [v for v in block.ins if _is_float(v)]
    eqns = [eqn for step in block.steps for eqn in step.eqns]
    others = [v for v in _read_by(eqns) if v not in block.ins]

    def entire(outs: list[Array]) -> list[Array]:
        found = _pulled(functools.partial(run_frame, block), env, [*ins, *others], outs)
        return [found[v] for v in (*ins, *others)]

    def sparse(outs: list[Array]) -> list[Array]:
        frames = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in ins]
        sums = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in others]
        some = functools.partial(_some_cells, block, env, ins, others)
        _, frames, sums = for_each(active, some, (outs, frames, sums), AT_ONCE)
        return [*frames, *sums]

    found = lax.cond(active.all(), entire, sparse, outs)
    return dict(zip((*ins, *others), found, strict=True))


def _some_cells(
    block: Block,
    env: Mapping[Var, Any],
    ins: list[Var],
    others: list[Var],
    indices: Sequence[Index],
    carry: tuple[list[Array], list[Array], list[Array]],
) -> tuple[list[Array], list[Array], list[Array]]:
    """Takes the cotangents of cells away and adds those of their windows and parameters."""
    outs, frames, sums = carry
    outs, given = _take(block, outs, indices)
    windows = {
        v: lax.concatenate([read_in(block, env[v], v, index) for index in indices], 0)
        for v in block.ins
    }

    def run(mine: list[Array], parameters: list[Array]) -> list[Array]:
        held = {**windows, **dict(zip(ins, mine, strict=True))}
        known = {**env, **dict(zip(others, parameters, strict=True))}
        return compute(block, [held[v] for v in block.ins], known, indices)

    _, pull = jax.vjp(run, [windows[v] for v in ins], [env[v] for v in others])
    mine, parameters = pull(given)
    added = []
    for v, frame, cts in zip(ins, frames, mine, strict=True):
        for i, index in enumerate(indices):
            start, _ = window_at(block, v, index)
            frame = add_window(frame, lax.slice_in_dim(cts, i, i + 1), start, reach(block, v))
        added.append(frame)
    return outs, added, [a + b for a, b in zip(sums, parameters, strict=True)]


def _take(
    block: Block, outs: list[Array], indices: Sequence[Index]
) -> tuple[list[Array], list[Array]]:
    """What is left of cotangents, and what was taken: ``[n, *cell, c]`` each.

    Cells at a ragged border overlap, and each position is handed on once.
    """
    out = block.outs[0]
    cell, size = block.cells[out], block.sizes[out]
    places = [corner(block, out, index) for index in indices]
    left, taken = [], []
    for ct in outs:
        parts = [read_part(ct, at, cell) for at in places]
        # Without a barrier between reading and writing, XLA copies the frame in every turn.
        parts, ct = lax.optimization_barrier((parts, ct))
        for at in places:
            ct = write_part(ct, jnp.zeros_like(parts[0]), at)
        if any(side % c for side, c in zip(size, cell, strict=True)):
            parts = [jnp.where(_held(places, i, cell), 0, part) for i, part in enumerate(parts)]
        left.append(ct)
        taken.append(lax.concatenate(parts, 0))
    return left, taken


def _held(places: Sequence[Index], i: int, cell: Pair) -> Array:
    """Which positions of a cell are in one before it, too: bool ``[1, *cell, 1]``."""
    found = jnp.zeros((1, *cell, 1), bool)
    for other in places[:i]:
        both = jnp.ones((), bool)
        for axis, (mine, its, side) in enumerate(zip(places[i], other, cell, strict=True)):
            at = lax.broadcasted_iota(jnp.int32, (1, *cell, 1), axis + 1) + (mine - its)
            both = both & (at >= 0) & (at < side)
        found = found | both
    return found
