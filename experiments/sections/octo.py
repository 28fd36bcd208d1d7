"""Octo in the report: the two arms of `experiments.compare`, side by side."""

from collections.abc import Iterable, Mapping
from html import escape
from math import sqrt
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

import numpy as np

from experiments import data, plots
from experiments.results import Record
from experiments.sections import html

__all__ = ["section"]

_TEMPLATE = Path(__file__).with_suffix(".html")
_ARMS = ("float32", "int8")


def section(record: Record) -> str:
    """The section of a record of `experiments.compare`, as HTML.

    Args:
      record: with config and metrics.
    """
    config, metrics = record["config"], record["metrics"]
    summary = metrics["summary"]
    arms = {name: metrics[name] for name in _ARMS}
    seconds = {name: metrics[f"{name}_seconds"] for name in _ARMS}
    step_ms = {name: 1e3 * median(taken) for name, taken in seconds.items()}
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        lead=_lead(arms, summary),
        cards=_cards(arms, step_ms, summary),
        loss=plots.curves({name: _loss(arm["history"]) for name, arm in arms.items()}),
        accuracy=plots.curves(
            {name: {"": _column(arm["history"], "test_accuracy")} for name, arm in arms.items()},
            percent=True,
        ),
        pictures=_pictures(config["dataset"]),
        data=_data(config["dataset"], arms["float32"]),
        times=plots.strip(seconds),
        bars=_bars(arms),
        table=_table(arms, step_ms, summary),
        bits=config["bits"],
        claims=html.claims(_claims(arms, summary)),
        notes=html.listed(_notes(arms["float32"])),
    )


def _column(history: Iterable[Mapping[str, float]], key: str) -> list[float]:
    return [epoch[key] for epoch in history]


def _loss(history: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    history = list(history)
    return {"training": _column(history, "train_loss"), "test": _column(history, "test_loss")}


def _percent(share: float) -> str:
    """To the resolution of a test set of some thousand images."""
    return f"{100 * share:.2f} %"


def _points(summary: Mapping[str, float]) -> str:
    return f"{summary['accuracy_points']:+.2f} points".replace("-", "−")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _lead(arms: Mapping[str, Any], summary: Mapping[str, float]) -> str:
    single, whole = (f"{100 * arms[name]['test_accuracy']:.1f} %" for name in _ARMS)
    return (
        f"A network of {arms['int8']['parameters']:,} parameters learns to tell ten kinds of "
        f"pictures apart, twice: from the same initial values, on the same batches, with the same "
        f"unmodified flax train step. <span class='float32'>float32</span> ends with {single} of "
        f"the test images right, <span class='int8'>int8</span> with {whole}; a step in int8 is "
        f"{html.times(summary['speedup'], 'faster', 'slower')}."
    )


def _cards(
    arms: Mapping[str, Any], step_ms: Mapping[str, float], summary: Mapping[str, float]
) -> str:
    pair = lambda texts: " → ".join(
        f"<span class='{name}'>{text}</span>" for name, text in zip(_ARMS, texts, strict=True)
    )
    cards = (
        (
            "Test accuracy",
            _points(summary),
            pair(_percent(arms[name]["test_accuracy"]) for name in _ARMS),
        ),
        (
            "Time of a step",
            html.times(summary["speedup"], "faster", "slower"),
            pair(f"{step_ms[name]:.0f} ms" for name in _ARMS),
        ),
        (
            "Kept for backward",
            html.times(summary["saved_bytes_ratio"], "less", "more"),
            pair(_megabytes(arms[name]["saved_bytes"]) for name in _ARMS),
        ),
        (
            "Multiply-adds in int8",
            f"{100 * summary['int8_share']:.0f} %",
            "forward and backward, added up in int32",
        ),
    )
    return html.cards(cards)


def _pictures(dataset: str) -> str:
    """The first test image of each class."""
    images, labels = data.load(dataset).test
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in range(10)]
    return "".join(
        f"<figure><img alt='{name}' src='{plots.png(images[first, :, :, 0])}'>"
        f"<figcaption>{name}</figcaption></figure>"
        for name, first in zip(data.CLASSES[dataset], firsts, strict=True)
    )


def _data(dataset: str, arm: Mapping[str, Any]) -> str:
    return (
        f"<code>{escape(dataset)}</code>: {arm['train_images']:,} images to learn from, "
        f"{arm['test_images']:,} others to be tested on."
    )


def _bars(arms: Mapping[str, Any]) -> str:
    """Memory of both arms as bars, drawn to one scale per pair."""
    parts = []
    for title, key in (
        ("Saved for the backward pass", "saved_bytes"),
        ("Scratch memory of the compiled step", "temp_bytes"),
    ):
        most = max(arms[name][key] for name in _ARMS)
        parts.append(f"<h3>{title}</h3>")
        parts += [
            f"<div class='bar'><span class='{name}'>{name}</span>"
            f"<span><i style='width:{100 * arms[name][key] / most:.1f}%;"
            f"background:var(--{name})'></i></span>"
            f"<span>{_megabytes(arms[name][key])}</span></div>"
            for name in _ARMS
        ]
    return "".join(parts)


def _table(
    arms: Mapping[str, Any], step_ms: Mapping[str, float], summary: Mapping[str, float]
) -> str:
    def row(label: str, show: Any, key: str, compared: str = "") -> tuple[str, ...]:
        return (label, *(show(arms[name][key]) for name in _ARMS), compared)

    seconds = "{:.1f} s".format
    rows = (
        row("Test accuracy", _percent, "test_accuracy", _points(summary)),
        row("… with the forward pass as in training", _percent, "test_accuracy_as_trained"),
        (
            "Step, median of the turns",
            *(f"{step_ms[name]:.1f} ms" for name in _ARMS),
            f"{summary['speedup']:.2f}×",
        ),
        row("… while training, one arm after the other", "{:.1f} ms".format, "step_ms"),
        row(
            "Saved for the backward pass",
            _megabytes,
            "saved_bytes",
            f"{summary['saved_bytes_ratio']:.2f}×",
        ),
        row("Scratch memory", _megabytes, "temp_bytes", f"{summary['temp_bytes_ratio']:.2f}×"),
        row("Multiply-accumulates of a step", _macs, "macs"),
        row("Tracing and compiling", seconds, "compile_seconds"),
    )
    return html.rows(("", "float32", "int8", "float32 : int8"), rows)


def _macs(macs: Mapping[str, int]) -> str:
    return ", ".join(f"{count / 1e9:.2f} G in {dtype}" for dtype, count in sorted(macs.items()))


def _claims(
    arms: Mapping[str, Any], summary: Mapping[str, float]
) -> tuple[tuple[str, str, str], ...]:
    saved = html.times(summary["saved_bytes_ratio"], "less", "more")
    scratch = html.times(summary["temp_bytes_ratio"], "less", "more")
    error = _error(arms["float32"])
    learned = arms["int8"]["test_accuracy"] > 0.5  # of ten classes; a smoke run does not get there
    return (
        (
            "Fixed point in 8 bits works forward <i>and</i> backward",
            "yes" if learned else "partly",
            f"{100 * summary['int8_share']:.0f} % of the multiply-adds of a step take int8 "
            f"operands; trained so, {_percent(arms['int8']['test_accuracy'])} of the test images "
            "are told apart.",
        ),
        (
            "The quality of training is kept",
            "yes" if learned and summary["accuracy_points"] > -2 * error else "partly",
            f"{_points(summary)} of test accuracy; one network, one seed, a sample of a data set.",
        ),
        (
            "Adequate gains in speed over full precision",
            "yes" if summary["speedup"] > 1 else "no",
            f"A step is {html.times(summary['speedup'], 'faster', 'slower')} on this machine. The "
            "paper's figures were not available.",
        ),
        (
            "Adequate gains in memory over full precision",
            "yes" if min(summary["saved_bytes_ratio"], summary["temp_bytes_ratio"]) > 1 else "no",
            f"{saved} is kept for the backward pass, {scratch} scratch memory is needed.",
        ),
        (
            "Better training than other quantized methods",
            "no",
            "Not compared; the loss-aware compensation and the range clipping are not part of it.",
        ),
        (
            "Runs on tiny devices, on many platforms",
            "no",
            "What XLA runs on; no microcontroller and no energy was measured.",
        ),
    )


def _error(arm: Mapping[str, Any]) -> float:
    """Standard error of a test accuracy, in points."""
    accuracy = arm["test_accuracy"]
    return 100 * sqrt(accuracy * (1 - accuracy) / arm["test_images"])


def _notes(arm: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "Claimed: these figures, for this network on this machine. Forward product, input "
        "gradient and weight gradient multiply int8 numbers and add them up in int32.",
        f"One run with one seed. An accuracy over {arm['test_images']:,} images has a standard "
        f"error of about {_error(arm):.1f} points, so differences of that order mean nothing.",
        "float32 is the unmodified model under the compiler's default settings. Part of the ratio "
        "is not int8: lifting a step also gives max-pooling an exact, cheaper gradient, and other "
        "compiler settings make float32 faster. <code>python -m benchmarks int8</code> compares "
        "with the best of all that.",
        "Saved bytes are what differentiation asks to keep, scratch memory is what the compiler "
        "makes of it. Weights, their updates, the loss and all between the layers stay float32.",
        "Not claimed: anything about other networks, energy, or microcontrollers. Accuracies on a "
        "sample of a data set are not comparable with those on the whole of it.",
    )
