"""All blocks of a function in turn: as one whole network, or each as far as something changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.blocks.divide import Blocks
from tinyjax.blocks.local import Var
from tinyjax.blocks.partition import break_even
from tinyjax.blocks.state import gated
from tinyjax.blocks.sweep import Mask, active_cells, run_block
from tinyjax.blocks.windows import run_before, run_frame
from tinyjax.numerics.patches import differs

__all__ = ["Kept", "run_blocks"]

Array = jax.Array
Kept = tuple[tuple[Array, ...], tuple[Array, ...]]  # of blocks, and of what is between them


def run_blocks(
    blocks: Blocks,
    env: Mapping[Var, Any],
    old: Kept,
    flags: Mask,
    limits: Array,
    whole: Any,
    fresh: Any,
    dense_above: float | None,
) -> tuple[Kept, tuple[Array, ...]]:
    """What blocks give for a frame.

    Args:
      blocks: the function, divided.
      env: its inputs and what follows from them without the frame.
      old: what was kept of the frame before.
      flags: bool ``[1, h, w, 1]``: where the frame changed.
      limits: of each gated tensor, how far it may move unseen: float32.
      whole: bool scalar: compute the whole network, in which nothing is cut.
      fresh: bool scalar: nothing that was kept is of use.
      dense_above: share of a block's cells above which it is computed whole; None for where the
        whole costs less.

    Returns:
      What is kept; and, for every block, the cells that were computed: bool ``[rows, cols]``.
    """

    def dense(old: Kept) -> tuple[Kept, tuple[Array, ...]]:
        del old
        values = dict(env)
        for block in blocks.blocks:
            values = run_before(block, values)
            values |= dict(zip(block.outs, run_frame(block, values), strict=True))
        return _kept(blocks, values), tuple(jnp.ones(block.grid, bool) for block in blocks.blocks)

    def sparse(old: Kept) -> tuple[Kept, tuple[Array, ...]]:
        values, changed, active, held = dict(env), {blocks.frame: flags}, [], iter(old[0])
        before = dict(zip(blocks.between, old[1], strict=True))
        bounds = dict(zip(gated(blocks), limits, strict=True))
        watched = {v for block in blocks.blocks for v in block.ins}
        for block in blocks.blocks:
            values = run_before(block, values)
            moved = {v: differs(before[v], values[v]) for v in before if v in values}
            changed |= {v: moved[v].any(3, keepdims=True) for v in block.ins if v in moved}
            cells = active_cells(block, changed)
            most = break_even([block]) if dense_above is None else dense_above
            everywhere = fresh | (cells.sum() > int(most * cells.size))
            for v in block.shared:
                everywhere = everywhere | moved[v].any()
            kept = [next(held) for _ in block.outs]
            outs, marks = run_block(block, values, kept, cells, everywhere, watched, bounds)
            values |= dict(zip(block.outs, outs, strict=True))
            changed |= marks
            active.append(jnp.asarray(cells | everywhere))
        return _kept(blocks, values), tuple(active)

    return lax.cond(whole, dense, sparse, old)


def _kept(blocks: Blocks, values: Mapping[Var, Any]) -> Kept:
    cuts = tuple(values[v] for block in blocks.blocks for v in block.outs)
    return cuts, tuple(values[v] for v in blocks.between)
