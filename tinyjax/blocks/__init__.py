"""Runs of local operations over frames: what they are, how they are cut, how cells are computed."""

from tinyjax.blocks.backward import no_cotangents, pull_back
from tinyjax.blocks.divide import Blocks, divide
from tinyjax.blocks.local import Geometry, Halo, Layout, Step, local, widen
from tinyjax.blocks.network import run_blocks
from tinyjax.blocks.over import divided, over_blocks
from tinyjax.blocks.partition import Block, break_even, macs_of
from tinyjax.blocks.state import SkipState, begin_state, fits, gated, oldest, sample, tiling
from tinyjax.blocks.sweep import active_cells, effective_input, run_block
from tinyjax.blocks.windows import begin, corner, finish, run_before, run_frame, run_windows

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
    "break_even",
    "corner",
    "divide",
    "divided",
    "effective_input",
    "finish",
    "fits",
    "gated",
    "local",
    "macs_of",
    "no_cotangents",
    "oldest",
    "over_blocks",
    "pull_back",
    "run_before",
    "run_block",
    "run_blocks",
    "run_frame",
    "run_windows",
    "sample",
    "tiling",
    "widen",
]
