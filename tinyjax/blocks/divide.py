"""Divides a forward function over frames into blocks, cells and halos; evaluates nothing.

A *block* is a run of local operations between two tensors that are kept from frame to frame. It is
cut into *cells*, one per patch. The halo of every tensor in it follows from what is behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinyjax import compat, graph
from tinyjax.blocks.local import Halo, Layout, Step, Var, local, widen
from tinyjax.numerics.patches import Pair, tiles

__all__ = ["Block", "Blocks", "divide"]


class Block(NamedTuple):
    """A run of local operations, cut into cells."""

    steps: tuple[Step, ...]
    ins: tuple[Var, ...]
    outs: tuple[Var, ...]  # all of one layout
    cells: dict[Var, Pair]  # tensor -> positions of a cell
    halos: dict[Var, Halo]  # tensor -> what a window of it holds around its cell
    sizes: dict[Var, Pair]  # tensor -> height and width
    grid: Pair  # rows and columns of cells


class Blocks(NamedTuple):
    """A forward function over frames, divided."""

    jaxpr: compat.Jaxpr
    frame: Var
    early: list[compat.Eqn]  # see no frame
    blocks: list[Block]
    tail: list[compat.Eqn]  # evaluated in full for every frame


def divide(flat: graph.Flat, patch: int) -> Blocks:
    """Divides a traced function into blocks.

    A block ends before the operation with which its halos, before and after a cell together, would
    exceed half a cell, unless that is its first product, or with which its cells would no longer
    fit. ``patch`` is the side of a cell at the block's input.

    Args:
      flat: the function, custom derivatives entered.
      patch: positions.

    Raises:
      ValueError: if there is not exactly one frame ``[1, h, w, c]``, if it is smaller than a
        patch, or if no block begins at it.
    """
    jaxpr = flat.jaxpr
    frame = _frame(flat, patch)
    shape = frame.aval.shape
    layouts = {frame: Layout(shape[1:3], (1, 1))}
    live = _live(jaxpr)
    early, steps, tail = _sort(live, frame, layouts)
    readers = graph.readers(jaxpr, live)
    blocks: list[Block] = []
    while steps:
        block = _longest(steps, layouts, readers, patch)
        if block is None:
            break
        blocks.append(block)
        steps = steps[len(block.steps) :]
    if not blocks:
        raise ValueError(
            f"no product of this function can be computed in patches of {patch}: it must read the "
            f"frame {shape} through local operations only, and its strides divide the patch"
        )
    rest = {id(step.eqn) for step in steps} | {id(eqn) for eqn in tail}
    return Blocks(jaxpr, frame, early, blocks, [eqn for eqn in jaxpr.eqns if id(eqn) in rest])


def _frame(flat: graph.Flat, patch: int) -> Var:
    """The one input that is no parameter."""
    frames = [v for v in flat.jaxpr.invars if v not in flat.names]
    shapes = [v.aval.shape for v in frames]
    if len(frames) != 1 or len(shapes[0]) != 4 or shapes[0][0] != 1:
        raise ValueError(
            f"the function takes arrays {shapes} beside its parameters, expected one frame "
            "[1, h, w, c]: pass one frame at a time and bind everything else"
        )
    if patch > min(shapes[0][1:3]):
        raise ValueError(
            f"patch is {patch}, more than a side of the frame {shapes[0]}: use a smaller patch"
        )
    return frames[0]


def _sort(
    eqns: Sequence[compat.Eqn], frame: Var, layouts: dict[Var, Layout]
) -> tuple[list[compat.Eqn], list[Step], list[compat.Eqn]]:
    """The equations that see no frame, the local operations, all others; fills in ``layouts``."""
    early: list[compat.Eqn] = []
    steps: list[Step] = []
    tail: list[compat.Eqn] = []
    framed, makers = {frame}, {}
    for eqn in eqns:
        if not any(not compat.is_literal(v) and v in framed for v in eqn.invars):
            early.append(eqn)
            makers.update(dict.fromkeys(eqn.outvars, eqn))
            continue
        framed.update(eqn.outvars)
        found = local(eqn, layouts, framed, makers)
        if found is None:
            tail.append(eqn)
        else:
            step, layouts[step.out] = found
            steps.append(step)
    return early, steps, tail


def _live(jaxpr: compat.Jaxpr) -> list[compat.Eqn]:
    """The equations that something depends on."""
    live = {v for v in jaxpr.outvars if not compat.is_literal(v)}
    found = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or live & set(eqn.outvars):
            found.append(eqn)
            live.update(v for v in eqn.invars if not compat.is_literal(v))
    return found[::-1]


def _longest(
    steps: Sequence[Step], layouts: dict[Var, Layout], readers: dict[Var, set[int]], patch: int
) -> Block | None:
    """The block of the most leading steps that still fits; None if there is none."""
    longest = None
    for end, step in enumerate(steps, 1):
        block = _block(steps[:end], layouts, readers, patch)
        if block is None and longest is not None and step.geometry is not None:
            break  # only what has a geometry widens windows: whatever follows would not fit either
        longest = block or longest
    return longest


def _block(
    steps: Sequence[Step], layouts: dict[Var, Layout], readers: dict[Var, set[int]], patch: int
) -> Block | None:
    """These steps as a block, if they hold a product and their cells and windows fit."""
    own, made = {id(step.eqn) for step in steps}, {step.out for step in steps}
    ins = tuple(dict.fromkeys(v for step in steps for v in step.reads if v not in made))
    outs = tuple(step.out for step in steps if readers[step.out] - own)
    products = sum(step.eqn.primitive.name in compat.KINDS for step in steps)
    if not products or len({layouts[v] for v in outs}) != 1:
        return None
    cells, halos = _cells((*ins, *made), layouts, patch), _halos(steps, outs)
    size = layouts[outs[0]].size
    if cells is None or any(c > h for c, h in zip(cells[outs[0]], size, strict=True)):
        return None
    margins = [low + high for v in ins for low, high in zip(*halos[v], strict=True)]
    sides = [side for v in ins for side in cells[v]]
    wide = any(2 * margin > side for margin, side in zip(margins, sides, strict=True))
    if wide and products > 1:
        return None
    sizes = {v: layouts[v].size for v in cells}
    return Block(tuple(steps), ins, outs, cells, halos, sizes, tiles(size, cells[outs[0]]))


def _cells(
    tensors: Sequence[Var], layouts: dict[Var, Layout], patch: int
) -> dict[Var, Pair] | None:
    """The cell of each tensor, ``patch`` at the finest; None where a stride does not divide it."""
    finest = [min(layouts[v].scale[axis] for v in tensors) for axis in (0, 1)]
    cells = {}
    for v in tensors:
        sides = [divmod(patch * f, s) for f, s in zip(finest, layouts[v].scale, strict=True)]
        if any(rest for _, rest in sides):
            return None
        cells[v] = tuple(side for side, _ in sides)
    return cells


def _halos(steps: Sequence[Step], outs: Sequence[Var]) -> dict[Var, Halo]:
    """The halo of every tensor: the largest that any of its readers asks for."""
    halos = dict.fromkeys(outs, Halo((0, 0), (0, 0)))
    for step in reversed(steps):
        want = widen(step.geometry, halos[step.out])
        for v in step.reads:
            have = halos.get(v, want)
            halos[v] = Halo(*(tuple(map(max, a, b)) for a, b in zip(have, want, strict=True)))
    return halos
