"""Data sets, batches and a clip: `load(name)` reads a set, `epoch_batches` shuffles one."""

from experiments.data.batches import epoch_batches, first, pixels
from experiments.data.clips import clip
from experiments.data.sets import CLASSES, NAMES, Dataset, Split, available, folder, load

__all__ = [
    "CLASSES",
    "NAMES",
    "Dataset",
    "Split",
    "available",
    "clip",
    "epoch_batches",
    "first",
    "folder",
    "load",
    "pixels",
]
