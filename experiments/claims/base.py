"""What a claim is, what it is judged by, and the files that figures are read from."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.results import Record

__all__ = [
    "Claim",
    "Evidence",
    "Finding",
    "NotRun",
    "Row",
    "Verdict",
    "attained",
    "counted",
    "judged",
    "spread",
    "untestable",
]

Verdict = Literal["confirmed", "partly", "not reproduced", "not testable here", "not run yet"]


class NotRun(Exception):
    """A result that a claim is judged by is not there."""


class Finding(NamedTuple):
    """What was measured of a claim."""

    figures: tuple[str, ...]  # sentences of Markdown, those against the claim too
    verdict: Verdict


class Evidence:
    """Committed results, and which of them were read.

    Args:
      root: of the repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.read_from: dict[Path, Record] = {}

    def benchmark(self, name: str) -> Record:
        """A record of ``benchmarks/results``; raises `NotRun` where there is none."""
        return self._read(self.root / "benchmarks" / "results" / f"{name}.json")

    def benchmark_if_run(self, name: str) -> Record | None:
        """A record of ``benchmarks/results``, None where there is none."""
        try:
            return self.benchmark(name)
        except NotRun:
            return None

    def experiment(self, name: str) -> Record:
        """A record of ``experiments/results``; raises `NotRun` where there is none."""
        return self._read(self.root / "experiments" / "results" / f"{name}.json")

    def experiments(self, pattern: str) -> list[Record]:
        """Those whose names match, at least one; raises `NotRun` where there is none."""
        paths = sorted((self.root / "experiments" / "results").glob(f"{pattern}.json"))
        if not paths:
            raise NotRun(f"experiments/results/{pattern}.json")
        return [self._read(path) for path in paths]

    def _read(self, path: Path) -> Record:
        if not path.exists():
            raise NotRun(str(path.relative_to(self.root)))
        found = json.loads(path.read_text(encoding="utf-8"))
        self.read_from[path.relative_to(self.root)] = found
        return found


class Claim(NamedTuple):
    """A sentence of the thesis or of one of its papers, and how it is judged here."""

    method: str
    text: str  # what is claimed, in our words
    source: str  # where, and how far that is established
    rule: str  # of the verdict, its thresholds named
    judge: Callable[[Evidence], Finding]
    commands: tuple[str, ...]  # that make its results anew


class Row(NamedTuple):
    """A claim that was judged."""

    claim: Claim
    finding: Finding
    files: tuple[str, ...]  # that were read
    machines: tuple[str, ...]  # that they were measured on


def judged(claim: Claim, root: Path) -> Row:
    """A claim and what the committed results say of it.

    Args:
      claim: to judge.
      root: of the repository.
    """
    evidence = Evidence(root)
    try:
        finding = claim.judge(evidence)
    except NotRun as missing:
        finding = Finding((f"`{missing}` is not there.",), "not run yet")
    return Row(claim, finding, tuple(map(str, evidence.read_from)), _machines(evidence))


def untestable(reason: str) -> Callable[[Evidence], Finding]:
    """The judge of a claim of which nothing can be measured here: there are no figures."""

    def judge(evidence: Evidence) -> Finding:
        del evidence
        return Finding((reason,), "not testable here")

    return judge


def counted(held: Iterable[bool]) -> Verdict:
    """Confirmed where everything held, not reproduced where nothing did, else partly.

    Raises:
      ValueError: if there is nothing to count.

    >>> counted([True, True]), counted([True, False]), counted([False])
    ('confirmed', 'partly', 'not reproduced')
    """
    found = list(held)
    if not found:
        raise ValueError("nothing was measured of this claim: give at least one result")
    if all(found):
        return "confirmed"
    return "partly" if any(found) else "not reproduced"


def attained(held: Iterable[bool]) -> Verdict:
    """Of a claim that says "up to": confirmed where one case attains it, else not reproduced.

    >>> attained([False, True]), attained([False])
    ('confirmed', 'not reproduced')
    """
    return "confirmed" if any(held) else "not reproduced"


def spread(values: Sequence[float], form: str = ".2f", unit: str = "") -> str:
    """The least and the largest of some figures, or the one that there is.

    >>> spread([1.0, 2.5], ".1f", "x")
    '1.0x to 2.5x'
    """
    low, high = (f"{value:{form}}{unit}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _machines(evidence: Evidence) -> tuple[str, ...]:
    """Where records were measured; a load above the number of cores is told."""
    loads: dict[str, list[float]] = {}
    for record in evidence.read_from.values():
        found: dict[str, Any] = record.get("environment") or record.get("env") or {}
        if not found:
            loads.setdefault("machine not recorded", [])
            continue
        machine = f"{found['cpu']}, {found['cores']} cores, jax {found['jax']}"
        load = (found.get("load_average") or [0.0])[0]
        loads.setdefault(machine, []).extend([load] if load > found["cores"] else [])
    return tuple(
        machine + (f", beside other work (load {spread(busy, '.0f')})" if busy else "")
        for machine, busy in loads.items()
    )
