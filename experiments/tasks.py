"""PASS on tasks with labels: skipped patches against foreground's pixels, and against people.

``cdnet`` is CDnet's *baseline/highway*, 500 frames in folds of 100 consecutive ones, of which each
is tested on with a network that learned from all others. ``vtest`` is PETS 2009 S2.L1: a network
learns where people's centres are from frames 1 to 594, and they are found and followed in 595 to
795. Every network runs dense and through ``pass_skip``::

    python -m experiments tasks                     # every fold, a JSON for each
    python -m experiments tasks --config vtest --checkpoints out/trained
    python -m experiments tasks --set tolerance=0.03 patch=16

With ``--checkpoints`` what was trained is kept, and measured again without another training.

Arms: ``exact`` takes every patch with a changed bit; ``threshold`` those with a change above a
level; ``inner`` a lower level, and limits between blocks (`tinyjax.inner_limits`). Their levels and
limits are the largest that were tried with an output error within the tolerance. ``loose`` is the
same by labels: the largest level that costs so many points of F1, and limits that add a little to
its error; ``key`` is that, with a whole frame now and then. All are found on frames that were
trained on; nothing is chosen on those that are tested.

Definitions. Time is from a uint8 frame in memory to the logits, change detection and the joining of
frame and background included, decoding of the video excluded, and so is what makes boxes and tracks
of logits, which is the same for all; all arms take turns frame by frame in one process. The
speed-up is the sum of the dense times over the sum of an arm's. The output error is that of the
logits, ``sqrt(sum of squared error / sum of squared dense output)``. F1 of ``cdnet`` is that of the
foreground's pixels over the whole fold; pixels that CDnet calls unknown do not count, shadow is
background. F1 of ``vtest`` is that of boxes, matched frame by frame from an intersection over union
of 0.5 on; MOTA and what else there is of tracks is that of `experiments.mot`.

References:
  Zhou et al., *PASS: Patch Automatic Skip Scheme for Efficient Real-Time Video Perception on Edge
  Devices*, AAAI 2023.
  Wang et al., *CDnet 2014: An Expanded Change Detection Benchmark Dataset*, CVPR Workshops 2014.
  Ferryman, Shahrokni, *PETS2009: Dataset and Challenge*, 2009.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import folds, levels, measure, mot, patchwork, segmenter, turns
from experiments.data import scenes
from experiments.errors import UserError
from experiments.progress import Follow, unfollowed
from experiments.results import digest
from experiments.task_kinds import Judge, Score, kind
from experiments.train import Epoch
from tinyjax import exact, inner_limits, pass_skip, rewrite, threshold

__all__ = ["ARMS", "CONFIGS", "Arm", "Config", "Results", "run", "smoke"]

ARMS = ("exact", "threshold", "inner", "loose", "key")

_RUNS = 2  # of successive frames in a calibration: fewer are longer, and errors have time to grow
_INPUT = 0.8  # of a tolerance is for the input, which holds the noise of the camera


@dataclass(frozen=True)
class Config(folds.Training):
    """One fold. Everything that a result depends on is here."""

    patch: int = 8  # side of a patch in pixels
    tolerance: float = 0.01  # of the output error on training frames
    points: float = 0.25  # of F1 that the loose level may cost on training frames
    widen: float = 1.1  # the loose tolerance of limits, over the error of that level
    tries: int = 4  # limits tried per tensor
    calibration: int = 60  # training frames that levels and limits are chosen on
    key_every: int = 25  # frames from one that is computed whole to the next

    def __post_init__(self) -> None:
        if not 0 <= self.fold < (there := kind(self.scene).folds):
            raise UserError(f"fold={self.fold} is none: choose one from 0 to {there - 1}")
        for key in ("patch", "crop", "width"):
            if (given := getattr(self, key)) < 8 or given % 8:
                raise UserError(f"{key}={given} does not fit: choose a multiple of 8")
        for key in ("blocks", "epochs", "batch", "tries", "key_every"):
            if (given := getattr(self, key)) < 1:
                raise UserError(f"{key}={given} is too small: choose 1 or more")
        if self.calibration < 2:
            raise UserError(f"calibration={self.calibration} is too small: choose 2 or more")
        if not 0 < self.tolerance < 1:
            raise UserError(f"tolerance={self.tolerance} is not in 0 to 1: choose a small one")
        if not (self.points >= 0 and 1 < self.widen < 10):
            raise UserError(f"points={self.points} or widen={self.widen} is not in 0.. or 1 to 10")

    @property
    def arm(self) -> str:
        """What a grid of runs calls this one."""
        return f"{self.scene} fold {self.fold}" if kind(self.scene).folds > 1 else self.scene


_VTEST: dict[str, Any] = {"blocks": 2, "epochs": 16, "batch": 8, "crop": 160}
CONFIGS: dict[str, list[Config]] = {
    "cdnet": [Config(fold=fold) for fold in range(kind("highway").folds)],
    "vtest": [Config(scene="vtest", learning_rate=0.002, **_VTEST)],
}

_SMOKE: dict[str, dict[str, Any]] = {
    "highway": {"scene": "squares", "epochs": 1},
    "vtest": {"scene": "walkers", "epochs": 12, "learning_rate": 0.01},
}


def smoke(configs: Sequence[Config]) -> list[Config]:
    """The same on a scene that is made here, with a network so small that it takes seconds."""
    tiny: dict[str, Any] = {"width": 8, "blocks": 1, "crop": 48, "batch": 2}
    less: dict[str, Any] = {"key_every": 4, "tries": 2, "calibration": 8}
    return [replace(one, **tiny, **less, **_SMOKE[one.scene]) for one in configs[:1]]


class Arm(NamedTuple):
    """What a gate came to on the fold that is tested; the first frame is computed whole."""

    f1: float  # 0..1
    f1_points: float  # hundredths, minus dense's
    mota_points: float | None  # likewise, where people are followed
    tracks: mot.Tracked | None
    speedup: float  # sum of dense ms over sum of ms
    output_error: float  # of the logits, over the clip
    output_error_p95: float  # of the frames, 95th percentile
    taken: float  # share of the patches that the gate took
    active: float  # share of the patches recomputed, blocks weighed by what they cost dense
    macs_share: float  # multiply-accumulates over dense, the margins of patches included
    change: float  # of the logits from frame to frame, relative
    flips: float  # share of the pixels that turn from frame to frame, of 0..1
    level: float  # of the gate at the input, of 0..255
    limits: list[float]  # of the tensors between blocks
    state_bytes: int  # of the caches
    temp_bytes: int  # scratch memory of the compiled program
    compile_seconds: float
    ms: list[float]  # per frame
    frame_active: list[float]  # per frame


class Results(NamedTuple):
    """All arms against the dense network, on one fold."""

    moving: float  # share of the known pixels that are foreground, or covered by boxes
    changed: float  # share of the pixels that differ from the frame before
    dense_f1: float  # 0..1
    dense_tracks: mot.Tracked | None  # where people are followed
    dense_change: float  # as in `Arm`
    dense_flips: float
    dense_ms: list[float]  # per frame
    dense_macs: int  # of a frame
    dense_temp_bytes: int
    errors: dict[str, float]  # on the training frames: of an arm's level alone
    history: tuple[Epoch, ...]  # of the training; accuracy is F1, of the test on 25 frames
    arms: dict[str, Arm]


def run(
    config: Config,
    out: Path | None = None,
    follow: Follow = unfollowed,
    kept: Path | None = None,
) -> Results:
    """Trains on all folds but one, calibrates there, and measures every arm on that one.

    Args:
      config: of the run.
      out: folder for the checkpoints of the training; None keeps none.
      follow: shows the progress.
      kept: folder of trainings to use instead, each under a name of its own.

    Raises:
      UserError: if the scene cannot be read, or does not fit the patch or the crop.
    """
    task = kind(config.scene)
    train, test = task.split(scenes.load(config.scene), config.fold)
    background = segmenter.median(train.frames)
    model = segmenter.Segmenter(config.width, config.blocks, task.stride, task.prior)
    folder = out / "training" if out else None
    if kept:
        folder = kept / f"{config.arm.replace(' ', '-')}-{digest(config.training)}"
    with follow(f"fold {config.fold}", folds.steps(config, len(train.frames))) as watch:
        fitted = folds.trained(model, task, config, train, test, background, folder, watch)
    judge = task.judge(train)
    variables = {"params": fitted.state.params, "batch_stats": fitted.state.batch_stats}
    apply = partial(model.apply, train=False)
    with follow(f"calibrating {config.fold}", 3) as watch:
        gates, errors = _gates(config, apply, variables, train, background, judge, watch)
    params, first = (variables, jnp.asarray(background)), test.frames[0]
    programs = {"dense": turns.prepared(partial(_dense, apply), tuple, params, first)}
    shape = jax.eval_shape(lambda: segmenter.beside(first, background)[None])
    fresh = {n: partial(turns.begun, gate.skipping, variables, shape) for n, gate in gates.items()}
    for name, gate in gates.items():
        step = partial(_skip, gate.skipping.apply)
        programs[name] = turns.prepared(step, fresh[name], params, first)
    costs = turns.costs(gates["exact"].skipping, fresh["exact"], variables, shape)
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in programs}

    def note(_: int, outs: Any) -> None:
        for name, logits in outs.items():
            outputs[name].append(np.asarray(logits[0]))

    with follow(f"testing {config.fold}", len(test.frames)) as watch:
        seen = turns.watched(programs, params, config.patch, test.frames, watch, note)
    dense = seen["dense"]
    total = lambda key: sum(getattr(one, key) for one in dense)
    scores = {name: judge(found, test) for name, found in outputs.items()}
    clips = {name: turns.summed(programs[name], seen[name], dense, costs) for name in gates}
    return Results(
        moving=task.moving(test),
        changed=float(np.mean(patchwork.changed(test.frames)[1:])),
        dense_f1=scores["dense"].f1,
        dense_tracks=scores["dense"].tracks,
        dense_change=measure.relative(total("change"), total("energy")),
        dense_flips=scores["dense"].flips,
        dense_ms=[round(one.ms, 3) for one in dense],
        dense_macs=costs.dense(),
        dense_temp_bytes=measure.temp_bytes(programs["dense"].call),
        errors=errors,
        history=fitted.history,
        arms={n: _arm(clips[n], scores[n], scores["dense"], gate) for n, gate in gates.items()},
    )


class _Gate(NamedTuple):
    """An arm before it has run."""

    skipping: Any
    level: float
    limits: list[float]


def _gates(
    config: Config,
    apply: Any,
    variables: Any,
    train: Any,
    background: np.ndarray,
    judge: Judge,
    watch: Any,
) -> tuple[dict[str, _Gate], dict[str, float]]:
    """The arms, their levels and limits chosen on frames of the training folds; errors there."""
    chosen = levels.runs(len(train.frames), config.calibration, _RUNS)
    frames = [one[None] for one in segmenter.beside(train.frames[chosen], background)]
    skipping = partial(pass_skip, patch=config.patch)
    inputs, dense = list(map(jnp.asarray, frames)), jax.jit(apply)
    scene = type(train)(*(array[chosen] for array in train))
    find = partial(levels.level, apply, variables, frames, patch=config.patch)

    def limits(found: levels.Level, tolerance: float) -> list[float]:
        lossy = rewrite(skipping(gate=threshold(found.level)), apply)
        options = {"tolerance": tolerance, "tries": config.tries}
        return inner_limits(lossy, apply, variables, inputs, **options).tolist()

    def score(outs: Sequence[jax.Array]) -> float:
        return judge([np.asarray(out[0]) for out in outs], scene).f1

    best = score([dense(variables, x) for x in frames])
    alone = find(within=lambda outs, one: one.error <= config.tolerance)
    low = find(within=lambda outs, one: one.error <= _INPUT * config.tolerance)
    high = find(within=lambda outs, one: 100 * (best - score(outs)) <= config.points)
    watch(1, "the levels at the input are found")
    inner = limits(low, config.tolerance)
    watch(2, "the limits between blocks are found")
    wide = limits(high, config.widen * max(high.error, config.tolerance))
    watch(3, "the loose ones are found")
    made: dict[str, Any] = {
        "exact": (exact, 0.0, [], 0),
        "threshold": (threshold(alone.level), alone.level, [], 0),
        "inner": (threshold(low.level), low.level, inner, 0),
        "loose": (threshold(high.level), high.level, wide, 0),
        "key": (threshold(high.level), high.level, wide, config.key_every),
    }
    tx = lambda gate, held, every: skipping(gate=gate, inner=held or 0.0, key_every=every)
    gates = {
        name: _Gate(rewrite(tx(gate, held, every), apply), at, held)
        for name, (gate, at, held, every) in made.items()
    }
    return gates, {"threshold": alone.error, "inner": low.error, "loose": high.error}


def _dense(apply: Any, state: Any, params: Any, image: jax.Array) -> tuple[Any, jax.Array]:
    variables, background = params
    return state, apply(variables, segmenter.beside(image, background)[None])


def _skip(apply: Any, state: Any, params: Any, image: jax.Array) -> tuple[Any, jax.Array]:
    variables, background = params
    out, state = apply(state, variables, segmenter.beside(image, background)[None])
    return state, out  # what is given away is paired with the outputs in their order


def _arm(clip: turns.Arm, score: Score, dense: Score, gate: _Gate) -> Arm:
    both = (score.tracks, dense.tracks)
    return Arm(
        f1=score.f1,
        f1_points=100 * (score.f1 - dense.f1),
        mota_points=100 * (both[0].mota - both[1].mota) if both[0] and both[1] else None,
        tracks=score.tracks,
        speedup=clip.speedup,
        output_error=clip.output_error,
        output_error_p95=clip.output_error_p95,
        taken=float(np.mean(clip.taken)),
        active=float(np.mean(clip.active)),
        macs_share=clip.macs_share,
        change=clip.change,
        flips=score.flips,
        level=gate.level,
        limits=gate.limits,
        state_bytes=clip.state_bytes,
        temp_bytes=clip.temp_bytes,
        compile_seconds=clip.compile_seconds,
        ms=clip.ms,
        frame_active=clip.active,
    )
