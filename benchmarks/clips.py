"""Real clips through ``pass_skip`` against the whole network, behind gates at several levels.

The network is the one of ``backbone`` in :mod:`benchmarks.skip`, with random weights: five
convolutions, a quarter of the size at the end. ``one_by_one_person`` is the clip that comes with
the project; ``person``, ``vtest`` and ``moving`` (a camera that moves) are read from the folder of
the data sets. Time is from the uint8 frame in memory to the output, comparison included, decoding
excluded; all programs take turns frame by frame.

Metrics of a row:

``level``
    Of the gate, in 255ths of the range of a pixel; 0 of ``exact``, which has none.
``speedup``
    Sum of the network's times over the sum of the program's.
``error``, ``error_95``
    ``sqrt(sum of squared error / sum of squared output)`` over the clip, and the frame that 95 %
    of the frames do not exceed; ``within`` is 1 if they are at most 1 and 2 %.
``changed``, ``taken``, ``recomputed``
    The share of pixels that differ from the frame before, of patches that the gate takes, and of
    cells that are computed, a mean over frames and blocks.
``predicted``, ``of_predicted``
    The speed-up that follows from the cells that were computed: a still frame's time, measured,
    and for every block its share of the multiply-accumulates, by its cells over those at which it
    breaks even (``tinyjax.describe``); and the speed-up's share of it.
"""

import copy
import itertools
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, measure, video
from experiments.data.files import originals
from experiments.errors import UserError
from experiments.models import Backbone
from tinyjax import describe, exact, pass_skip, rewrite, root_mean_square, threshold

__all__ = ["CASES", "run"]

LIMITS = (0.01, 0.02)  # of the clip's error, and of that of its 95th frame in 100
GATES = {
    "exact": (exact, (0,)),
    "threshold": (threshold(0.0), (4, 8, 12, 16)),
    "root_mean_square": (root_mean_square(1.0), (2, 3, 4, 5)),
}
PATCH = 16
_MODEL = Backbone()

CASES: dict[str, Callable[[], Path]] = {
    "one_by_one_person": data.clip,
    "person": lambda: originals("video") / "intel_one-by-one-person-detection_768x432.mp4",
    "vtest": lambda: originals("video") / "vtest_pets09-s2l1_480x360.avi",
    "moving": lambda: originals("video") / "udacity_solidWhiteRight_960x540.mp4",
}


def run(name: str, *, rounds: int = 15, shrink: int = 1) -> list[dict[str, Any]]:
    """A row for each gate and level.

    Args:
      name: a key of ``CASES``.
      rounds: a hundred frames for each.
      shrink: divides the number of frames, to try things out quickly.

    Raises:
      UserError: if the clip is not there.
    """
    path = CASES[name]()
    if not path.is_file():
        raise UserError(f"{path} is not there: give --case one_by_one_person, or set TINYJAX_DATA")
    frames = itertools.islice(_cut(video.frames(path)), max(12, 100 * rounds // shrink))
    first = next(frames)
    params = jax.jit(_MODEL.init)(jax.random.key(0), _floats(first))
    dense = jax.jit(lambda params, image: _MODEL.apply(params, _floats(image)))
    dense = dense.lower(params, first).compile()
    programs = {}
    for gate, (takes, levels) in GATES.items():
        begun = _Program(takes, params, first)
        programs |= {(gate, level): begun.at(level) for level in levels}
    rows = _played(dense, programs, params, itertools.chain([first], frames))
    return [{"case": f"{name}, {gate}", "level": level} | rows[gate, level] for gate, level in rows]


def _played(
    dense: Any,
    programs: dict[Any, "_Program"],
    params: Any,
    frames: Iterator[np.ndarray],
) -> dict[Any, dict[str, Any]]:
    """The metrics of all programs over the frames."""
    seconds: dict[Any, list[float]] = {key: [] for key in programs}
    found: dict[Any, list[Any]] = {key: [] for key in programs}
    whole: list[float] = []
    before, changed = None, []
    for image in map(jnp.asarray, frames):
        taken, out = measure.timed(dense, params, image)
        whole.append(taken)
        for key, program in programs.items():
            taken, mine = measure.timed(program, image)
            seconds[key].append(taken)
            found[key].append(program.seen(out, mine))
        if before is not None:
            changed.append(float((image != before).any(2).mean()))
        before = image
    still = {key: min(measure.timed(p, before)[0] for _ in range(9)) for key, p in programs.items()}
    rows = {}
    for key, program in programs.items():
        seen = found[key][1:]  # the first frame begins anew
        speedup = sum(whole[1:]) / sum(seconds[key][1:])
        shares = [program.predicted(cells) for *_, cells in seen]
        predicted = 1 / (still[key] / median(whole) + float(np.mean(shares)))
        errors = _errors(seen)
        rows[key] = {
            "frames": len(seen),
            "dense_ms": 1e3 * median(whole),
            "speedup": speedup,
            **errors,
            "within": float(all(map(operator.le, errors.values(), LIMITS))),
            "changed": float(np.mean(changed)),
            "taken": float(np.mean([taken for _, _, taken, _ in seen])),
            "recomputed": float(np.mean([np.mean(cells) for *_, cells in seen])),
            "predicted": predicted,
            "of_predicted": speedup / predicted,
        }
    return rows


def _errors(seen: list[Any]) -> dict[str, float]:
    error, energy = (np.array([one[i] for one in seen]) for i in (0, 1))
    return {
        "error": float(np.sqrt(error.sum() / energy.sum())),
        "error_95": float(np.percentile(np.sqrt(error / energy), 95)),
    }


class _Program:
    """The network through ``pass_skip`` behind a gate, with its state."""

    def __init__(self, gate: Any, params: Any, first: np.ndarray) -> None:
        tx = pass_skip(patch=PATCH, gate=gate)
        skipping, shape = rewrite(tx, _MODEL.apply), jax.eval_shape(_floats, first)
        self.params, self.state = params, skipping.init(params, shape)
        self.blocks = describe(tx, _MODEL.apply, params, shape).blocks
        step = lambda state, params, image: skipping.apply(state, params, _floats(image))[::-1]
        self.step = jax.jit(step, donate_argnums=0).lower(self.state, params, first).compile()

    def at(self, level: int) -> "_Program":
        """The same program with a state of its own, and the gate at this level."""
        found = copy.copy(self)
        found.state = jax.tree.map(jnp.copy, self.state)
        if level:
            found.state = found.state._replace(gate=jnp.float32(level / 255))
        return found

    def __call__(self, image: jax.Array) -> jax.Array:
        self.state, out = self.step(self.state, self.params, image)
        return out

    def seen(self, out: jax.Array, mine: jax.Array) -> tuple[float, float, float, list[float]]:
        """Squared error, squared output, patches taken, and cells computed in every block."""
        error, energy = float(jnp.square(mine - out).sum()), float(jnp.square(out).sum())
        cells = [float(active.mean()) for active in self.state.active]
        return error, energy, float((self.state.age == 0).mean()), cells

    def predicted(self, cells: list[float]) -> float:
        """The share of the network's time, by the cells that were computed."""
        shares = (min(1.0, a / b.break_even) for a, b in zip(cells, self.blocks, strict=True))
        macs = [block.macs for block in self.blocks]
        return sum(m * share for m, share in zip(macs, shares, strict=True)) / sum(macs)


def _cut(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames whose sides are multiples of the network's stride."""
    return (image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4] for image in frames)


def _floats(image: Any) -> jax.Array:
    """uint8 ``[h, w, 3]`` -> float32 ``[1, h, w, 3]``, 0 to 1."""
    return jnp.asarray(image).astype(jnp.float32)[None] / 255
