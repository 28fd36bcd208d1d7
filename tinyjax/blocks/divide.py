"""Divides a forward function over frames into blocks, cells and halos; evaluates nothing.

A *block* is a run of local operations between tensors that are kept from frame to frame. It is cut
into *cells*. The halo of every tensor in it follows from what is behind it. What is not local is
computed in full for every frame, and blocks may begin again at what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from tinyjax import compat, graph
from tinyjax.blocks.local import Layout, Step, Var, local
from tinyjax.blocks.partition import Block, partition
from tinyjax.numerics.patches import Pair

__all__ = ["Blocks", "divide"]


class Blocks(NamedTuple):
    """A forward function over frames, divided."""

    jaxpr: compat.Jaxpr
    frame: Var
    early: list[compat.Eqn]  # see no frame
    blocks: list[Block]
    tail: list[compat.Eqn]  # behind the blocks; evaluated in full for every frame
    between: list[Var]  # what is evaluated in full before a block, and read by one or by the tail


def divide(flat: graph.Flat, patch: int, fuse: bool = True) -> Blocks:
    """Divides a traced function into blocks.

    Args:
      flat: the function, custom derivatives entered.
      patch: about the side of a cell, in positions of the finest tensor of its block.
      fuse: whether several products may share a block, and cells be larger or smaller.

    Raises:
      ValueError: if there is not exactly one frame ``[1, h, w, c]``, if it is smaller than a
        patch, or if no block begins at it.
    """
    jaxpr, frame = flat.jaxpr, _frame(flat, patch)
    shape = frame.aval.shape
    layouts = {frame: Layout(shape[1:3], (Fraction(1), Fraction(1)))}
    steps, framed = _sort(jaxpr.eqns, frame, layouts, patch)
    steps = _live(steps, jaxpr.outvars)
    late = [step for step in steps if not framed.isdisjoint(step.made)]
    readers = _readers(late, jaxpr.outvars)
    blocks: list[Block] = []
    before: list[Step] = []
    spreads = _spreads(late, frame, layouts)
    feeding = _feeding(late)
    for run in _runs(late, feeding):
        for part in partition(run, layouts, readers, spreads, patch, fuse) if run[0].reads else run:
            if isinstance(part, Step):
                before.append(part)
            else:
                shared = _shared(part, framed, layouts)
                eqns = tuple(eqn for step in before for eqn in step.eqns)
                blocks.append(part._replace(before=eqns, shared=shared))
                before = []
    full = {v for block in blocks for eqn in block.before for v in eqn.outvars}
    if not any(full.isdisjoint((*block.ins, *block.shared)) for block in blocks):
        raise ValueError(
            f"no product of this function can be computed in patches of {patch}: it must read the "
            f"frame {shape} through local operations only, and its strides divide the patch"
        )
    skipped = {
        id(eqn) for b in blocks for eqn in (*b.before, *(e for s in b.steps for e in s.eqns))
    }
    tail = [step for step in late if id(step.eqn) not in skipped]
    wanted = {v for block in blocks for v in (*block.ins, *block.shared)}
    wanted |= {v for step in tail for v in step.needs} | set(_variables(jaxpr.outvars))
    return Blocks(
        jaxpr,
        frame,
        [eqn for step in steps if framed.isdisjoint(step.made) for eqn in step.eqns],
        blocks,
        [eqn for step in tail for eqn in step.eqns],
        [v for step in late for v in step.made if v in full and v in wanted],
    )


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
    eqns: Sequence[compat.Eqn], frame: Var, layouts: dict[Var, Layout], patch: int
) -> tuple[list[Step], set[Var]]:
    """All equations as steps, local or in full, and what depends on the frame."""
    steps: list[Step] = []
    framed, makers = {frame}, {}
    for eqn in eqns:
        step = Step((eqn,))
        if not framed.isdisjoint(_variables(eqn.invars)):
            framed.update(eqn.outvars)
            found = local(eqn, layouts, framed, makers)
            if found is not None:
                step, layouts[step.out] = found
            else:
                layouts.update(_begun_again(eqn, layouts, frame, patch))
        makers.update(dict.fromkeys(eqn.outvars, eqn))
        steps.append(step)
    return steps, framed


def _begun_again(
    eqn: compat.Eqn, layouts: Mapping[Var, Layout], frame: Var, patch: int
) -> dict[Var, Layout]:
    """Layouts of frames that an equation makes in full, as those of tensors of the same size."""
    found = {}
    for v in eqn.outvars:
        shape = v.aval.shape
        if len(shape) == 4 and shape[0] == 1 and min(shape[1:3]) >= patch:
            h, w = frame.aval.shape[1:3]
            scale = Fraction(h, shape[1]), Fraction(w, shape[2])
            alike = (layout for layout in layouts.values() if layout.size == shape[1:3])
            found[v] = next(alike, Layout(shape[1:3], scale))
    return found


def _live(steps: Sequence[Step], outvars: Sequence[Var]) -> list[Step]:
    """The steps that something depends on."""
    live, found = set(_variables(outvars)), []
    for step in reversed(steps):
        if step.eqn.effects or not live.isdisjoint(step.made):
            found.append(step)
            live.update(step.needs)
    return found[::-1]


def _readers(steps: Sequence[Step], outvars: Sequence[Var]) -> dict[Var, set[int]]:
    """Variable -> ids of the last equations of the steps that read it; of the outputs 0."""
    found: dict[Var, set[int]] = {v: {0} for v in _variables(outvars)}
    for step in steps:
        for v in step.needs:
            found.setdefault(v, set()).add(id(step.eqn))
    return found


def _spreads(steps: Sequence[Step], frame: Var, layouts: Mapping[Var, Layout]) -> dict[Var, Pair]:
    """How many positions of the frame, less one, a position of a tensor depends on."""
    spreads: dict[Var, Pair] = dict.fromkeys(layouts, (0, 0))
    for step in steps:
        known = [spreads.get(v, (0, 0)) for v in step.needs] or [(0, 0)]
        spread = [max(sides) for sides in zip(*known, strict=True)]
        if step.geometry is not None:
            along = zip(spread, step.geometry.extent, layouts[step.reads[0]].scale, strict=True)
            spread = [a + (k - 1) * math.ceil(s) for a, k, s in along]
        spreads.update(dict.fromkeys(step.made, (spread[0], spread[1])))
    return spreads


def _feeding(steps: Sequence[Step]) -> set[int]:
    """Ids of the equations in full that local operations need."""
    needed, found = set(), set()
    for step in reversed(steps):
        if step.reads:
            needed.update(step.needs)
        elif not needed.isdisjoint(step.made):
            needed.update(step.needs)
            found.add(id(step.eqn))
    return found


def _runs(steps: Sequence[Step], feeding: set[int]) -> Iterable[list[Step]]:
    """Local operations with nothing between them, and in turn what is in full before others."""
    run: list[Step] = []
    for step in steps:
        if not step.reads and id(step.eqn) not in feeding:
            continue  # of the tail
        if run and bool(run[0].reads) != bool(step.reads):
            yield run
            run = []
        run.append(step)
    if run:
        yield run


def _shared(block: Block, framed: set[Var], layouts: Mapping[Var, Layout]) -> tuple[Var, ...]:
    """What a block reads that depends on the frame as a whole."""
    made = {v for step in block.steps for v in step.made}
    needs = dict.fromkeys(v for step in block.steps for v in step.needs)
    return tuple(v for v in needs if v in framed and v not in made and v not in block.ins)


def _variables(atoms: Iterable[Var]) -> list[Var]:
    return [v for v in atoms if not compat.is_literal(v)]
