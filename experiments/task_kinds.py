"""What is learned of a scene and how it is scored: `kind(scene)` says which task it has.

`experiments.tasks` treats every task alike: frames of a fixed camera, a network that sees each of
them beside the background, and a score of its outputs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import optax

from experiments import folds, mot, pedestrians, segmenter
from experiments.data import walkers
from experiments.errors import UserError
from experiments.tracker import followed
from experiments.train import MOMENTUM

__all__ = ["TASKS", "Score", "Task", "kind"]


class Score(NamedTuple):
    """How good outputs are, over successive frames."""

    f1: float  # 0..1: of foreground's pixels, or of boxes
    flips: float  # share of the outputs that turn from frame to frame, 0..1
    tracks: mot.Tracked | None = None  # where people are followed


Judge = Callable[[Sequence[np.ndarray], Any], Score]  # (logits by frame, the scene they are of)


class Task(NamedTuple):
    """A kind of scene."""

    folds: int  # parts of which each is tested once
    split: Callable[[Any, int], tuple[Any, Any]]  # (scene, fold) -> what is trained on, and tested
    stride: int  # pixels of an output
    prior: float | None  # `segmenter.Segmenter`
    losses: segmenter.Losses
    optimizer: Callable[..., optax.GradientTransformation]
    judge: Callable[[Any], Judge]  # given what is trained on
    moving: Callable[[Any], float]  # share of a scene's pixels that matter


def _foreground(train: Any) -> Judge:
    del train

    def judge(logits: Sequence[np.ndarray], scene: Any) -> Score:
        found = np.stack(logits) > 0
        score = segmenter.f1(segmenter.counts(found, scene.labels))
        return Score(float(score), float((found[1:] != found[:-1]).mean()))

    return judge


def _moving(scene: Any) -> float:
    known = segmenter.counts(np.ones_like(scene.labels, bool), scene.labels)
    return float(known.hits / (known.hits + known.false))


def _people(train: Any) -> Judge:
    size = pedestrians.sizes(train.boxes)

    def judge(logits: Sequence[np.ndarray], scene: Any) -> Score:
        found = [pedestrians.boxes(one, size) for one in logits]
        on = np.stack(logits) > pedestrians.CUT
        return Score(
            mot.f1(found, scene.boxes),
            float((on[1:] != on[:-1]).mean()),
            mot.tracked(followed(found), scene.boxes),
        )

    return judge


def _covered(scene: Any) -> float:
    return pedestrians.covered(scene.boxes, scene.frames[0, ..., 0].size)


_FOREGROUND = Task(
    folds=5,
    split=partial(folds.split, folds=5),
    stride=1,
    prior=None,
    losses=segmenter.losses,
    optimizer=MOMENTUM,
    judge=_foreground,
    moving=_moving,
)

_PEOPLE = Task(
    folds=1,
    split=lambda scene, fold: folds.until(scene, 594 / 795),  # frame 594 of vtest is the last
    stride=walkers.STRIDE,
    prior=pedestrians.PRIOR,
    losses=pedestrians.losses,
    optimizer=optax.adam,
    judge=_people,
    moving=_covered,
)

TASKS = {
    "highway": _FOREGROUND,
    "squares": _FOREGROUND,
    "vtest": _PEOPLE,
    "walkers": _PEOPLE,
}


def kind(scene: str) -> Task:
    """The task of a scene.

    Raises:
      UserError: if there is no scene of this name.
    """
    if scene not in TASKS:
        raise UserError(f"there is no scene {scene!r}: choose one of {', '.join(TASKS)}")
    return TASKS[scene]
