"""Adaptation on the device: a trained network meets another domain, and learns it in int8.

A network is trained in float32 on upright digits, as in a factory. On the "device" it meets digits
that are turned and noisy, and learns from a few hundred of them, once in float32 and once in int8
(`tinyjax.int8_qat`), from the same weights, with the same batches::

    python -m experiments adapt

References:
  The personalisation claim of the thesis that Octo is part of: Q. Zhou, *Towards efficient tiny
  machine learning systems for ubiquitous edge intelligence*, The Hong Kong Polytechnic University,
  2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from experiments import data, measure, train
from experiments.data import Split
from experiments.errors import UserError
from experiments.models import SimpleCnn
from experiments.progress import Follow, unfollowed
from tinyjax import attach, detach, int8_qat

__all__ = ["CONFIGS", "Config", "Results", "run", "shifted", "smoke"]

_ARMS = ("float32", "int8")


@dataclass(frozen=True)
class Config:
    """One run. Everything that its result depends on is here."""

    policy: str = "int8"  # of the adaptation: float32 or int8
    dataset: str = "mnist"  # one of data.NAMES with grey images
    angle: float = 40.0  # of the other domain, in degrees
    noise: float = 0.2  # standard deviation, of pixels 0..1
    pretrain: int = 5000  # images of the factory
    pretrain_epochs: int = 3
    images: int = 300  # of the device
    epochs: int = 10
    batch: int = 50
    learning_rate: float = 0.02  # of the first step, in both phases; falls to 0 along a cosine
    tests: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in _ARMS:
            raise UserError(f"policy={self.policy!r} is unknown: choose one of {', '.join(_ARMS)}")
        if self.dataset not in data.NAMES or self.dataset == "cifar10":
            raise UserError(f"dataset={self.dataset!r} has no grey images here: choose mnist, say")
        for key in ("pretrain", "images", "tests"):
            if (given := getattr(self, key)) < self.batch:
                raise UserError(f"{key}={given} is less than a batch: choose {self.batch} or more")

    @property
    def arm(self) -> str:
        """How an arm is called."""
        return self.policy


CONFIGS: dict[str, tuple[Config, ...]] = {
    "mnist": tuple(Config(policy, seed=seed) for seed in range(3) for policy in _ARMS)
}


def smoke(configs: Sequence[Config]) -> list[Config]:
    """One seed, on so little of the bundled sample that it takes seconds."""
    little = dict(
        dataset="fashion_mnist_sample", pretrain=40, pretrain_epochs=1, images=20, tests=40
    )
    short = [config for config in configs if config.seed == 0]
    return [replace(config, epochs=1, batch=10, **little) for config in short]


class Results(NamedTuple):
    """What a run came to; accuracies 0..1, in float32."""

    history: tuple[train.Epoch, ...]  # of the adaptation, tested on the other domain
    test_accuracy: float  # on the other domain, at the end
    before: float  # on the other domain, before adaptation
    home: float  # on upright images, before
    home_after: float  # and at the end: what was forgotten
    step_ms: float


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Trains, shifts the domain and adapts. An interrupted run continues after a whole epoch.

    Args:
      config: of the run.
      out: folder for the checkpoints of this run alone; None keeps none.
      follow: shows the progress.
    """
    full = data.load(config.dataset)
    at_home = data.first(full.train, config.pretrain), data.first(full.test, config.tests)
    # The device's images are none of the factory's.
    own = Split(*(t[config.pretrain : config.pretrain + config.images] for t in full.train))
    away = shifted(own, config, 1), shifted(at_home[1], config, 2)
    factory = _trained(config, at_home[0], out, follow)
    home, before = (train.evaluate(factory, test)[1] for test in (at_home[1], away[1]))
    state, step, plain = _fresh(config, factory), train.train_step, lambda state: state
    batch = next(data.epoch_batches(away[0], config.batch, seed=config.seed, epoch=0))
    if config.policy == "int8":
        tx = int8_qat()
        state = attach(tx, step, state, *batch)
        step, plain = tx(step), detach
    compiled, _ = measure.compiled(step, state, *batch)
    with follow(config.arm, config.epochs * (config.images // config.batch)) as watch:
        state, history = train.fit(
            compiled,
            state,
            away[0],
            lambda state: train.evaluate(plain(state), away[1]),
            epochs=config.epochs,
            batch=config.batch,
            seed=config.seed,
            folder=out and out / "device",
            watch=watch,
        )
    return Results(
        history=history,
        test_accuracy=history[-1].test_accuracy,
        before=before,
        home=home,
        home_after=train.evaluate(plain(state), at_home[1])[1],
        step_ms=float(np.median([epoch.step_ms for epoch in history])),
    )


def _trained(config: Config, images: Split, out: Path | None, follow: Follow) -> train.TrainState:
    """What the factory ships."""
    steps = config.pretrain_epochs * (len(images.labels) // config.batch)
    state = _state(config, steps)
    with follow("factory", steps) as watch:
        return train.fit(
            train.train_step,
            state,
            images,
            lambda state: (0.0, 0.0),
            epochs=config.pretrain_epochs,
            batch=config.batch,
            seed=config.seed,
            folder=out and out / "factory",
            watch=watch,
        ).state


def _fresh(config: Config, factory: train.TrainState) -> train.TrainState:
    """The shipped weights with a new optimizer."""
    steps = config.epochs * (config.images // config.batch)
    return _state(config, steps).replace(params=factory.params, apply_fn=factory.apply_fn)


def _state(config: Config, steps: int) -> train.TrainState:
    image = np.zeros((1, 28, 28, 1), np.float32)
    return train.create_state(
        SimpleCnn(), image, learning_rate=config.learning_rate, steps=steps, seed=config.seed
    )


def shifted(split: Split, config: Config, stream: int) -> Split:
    """The images in the other domain: turned about their centre, then with Gaussian noise.

    Args:
      split: images uint8 [n, h, w, 1].
      config: its angle, noise and seed.
      stream: tells the noise of one split from another's.
    """
    h, w = split.images.shape[1:3]
    angle = np.deg2rad(config.angle)
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    rows, columns = rows - (h - 1) / 2, columns - (w - 1) / 2
    across = np.float32(np.cos(angle)) * rows - np.float32(np.sin(angle)) * columns + (h - 1) / 2
    along = np.float32(np.sin(angle)) * rows + np.float32(np.cos(angle)) * columns + (w - 1) / 2
    turn = jax.jit(jax.vmap(lambda image: map_coordinates(image, [across, along], order=1)))
    turned = np.asarray(turn(jnp.asarray(split.images[..., 0], jnp.float32)))
    random = np.random.default_rng((config.seed, stream))
    noisy = random.normal(turned, 255 * config.noise)
    return Split(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None], split.labels)
