"""What PASS promises, measured on one clip as the camera's surroundings change.

The thesis claims six outcomes: faster processing, less memory, less computation, quality that is
kept, stable predictions, and adaptation to the environment. Here the network of `experiments.skip`
runs over the bundled clip, dense and behind two gates in turn, in several environments made from
it::

    python -m experiments outcomes

``clip``
    The clip as it is.
``still``
    Its first frame again and again under a little sensor noise: whatever the output does from frame
    to frame is jitter.
``noise``
    The clip under sensor noise.
``drift``
    The clip while the light changes slowly, down to the dark and up again.
``cuts``
    The clip, turned over left to right for every second stretch of frames: at each scene cut all
    has changed.

On the clip itself `LEVELS` stand beside, for how fast it gets at which error. The figures are those
of `experiments.skip`; an interval is of the ratios of `PARTS` consecutive parts of the frames.

References:
  Zhou et al., *PASS: Patch Automatic Skip Scheme for Efficient Real-Time Video Perception on Edge
  Devices*, AAAI 2023, whose abstract claims the outcomes. The environments are ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from experiments import measure, skip, turns, video
from experiments.errors import UserError
from experiments.progress import Follow, unfollowed
from experiments.summary import interval
from tinyjax import exact, threshold

__all__ = [
    "CONFIGS",
    "ENVIRONMENTS",
    "GATES",
    "LEVELS",
    "PARTS",
    "PUBLISHED",
    "Arm",
    "Config",
    "Environment",
    "Results",
    "run",
    "smoke",
]

PUBLISHED = skip.PUBLISHED
GATES = ("exact", "threshold")
LEVELS = (16, 32, 64)  # of 255
PARTS = 4  # of the frames, for intervals and for what becomes of the error

Frames = Iterator[np.ndarray]


@dataclass(frozen=True)
class Config:
    """Everything that a result depends on."""

    video: str = ""  # path of a video file; empty: the bundled clip
    patch: int = 16  # side of a patch in pixels
    threshold: float = 8 / 255  # largest change of a pixel, of 0..1, that is let pass
    levels: int = len(LEVELS)  # further thresholds on the clip itself: so many of `LEVELS`
    noise: float = 2.0  # standard deviation of a pixel's noise, of 255
    still_noise: float = 1.0  # the same in a still scene
    drift: float = 0.5  # change of the brightness from frame to frame, of 255
    stretch: int = 30  # frames between scene cuts
    frames: int = 0  # so many first frames only; 0: all
    seed: int = 0  # of the weights and of the noise

    def __post_init__(self) -> None:
        skip.Config(patch=self.patch, threshold=self.threshold, frames=self.frames, seed=self.seed)
        if 0 < self.frames < PARTS:
            raise UserError(f"frames={self.frames} is too small: choose {PARTS} or more, or 0")
        if self.stretch < 1:
            raise UserError(f"stretch={self.stretch} is too small: choose 1 or more")
        for key in ("noise", "still_noise", "drift"):
            if (given := getattr(self, key)) < 0:
                raise UserError(f"{key}={given} is negative: choose 0 or more")
        if not 0 <= self.levels <= len(LEVELS):
            raise UserError(f"levels={self.levels} is not in 0 to {len(LEVELS)}: choose from these")


CONFIGS: dict[str, Config] = {"sample": Config()}


def smoke(config: Config) -> Config:
    """The same on so few frames that it takes seconds."""
    return replace(config, frames=PARTS, stretch=2, levels=0)


class Arm(NamedTuple):
    """A gate in an environment."""

    speedup: float  # over all frames: sum of dense ms over sum of ms
    speedup_parts: list[float]  # the same, of each part
    speedup_low: float  # of the 90 % interval of the parts' mean
    speedup_high: float
    active: float  # mean share of the patches recomputed, the dense first frame left out
    active_least: float  # of a frame after the first
    active_most: float
    macs_share: float  # multiply-accumulates over dense's, margins included
    output_error: float  # over all frames
    output_error_p95: float  # of the frames, 95th percentile
    error_parts: list[float]  # of each part
    change: float  # of the output from frame to frame, relative
    state_bytes: int  # of the caches
    temp_bytes: int  # scratch memory of the program


class Environment(NamedTuple):
    """Dense and the gates in one environment."""

    frames: int
    dense_ms: float  # median
    dense_change: float  # of the dense output from frame to frame, relative
    arms: dict[str, Arm]


class Results(NamedTuple):
    """The environments by name."""

    size: list[int]  # [h, w] of a frame
    dense_macs: int
    dense_temp_bytes: int
    environments: dict[str, Environment]


def _clip(images: Frames, config: Config, rng: np.random.Generator) -> Frames:
    del config, rng
    return images


def _still(images: Frames, config: Config, rng: np.random.Generator) -> Frames:
    first = next(images)
    yield _noisy(first, config.still_noise, rng)
    for _ in images:
        yield _noisy(first, config.still_noise, rng)


def _noise(images: Frames, config: Config, rng: np.random.Generator) -> Frames:
    return (_noisy(image, config.noise, rng) for image in images)


def _drift(images: Frames, config: Config, rng: np.random.Generator) -> Frames:
    """Darker by a constant a frame, until the change is 64, then brighter, and so on."""
    del rng
    for index, image in enumerate(images):
        fall = 64 - abs(64 - config.drift * index % 128)
        yield _bytes(image - np.float32(fall))


def _cuts(images: Frames, config: Config, rng: np.random.Generator) -> Frames:
    del rng
    for index, image in enumerate(images):
        turned = index // config.stretch % 2
        yield np.ascontiguousarray(image[:, ::-1]) if turned else image


def _noisy(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return _bytes(image + deviation * rng.standard_normal(image.shape, np.float32))


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


ENVIRONMENTS: Mapping[str, Callable[[Frames, Config, np.random.Generator], Frames]] = {
    "clip": _clip,
    "still": _still,
    "noise": _noise,
    "drift": _drift,
    "cuts": _cuts,
}


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Runs dense and the gates through every environment.

    Args:
      config: of the run.
      out: unused; nothing is kept of an unfinished run.
      follow: shows the progress.

    Raises:
      UserError: if the video cannot be read, or has frames smaller than a patch.
    """
    del out
    clip = skip.Config(video=config.video, patch=config.patch, frames=config.frames)
    count = config.frames or video.about(skip.source(clip)).frames
    first = next(skip.frames(clip))
    gates = {"exact": exact, "threshold": threshold(config.threshold)}
    gates |= {f"threshold {level:g}": threshold(level / 255) for level in LEVELS[: config.levels]}
    ready = skip.prepared(first, gates, config.patch, config.seed)
    found = {}
    for name, made in ENVIRONMENTS.items():
        images = made(skip.frames(clip), config, np.random.default_rng(config.seed))
        programs = {
            key: program
            for key, program in ready.programs.items()
            if name == "clip" or key in ("dense", *GATES)
        }
        with follow(name, count) as watch:
            seen = turns.watched(programs, ready.params, config.patch, images, watch)
        found[name] = _environment(ready, seen)
    return Results(
        size=list(first.shape[:2]),
        dense_macs=ready.costs.dense(),
        dense_temp_bytes=measure.temp_bytes(ready.programs["dense"].call),
        environments=found,
    )


def _environment(ready: skip.Prepared, seen: Mapping[str, list[turns.Seen]]) -> Environment:
    dense = seen["dense"]
    sums = (sum(getattr(one, key) for one in dense) for key in ("change", "energy"))
    return Environment(
        frames=len(dense),
        dense_ms=median(one.ms for one in dense),
        dense_change=measure.relative(*sums),
        arms={name: _arm(ready, name, did, dense) for name, did in seen.items() if name != "dense"},
    )


def _arm(ready: skip.Prepared, name: str, seen: list[turns.Seen], dense: list[turns.Seen]) -> Arm:
    whole = turns.summed(ready.programs[name], seen, dense, ready.costs)
    parts = [
        turns.summed(ready.programs[name], some, others, ready.costs)
        for some, others in zip(_parts(seen), _parts(dense), strict=True)
    ]
    _, low, high = interval([part.speedup for part in parts])
    later = whole.active[1:]
    return Arm(
        speedup=whole.speedup,
        speedup_parts=[part.speedup for part in parts],
        speedup_low=low,
        speedup_high=high,
        active=float(np.mean(later)),
        active_least=min(later),
        active_most=max(later),
        macs_share=whole.macs_share,
        output_error=whole.output_error,
        output_error_p95=whole.output_error_p95,
        error_parts=[part.output_error for part in parts],
        change=whole.change,
        state_bytes=whole.state_bytes,
        temp_bytes=whole.temp_bytes,
    )


def _parts(seen: Sequence[Any]) -> list[list[Any]]:
    """As many consecutive parts as `PARTS`, none empty."""
    edges = [len(seen) * part // PARTS for part in range(PARTS + 1)]
    return [list(seen[low:high]) for low, high in pairwise(edges)]
