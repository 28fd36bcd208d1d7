"""Runs of local operations over frames: what they are, how they are cut, how cells are computed."""

from tinyjax.blocks.divide import Block, Blocks, divide
from tinyjax.blocks.local import Geometry, Halo, Layout, Step, local, widen
from tinyjax.blocks.over import over_blocks
from tinyjax.blocks.state import SkipState, begin_state, fits, gated, oldest, sample, tiling
from tinyjax.blocks.sweep import active_cells, effective_input, run_block
from tinyjax.blocks.windows import begin, corner, finish, run_frame, run_window

__all__ = [
    "Block",
    "Blocks",
    "Geometry",
    "Halo",
    "Layout",
    "SkipState",
    "Step",
    "active_cells",
    "begin",
    "begin_state",
    "corner",
    "divide",
    "effective_input",
    "finish",
    "fits",
    "gated",
    "local",
    "oldest",
    "over_blocks",
    "run_block",
    "run_frame",
    "run_window",
    "sample",
    "tiling",
    "widen",
]
