"""Counting patches: which ones moved, and what the blocks of `models.Backbone` spend on theirs."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from experiments.models import Backbone

__all__ = ["Block", "blocks", "changed", "macs", "moved", "recomputed"]


class Block(NamedTuple):
    """Multiply-accumulates of a run of layers."""

    dense: int  # of the whole map
    patch: int  # of one patch computed alone, the margins that its layers need included


def blocks(size: Sequence[int], outs: Sequence[Sequence[int]], patch: int) -> list[Block]:
    """What the blocks cost that ``tinyjax.pass_skip`` divides the network into.

    Args:
      size: (h, w) of a frame.
      outs: shapes [1, h, w, c] of the tensors that it keeps, in order.
      patch: side of a patch at the input of a block.

    Raises:
      ValueError: if a shape is not that of a layer.
    """
    layers, (h, w) = [], size
    inputs = (3, *Backbone.widths[:-1])
    for fan_in, features, stride in zip(inputs, Backbone.widths, Backbone.strides, strict=True):
        h, w = -(-h // stride), -(-w // stride)
        layers.append(((1, h, w, features), 9 * fan_in * features, stride))
    found = []
    for index, out in enumerate(outs):
        ends = [at for at, layer in enumerate(layers) if layer[0] == tuple(out)]
        if not ends:
            raise ValueError(f"{tuple(out)} is no layer's output for frames of {tuple(size)}")
        stop = len(layers) if index == len(outs) - 1 else ends[0] + 1
        run, layers = layers[:stop], layers[stop:]
        side = patch // int(np.prod([stride for *_, stride in run]))
        one = 0
        for _, per_position, stride in reversed(run):
            one += side**2 * per_position
            side = (side - 1) * stride + 3
        found.append(Block(sum(h * w * each for (_, h, w, _), each, _ in run), one))
    return found


def recomputed(costs: Sequence[Block], active: Sequence[np.ndarray]) -> float:
    """Share of the patches that were recomputed, blocks weighed by what they cost dense, 0..1.

    Args:
      costs: of the blocks.
      active: for every block bool [rows, columns].
    """
    weights = np.array([cost.dense for cost in costs], float)
    return float(np.array([cells.mean() for cells in active]) @ weights / weights.sum())


def macs(costs: Sequence[Block], active: Sequence[np.ndarray]) -> int:
    """Multiply-accumulates of a frame; a block that is recomputed whole has no margins."""
    pairs = zip(costs, active, strict=True)
    return sum(cost.dense if on.all() else int(on.sum()) * cost.patch for cost, on in pairs)


def moved(before: np.ndarray, after: np.ndarray, patch: int) -> float:
    """Share of patches, 0..1, in which two inputs [1, h, w, c] differ."""
    pixels = (before != after).any((0, 3))
    padded = np.pad(pixels, [(0, -side % patch) for side in pixels.shape])
    rows, columns = (side // patch for side in padded.shape)
    return float(padded.reshape(rows, patch, columns, patch).any((1, 3)).mean())


def changed(images: Iterable[np.ndarray]) -> list[float]:
    """Per frame [h, w, c] the share of pixels that differ from the frame before; first, 1."""
    return [1.0, *(float((a != b).any(-1).mean()) for a, b in pairwise(images))]
