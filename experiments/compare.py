"""Octo side by side: the same small network learns Fashion-MNIST in float32 and in true int8.

Both arms start from the same parameters, see the same batches and run the same stock flax train
step; the int8 arm lifts that step with one line. Trained one after the other, then timed in turn,
they are the first part of `experiments.demo`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments import octo
from experiments.errors import UserError
from experiments.measure import interleaved, ratio
from experiments.progress import Follow, unfollowed
from experiments.results import once

__all__ = ["CONFIGS", "Config", "Results", "Summary", "run", "smoke", "summary"]


@dataclass(frozen=True)
class Config(octo.Config):
    """The int8 arm; the float32 arm differs in nothing but its bits."""

    rounds: int = 30  # of the interleaved timing, one step of each arm per round

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits == octo.FLOAT:
            raise UserError(f"bits={self.bits} leaves nothing to compare: choose 2 to 8")
        if self.rounds < 1:
            raise UserError(f"rounds={self.rounds} is too small: choose 1 or more")


CONFIGS: dict[str, Config] = {
    "sample": Config(),
    "full": Config(dataset="fashion_mnist", epochs=3, batch=100),
}


def smoke(config: Config) -> Config:
    """The same comparison on so little that it takes seconds."""
    return replace(octo.smoke(config), rounds=3)


class Summary(NamedTuple):
    """What the results come to; each ratio says how many times better int8 is."""

    accuracy_points: float  # int8 minus float32 test accuracy, percentage points
    speedup: float  # median over the rounds of float32 over int8 seconds
    saved_bytes_ratio: float  # float32 over int8
    temp_bytes_ratio: float  # float32 over int8
    int8_share: float  # of the int8 arm's multiply-accumulates, 0..1


class Results(NamedTuple):
    """Both arms, and the seconds of their steps side by side."""

    float32: octo.Results
    int8: octo.Results
    float32_seconds: list[float]  # per round: one step, waited for
    int8_seconds: list[float]
    summary: Summary


def summary(
    single: octo.Results, whole: octo.Results, seconds: Mapping[str, list[float]]
) -> Summary:
    """Compares the float32 arm with the int8 arm, and the seconds of their turns."""
    return Summary(
        accuracy_points=100 * (whole.test_accuracy - single.test_accuracy),
        speedup=ratio(seconds["float32"], seconds["int8"]),
        saved_bytes_ratio=single.saved_bytes / whole.saved_bytes,
        temp_bytes_ratio=single.temp_bytes / whole.temp_bytes,
        int8_share=whole.macs.get("int8", 0) / sum(whole.macs.values()),
    )


def run(config: Config, out: Path, follow: Follow = unfollowed) -> Results:
    """Trains both arms and times their steps in turn.

    An interrupted run, called again with the same `config` and `out`, keeps the arm that is done
    and continues the other after its last whole epoch.

    Args:
      config: of the int8 arm.
      out: folder for unfinished work.
      follow: shows the progress.
    """
    common = {field.name: getattr(config, field.name) for field in fields(octo.Config)}
    quantized = octo.Config(**common)
    arms = {"float32": replace(quantized, bits=octo.FLOAT), "int8": quantized}
    prepared = {name: octo.prepare(arm) for name, arm in arms.items()}
    learned = {}
    for name, arm in prepared.items():
        learn = partial(octo.learn, arm, follow=follow)
        learned[name] = octo.results(once(name, arm.config, out, learn).record["metrics"])
    seconds = interleaved({name: _one_step(arm) for name, arm in prepared.items()}, config.rounds)
    single, whole = learned["float32"], learned["int8"]
    compared = summary(single, whole, seconds)
    return Results(single, whole, seconds["float32"], seconds["int8"], compared)


def _one_step(arm: octo.Prepared) -> Callable[[], Any]:
    return lambda: arm.step(arm.state, *arm.batch)
