"""How good boxes and tracks are: the CLEAR MOT metrics and IDF1, by the package motmetrics.

References:
  Bernardin, Stiefelhagen, *Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics*,
  EURASIP Journal on Image and Video Processing 2008.
  Ristani, Solera, Zou, Cucchiara, Tomasi, *Performance Measures and a Data Set for Multi-Target,
  Multi-Camera Tracking*, ECCV Workshops 2016 (IDF1).
"""

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from experiments.extras import imported
from experiments.tracker import iou

__all__ = ["Tracked", "f1", "tracked"]

_OVERLAP = 0.5  # intersection over union from which a box is right

_METRICS = ("mota", "idf1", "precision", "recall", "num_switches")


class Tracked(NamedTuple):
    """Of all tracks in a clip."""

    mota: float  # 1 - (missed + false + switches) / people; 1 at best, without a least
    idf1: float  # 0..1, of boxes under the right identity
    precision: float  # 0..1; 0 where nothing was found
    recall: float  # 0..1
    switches: int  # of identities


def tracked(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> Tracked:
    """Compares tracks with people.

    Args:
      found: frame by frame float [n, 5]: who, left, top, width, height.
      truth: the same of the people; rows with who = 0 are none.
    """
    *shares, switches = _measured(found, truth, _METRICS)
    return Tracked(*(float(np.nan_to_num(share)) for share in shares), switches=int(switches))


def f1(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """The harmonic mean of precision and recall of boxes, 0..1; 1 where there is nothing to find.

    Args:
      found: frame by frame float [n, 4]: left, top, width, height.
      truth: frame by frame float [m, 5]: who, and the same; rows with who = 0 are none.
    """
    fresh = count(1)  # boxes that nothing ties together, so that each frame is matched on its own
    alone = [np.c_[[next(fresh) for _ in boxes], boxes] for boxes in map(_rows, found)]
    metrics = ("num_detections", "num_predictions", "num_objects")
    hits, predicted, people = _measured(alone, truth, metrics)
    return float(2 * hits + 1e-9) / float(predicted + people + 1e-9)


def _rows(boxes: np.ndarray) -> np.ndarray:
    return np.reshape(boxes, (-1, 4))


def _measured(
    found: Sequence[np.ndarray], truth: Sequence[np.ndarray], metrics: Sequence[str]
) -> list[float]:
    """Metrics of motmetrics, by its names."""
    package = imported("motmetrics")
    events = package.MOTAccumulator(auto_id=True)
    for ours, theirs in zip(found, truth, strict=True):
        people = theirs[theirs[:, 0] > 0]
        distances = 1.0 - iou(people[:, 1:], ours[:, 1:])
        distances[distances > 1 - _OVERLAP] = np.nan
        events.update(people[:, 0].astype(int), ours[:, 0].astype(int), distances)
    table = package.metrics.create().compute(events, metrics=list(metrics))
    return [table[name].item() for name in metrics]
