"""Folds of a scene, and the training of `segmenter.Segmenter` on all but one of them."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments import segmenter
from experiments.data import Split, scenes
from experiments.errors import UserError
from experiments.progress import Watch
from experiments.train import Fitted, create_state, fit

__all__ = ["Training", "split", "steps", "trained"]

_EVERY = 4  # which of the frames that are tested tell how a training stands


class Training(Protocol):
    """What a training depends on."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def crop(self) -> int:  # side of the parts that are trained on
        ...

    @property
    def learning_rate(self) -> float: ...
    @property
    def seed(self) -> int: ...


def split(scene: scenes.Scene, fold: int, folds: int) -> tuple[scenes.Scene, scenes.Scene]:
    """All frames but those of a fold, and these, which are consecutive.

    Raises:
      UserError: if there are fewer frames than two for each fold.
    """
    count = len(scene.frames)
    if count < 2 * folds:
        raise UserError(f"{count} frames make no {folds} folds: use a longer scene")
    inside = np.arange(count) * folds // count == fold
    pick = lambda chosen: scenes.Scene(*(array[chosen] for array in scene))
    return pick(~inside), pick(inside)


def steps(config: Training, count: int) -> int:
    """How many steps a training on so many frames takes."""
    return config.epochs * (count // config.batch)


def trained(
    model: segmenter.Segmenter,
    config: Training,
    train: scenes.Scene,
    test: scenes.Scene,
    background: np.ndarray,
    folder: Path | None,
    watch: Watch,
) -> Fitted:
    """A network after its training, which continues where it was interrupted.

    Args:
      model: what is trained.
      config: how.
      train: on what.
      test: which tells after every epoch how it stands, and nothing else.
      background: uint8 [h, w, 3].
      folder: of the checkpoints; None keeps none.
      watch: told of every step.

    Raises:
      UserError: if the parts that are trained on are larger than a frame.
    """
    if config.crop > min(train.labels.shape[1:]):
        raise UserError(f"crop={config.crop} is more than a side of a frame: choose a smaller one")
    crop = (config.crop, config.crop)
    state = create_state(
        model,
        np.zeros((1, *crop, 6), np.float32),
        learning_rate=config.learning_rate,
        steps=steps(config, len(train.frames)),
        seed=config.seed,
    )
    some = segmenter.beside(test.frames[::_EVERY], background), test.labels[::_EVERY]

    def standing(state: Any) -> tuple[float, float]:
        loss, score = segmenter.score(state, *some)
        return float(loss), float(score)

    return fit(
        segmenter.crop_step(crop, config.seed),
        state,
        Split(segmenter.beside(train.frames, background), train.labels),
        standing,
        epochs=config.epochs,
        batch=config.batch,
        seed=config.seed,
        folder=folder,
        watch=watch,
    )
