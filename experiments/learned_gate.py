"""PASS: a gate that is learned without labels, against a calibrated threshold at equal activity.

The gate of `tinyjax.learned` is trained on the first half of a clip, on pairs of frames up to eight
apart with the noise of a sensor on both, for a network that stays as it is. Then both gates run
over the second half, as it is and with noise on every frame::

    python -m experiments gate
    python -m experiments gate --set video=my.mp4 budget=0.1

Definitions. *Activity* is the share of patches that a gate takes, the first frame left out. The
threshold runs at several levels, and the learned gate is given the activity of each: its bias,
which moves it from taking all to taking nothing, is found by halving an interval, on the frames of
the test. So how much either errs is compared, and not how well it hits a budget. The output error
is that of the network on the effective input, which is what `tinyjax.pass_skip` gives, ``sqrt(sum
of squared error / sum of squared dense output)`` over the clip. Frames are never taken whole here.

The network is `models.Backbone` with random weights, so only comparisons mean anything.

References:
  Zhou et al., *PASS: Patch Automatic Skip Scheme for Efficient Real-Time Video Perception on Edge
  Devices*, AAAI 2023: gates are learned without labels. Which features, loss and data it trains
  with could not be obtained; this gate is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import data, measure, video
from experiments.errors import UserError
from experiments.models import Backbone
from experiments.progress import Follow, unfollowed
from tinyjax import (
    GateWeights,
    VariableGate,
    count_macs,
    gate_loss,
    gate_weights,
    learned,
    numerics,
    threshold,
)

__all__ = ["CONFIGS", "Config", "Point", "Results", "pairs", "run", "smoke", "train"]

Array = jax.Array
BYTE = 255.0  # frames are 0..255 here, as they come


@dataclass(frozen=True)
class Config:
    """A clip, how the gate is trained, and where it is compared."""

    video: str = ""  # path of a video file; empty: the bundled clip
    patch: int = 16  # side of a patch in pixels
    frames: int = 0  # of the clip; 0: all
    apart: int = 8  # frames between the two of a pair, at most
    crop: int = 128  # side of the parts that are trained on
    batch: int = 8
    steps: int = 300
    learning_rate: float = 0.01
    budget: float = 0.2  # share of the patches to be computed in training, neighbours included
    sensor: float = 4.0  # largest standard deviation of the noise in training, of 0..255
    noise: float = 2.0  # standard deviation of the noise in the second test
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("patch", "apart", "batch", "steps"):
            if (given := getattr(self, key)) < 1:
                raise UserError(f"{key}={given} is too small: choose 1 or more")
        if self.crop % self.patch:
            raise UserError(f"crop={self.crop} does not fit: choose a multiple of {self.patch}")
        if not 0 < self.budget < 1:
            raise UserError(f"budget={self.budget} is not a share: choose one between 0 and 1")


CONFIGS: dict[str, Config] = {"sample": Config()}
LEVELS = (8, 16, 32, 64)  # of the threshold, of 0..255


def smoke(config: Config) -> Config:
    """The same on so little that it takes seconds."""
    return replace(config, frames=6, apart=2, crop=2 * config.patch, batch=2, steps=2)


class Point(NamedTuple):
    """Both gates at one activity."""

    noise: float  # standard deviation that was added to the frames, of 0..255
    level: float  # of the threshold, of 0..255
    bias: float  # that was added to the learned gate's
    activity: dict[str, float]  # by gate, 0..1
    error: dict[str, float]  # by gate, of the output over the clip


class Results(NamedTuple):
    """What was compared, and what the gate costs."""

    points: list[Point]
    loss: list[float]  # of training, mean of every tenth of the steps
    share: list[float]  # that was computed, likewise
    gate_macs: int  # of a frame
    dense_macs: int
    gate_ms: dict[str, float]  # of a frame, by gate: median
    dense_ms: float


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Trains a gate and compares it.

    Args:
      config: what to do.
      out: unused; a run takes minutes.
      follow: shows the progress.

    Raises:
      UserError: if the video cannot be read, or is too small or short.
    """
    del out
    images = _frames(config)
    half = len(images) // 2
    key = jax.random.key(config.seed, impl="rbg")
    params = jax.jit(Backbone().init)(key, jnp.zeros((1, 8, 8, 3)))
    weights, losses, shares = train(config, params, images[:half], follow)
    points = []
    for noise in (0.0, config.noise):
        rng = np.random.default_rng(config.seed)
        noisy = [_noisy(rng, x, noise) for x in images]
        points += _compared(config, params, weights, noisy[half:], noise)
    return Results(points, losses, shares, **_costs(config, params, weights, images[:2]))


def _frames(config: Config) -> list[np.ndarray]:
    path = Path(config.video) if config.video else data.clip()
    images = list(islice(video.frames(path), config.frames or None))
    if len(images) < 2 * (config.apart + 1) or min(images[0].shape[:2]) < config.crop:
        raise UserError(
            f"{path} has {len(images)} frames of {images[0].shape[:2]}: choose a longer or larger "
            "one, or a smaller crop or apart"
        )
    return images


def _noisy(rng: np.random.Generator, image: np.ndarray, deviation: float) -> np.ndarray:
    """uint8 with the noise of a sensor, in whole steps."""
    if not deviation:
        return image
    noise = rng.normal(scale=deviation, size=image.shape).astype(np.float32)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def _network(params: Any, x: Array) -> Array:
    """Frames [n, h, w, 3] in 0..255 to features."""
    features: Any = Backbone().apply(params, x.astype(jnp.float32) / BYTE)
    return features


# --- training ------------------------------------------------------------------------------------


def pairs(
    rng: np.random.Generator, images: Sequence[np.ndarray], config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Parts of a frame and of an earlier one, with noise; one in eight is twice the same.

    Returns:
      uint8 [batch, crop, crop, 3] twice: frames, and earlier frames.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for place in range(config.batch):
        earlier = int(rng.integers(0, len(images) - config.apart))
        later = earlier + int(rng.integers(1, config.apart + 1))
        row, col = (rng.integers(0, side - config.crop + 1) for side in images[0].shape[:2])
        part = np.s_[row : row + config.crop, col : col + config.crop]
        deviation = rng.uniform(0, config.sensor)
        x, ref = (_noisy(rng, images[i][part], deviation) for i in (later, earlier))
        found.append((x, x if place % 8 == 7 else ref))
    x, ref = (np.stack(side) for side in zip(*found, strict=True))
    return x, ref


def train(
    config: Config, params: Any, images: Sequence[np.ndarray], follow: Follow = unfollowed
) -> tuple[GateWeights, list[float], list[float]]:
    """Trains a gate for a network.

    Args:
      config: how.
      params: of the network.
      images: uint8 [h, w, 3], successive frames.
      follow: shows the progress.

    Returns:
      Weights; the loss and the share computed, means of every tenth of the steps.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    @jax.jit
    def step(weights: Any, state: Any, number: Any, x: Array, ref: Array) -> Any:
        temperature = 1 - 0.7 * number.astype(jnp.float32) / config.steps
        loss = lambda weights: gate_loss(
            weights,
            jax.random.fold_in(jax.random.key(config.seed), number),
            partial(_network, params),
            x.astype(jnp.float32),
            ref.astype(jnp.float32),
            patch=config.patch,
            budget=config.budget,
            unit=1.0,
            temperature=temperature,
        )
        (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(weights)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(weights, updates), state, value, terms.share

    weights: Any = gate_weights(jax.random.key(config.seed), 3)
    state, rng = optimizer.init(weights), np.random.default_rng(config.seed)
    seen: list[tuple[float, float]] = []
    with follow("gate", config.steps) as watch:
        for number in range(config.steps):
            given = pairs(rng, images, config)
            weights, state, *told = step(weights, state, jnp.int32(number), *given)
            seen.append((float(told[0]), float(told[1])))
            watch(number + 1, f"loss {seen[-1][0]:.3f}, share {seen[-1][1]:.2f}")
    tenths = np.array_split(np.array(seen), min(10, len(seen)))
    losses, shares = ([round(float(t[:, at].mean()), 5) for t in tenths] for at in (0, 1))
    return weights, losses, shares


# --- comparing -----------------------------------------------------------------------------------


def _followed(call: Any, variables: Any, images: Array, patch: int) -> Array:
    """Which patches a gate takes of frames [n, h, w, 3], the first being given: [n - 1, ...]."""

    def body(ref: Array, x: Array) -> tuple[Array, Array]:
        taken = call(variables, x, ref, patch)
        wide = numerics.spread(taken, (patch, patch), x.shape[:2])[..., None]
        return jnp.where(wide, x, ref), taken

    return jax.lax.scan(body, images[0], images[1:])[1]


def _with_bias(weights: GateWeights, bias: float) -> GateWeights:
    return weights._replace(bias=weights.bias + bias)


def _compared(
    config: Config,
    params: Any,
    weights: GateWeights,
    images: Sequence[np.ndarray],
    noise: float,
) -> list[Point]:
    """Both gates on images, at the activities of a threshold."""
    stacked = jnp.asarray(np.stack(images))
    gates = {"threshold": threshold(0.0), "learned": learned(weights, unit=1.0)}
    taken = {
        name: jax.jit(partial(_followed, gate.call, patch=config.patch))
        for name, gate in gates.items()
    }
    arms, found = {}, []

    def of_bias(bias: float) -> np.ndarray:
        variables = _with_bias(weights, bias), jnp.float32(np.inf)
        return np.asarray(taken["learned"](variables, stacked))

    for level in LEVELS:
        masks = {"threshold": np.asarray(taken["threshold"](jnp.float32(level), stacked))}
        bias = _bias(lambda bias: float(of_bias(bias).mean()), float(masks["threshold"].mean()))
        masks["learned"] = of_bias(bias)
        arms |= {(name, level): mask for name, mask in masks.items()}
        found.append((level, bias, {name: float(m.mean()) for name, m in masks.items()}))
    errors = _errors(params, images, arms, config.patch)
    return [
        Point(noise, level, bias, activity, {name: errors[name, level] for name in activity})
        for level, bias, activity in found
    ]


def _bias(activity: Callable[[float], float], wanted: float) -> float:
    """What to add to a gate's bias for an activity, which falls as it grows."""
    low, high = -16.0, 16.0
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if activity(middle) > wanted else (low, middle)
    return min((low, high), key=lambda bias: abs(activity(bias) - wanted))


def _errors(
    params: Any, images: Sequence[np.ndarray], arms: dict[Any, np.ndarray], patch: int
) -> dict[Any, float]:
    """The output error of each arm over the images, from the patches that it took."""
    dense = jax.jit(_network)
    refs = dict.fromkeys(arms, images[0])
    energy, squared = 0.0, dict.fromkeys(arms, 0.0)
    for index, image in enumerate(images[1:]):
        right = dense(params, image[None])
        energy += float(measure.compared(right, right)[0])
        h, w = image.shape[:2]
        for name, masks in arms.items():
            pixels = masks[index].repeat(patch, 0).repeat(patch, 1)[:h, :w, None]
            refs[name] = np.where(pixels, image, refs[name])
            squared[name] += float(measure.compared(right, dense(params, refs[name][None]))[1])
    return {name: measure.relative(error, energy) for name, error in squared.items()}


def _costs(
    config: Config, params: Any, weights: GateWeights, images: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Multiply-accumulates and milliseconds of the gates and of the network."""
    x, ref = (jnp.asarray(image) for image in images)
    gates: dict[str, VariableGate] = {
        "threshold": threshold(8.0),
        "learned": learned(weights, unit=1.0),
    }
    dense = jax.jit(_network)
    calls = {
        name: partial(jax.jit(gate.call, static_argnums=3), gate.variables, x, ref, config.patch)
        for name, gate in gates.items()
    }
    calls["dense"] = partial(dense, params, x[None])
    taken = measure.interleaved(calls, 20)
    ms = {name: round(1e3 * median(seconds), 3) for name, seconds in taken.items()}
    own = lambda variables, x, ref: gates["learned"].call(variables, x, ref, config.patch)
    return dict(
        gate_macs=sum(count_macs(own, gates["learned"].variables, x, ref).values()),
        dense_macs=sum(count_macs(_network, params, x[None]).values()),
        gate_ms={name: ms[name] for name in gates},
        dense_ms=ms["dense"],
    )
