"""What a grid of runs says: means, spreads, paired differences with their intervals, verdicts.

Runs of one seed share initialization and batches, so arms are compared seed by seed. Of the
differences a 90 % interval is taken (Student's t, two-sided): an arm is better or worse where it
leaves 0 out, and otherwise undecided. With one seed there is no interval, and no verdict.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from experiments.results import Record

__all__ = ["Arm", "Difference", "difference", "interval", "summary", "task"]

# Quantiles 0.95 of Student's t by degrees of freedom; beyond these, the normal one.
_T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)


class Difference(NamedTuple):
    """Paired difference of accuracies to another arm, in percentage points."""

    points: float  # mean over the seeds that both have
    low: float | None  # of the 90 % interval; None for one seed
    high: float | None
    seeds: int
    verdict: str  # better, worse, undecided or one seed


class Arm(NamedTuple):
    """One arm over its seeds."""

    arm: str
    accuracy: float  # mean over the seeds, 0..1
    spread: float | None  # standard deviation of the seeds; None for one
    seeds: int
    to_float32: Difference | None  # None where the other arm, or a common seed, is missing
    to_int8: Difference | None
    forward_error: float | None  # mean over sites and seeds
    worst_dw_cosine: float | None  # over sites and seeds
    step_ms: float


Group = tuple[Any, ...]


def summary(records: Sequence[Record]) -> dict[str, list[Arm]]:
    """Arms by task, the best first.

    Args:
      records: of `experiments.ablation` or `experiments.adapt`, in any order. Compared are those
        that differ in policy and seed alone.
    """
    tasks: dict[str, dict[Group, dict[int, Record]]] = {}
    for record in records:
        config = record["config"]
        rest = tuple(v for k, v in sorted(config.items()) if k not in ("policy", "norm", "seed"))
        group = (config["policy"], config.get("norm", 0), rest)
        tasks.setdefault(task(record), {}).setdefault(group, {})[config["seed"]] = record
    return {
        name: sorted((_arm(group, groups) for group in groups), key=lambda arm: -arm.accuracy)
        for name, groups in tasks.items()
    }


def task(record: Record) -> str:
    """What a run learns, from how much: runs of one task can be compared."""
    config = record["config"]
    name = f"{config.get('model', 'adaptation')} on {config['dataset']}"
    return f"{name} {config['limit']}x{config['epochs']}" if "limit" in config else name


def _arm(group: Group, groups: Mapping[Group, Mapping[int, Record]]) -> Arm:
    policy, norm, rest = group
    runs = groups[group]
    found = _accuracies(runs)

    def to(other: str) -> Difference | None:
        others = groups.get((other, norm, rest), {})
        return None if other == policy else difference(found, _accuracies(others))

    metrics = [run["metrics"] for run in runs.values()]
    sites = [site for each in metrics for site in each.get("layers", {}).values()]
    return Arm(
        arm=f"{policy} bn" if norm else policy,
        accuracy=mean(found.values()),
        spread=stdev(found.values()) if len(found) > 1 else None,
        seeds=len(found),
        to_float32=to("float32"),
        to_int8=to("int8"),
        forward_error=mean(s["forward_error"] for s in sites) if sites else None,
        worst_dw_cosine=min((s["dw_cosine"] for s in sites), default=None),
        step_ms=mean(each["step_ms"] for each in metrics),
    )


def _accuracies(runs: Mapping[int, Record]) -> dict[int, float]:
    return {seed: run["metrics"]["test_accuracy"] for seed, run in runs.items()}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 90 % interval of the mean; of a single value, that value three times."""
    middle, count = mean(values), len(values)
    if count == 1:
        return middle, middle, middle
    quantile = _T95[count - 2] if count - 2 < len(_T95) else 1.645
    half = quantile * stdev(values) / math.sqrt(count)
    return middle, middle - half, middle + half


def difference(found: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Paired difference ``found - other`` of accuracies by seed; None without a common seed."""
    points = [100 * (found[seed] - other[seed]) for seed in sorted(found.keys() & other.keys())]
    if not points:
        return None
    middle, low, high = interval(points)
    if len(points) == 1:
        return Difference(middle, None, None, 1, "one seed")
    verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return Difference(middle, low, high, len(points), verdict)
