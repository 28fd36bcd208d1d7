"""PASS: patches of a video frame that did not change are skipped, against the dense network.

The method: a frame is cut into square patches; a gate compares each with the input that its cached
output was made from, and only patches that a changed pixel can reach are computed anew. Two gates
run over one clip: ``exact`` takes every patch with a changed bit and loses nothing, ``threshold``
takes those with a change above a level and loses a little::

    python -m experiments pass
    python -m experiments pass --set video=my.mp4 patch=32 threshold=0.05
    python -m experiments pass --set model=my_package.models:MyBackbone video=my.mp4

Definitions. Time is from a uint8 frame in memory to the output, change detection included and
decoding excluded; dense and both gates take turns frame by frame in one process. The speed-up over
a clip is the sum of the dense times over the sum of the gate's. The output error is
``sqrt(sum of squared error / sum of squared dense output)``. A patch is *taken* where the gate
lets the new input in, *recomputed* where its output can depend on such a patch.

The network is `models.Backbone`, or yours, with random weights, so only these relative figures mean
anything. What is reproduced is skipping by patches: the paper's gates are learned, these are not.

References:
  Zhou et al., *PASS: Patch Automatic Skip Scheme for Efficient Real-Time Video Perception on Edge
  Devices*, AAAI 2023; extended in IEEE TPAMI 46(5), 2024.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, measure, own, patchwork, turns, video
from experiments.errors import UserError
from experiments.models import Backbone
from experiments.progress import Follow, unfollowed
from tinyjax import exact, pass_skip, rewrite, threshold

__all__ = [
    "ARMS",
    "CONFIGS",
    "PUBLISHED",
    "Config",
    "Prepared",
    "Results",
    "frames",
    "prepared",
    "run",
    "smoke",
    "source",
]

ARMS = ("exact", "threshold")

# "Up to", on an NVIDIA Jetson Nano: from the abstract; the tables were not available.
PUBLISHED = {"MobileHumanPose": 9.43, "FairMOT": 12.19}

STRIDE = math.prod(Backbone.strides)


@dataclass(frozen=True)
class Config:
    """Both arms. Everything that a result depends on is here."""

    video: str = ""  # path of a video file; empty: the bundled clip
    model: str = ""  # package.module:Name of a flax module; empty: models.Backbone
    patch: int = 16  # side of a patch in pixels, a multiple of the network's stride
    threshold: float = 8 / 255  # largest change of a pixel, of 0..1, that is let pass
    frames: int = 0  # run over so many first frames only; 0: over all
    seed: int = 0  # of the random weights

    def __post_init__(self) -> None:
        stride = 1 if self.model else STRIDE
        if self.patch < stride or self.patch % stride:
            raise UserError(f"patch={self.patch} does not fit: choose a multiple of {stride}")
        own.check(model=self.model)
        if not 0 <= self.threshold < 1:
            raise UserError(f"threshold={self.threshold} is not in 0 to 1: choose a small one")
        for key in ("frames", "seed"):
            if (given := getattr(self, key)) < 0:
                raise UserError(f"{key}={given} is too small: choose 0 or more")


CONFIGS: dict[str, Config] = {"sample": Config()}


def smoke(config: Config) -> Config:
    """The same on so few frames that it takes seconds."""
    return replace(config, frames=4)


class Results(NamedTuple):
    """Both gates against the dense network."""

    size: list[int]  # [h, w] of a frame
    grid: list[int]  # [rows, columns] of patches
    fps: float  # of the video
    dense_ms: list[float]  # per frame
    changed: list[float]  # per frame: share of pixels that differ from the frame before, 0..1
    dense_change: float  # of the dense output from frame to frame, relative
    dense_macs: int  # of a frame
    dense_temp_bytes: int
    exact: turns.Arm
    threshold: turns.Arm


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Runs the dense network and both gates over the clip, in turn.

    Args:
      config: of the run.
      out: unused; it takes less than a minute, so nothing is kept of an unfinished run.
      follow: shows the progress.

    Raises:
      UserError: if the video cannot be read, or has frames smaller than a patch.
    """
    del out
    about = video.about(source(config))
    read = lambda: frames(config)
    gates = {"exact": exact, "threshold": threshold(config.threshold)}
    ready = prepared(next(read()), gates, config.patch, config.seed, config.model)
    programs, params, costs = ready
    with follow("pass", config.frames or about.frames) as watch:
        seen = turns.watched(programs, params, config.patch, read(), watch)
    dense = seen["dense"]
    moves = [(one.change, one.energy) for one in dense]
    arm = lambda name: turns.summed(programs[name], seen[name], dense, costs)
    return Results(
        size=list(next(read()).shape[:2]),
        grid=list(seen["exact"][0].recomputed[0].shape),
        fps=about.fps,
        dense_ms=[round(one.ms, 3) for one in dense],
        changed=patchwork.changed(read()),
        dense_change=measure.relative(*(sum(sums) for sums in zip(*moves, strict=True))),
        dense_macs=costs.dense(),
        dense_temp_bytes=measure.temp_bytes(programs["dense"].call),
        exact=arm("exact"),
        threshold=arm("threshold"),
    )


class Prepared(NamedTuple):
    """Dense and gates, compiled for frames of one size."""

    programs: dict[str, turns.Program]  # "dense", and the gates by name
    params: Any  # of all of them
    costs: patchwork.Costs


def prepared(
    image: np.ndarray,
    gates: Mapping[str, Callable[..., Any]],
    patch: int,
    seed: int = 0,
    model: str = "",
) -> Prepared:
    """A network as it is and behind each gate, with random weights.

    Args:
      image: a frame, uint8 [h, w, 3].
      gates: by name.
      patch: side of a patch in pixels.
      seed: of the weights.
      model: as in `Config`.

    Raises:
      UserError: if the patch does not fit the frame, or the network cannot be counted.
    """
    network = own.model(model) if model else Backbone()
    # The parameters of convolutions do not depend on the size.
    corner = _floats(image if model else image[:STRIDE, :STRIDE])
    key = jax.random.key(seed, impl="rbg")  # compiles in a third of the time
    params = jax.jit(network.init)(key, corner)
    programs = {"dense": turns.prepared(partial(_dense, network.apply), tuple, params, image)}
    shape = jax.eval_shape(_floats, image)
    behind = lambda gate: rewrite(pass_skip(patch=patch, fuse=False, gate=gate), network.apply)
    for name, gate in gates.items():
        skipping = behind(gate)
        fresh = partial(turns.begun, skipping, params, shape)
        programs[name] = turns.prepared(partial(_skip, skipping.apply), fresh, params, image)
    skipping = behind(exact)
    fresh = partial(turns.begun, skipping, params, shape)
    try:
        costs = turns.costs(skipping, fresh, params, shape)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Prepared(programs, params, costs)


def source(config: Config) -> Path:
    """The video of a configuration."""
    return Path(config.video) if config.video else data.clip()


def frames(config: Config) -> Iterator[np.ndarray]:
    """Its frames, uint8 [h, w, 3]; raises a `UserError` where they cannot be read."""
    return islice(video.frames(source(config)), config.frames or None)


def _floats(image: Any) -> jax.Array:
    """uint8 [h, w, 3] -> float32 [1, h, w, 3] in 0..1."""
    return jnp.asarray(image).astype(jnp.float32)[None] / 255


def _dense(apply: Any, state: Any, params: Any, image: jax.Array) -> tuple[Any, jax.Array]:
    return state, apply(params, _floats(image))


def _skip(apply: Any, state: Any, params: Any, image: jax.Array) -> tuple[Any, jax.Array]:
    out, state = apply(state, params, _floats(image))
    return state, out  # what is given away is paired with the outputs in their order
