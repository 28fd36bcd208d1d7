"""What the two sides of `experiments.thesis` need beforehand, found once and kept in a folder.

A network is trained on all folds of a scene but one, as in `experiments.tasks`, and cut behind its
first stage. Scales of int8, the level of PASS's gate and its inner limits, and the contexts of the
coder are found on frames of the training folds. The folder holds arrays, msgpack, a wire frame and
JSON; either side reads it in a process of its own, and only the frames that are tested.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from experiments import folds, levels, segmenter
from experiments.data import scenes
from experiments.errors import UserError
from experiments.measure import compared, relative
from experiments.progress import Follow
from experiments.results import digest
from experiments.task_kinds import kind
from tinyjax import (
    calibrate,
    entropy,
    global_step,
    inner_limits,
    int8_frozen,
    pass_skip,
    rewrite,
    threshold,
    wire,
)

__all__ = [
    "FOLDS",
    "OFF",
    "Config",
    "Preparation",
    "Setup",
    "in_int8",
    "lower",
    "prepared",
    "read",
    "upper",
]

FOLDS = kind("highway").folds
OFF = ("nothing", "pass", "int8", "sgq", "all")

_RUNS = 2  # of successive frames in a calibration, as in `tasks`
_LEAST = 0.01  # tolerance of the inner limits where the gate alone has no error
_CODED = 8  # training frames that contexts are fitted to


@dataclass(frozen=True)
class Preparation(folds.Training):
    """All that the folder depends on."""

    patch: int = 8  # side of a patch in pixels
    points: float = 0.25  # of F1 that the level of the gate may cost on training frames
    widen: float = 1.1  # tolerance of the inner limits, over the error of that level
    tries: int = 4  # limits tried per tensor
    calibration: int = 60  # training frames that levels and limits are found on

    def __post_init__(self) -> None:
        if kind(self.scene).stride != 1:
            raise UserError(f"scene={self.scene!r} has no label for every pixel: choose highway")
        if not 0 <= self.fold < FOLDS:
            raise UserError(f"fold={self.fold} is none: choose one from 0 to {FOLDS - 1}")
        for key in ("patch", "crop", "width"):
            if (given := getattr(self, key)) < 8 or given % 8:
                raise UserError(f"{key}={given} does not fit: choose a multiple of 8")
        for key in ("blocks", "epochs", "batch", "tries"):
            if (given := getattr(self, key)) < 1:
                raise UserError(f"{key}={given} is too small: choose 1 or more")
        if self.calibration < 2 or not (self.points >= 0 and 1 < self.widen < 10):
            raise UserError(
                f"calibration={self.calibration}, points={self.points}, widen={self.widen}: "
                "choose 2 or more, 0 or more, and more than 1"
            )

    @property
    def preparation(self) -> "Preparation":
        """This, without what a subclass adds."""
        return Preparation(**{each.name: getattr(self, each.name) for each in fields(Preparation)})


@dataclass(frozen=True)
class Config(Preparation):
    """One run. Everything that a result depends on is here."""

    off: str = "nothing"  # of `OFF`: which method is switched off
    every: int = 0  # frames from one update of both halves to the next; 0 for never
    key_every: int = 25  # frames from one that is computed whole and sent whole to the next
    rate: float = 0.01  # learning rate of the updates
    frames: int = 0  # of the fold, so many first ones; 0 for all
    link: str = ""  # as 20Mbit/s,5ms; empty for the loopback as it is
    cores: int = 0  # that the device's process is confined to; 0 for all
    memory: int = 0  # MiB of address space that it is confined to; 0 for any

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.off not in OFF:
            raise UserError(f"off={self.off!r} is no method: choose one of {', '.join(OFF)}")
        for key in ("every", "frames", "cores", "memory"):
            if (given := getattr(self, key)) < 0:
                raise UserError(f"{key}={given} is too small: choose 0 or more")
        if self.key_every < 1 or not 0 < self.rate < 1:
            raise UserError(
                f"key_every={self.key_every}, rate={self.rate}: choose 1 or more, and 0 to 1"
            )

    @property
    def arm(self) -> str:
        """What a grid of runs calls this one."""
        mode = f"learn {self.every}" if self.every else "stream"
        return f"{self.scene} {self.fold} {mode} without {self.off}"


class Setup(NamedTuple):
    """The folder's content."""

    frames: np.ndarray  # uint8 [n, h, w, 3] that are tested, read as they are used
    labels: np.ndarray  # uint8 [n, h, w]
    background: np.ndarray  # uint8 [h, w, 3]
    lower: Any  # variables of the device's half
    upper: Any  # of the cloud's
    contexts: Any  # of the coder of key frames
    table: dict[str, float]  # of `int8_frozen`
    level: float  # of the gate
    error: float  # of the features, that the level makes on training frames, relative
    limits: dict[str, list[float]]  # between blocks, in "int8" and "float"


def lower(config: Preparation) -> Any:
    """``apply(variables, frame) -> features`` of the device's half, in float32."""
    return partial(
        segmenter.Segmenter(config.width, config.blocks, part="lower").apply, train=False
    )


def upper(config: Preparation) -> Any:
    """``apply(variables, features) -> logits`` of the cloud's half."""
    return partial(
        segmenter.Segmenter(config.width, config.blocks, part="upper").apply, train=False
    )


def in_int8(apply: Any, table: dict[str, float]) -> Any:
    """The same in int8, with scales that were measured before."""
    int8 = rewrite(int8_frozen(table=table), apply)
    return lambda variables, x: int8.apply({}, variables, x)[0]


def prepared(config: Preparation, kept: Path, follow: Follow) -> Path:
    """The folder for a configuration, filled if it is not there yet.

    Args:
      config: of the preparation.
      kept: folder in which such folders stay.
      follow: shows the progress.

    Raises:
      UserError: if the scene cannot be read, or does not fit.
    """
    only = config.preparation
    folder = kept / f"{only.scene}-{only.fold}-{digest(only)}"
    if (folder / "setting.json").exists():
        return folder
    task = kind(only.scene)
    train, test = task.split(scenes.load(only.scene), only.fold)
    background = segmenter.median(train.frames)
    model = segmenter.Segmenter(only.width, only.blocks)
    with follow(f"fold {only.fold}", folds.steps(only, len(train.frames))) as watch:
        training = folder / "training"
        fitted = folds.trained(model, task, only, train, test, background, training, watch)
    variables = {"params": fitted.state.params, "batch_stats": fitted.state.batch_stats}
    with follow(f"calibrating {only.fold}", 1) as watch:
        setting, contexts = _calibrated(only, variables, train, background)
        watch(1, f"level {setting['level']}")
    np.save(folder / "frames.npy", test.frames)
    np.save(folder / "labels.npy", test.labels)
    np.save(folder / "background.npy", background)
    (folder / "variables.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    (folder / "contexts.sgqr").write_bytes(wire.pack(contexts))
    partial_file = folder / "setting.json.partial"
    partial_file.write_text(json.dumps(setting, indent=2) + "\n")
    os.replace(partial_file, folder / "setting.json")  # last: with it the folder is complete
    return folder


def read(config: Preparation, folder: Path) -> Setup:
    """What `prepared` has left in a folder."""
    load = lambda name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    found = flax.serialization.msgpack_restore((folder / "variables.msgpack").read_bytes())
    parts = segmenter.halves(jax.tree.map(jnp.asarray, found), config.blocks)
    contexts = wire.unpack((folder / "contexts.sgqr").read_bytes())
    setting = json.loads((folder / "setting.json").read_text())
    return Setup(load("frames"), load("labels"), load("background"), *parts, contexts, **setting)


def _calibrated(
    config: Preparation, variables: Any, train: Any, background: np.ndarray
) -> tuple[dict[str, Any], Any]:
    """What is found on training frames: the setting, and contexts."""
    chosen = levels.runs(len(train.frames), config.calibration, _RUNS)
    frames = [one[None] for one in segmenter.beside(train.frames[chosen], background)]
    ours, theirs = segmenter.halves(variables, config.blocks)
    judge, apply = jax.jit(upper(config)), lower(config)

    def score(features: Sequence[jax.Array]) -> float:
        found = np.stack([np.asarray(judge(theirs, x)[0] > 0) for x in features])
        return float(segmenter.f1(segmenter.counts(found, train.labels[chosen])))

    dense = jax.jit(apply)
    best = score([dense(ours, x) for x in frames])
    within = lambda outs, one: 100 * (best - score(outs)) <= config.points
    level = levels.level(apply, ours, frames, patch=config.patch, within=within)
    table = calibrate(apply, ours, [(x,) for x in frames])
    inputs = list(map(jnp.asarray, frames))

    left = levels.effective(frames, level.level, config.patch)

    def limits(apply: Any) -> list[float]:
        lossy = rewrite(pass_skip(patch=config.patch, gate=threshold(level.level)), apply)
        whole = jax.jit(apply)
        pairs = [
            compared(whole(ours, x), whole(ours, y)) for x, y in zip(frames, left, strict=True)
        ]
        energy, squared = (sum(float(pair[at]) for pair in pairs) for at in (0, 1))
        tolerance = config.widen * max(relative(squared, energy), _LEAST)
        options = {"tolerance": tolerance, "tries": config.tries}
        return inner_limits(lossy, apply, ours, inputs, **options).tolist()

    held = {"float": limits(apply), "int8": limits(in_int8(apply, table))}
    some = jnp.concatenate([dense(ours, x) for x in frames[:: -(-len(frames) // _CODED)]])
    contexts = entropy.fit(global_step(exact=True)(some))
    setting = {"table": table, "level": level.level, "error": level.error, "limits": held}
    return setting, contexts
