"""Cuts a run of local operations into blocks: where, and how large their cells are.

Every tensor that is kept costs memory and copying; every operation inside a block widens its
windows, so that cells compute what their neighbours compute too. Small cells fit what moves and
have the larger halos. What is cheapest for one object of a given size follows from a model of the
cost, by a dynamic programme over the places of the cuts; the object's way through the network, and
so the share of cells that it wakes, does not depend on them.

References:
  Alwani, Chen, Ferdman, Milder, `Fused-Layer CNN Accelerators
  <https://doi.org/10.1109/MICRO.2016.7783725>`_, MICRO 2016: layers are fused by the cost of what
  they compute twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tinyjax import compat
from tinyjax.blocks.local import POOLS, Halo, Layout, Step, Var, widen
from tinyjax.numerics.patches import Pair, tiles

__all__ = ["AT_ONCE", "Block", "break_even", "macs_of", "partition"]

Layouts = dict[Var, Layout]

AT_ONCE = 4  # windows that go through a product together: a turn
LEFT_OVER = 1.5  # of them, on average: they go one by one

# Nanoseconds on two cores of an AVX-512 machine; only their ratios matter.
MAC = 1 / 75
DEPTHWISE_MAC = 2.0  # XLA's own loop, not its library's
TAP = 0.5  # of a pool
WEIGHT = 0.5  # of a product, packed anew in every turn
ELEMENT = 0.6  # of a tensor that is kept, read or written
PRODUCT = 25e3  # to begin one, on all cores
CELL = 12e3
BLOCK = 15e3
UNCUT = 1e12  # an operation outside of blocks, where there is a choice
LEAST = 0.45  # of the cells, below which a block is never computed whole
OBJECT = 0.25  # the side of what moves, as a share of the frame's


class Block(NamedTuple):
    """A run of local operations, cut into cells."""

    steps: tuple[Step, ...]
    ins: tuple[Var, ...]
    outs: tuple[Var, ...]  # all of one layout
    cells: dict[Var, Pair]  # tensor -> positions of a cell
    halos: dict[Var, Halo]  # tensor -> what a window of it holds around its cell
    sizes: dict[Var, Pair]  # tensor -> height and width
    grid: Pair  # rows and columns of cells
    before: tuple[compat.Eqn, ...] = ()  # evaluated in full before it
    shared: tuple[Var, ...] = ()  # where one of these changes, everything does


def partition(
    steps: Sequence[Step],
    layouts: Layouts,
    readers: dict[Var, set[int]],
    spreads: dict[Var, Pair],
    patch: int,
    fuse: bool,
) -> list[Block | Step]:
    """A run of local operations as blocks, and as steps where no block can be.

    Args:
      steps: the run.
      layouts: of all tensors that hold the frame.
      readers: variable -> ids of what reads it.
      spreads: tensor -> how many positions of the network's input, along each axis, one of its
        own depends on, less one.
      patch: the side of a cell at the finest tensor of its block.
      fuse: whether blocks may hold several products, and cells have half or twice that side.
    """
    sides = (patch // 2, patch, 2 * patch) if fuse else (patch,)
    groups = _groups(steps)
    costs, parts = [0.0], [([], 0)]  # the cheapest way to the first groups, and its last part
    for end in range(1, len(groups) + 1):
        alone = groups[end - 1]
        choices = [(costs[end - 1] + sum(map(_full, alone)), (alone, end - 1))]
        for start in range(end):
            segment = [step for group in groups[start:end] for step in group]
            choices += [
                (costs[start] + _cost(block, layouts, spreads), ([block], start))
                for block in _blocks(segment, layouts, readers, sides)
                if fuse or sum(map(bool, map(_macs, segment))) == 1
            ]
        cost, part = min(choices, key=lambda choice: choice[0])
        costs.append(cost)
        parts.append(part)
    found, end = [], len(groups)
    while end:
        part, end = parts[end]
        found = [*part, *found]
    return found


def _groups(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps that stay together: what is elementwise stays with what is before it."""
    groups: list[list[Step]] = []
    for step in steps:
        if not groups or step.geometry is not None or _macs(step):
            groups.append([])
        groups[-1].append(step)
    return groups


def _macs(step: Step) -> int:
    """Multiply-accumulates of a product; 0 of anything else."""
    kind = compat.KINDS.get(step.eqn.primitive.name)
    if kind is None:
        return 0
    x, w = (v.aval for v in step.eqn.invars)
    return compat.macs(kind, step.eqn.params, x, w, step.eqn.outvars[0].aval)


def _time(step: Step) -> float:
    """Nanoseconds of a product or pool over the whole frame; 0 of anything else."""
    if step.eqn.primitive.name in POOLS:
        return TAP * step.out.aval.size * math.prod(step.eqn.params["window_dimensions"])
    grouped = step.eqn.params.get("feature_group_count", 1) > 1
    return _macs(step) * (DEPTHWISE_MAC if grouped else MAC)


def _full(step: Step) -> float:
    """Nanoseconds to compute a step for every frame."""
    heavy = step.geometry is not None or _macs(step)
    return _time(step) + ELEMENT * step.out.aval.size + (UNCUT if heavy else 0)


def break_even(blocks: Sequence[Block]) -> float:
    """The share of the cells of some blocks from which on it costs less to compute them whole.

    At least :data:`LEAST`: where so little is computed that hardly a cell would pay, the model says
    nothing, and what is skipped can be seen.
    """
    cell = turn = dense = 0.0
    for block in blocks:
        count = math.prod(block.grid)
        one, begun = _cell(block), _turn(block)
        cell += count * (one + begun / AT_ONCE)
        turn += begun
        dense += _dense(block)
    return min(1.0, max(LEAST, (dense - LEFT_OVER * turn) / cell))


def macs_of(block: Block) -> tuple[int, int]:
    """Multiply-accumulates of a whole block, and of one of its cells with what its halos add."""
    whole = cell = 0
    for step in block.steps:
        sides = [_side(block, step.out, axis) for axis in (0, 1)]
        whole += _macs(step)
        cell += _macs(step) * math.prod(sides) // math.prod(block.sizes[step.out])
    return whole, cell


def _cost(block: Block, layouts: Layouts, spreads: dict[Var, Pair]) -> float:
    """Nanoseconds of a block for a frame in which one object has moved."""
    active = 1.0
    for axis in (0, 1):
        woken = [
            (OBJECT * h * s + spreads[v][axis]) / s
            + block.halos[v].low[axis]
            + block.halos[v].high[axis]
            for v in block.ins
            for h, s in [(layouts[v].size[axis], layouts[v].scale[axis])]
        ]
        cells = (n / block.cells[v][axis] + 1 for n, v in zip(woken, block.ins, strict=True))
        active *= min(block.grid[axis], max(cells))
    turns = min(active, active / AT_ONCE + LEFT_OVER)
    return BLOCK + min(active * _cell(block) + turns * _turn(block), _dense(block))


def _cell(block: Block) -> float:
    """Nanoseconds of a cell, whatever goes with it."""
    share = lambda v: math.prod(_side(block, v, axis) / block.sizes[v][axis] for axis in (0, 1))
    elements = sum(share(v) * v.aval.size for v in _touched(block))
    return CELL + ELEMENT * elements + sum(share(step.out) * _time(step) for step in block.steps)


def _touched(block: Block) -> list[Var]:
    """What goes through memory: what products and pools read, and what is kept."""
    return [v for step in block.steps if _time(step) for v in step.reads] + list(block.outs)


def _turn(block: Block) -> float:
    """Nanoseconds to begin the products of a block."""
    products = [step.eqn for step in block.steps if _macs(step)]
    return sum(PRODUCT + WEIGHT * eqn.invars[-1].aval.size for eqn in products)


def _dense(block: Block) -> float:
    """Nanoseconds of a whole block."""
    return sum(map(_time, block.steps)) + ELEMENT * sum(v.aval.size for v in _touched(block))


def _side(block: Block, v: Var, axis: int) -> int:
    """Positions of a window of a tensor along an axis."""
    halo = block.halos[v]
    return block.cells[v][axis] + halo.low[axis] + halo.high[axis]


def _blocks(
    steps: Sequence[Step], layouts: Layouts, readers: dict[Var, set[int]], sides: Sequence[int]
) -> list[Block]:
    """These steps as a block, in cells of several sides; none if that cannot be.

    A block holds a product, its outputs share one layout, and its cells fit into them.
    """
    own, made = {id(step.eqn) for step in steps}, {step.out for step in steps}
    ins = tuple(dict.fromkeys(v for step in steps for v in step.reads if v not in made))
    outs = tuple(step.out for step in steps if readers[step.out] - own)
    if not any(map(_macs, steps)) or len({layouts[v] for v in outs}) != 1:
        return []
    tensors, halos, found = (*ins, *made), _halos(steps, outs), []
    sizes = {v: layouts[v].size for v in tensors}
    for side in sides:
        cells = _cells(tensors, layouts, side)
        if side and cells is not None and _fit(cells, outs[0], sizes[outs[0]]):
            grid = tiles(sizes[outs[0]], cells[outs[0]])
            found.append(Block(tuple(steps), ins, outs, cells, halos, sizes, grid))
    return found


def _cells(tensors: Sequence[Var], layouts: Layouts, side: int) -> dict[Var, Pair] | None:
    """The cell of each tensor, ``side`` at the finest; None where a stride does not divide it."""
    finest = [min(layouts[v].scale[axis] for v in tensors) for axis in (0, 1)]
    cells = {}
    for v in tensors:
        sides = [divmod(side * f, s) for f, s in zip(finest, layouts[v].scale, strict=True)]
        if any(rest for _, rest in sides):
            return None
        cells[v] = tuple(int(whole) for whole, _ in sides)
    return cells


def _fit(cells: dict[Var, Pair], out: Var, size: Pair) -> bool:
    """Whether cells lie in a frame, the last one moved inside, where those of all tensors begin."""
    for axis in (0, 1):
        cell = cells[out][axis]
        step = math.lcm(*(cell // math.gcd(cell, sides[axis]) for sides in cells.values()))
        if cell > size[axis] or (size[axis] - cell) % step:
            return False
    return True


def _halos(steps: Sequence[Step], outs: Sequence[Var]) -> dict[Var, Halo]:
    """The halo of every tensor: the largest that any of its readers asks for."""
    halos = dict.fromkeys(outs, Halo((0, 0), (0, 0)))
    for step in reversed(steps):
        want = widen(step.geometry, halos[step.out])
        for v in step.reads:
            have = halos.get(v, want)
            halos[v] = Halo(*(tuple(map(max, a, b)) for a, b in zip(have, want, strict=True)))
    return halos
