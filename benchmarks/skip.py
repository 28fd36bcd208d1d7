"""A network over video through ``pass_skip`` against the whole network: time per frame and error.

``block`` is four 3x3 convolutions with 64 channels and relu on 128x128x64, patches of 16;
``backbone`` five on 576x768x3 (3-16-32-32-64-64, a quarter of the size at the end, 4.68 GFLOP),
patches of 64. Both networks are unmodified linen modules in float32, under the gate ``exact``: the
mask is decided on the device, from the frame and the one before. Two frames take turns that differ
in the middle of some patches, so that just these are recomputed each time; ``active`` is their
share.

``resnet``, ``mobilenet`` and ``unet`` are the encoders of `experiments.encoders`, patches of 16. In
them a square moves by four pixels a frame; ``active`` is its share of the area, 1 where every pixel
changes.

The time is that of one jitted call, from the frame in memory to the output, comparison
included; the state is given away to it. Programs are called in turn, in one process; times are
medians.

Metrics of a row:

``active``
    The share of patches, or of the area, that changes, and ``recomputed`` the share of cells that
    is computed, a mean over blocks: from the default of ``dense_above`` on, all.
``dense_ms``, ``skip_ms``, ``speedup``
    ``jax.jit`` of the network, the same through ``pass_skip``, and the median over the rounds of
    one over the other.
``dense_off_ms``, ``speedup_best``
    The network with XLA's CPU library fusion off, and the speed-up over the faster of the two.
``max_abs_err``
    The largest difference of an output to the network's, over all frames; ``max_abs`` is the
    largest output.
"""

import math
from collections.abc import Callable
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.int8 import FUSION_OFF
from experiments import measure
from experiments.encoders import MobileNetEncoder, ResNetEncoder, UNet
from experiments.models import Backbone
from tinyjax import pass_skip, rewrite

__all__ = ["ACTIVE", "CASES", "Case", "Played", "begun", "run", "whole"]

ACTIVE = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
AREAS = (0.0, 0.05, 0.1, 0.25, 1.0)


def _patches(frame: np.ndarray, patch: int, share: float) -> list[np.ndarray]:
    """Two frames that differ in the middle of a share of the patches, chosen at random."""
    rows, cols = frame.shape[1] // patch, frame.shape[2] // patch
    rng = np.random.default_rng(1)
    chosen = rng.permutation(rows * cols)[: round(share * rows * cols)]
    middle = np.arange(-patch // 8, patch // 8)  # no window of another patch reaches so far
    other = frame.copy()
    for row, col in zip(*np.divmod(chosen, cols), strict=True):
        y, x = (patch * place + patch // 2 + middle for place in (row, col))
        other[:, y[:, None], x[None]] += 1.0
    return [frame, other]


def _square(frame: np.ndarray, patch: int, area: float) -> list[np.ndarray]:
    """Frames over which a square of this area goes to and fro, four pixels at a time."""
    del patch
    if area == 1:
        return [frame, frame + 1]
    h, w = frame.shape[1:3]
    side = round(math.sqrt(area * h * w))
    square = np.random.default_rng(1).normal(size=(side, side, frame.shape[3]))
    found = []
    for step in (0, 1, 2, 3, 4, 3, 2, 1):
        row, col = h // 5 + 4 * step, w // 4 + 4 * step
        found.append(frame.copy())
        inside = found[-1][0, row : row + side, col : col + side]
        inside[:] = square[: inside.shape[0], : inside.shape[1]]
    return found


class Case(NamedTuple):
    """A network, the size of its frames, the side of a patch, and what moves in them."""

    model: nn.Module
    frame: tuple[int, int, int]
    patch: int
    video: Callable[[np.ndarray, int, float], list[np.ndarray]] = _square
    shares: tuple[float, ...] = AREAS


CASES = {
    "block": Case(
        Backbone(widths=(64,) * 4, strides=(1,) * 4), (128, 128, 64), 16, _patches, ACTIVE
    ),
    "backbone": Case(Backbone(), (576, 768, 3), 64, _patches, ACTIVE),
    "resnet": Case(ResNetEncoder(), (512, 512, 3), 16),
    "mobilenet": Case(MobileNetEncoder(), (256, 256, 3), 16),
    "unet": Case(UNet(), (256, 256, 3), 16),
}


def run(name: str, *, rounds: int = 15, shrink: int = 1) -> list[dict[str, Any]]:
    """A row for each share of active patches.

    Args:
      name: a key of ``CASES``.
      rounds: how often each program runs.
      shrink: divides the frame, down to two patches a side, to try things out quickly.
    """
    case = CASES[name]
    frame, params = begun(case, shrink)
    dense = whole(case.model.apply, params, frame)
    skipping = rewrite(pass_skip(patch=case.patch), case.model.apply)
    state = skipping.init(params, frame)
    # The state comes first, so that jax pairs it with the state that is given away.
    step = jax.jit(lambda *args: skipping.apply(*args)[::-1], donate_argnums=0)
    skip = step.lower(state, params, frame).compile()
    return [
        {"case": name, "active": share}
        | _row(dense, skip, state, params, case.video(frame, case.patch, share), rounds)
        for share in case.shares
    ]


def begun(case: Case, shrink: int) -> tuple[np.ndarray, Any]:
    """A frame, its sides divided by ``shrink`` down to two patches, and parameters."""
    h, w = (max(side // shrink, 2 * case.patch) for side in case.frame[:2])
    frame = np.random.default_rng(0).normal(size=(1, h, w, case.frame[2])).astype(np.float32)
    return frame, jax.jit(case.model.init)(jax.random.key(0), frame)


def whole(apply: Callable[..., Any], params: Any, frame: np.ndarray) -> dict[str, Any]:
    """The whole network compiled as it is, and on CPUs with library fusion off."""
    lowered = jax.jit(apply).lower(params, frame)
    dense = {"dense": lowered.compile()}
    if jax.default_backend() == "cpu":
        dense["dense_off"] = lowered.compile(compiler_options=FUSION_OFF)
    return dense


def _row(
    dense: dict[str, Any],
    skip: Any,
    state: Any,
    params: Any,
    video: list[np.ndarray],
    rounds: int,
) -> dict[str, Any]:
    """The metrics over the frames of a video, again and again."""
    frames = [jnp.asarray(x) for x in video]
    wanted = [dense["dense"](params, x) for x in frames]
    played = Played(skip, jax.tree.map(jnp.copy, state), params, frames)
    errors = [float(jnp.abs(played() - want).max()) for want in 2 * wanted]
    calls: dict[str, Callable[[], Any]] = {
        key: lambda program=program: program(params, frames[0]) for key, program in dense.items()
    }
    seconds = measure.interleaved({**calls, "skip": played}, rounds)
    ms = {f"{key}_ms": 1e3 * median(taken) for key, taken in seconds.items()}
    best = min(dense, key=lambda key: ms[f"{key}_ms"])
    return {
        "recomputed": float(np.mean([np.mean(cells) for cells in played.state.active])),
        **ms,
        "speedup": measure.ratio(seconds["dense"], seconds["skip"]),
        "speedup_best": measure.ratio(seconds[best], seconds["skip"]),
        "max_abs_err": max(errors),
        "max_abs": float(jnp.abs(wanted[0]).max()),
        "rounds": rounds,
    }


class Played:
    """Frames in turn through a program that carries its state."""

    def __init__(self, program: Any, state: Any, params: Any, frames: list[jax.Array]) -> None:
        self.program, self.state, self.params, self.frames = program, state, params, cycle(frames)

    def __call__(self) -> jax.Array:
        self.state, out = self.program(self.state, self.params, next(self.frames))
        return out
