"""Folds of a scene, and the training of `segmenter.Segmenter` on all but one of them."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments import segmenter
from experiments.data import Split
from experiments.errors import UserError
from experiments.progress import Watch
from experiments.train import Fitted, create_state, fit

__all__ = ["Training", "split", "steps", "trained", "until"]

_TOLD = 25  # frames of those that are tested that tell how a training stands


@dataclass(frozen=True)
class Training:
    """All that a trained network depends on."""

    scene: str = "highway"  # of `data.scenes`
    fold: int = 0  # which part of the frames is tested
    width: int = 64  # of the network: `segmenter.Segmenter`
    blocks: int = 1
    epochs: int = 2
    batch: int = 4
    crop: int = 128  # side of the parts that are trained on
    learning_rate: float = 0.05
    seed: int = 0

    @property
    def training(self) -> "Training":
        """This, without what a subclass adds."""
        return Training(**{each.name: getattr(self, each.name) for each in fields(Training)})


class Learning(Protocol):
    """What is to be learned: `experiments.task_kinds.Task`."""

    @property
    def losses(self) -> segmenter.Losses: ...
    @property
    def optimizer(self) -> Any: ...


def split(scene: Any, fold: int, folds: int) -> tuple[Any, Any]:
    """All frames but those of a fold, and these, which are consecutive.

    Args:
      scene: NamedTuple of arrays with an entry per frame, ``frames`` among them.
      fold: which, from 0.
      folds: how many there are.

    Raises:
      UserError: if there are fewer frames than two for each fold.
    """
    count = len(scene.frames)
    if count < 2 * folds:
        raise UserError(f"{count} frames make no {folds} folds: use a longer scene")
    inside = np.arange(count) * folds // count == fold
    return _picked(scene, ~inside), _picked(scene, inside)


def until(scene: Any, share: float) -> tuple[Any, Any]:
    """The first frames of a scene, so large a share of them (0..1), and the rest."""
    early = np.arange(len(scene.frames)) < round(share * len(scene.frames))
    return _picked(scene, early), _picked(scene, ~early)


def _picked(scene: Any, chosen: np.ndarray) -> Any:
    return type(scene)(*(array[chosen] for array in scene))


def steps(config: Training, count: int) -> int:
    """How many steps a training on so many frames takes."""
    return config.epochs * (count // config.batch)


def trained(
    model: segmenter.Segmenter,
    task: Learning,
    config: Training,
    train: Any,
    test: Any,
    background: np.ndarray,
    folder: Path | None,
    watch: Watch,
) -> Fitted:
    """A network after its training, which continues where it was interrupted.

    Args:
      model: what is trained.
      task: to do what.
      config: how.
      train: on what, a scene of the task.
      test: which tells after every epoch how it stands, and nothing else.
      background: uint8 [h, w, 3].
      folder: of the checkpoints; None keeps none.
      watch: told of every step.

    Raises:
      UserError: if the parts that are trained on are larger than a frame.
    """
    if config.crop > min(train.frames.shape[1:3]):
        raise UserError(f"crop={config.crop} is more than a side of a frame: choose a smaller one")
    crop = (config.crop, config.crop)
    state = create_state(
        model,
        np.zeros((1, *crop, 6), np.float32),
        learning_rate=config.learning_rate,
        steps=steps(config, len(train.frames)),
        seed=config.seed,
        optimizer=task.optimizer,
    )
    every = -(-len(test.frames) // _TOLD)
    some = segmenter.beside(test.frames[::every], background), test.labels[::every]
    score = segmenter.scoring(task.losses)

    def standing(state: Any) -> tuple[float, float]:
        loss, right = score(state, *some)
        return float(loss), float(right)

    return fit(
        segmenter.crop_step(crop, config.seed, task.losses),
        state,
        Split(segmenter.beside(train.frames, background), train.labels),
        standing,
        epochs=config.epochs,
        batch=config.batch,
        seed=config.seed,
        folder=folder,
        watch=watch,
    )
