"""Split training over a real socket: a network cut in two, its halves in processes of their own.

The cloud has the layers after the cut, its optimizer and the loss; each device has those before it
and its own share of the images. Features go up and gradients come down through a codec. The
commands are in `split_commands`.

References:
  Vepakomma et al., *Split learning for health*, arXiv:1812.00564, 2018.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import data, models
from experiments.errors import UserError
from experiments.split_codecs import CODECS
from experiments.train import create_state, cross_entropy
from tinyjax import collab

__all__ = [
    "Config",
    "Halves",
    "Lower",
    "Run",
    "Span",
    "Step",
    "Upper",
    "batches",
    "cloud_of",
    "halves",
    "loaded",
    "prepared",
    "run",
    "share",
    "smoke",
    "steps_of",
    "timed",
]

_LAST = 20  # steps whose loss is told
_he = nn.initializers.he_normal()


@dataclass(frozen=True)
class Config:
    """What all sides have to agree on."""

    codec: str = "sgq"  # one of CODECS
    dataset: str = "fashion_mnist_sample"  # one of data.NAMES
    devices: int = 1  # they take turns
    average_every: int = 0  # steps after which lower halves are averaged; 0 for never
    group_size: int = 16  # of sgq_groups and sgq_gains: channels that share a scale
    bits: int = 4  # of sgq: of a feature
    error: float = 0.3  # of sgq: of a gradient, relative, at most
    epochs: int = 8
    batch: int = 50  # images of one device in a step
    learning_rate: float = 0.03
    seed: int = 0
    limit: int = 0  # images of all devices together; 0 for all there are

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise UserError(f"codec={self.codec!r} is unknown: choose one of {', '.join(CODECS)}")
        if self.dataset not in data.NAMES:
            names = ", ".join(data.NAMES)
            raise UserError(f"dataset={self.dataset!r} is unknown: choose one of {names}")
        for name, least in {"devices": 1, "epochs": 1, "batch": 1, "average_every": 0}.items():
            if getattr(self, name) < least:
                raise UserError(
                    f"{name}={getattr(self, name)} is too small: choose {least} or more"
                )


class Lower(nn.Module):
    """`models.SmallCnn` up to its second pool: images to features [n, h / 4, w / 4, 64]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = models.max_pool(nn.relu(nn.Conv(32, (3, 3), kernel_init=_he)(x)))
        for _ in range(2):
            x = nn.relu(nn.Conv(64, (3, 3), kernel_init=_he)(x))
        return models.max_pool(x)


class Upper(nn.Module):
    """The rest of `models.SmallCnn`: features to logits [n, 10]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = models.max_pool(nn.relu(nn.Conv(128, (3, 3), kernel_init=_he, name="Conv_3")(x)))
        return nn.Dense(10, kernel_init=_he, name="Dense_0")(x.reshape(x.shape[0], -1))


class Halves(NamedTuple):
    """The network in two, and what lies between."""

    lower: collab.Lower
    upper: collab.Upper
    ways: collab.Ways
    averaged: int  # parameters of the lower half, if lower halves are averaged


def halves(config: Config, steps: int, images: np.ndarray) -> Halves:
    """Both halves with the first parameters of the whole network, of which each side uses one.

    Args:
      config: of the training.
      steps: of one device.
      images: float32 [batch, h, w, c], for their shape.
    """
    features = jax.eval_shape(lambda x: Lower().init_with_output(jax.random.key(0), x)[0], images)
    try:
        ways = CODECS[config.codec](config, features)
    except ValueError as error:
        raise UserError(str(error)) from error
    state = create_state(
        models.SmallCnn(),
        images,
        learning_rate=config.learning_rate,
        steps=steps,
        seed=config.seed,
    )
    below, above = ({}, {})
    for name, layer in state.params.items():
        (above if name in ("Conv_3", "Dense_0") else below)[name] = layer
    apply = lambda model: lambda params, x: model.apply({"params": params}, x)
    lower = collab.Lower(apply(Lower()), below, _optimizer(config, steps))
    optimizer = _optimizer(config, steps * config.devices)
    upper = collab.Upper(apply(Upper()), above, optimizer, cross_entropy)
    size = sum(leaf.size for leaf in jax.tree.leaves(below))
    return Halves(lower, upper, ways, size if config.average_every else 0)


def _optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """That of `train.create_state`: momentum 0.9, a rate that falls to 0 along a cosine."""
    cosine = optax.cosine_decay_schedule(config.learning_rate, steps)
    return optax.sgd(lambda count: cosine(jnp.asarray(count, jnp.float32)), momentum=0.9)


@cache
def loaded(dataset: str) -> data.Dataset:
    """A data set, read once."""
    return data.load(dataset)


def share(config: Config, number: int) -> data.Split:
    """The images of a device: every `devices`-th one."""
    learned = data.first(loaded(config.dataset).train, config.limit or None)
    return data.Split(*(part[number :: config.devices] for part in learned))


def steps_of(config: Config) -> int:
    """Steps of each device: as many as the smallest share has."""
    per_epoch = len(share(config, config.devices - 1).labels) // config.batch
    if per_epoch == 0:
        raise UserError(f"batch={config.batch} does not fit a device's images: use a smaller one")
    return config.epochs * per_epoch


def batches(config: Config, number: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of a device from a step on: a function of its settings alone."""
    steps, own = steps_of(config), share(config, number)
    per_epoch = steps // config.epochs
    for epoch in range(start // per_epoch, config.epochs):
        order = data.epoch_batches(own, config.batch, seed=config.seed + number, epoch=epoch)
        for place, batch in enumerate(order):
            if place < per_epoch and epoch * per_epoch + place >= start:
                yield batch


@cache
def prepared(config: Config) -> tuple[Halves, int]:
    """Both halves, and the steps of each device."""
    steps = steps_of(config)
    images, _ = next(batches(config, 0, 0))
    return halves(config, steps, images), steps


# --- the sides -----------------------------------------------------------------------------------


Span = tuple[float, float]  # seconds of a clock, when something began and when it ended


def timed(ways: collab.Ways, taken: list[Span]) -> collab.Ways:
    """The same ways, which note down when each call had its input and when its result was there."""

    def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any) -> Any:
            jax.block_until_ready(given)
            start = time.perf_counter()
            result = jax.block_until_ready(call(*given))
            taken.append((start, time.perf_counter()))
            return result

        return done

    up, down = (collab.Way(*map(clocked, way)) for way in (ways.up, ways.down))
    return ways._replace(up=up, down=down)


def cloud_of(
    config: Config, folder: Path | None, save_every: int = 50, taken: list[Span] | None = None
) -> collab.Cloud:
    """The cloud of a training, continued from its folder.

    Args:
      config: of the training.
      folder: of its checkpoints; None keeps none.
      save_every: messages between two checkpoints.
      taken: where it is noted down when each decoding and encoding was done.
    """
    parts, _ = prepared(config)
    return collab.Cloud(
        parts.upper,
        parts.ways if taken is None else timed(parts.ways, taken),
        devices=config.devices,
        averaged=parts.averaged,
        folder=folder and folder / "cloud",
        save_every=save_every,
        keep=4 * save_every,
        seed=config.seed,
        job=repr(config),
    )


class Step(NamedTuple):
    """A step of a device."""

    done: int  # steps, this one included
    steps: int  # of the training
    loss: float
    seconds: float  # all of it
    codec: float  # seconds of these that the device encoded and decoded
    waited: float  # seconds between the two


class Run(NamedTuple):
    """What a device found, in the process that finished."""

    params: Any
    steps: int  # of this process
    loss: float  # mean of its last steps
    images_per_second: float  # from its second step on
    retries: int  # of questions to the cloud


def run(
    config: Config,
    number: int,
    dial: Callable[[], collab.Line],
    folder: Path | None = None,
    tell: Callable[[Step], None] = lambda _: None,
    save_every: int = 50,
) -> Run:
    """Trains a device's half until it has had all its batches.

    Args:
      config: of the training.
      number: of the device.
      dial: to the cloud.
      folder: of its checkpoints; None keeps none.
      tell: called after every step.
      save_every: steps between two checkpoints.
    """
    parts, steps = prepared(config)
    taken: list[Span] = []
    device = collab.Device(
        parts.lower,
        timed(parts.ways, taken),
        dial,
        device=number,
        average_every=config.average_every,
        folder=folder and folder / f"device-{number}",
        save_every=save_every,
        keep=8 * save_every,
        job=repr(config),
    )
    losses, seconds = [], []
    for images, labels in batches(config, number, device.steps):
        start = time.perf_counter()
        losses.append(device.step(images, labels))
        seconds.append(time.perf_counter() - start)
        encoded, decoded = taken[-2:]
        codec, waited = (
            sum(end - start for start, end in (encoded, decoded)),
            decoded[0] - encoded[1],
        )
        tell(Step(device.steps, steps, losses[-1], seconds[-1], codec, waited))
    device.finish()
    last = float(np.mean(losses[-_LAST:])) if losses else float("nan")
    rate = config.batch / float(np.mean(seconds[1:])) if seconds[1:] else float("nan")
    return Run(device.params, len(losses), last, rate, device.retries)


def smoke(config: Config) -> Config:
    """The same on so little that it takes seconds."""
    return replace(config, epochs=1, batch=10, limit=40 * config.devices)
