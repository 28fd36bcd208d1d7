"""Runs of local operations over frames: what they are, how they are cut, how cells are computed."""

from tinyjax.blocks.divide import Block, Blocks, divide
from tinyjax.blocks.local import Geometry, Halo, Layout, Step, local, widen
from tinyjax.blocks.over import over_blocks
from tinyjax.blocks.sweep import active_cells, known, recompute, renew, take, take_all
from tinyjax.blocks.windows import begin, corner, finish, run_frame, run_window

__all__ = [
    "Block",
    "Blocks",
    "Geometry",
    "Halo",
    "Layout",
    "Step",
    "active_cells",
    "begin",
    "corner",
    "divide",
    "finish",
    "known",
    "local",
    "over_blocks",
    "recompute",
    "renew",
    "run_frame",
    "run_window",
    "take",
    "take_all",
    "widen",
]
