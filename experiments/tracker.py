"""Boxes become tracks: they are matched with where constant velocity takes the tracks.

Boxes are float [n, 4]: left, top, width, height. Which network found them does not matter.

References:
  Bewley, Ge, Ott, Ramos, Upcroft, *Simple Online and Realtime Tracking*, ICIP 2016 (assignment by
  intersection over union; here velocities are smoothed where they filter).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from experiments.extras import imported

__all__ = ["Track", "Tracks", "advance", "assigned", "followed", "iou"]

_OVERLAP = 0.3  # of a box and a prediction that belong together
_KEPT = 10  # frames that a track outlives its last box
_SHOWN = 2  # boxes from which a track counts
_SMOOTH = 0.5  # of a velocity, what the newest step is worth


class Track(NamedTuple):
    """Somebody who was seen."""

    who: int  # from 1
    box: np.ndarray  # float [4], predicted where there was none
    velocity: np.ndarray  # float [2]: pixels per frame, to the right and down
    seen: int  # boxes so far
    missed: int  # frames since the last box


class Tracks(NamedTuple):
    """All who are followed."""

    tracks: tuple[Track, ...] = ()
    newest: int = 0  # who came last


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of one list with every box of another.

    Args:
      a: float [n, 4].
      b: float [m, 4].

    Returns:
      float [n, m], 0..1.

    >>> iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 2, 2], [5, 5, 1, 1]])).round(3).tolist()
    [[0.333, 0.0]]
    """
    a, b = a[:, None], b[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    both = np.maximum(high - low, 0).prod(-1)
    return both / (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both)


def assigned(overlaps: np.ndarray, least: float) -> list[tuple[int, int]]:
    """The pairs (row, column) that overlap most in all, each of at least so much."""
    rows, columns = imported("scipy.optimize").linear_sum_assignment(overlaps, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [pair for pair in pairs if overlaps[pair] >= least]


def advance(state: Tracks, boxes: np.ndarray) -> Tracks:
    """The tracks after another frame.

    Args:
      state: after the frame before, `Tracks()` before the first.
      boxes: float [n, 4], what was found in this one.

    Returns:
      Those that go on, those that wait for another box, and those that begin.
    """
    ahead = [np.r_[one.box[:2] + one.velocity, one.box[2:]] for one in state.tracks]
    predicted = np.reshape(ahead, (-1, 4))
    pairs = dict(assigned(iou(predicted, boxes), _OVERLAP))
    after = []
    for index, one in enumerate(state.tracks):
        if index in pairs:
            after.append(_met(one, boxes[pairs[index]]))
        elif one.missed < _KEPT:
            after.append(one._replace(box=predicted[index], missed=one.missed + 1))
    fresh = [boxes[at] for at in range(len(boxes)) if at not in pairs.values()]
    begun = [
        Track(who, box, np.zeros(2), seen=1, missed=0)
        for who, box in enumerate(fresh, state.newest + 1)
    ]
    return Tracks((*after, *begun), state.newest + len(begun))


def _met(track: Track, box: np.ndarray) -> Track:
    """A track that found its box."""
    middle = lambda b: b[:2] + b[2:] / 2
    # From the last box on; predictions in between moved by the velocity itself.
    step = middle(box) - middle(track.box)
    if track.missed:
        step = (step + track.missed * track.velocity) / (track.missed + 1)
    velocity = step if track.seen == 1 else _SMOOTH * step + (1 - _SMOOTH) * track.velocity
    return Track(track.who, box, velocity, track.seen + 1, missed=0)


def followed(frames: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Who is where, frame by frame.

    Args:
      frames: boxes float [n, 4] of each.

    Returns:
      float [k, 5] of each: who, left, top, width, height, of the tracks that have a box in it.
    """
    state, found = Tracks(), []
    for boxes in frames:
        state = advance(state, boxes)
        shown = [np.r_[t.who, t.box] for t in state.tracks if t.seen >= _SHOWN and not t.missed]
        found.append(np.reshape(shown, (-1, 5)))
    return found
