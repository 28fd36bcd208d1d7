"""A stock train step in float32 and through ``int8_qat``: time per step, bytes kept, scratch.

Models and steps are the same in every arm and know nothing of tinyjax (``vgg6``: six 3x3
convolutions with bias and relu, ``nn.max_pool`` after every second, 32x32x3 images, batch 128;
``mlp``: 3072-1024-1024-10, batch 256; SGD with momentum). All programs are compiled first, then
run in turn, round after round, in one process. A turn is three calls in a row, as in training; the
first of them, which finds another program's caches and heap, is not counted. Times are medians.

Metrics of a row:

``f32_ms``
    The unmodified step under default XLA.
``f32_best_ms``
    The fastest of the float32 programs: {default XLA, XLA's CPU library fusion off} x {the
    unmodified model, the model with its pooling written as slices and maximum, the same rewrite
    with a float policy (``identity()``)}. Each stands in the row as
    ``f32[_edited|_rewritten][_off]_ms``.
``int8_ms``, ``int8_nearest_ms``
    The step through ``int8_qat()``, and with its gradients rounded to nearest.
``speedup``, ``speedup_best``
    ``f32_ms / int8_ms``, ``f32_best_ms / int8_ms``.
``saved_bytes_ratio``
    Float over int8 of the distinct array bytes among the leaves of ``jax.vjp(loss, params)[1]``,
    without parameters and inputs.
``temp_bytes_ratio``
    The float32 programs' least scratch memory over int8's, from ``memory_analysis()``.
``int8_mac_share``
    Share of the multiply-accumulates of the int8 step (forward and backward) that are int8.
``rounds``
    Turns of each program.
"""

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import measure, train
from experiments.models import Mlp, Vgg6, slice_max_pool
from tinyjax import Transform, attach, count_macs, identity, int8_qat, numerics, rewrite

__all__ = ["CASES", "Case", "run"]

FUSION_OFF = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Case(NamedTuple):
    """A model, the same model edited by hand to pool faster, and a batch size."""

    model: nn.Module
    edited: nn.Module | None
    batch: int


CASES = {
    "mlp": Case(Mlp(), None, 256),
    "vgg6": Case(Vgg6(), Vgg6(pool=slice_max_pool), 128),
}


def run(name: str, *, rounds: int = 15, shrink: int = 1) -> list[dict[str, Any]]:
    """One row: the metrics of one case.

    Args:
      name: a key of ``CASES``.
      rounds: how often each program runs.
      shrink: divides the batch, to try things out quickly.
    """
    case = CASES[name]
    rng = np.random.default_rng(0)
    size = case.batch // shrink
    images = jnp.asarray(rng.normal(size=(size, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, size), jnp.int32)
    programs, states = _programs(case, images, labels)
    seconds = measure.interleaved(
        {key: _call(program, states[key], images, labels) for key, program in programs.items()},
        rounds,
        calls=3,
    )
    ms = {f"{key}_ms": 1e3 * median(times) for key, times in seconds.items()}
    floats = [key for key in programs if key.startswith("f32")]
    best = min(ms[f"{key}_ms"] for key in floats)
    state = states["f32"]
    temp = {key: measure.temp_bytes(program) for key, program in programs.items()}
    macs = count_macs(
        int8_qat(gradient_rounding=numerics.nearest)(train.train_step), state, images, labels
    )
    saved = [
        measure.saved_bytes(_loss(tx, state.apply_fn), state.params, images, labels)
        for tx in (None, int8_qat())
    ]
    row = {
        "case": name,
        **ms,
        "f32_best_ms": best,
        "speedup": ms["f32_ms"] / ms["int8_ms"],
        "speedup_best": best / ms["int8_ms"],
        "saved_bytes_ratio": saved[0] / saved[1],
        "temp_bytes_ratio": min(temp[key] for key in floats) / temp["int8"],
        "int8_mac_share": macs["int8"] / sum(macs.values()),
        "rounds": rounds,
    }
    return [row]


def _programs(case: Case, images: jax.Array, labels: jax.Array) -> tuple[dict, dict]:
    """Compiled steps, and the state each of them takes, by name."""
    step = train.train_step
    plain = _state(case.model, images)
    arms: dict[str, tuple[Any, Any]] = {"f32": (step, plain)}
    if case.edited is not None:
        arms["f32_edited"] = (step, _state(case.edited, images))
    arms["f32_rewritten"] = (identity()(step), plain)
    for key, tx in {
        "int8": int8_qat(),
        "int8_nearest": int8_qat(gradient_rounding=numerics.nearest),
    }.items():
        arms[key] = (tx(step), attach(tx, step, plain, images, labels))
    programs, states = {}, {}
    for key, (fn, state) in arms.items():
        lowered = jax.jit(fn).lower(state, images, labels)
        programs[key], states[key] = lowered.compile(), state
        if key.startswith("f32") and jax.default_backend() == "cpu":
            programs[f"{key}_off"] = lowered.compile(compiler_options=FUSION_OFF)
            states[f"{key}_off"] = state
    return programs, states


def _state(model: nn.Module, images: jax.Array) -> Any:
    return train.create_state(model, np.asarray(images), learning_rate=0.01, steps=1000, seed=0)


def _call(program: Any, *args: Any) -> Callable[[], Any]:
    return lambda: program(*args)


def _loss(tx: Transform | None, apply: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The train step's loss, through a transform or as it is."""
    forward = apply
    if tx is not None:
        forward = lambda v, x: rewrite(tx, apply).apply({}, v, x, key=jax.random.key(0))[0]
    return lambda params, images, labels: train.cross_entropy(
        forward({"params": params}, images), labels
    )
