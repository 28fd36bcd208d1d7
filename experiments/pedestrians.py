"""The task of `experiments.tasks` on people: boxes frame by frame, and tracks of them.

A network gives a logit for each cell of a map, how likely somebody's centre lies there. A camera
that stands still sees whoever is at a place as large as others there: a box's height is a line in
the row of its centre and its width a share of its height, both fitted to the boxes of the training
frames, and no size is learned. One decoder and one tracker (`experiments.tracker`) serve every arm.

References:
  Zhou, Wang, Krähenbühl, *Objects as Points*, arXiv:1904.07850 (the loss, peaks as boxes).
  Lin, Goyal, Girshick, He, Dollár, *Focal Loss for Dense Object Detection*, ICCV 2017 (what logits
  begin with).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.walkers import CENTRE, STRIDE
from experiments.tracker import iou

__all__ = ["CUT", "PRIOR", "Sizes", "boxes", "covered", "losses", "sizes"]

Array = jax.Array

CUT = -0.85  # a logit that counts: 0.3 as a probability
PRIOR = -2.2  # of a logit before training: 0.1 as a probability

_TWICE = 0.5  # intersection over union of two boxes of one person


def losses(logits: Array, labels: Array) -> dict[str, Array]:
    """The loss of CenterNet per person, and F1, which the loop of a training calls accuracy.

    Here a peak is right with a person's cell next to it; `boxes` knows better.

    Args:
      logits: float32 [n, rows, columns].
      labels: uint8 [n, rows, columns]: `experiments.data.walkers.centres`.
    """
    people, near = labels == CENTRE, labels.astype(jnp.float32) / CENTRE
    p, yes, no = jax.nn.sigmoid(logits), jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    each = jnp.where(people, (1 - p) ** 2 * yes, (1 - near) ** 4 * p**2 * no)
    count = people.sum().astype(jnp.float32)
    peaks = (logits > CUT) & (logits == _around(logits))
    right = (peaks & (_around(near) == 1)).sum().astype(jnp.float32)
    met = (people & (_around(jnp.where(peaks, 1.0, 0.0)) == 1)).sum().astype(jnp.float32)
    false = peaks.sum().astype(jnp.float32) - right
    accuracy = (2 * met + 1e-9) / (met + false + count + 1e-9)
    return {"loss": -each.sum() / jnp.maximum(count, 1.0), "accuracy": accuracy}


def _around(x: Array) -> Array:
    """The largest of a cell and its eight neighbours: float32 [n, rows, columns]."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 1, 1), "SAME")


class Sizes(NamedTuple):
    """How large people are, by where they are; in pixels."""

    height: float  # of a box whose centre is in row 0
    growth: float  # of the height, from a row to the next
    aspect: float  # width over height


def sizes(found: np.ndarray) -> Sizes:
    """The sizes of boxes, by least squares.

    Args:
      found: float [n, most, 5]: who, left, top, width, height; rows with who = 0 are none.
    """
    top, width, height = found[found[..., 0] > 0].astype(float)[:, 2:].T
    growth, start = np.polyfit(top + height / 2, height, 1)
    return Sizes(float(start), float(growth), float((width / height).mean()))


def boxes(logits: np.ndarray, size: Sizes) -> np.ndarray:
    """The people in a map of logits: its peaks, and around each the box of its row.

    A peak is moved to the centroid of the probabilities around it. Of two that overlap by half, the
    likelier stays.

    Args:
      logits: float32 [rows, columns].
      size: of people.

    Returns:
      float [k, 4]: left, top, width, height; the likeliest first.
    """
    padded = np.pad(logits, 1, constant_values=-np.inf)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    at = np.nonzero((logits > CUT) & (logits == around.max((2, 3))))
    order = np.argsort(-logits[at], kind="stable")
    weights = 1 / (1 + np.exp(-around[at][order]))
    weights /= weights.sum((1, 2), keepdims=True)
    steps = np.arange(-1, 2)
    middles = [
        STRIDE * (places[order] + 0.5 + (weights.sum(axis) * steps).sum(1))
        for places, axis in zip(at, (2, 1), strict=True)
    ]
    height = np.maximum(size.height + size.growth * middles[0], 1.0)
    width = size.aspect * height
    found = np.stack([middles[1] - width / 2, middles[0] - height / 2, width, height], 1)
    kept: list[int] = []
    overlaps = iou(found, found)
    for index in range(len(found)):
        if not (overlaps[index, kept] > _TWICE).any():
            kept.append(index)
    return found[kept]


def covered(found: np.ndarray, area: int) -> float:
    """Area of boxes float [n, most, 5] over that of so many pixels a frame, which are shared."""
    return float((found[..., 3] * found[..., 4]).sum() / (len(found) * area))
