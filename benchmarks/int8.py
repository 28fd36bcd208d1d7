"""Stock train steps in float32 and through ``int8_qat``: time, bytes kept, scratch, compile time.

The models and steps of `benchmarks.cases` are the same in every arm and know nothing of tinyjax.
All programs are compiled first, then run in turn, round after round, in one process. A turn is
three calls in a row, as in training; the first of them, which finds another program's caches and
heap, is not counted. Times are medians. What takes seconds a call (``Case.slow``) runs apart, once
unmeasured and then once.

Metrics of a row:

``model_mmacs``
    Million multiply-accumulates of the model's forward pass, for one image.
``f32_ms``
    The unmodified step under default XLA.
``f32_best_ms``
    The fastest of the float32 programs: {default XLA, XLA's CPU library fusion off} x {the
    unmodified model, the edited model, the same rewrite with a float policy (``identity()``)}. Each
    stands in the row as ``f32[_edited|_rewritten][_off]_ms``. Edited means pooling written as
    slices and maximum, and the depthwise convolution as nine shifted multiply-adds.
``int8_ms``, ``int8_nearest_ms``
    The step through ``int8_qat()``, and with its gradients rounded to nearest.
``policy_ms``, ``policy_off_ms``, ``policy_speedup_best``
    ``audit(...).choose(int8_qat())`` under either compiler option, and ``f32_best_ms`` over the
    better of the two.
``octo_ms``, ``octo_share``
    With loss-aware compensation (``bias``) and ranges clipped to 0.95; ``1 - int8_ms / octo_ms``.
``stochastic_share``
    ``1 - int8_nearest_ms / int8_ms``: what rounding stochastically takes of the step.
``speedup``, ``speedup_best``
    ``f32_ms / int8_ms``, ``f32_best_ms / int8_ms``. For mobilenet the first is
    ``f32_edited_ms / int8_ms``, since the grouped convolution of ``f32_ms`` flatters everything.
``saved_mb_f32``, ``saved_mb_int8``, ``saved_bytes_ratio``
    Megabytes (10^6) of the distinct arrays among the leaves of ``jax.vjp(loss, params)[1]``,
    without parameters, running averages and inputs; float over int8.
``temp_mb_f32``, ``temp_mb_int8``, ``temp_bytes_ratio``
    Megabytes of scratch memory, from ``memory_analysis()``; the least of the float32 programs over
    int8's.
``f32_compile_s``, ``int8_compile_s``, ``compile_ratio``
    Seconds to trace and compile the steps of ``f32_ms`` and ``int8_ms``, once; int8 over float.
``int8_mac_share``
    Share of the multiply-accumulates of the int8 step (forward and backward) that are int8.
``qwix_ms``, ``torch_f32_ms``, ``torch_bf16_ms``, and each as ``_ratio``
    The peers of `benchmarks.peers` in the same process, and their time over ``int8_ms``; null where
    not installed.
``rounds``
    Turns of each program.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from benchmarks import peers
from benchmarks.cases import CASES, Case, batch_of, both_gradients, model_macs, training
from experiments import measure, train
from tinyjax import (
    Transform,
    attach,
    audit,
    bias,
    chain,
    compensate,
    count_macs,
    identity,
    int8_qat,
    numerics,
    rewrite,
)

__all__ = ["CASES", "run", "transforms"]

FUSION_OFF = {"xla_cpu_experimental_ynn_fusion_type": ""}
SLOW_ROUNDS = 1

Array = jax.Array
Timed = Callable[[], Any]  # runs a program once


class Program(NamedTuple):
    """A compiled step, the state it takes, and the seconds that tracing and compiling took."""

    step: jax.stages.Compiled
    state: Any
    compile_s: float


def transforms(case: Case, state: Any, images: Array) -> dict[str, tuple[Transform, Any]]:
    """What a step is run through, each with its compiler options; further arms go here.

    Args:
      case: what is trained.
      state: the plain state, for its parameters.
      images: a batch.
    """
    variables = {"params": state.params, **_statistics(state)}
    forward = training(state.apply_fn, variables)
    nearest = dict(gradient_rounding=numerics.nearest)
    clipped = int8_qat(gradient_range=numerics.shrunk(0.95))
    arms: dict[str, tuple[Transform, Any]] = {
        "int8": (int8_qat(), None),
        "int8_nearest": (int8_qat(**nearest), None),
        "octo": (chain(compensate(bias()), clipped), None),
    }
    for suffix, options in _options().items():
        found = audit(forward, variables, images, compiler_options=options)
        arms[f"policy{suffix}"] = (found.choose(int8_qat()), options)
    return arms


def _options() -> dict[str, Any]:
    """Compiler options worth trying for float programs, by the suffix of their metrics."""
    return {"": None, "_off": FUSION_OFF} if jax.default_backend() == "cpu" else {"": None}


def run(name: str, *, rounds: int = 15, shrink: int = 1) -> list[dict[str, Any]]:
    """One row: the metrics of one case.

    Args:
      name: a key of ``CASES``.
      rounds: how often each program runs.
      shrink: divides the batch, to try things out quickly.
    """
    case = CASES[name]
    batch = batch_of(case, max(1, case.batch // shrink))
    programs = _programs(case, *batch)
    others = _peers(case, *batch)
    calls = {key: _call(program, *batch) for key, program in programs.items()}
    ms = _timed({**calls, **others}, case.slow, rounds)
    floats = [key for key in programs if key.startswith("f32")]
    best = min(ms[key] for key in floats)
    temp = {key: measure.temp_bytes(program.step) / 1e6 for key, program in programs.items()}
    plain = programs["f32"].state
    saved = [_saved_mb(case, tx, plain, *batch) for tx in (None, int8_qat())]
    nearest = int8_qat(gradient_rounding=numerics.nearest)
    macs = count_macs(nearest(case.step), plain, *batch)
    compiling = {key: programs[key].compile_s for key in ("f32", "int8")}
    row: dict[str, Any] = {
        "case": name,
        "model_mmacs": model_macs(case) / 1e6,
        **{f"{key}_ms": ms[key] for key in programs},
        "f32_best_ms": best,
        "speedup": ms[case.baseline] / ms["int8"],
        "speedup_best": best / ms["int8"],
        "policy_speedup_best": best / min(t for key, t in ms.items() if key.startswith("policy")),
        "stochastic_share": 1 - ms["int8_nearest"] / ms["int8"],
        "octo_share": 1 - ms["int8"] / ms["octo"],
        "saved_mb_f32": saved[0],
        "saved_mb_int8": saved[1],
        "saved_bytes_ratio": saved[0] / saved[1],
        "temp_mb_f32": min(temp[key] for key in floats),
        "temp_mb_int8": temp["int8"],
        "temp_bytes_ratio": min(temp[key] for key in floats) / temp["int8"],
        **{f"{key}_compile_s": seconds for key, seconds in compiling.items()},
        "compile_ratio": compiling["int8"] / compiling["f32"],
        "int8_mac_share": macs["int8"] / sum(macs.values()),
    }
    for key in others:
        row[f"{key}_ms"] = ms.get(key)
        row[f"{key}_ratio"] = ms[key] / ms["int8"] if key in ms else None
    return [{**row, "rounds": rounds}]


def _programs(case: Case, images: Array, targets: Array) -> dict[str, Program]:
    """The compiled steps of a case by name, but for what it leaves out."""
    step, plain = case.step, _state(case.model, images)
    arms: dict[str, tuple[Any, Any]] = {"f32": (step, plain)}
    if case.edited is not None:
        arms["f32_edited"] = (step, _state(case.edited, images))
    arms["f32_rewritten"] = (identity()(step), plain)
    programs = {}
    for key, (fn, state) in arms.items():
        for suffix, options in _options().items():
            full = f"{key}{suffix}"
            if full not in case.left_out:
                programs[full] = _compiled(fn, state, images, targets, options=options)
    for key, (tx, options) in transforms(case, plain, images).items():
        state = attach(tx, step, plain, images, targets)
        programs[key] = _compiled(tx(step), state, images, targets, options=options)
    return programs


def _compiled(fn: Any, state: Any, *batch: Array, options: Any = None) -> Program:
    start = time.perf_counter()
    step = jax.jit(fn).lower(state, *batch).compile(compiler_options=options)
    return Program(step, state, time.perf_counter() - start)


def _peers(case: Case, images: Array, targets: Array) -> dict[str, Timed | None]:
    """The steps of the peers that a case names; None for those that are not installed."""
    found: dict[str, Timed | None] = {}
    if "qwix" in case.peers:
        model = peers.qwix_model(case.model)
        if model is None:
            found["qwix"] = None
        else:
            program = _compiled(case.step, _state(model, images), images, targets)
            found["qwix"] = _call(program, images, targets)
    if "torch" in case.peers:
        found |= peers.torch_steps(case.model, np.asarray(images), np.asarray(targets))
    return found


def _timed(
    calls: Mapping[str, Timed | None], slow: tuple[str, ...], rounds: int
) -> dict[str, float]:
    """Median milliseconds a call, of all that can be called; the slow ones run apart."""
    able = {key: call for key, call in calls.items() if call is not None}
    quick = {key: call for key, call in able.items() if key not in slow}
    seconds = measure.interleaved(quick, rounds, calls=3)
    if rest := {key: call for key, call in able.items() if key in slow}:
        seconds |= measure.interleaved(rest, min(rounds, SLOW_ROUNDS))
    return {key: 1e3 * median(times) for key, times in seconds.items()}


def _state(model: nn.Module, images: Array) -> Any:
    return train.create_state(model, np.asarray(images), learning_rate=0.01, steps=1000, seed=0)


def _statistics(state: Any) -> dict[str, Any]:
    """The variables of a model beside its parameters."""
    return {"batch_stats": state.batch_stats} if hasattr(state, "batch_stats") else {}


def _call(program: Program, *batch: Array) -> Timed:
    return lambda: program.step(program.state, *batch)


def _saved_mb(case: Case, tx: Transform | None, state: Any, images: Array, targets: Array) -> float:
    """Megabytes that the step's loss keeps for its backward pass, under a transform or as it is."""
    kept = _statistics(state)
    apply = state.apply_fn
    if tx is not None:
        inner = rewrite(tx, state.apply_fn)
        key = jax.random.key(0)
        apply = lambda *args, **kwargs: inner.apply({}, *args, key=key, **kwargs)[0]
    forward = training(apply, kept)

    def loss(params: Any, kept: Any, images: Array, targets: Array) -> Array:
        out = forward({"params": params, **kept}, images)
        if case.step is both_gradients:
            return (out * targets).sum()
        return train.cross_entropy(out, targets)

    return measure.saved_bytes(loss, state.params, kept, images, targets) / 1e6
