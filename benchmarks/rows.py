"""Rows of figures: programs timed in turn, and how a row is shown."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from experiments import measure

__all__ = ["Row", "call", "line", "medians"]

Row = dict[str, Any]


def call(program: Callable[..., Any], args: Sequence[Any]) -> Callable[[], Any]:
    """The program with its arguments."""
    return lambda: program(*args)


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each call, ``name_ms``: medians of interleaved rounds."""
    seconds = measure.interleaved(calls, rounds, calls=3)
    return {f"{key}_ms": 1e3 * median(times) for key, times in seconds.items()}


def line(row: Row) -> str:
    """A row to read."""
    return "  ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
    )
