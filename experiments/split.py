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
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import data, models
from experiments.carriers import compress, uniform
from experiments.errors import UserError
from experiments.extras import imported
from experiments.train import create_state, cross_entropy
from tinyjax import Codec, collab, global_step, sgq, stripe_gains, stripe_groups, wire

__all__ = [
    "CODECS",
    "Config",
    "Halves",
    "Lower",
    "Run",
    "Span",
    "Step",
    "Upper",
    "accuracy",
    "batches",
    "cloud_of",
    "cosines",
    "halves",
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


def _through(codec: Callable[[Config], Codec]) -> Callable[..., collab.Ways]:
    return lambda config, features: collab.coded(codec(config), features)


def _zstd(codec: Callable[[Config], Codec]) -> Callable[..., collab.Ways]:
    """A codec whose frames are compressed as well, and decompressed up to a size."""

    def ways(config: Config, features: jax.ShapeDtypeStruct) -> collab.Ways:
        zstandard = imported("zstandard")
        most = 8 * features.size + 65536

        def unpack(frame: bytes, known: Any) -> Any:
            try:
                if not 0 <= zstandard.get_frame_parameters(frame).content_size <= most:
                    raise ValueError(f"a compressed frame says it holds more than {most} bytes")
                whole = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
                return wire.unpack(whole, known, most=features.size)
            except zstandard.ZstdError as error:
                raise ValueError(f"a frame cannot be decompressed: {error}") from error

        pack = lambda code, known: compress(wire.pack(code, known))
        return collab.coded(codec(config), features, pack, unpack)

    return ways


def _learning(codec: Callable[[Config], Codec]) -> Callable[..., collab.Ways]:
    return lambda config, features: collab.compressed(codec(config), features)


def _sgq(config: Config, *, exact: bool = False) -> Codec:
    return sgq(quantizer=global_step(bits=config.bits, exact=exact), error=config.error)


def _sgq_groups(config: Config) -> Codec:
    groups = stripe_groups(group_size=config.group_size, bits=config.bits)
    return sgq(quantizer=groups, error=config.error)


def _sgq_gains(config: Config) -> Codec:
    return sgq(quantizer=stripe_gains(group_size=config.group_size), error=config.error)


CODECS: dict[str, Callable[[Config, jax.ShapeDtypeStruct], collab.Ways]] = {
    "float32": lambda config, features: collab.plain(features),
    "int8": _through(lambda config: uniform(8)),
    "int4": _through(lambda config: uniform(4)),
    "int4_zstd": _zstd(lambda config: uniform(4)),
    "sgq": _through(_sgq),
    "sgq_groups": _through(_sgq_groups),
    "sgq_gains": _through(_sgq_gains),
    "sgq_entropy": _learning(_sgq),
    "sgq_masked": _learning(partial(_sgq, exact=True)),
}


@cache
def _loaded(dataset: str) -> data.Dataset:
    return data.load(dataset)


def share(config: Config, number: int) -> data.Split:
    """The images of a device: every `devices`-th one."""
    learned = data.first(_loaded(config.dataset).train, config.limit or None)
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


def accuracy(config: Config, lower: Any, upper: Any) -> float:
    """Top-1 on the test images, 0..1, of both halves' parameters, with nothing between them."""
    test = _loaded(config.dataset).test

    @jax.jit
    def right(images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = Upper().apply({"params": upper}, Lower().apply({"params": lower}, images))
        return (jnp.asarray(logits).argmax(-1) == labels).sum()

    pieces = range(0, len(test.labels), 500)
    pair = lambda i: (data.pixels(test.images[i : i + 500]), test.labels[i : i + 500])
    return float(sum(int(right(*pair(i))) for i in pieces) / len(test.labels))


def cosines(config: Config, lower: Any, upper: Any, count: int) -> list[float]:
    """How the lower half's gradient through the codec points, next to the one without.

    Args:
      config: of the training.
      lower: parameters of the lower half.
      upper: parameters of the upper half.
      count: of batches, the device's first ones, one value each.
    """
    parts, _ = prepared(config)
    ways, device, cloud = parts.ways, parts.ways.device, parts.ways.cloud
    forward = jax.jit(lambda x: jax.vjp(lambda p: parts.lower.apply(p, x), lower))
    loss = lambda x, labels: parts.upper.loss(parts.upper.apply(upper, x), labels)
    gradient, found = jax.jit(jax.grad(loss)), []
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    for seed, (images, labels) in zip(range(count), batches(config, 0, 0), strict=False):
        features, back = forward(images)
        frame, device = ways.up.encode(features, device, 0)
        arrived, cloud = ways.up.decode(frame, cloud)
        frame, cloud = ways.down.encode(gradient(arrived, labels), cloud, seed)
        g, device = ways.down.decode(frame, device)
        a, b = flat(back(g)), flat(back(gradient(features, labels)))
        found.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
    return found


def smoke(config: Config) -> Config:
    """The same on so little that it takes seconds."""
    return replace(config, epochs=1, batch=10, limit=40 * config.devices)
