"""Plots of a report as inline SVG and PNG, drawn by matplotlib without a display."""

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from experiments.extras import imported

__all__ = [
    "COLORS",
    "STYLE",
    "by_layer",
    "curves",
    "heat",
    "histogram",
    "intervals",
    "jpeg",
    "png",
    "speedups",
    "strip",
    "timeline",
]

COLORS = {
    "float32": "#64748b",
    "int8": "#0d9488",
    "dense": "#64748b",
    "exact": "#0d9488",
    "threshold": "#d97706",
    "changed": "#94a3b8",
}
_ARMS = {
    "int8+lac": "#2563eb",
    "int8+prc": "#7c3aed",
    "int8+lac+prc": "#0891b2",
    "zero_point": "#65a30d",
    "released": "#dc2626",
    "per_tensor": "#a16207",
    "octo": "#db2777",
    "ui8": "#d97706",
    "dai8": "#9333ea",
    "switchback": "#1d4ed8",
    "row_wise": "#15803d",
}


_SERIES = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#0891b2", "#be123c")  # without an arm


def _color(arm: str) -> str:
    """The colour of an arm, the same in every plot; grey for one without."""
    return {**_ARMS, **COLORS}.get(arm.removesuffix(" bn"), "#475569")


# Of matplotlib, for every plot of a report or a notebook.
STYLE = {
    "svg.fonttype": "none",  # text stays text: sharp, small, searchable
    "svg.hashsalt": "tinyjax",  # equal data give equal bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": "#334155",
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": "#64748b",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "grid.color": "#e9eef5",
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


def curves(arms: Mapping[str, Mapping[str, Sequence[float]]], *, percent: bool = False) -> str:
    """Lines over epochs 1.., one colour per arm; the first line of an arm solid, others dashed.

    Args:
      arms: ``{arm: {label of a line: one value per epoch}}``.
      percent: whether the values are shares, to be written as percentages.

    Returns:
      An ``<svg>`` element. Each line is named at its right end.
    """
    with imported("matplotlib").rc_context(STYLE):
        axes = _axes()
        ends = []
        for arm, lines in arms.items():
            for index, (label, values) in enumerate(lines.items()):
                epochs = range(1, len(values) + 1)
                dashes = (0, (4, 2)) if index else "-"
                axes.plot(epochs, values, color=_color(arm), linestyle=dashes, linewidth=2)
                axes.plot(epochs[-1], values[-1], "o", color=_color(arm), markersize=4)
                ends.append((values[-1], f"{arm} {label}".strip(), _color(arm)))
        _name_ends(axes, ends)
        axes.set_xlabel("epoch")
        ticker = imported("matplotlib.ticker")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(7, steps=[1, 2, 5, 10]))
        if percent:
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
        return _svg(axes.figure)


def strip(seconds: Mapping[str, Sequence[float]]) -> str:
    """Milliseconds per round, one row of dots per arm, with a bar at the median: ``<svg>``."""
    with imported("matplotlib").rc_context(STYLE):
        axes = _axes(height=1.7)
        for row, (arm, taken) in enumerate(seconds.items()):
            milliseconds = 1e3 * np.asarray(taken)
            # Dots of one row are spread in the order of the rounds, so that none hides another.
            spread = row + np.linspace(-0.22, 0.22, len(taken))
            axes.scatter(milliseconds, spread, s=22, color=COLORS[arm], alpha=0.55, linewidths=0)
            middle = float(np.median(milliseconds))
            axes.plot([middle, middle], [row - 0.36, row + 0.36], color=COLORS[arm], linewidth=3)
        axes.set_yticks(range(len(seconds)), list(seconds))
        axes.set_ylim(len(seconds) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("milliseconds per step")
        return _svg(axes.figure)


def timeline(
    lines: Mapping[str, Sequence[float]], step: float, label: str, *, percent: bool = False
) -> str:
    """Values over time, one line each, named at its right end: ``<svg>``, twice as wide as others.

    Args:
      lines: ``{name: one value per step}``, names among `COLORS`.
      step: seconds from one value to the next.
      label: of the values.
      percent: whether they are shares, to be written as percentages.
    """
    with imported("matplotlib").rc_context(STYLE):
        axes = _axes(width=9.6, height=2.4)
        for name, values in lines.items():
            seconds = step * np.arange(len(values))
            axes.plot(seconds, values, color=COLORS[name], linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, step * max(1, *(len(values) - 1 for values in lines.values())))
        _name_ends(axes, [(values[-1], name, COLORS[name]) for name, values in lines.items()])
        axes.set_xlabel("seconds")
        axes.set_ylabel(label)
        if percent:
            axes.yaxis.set_major_formatter(imported("matplotlib.ticker").PercentFormatter(1, 0))
        return _svg(axes.figure)


def intervals(
    arms: Mapping[str, Sequence[float]], means: Mapping[str, tuple[float, float, float]], label: str
) -> str:
    """One row per arm, in order from the top: a dot per run, the mean and its interval: ``<svg>``.

    Args:
      arms: ``{arm: one value per run}``.
      means: ``{arm: (mean, low, high)}``.
      label: of the values.
    """
    with imported("matplotlib").rc_context(STYLE):
        axes = _axes(width=6.4, height=0.6 + 0.28 * len(arms))
        for row, (arm, values) in enumerate(arms.items()):
            axes.scatter(values, [row] * len(values), s=18, color=_color(arm), alpha=0.5, lw=0)
            middle, low, high = means[arm]
            axes.plot([low, high], [row, row], color=_color(arm), linewidth=2)
            axes.plot([middle, middle], [row - 0.3, row + 0.3], color=_color(arm), linewidth=2)
        axes.set_yticks(range(len(arms)), list(arms))
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlabel(label)
        return _svg(axes.figure)


def by_layer(arms: Mapping[str, Mapping[str, float]], label: str) -> str:
    """A value per arm and layer on a logarithmic scale: ``<svg>``.

    Whichever are more have the rows, and the others a colour each.

    Args:
      arms: ``{arm: {layer: value}}``, all with the same layers; what is not above 0 has no mark.
      label: of the values.
    """
    layers = list(next(iter(arms.values())))
    series = {layer: {arm: values[layer] for arm, values in arms.items()} for layer in layers}
    colors = {layer: _SERIES[i % len(_SERIES)] for i, layer in enumerate(layers)}
    if len(arms) <= len(layers):
        series, colors = dict(arms), {arm: _color(arm) for arm in arms}
    rows = list(next(iter(series.values())))
    with imported("matplotlib").rc_context(STYLE):
        axes = _axes(width=6.4, height=0.8 + 0.24 * len(rows))
        for name, values in series.items():
            found = [values[row] for row in rows]
            axes.plot(found, range(len(rows)), "o", color=colors[name], label=name, alpha=0.8)
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(label)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg(axes.figure)


def histogram(before: Sequence[int], after: Sequence[int], largest: float, label: str) -> str:
    """Counts of values before and after quantization, in equal bins over +-largest: ``<svg>``."""
    with imported("matplotlib").rc_context(STYLE):
        axes = _axes(width=3.4, height=2.2)
        edges = np.linspace(-largest, largest, len(before) + 1)
        axes.stairs(before, edges, fill=True, color=COLORS["float32"], alpha=0.35, label="float32")
        axes.stairs(after, edges, color=COLORS["int8"], linewidth=1.4, label="int8")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.xaxis.set_major_locator(imported("matplotlib.ticker").MaxNLocator(4))
        axes.set_xlabel(label)
        axes.set_ylabel("values")
        axes.legend(fontsize=8, loc="upper left")
        return _svg(axes.figure)


def heat(shares: np.ndarray, size: Sequence[int]) -> str:
    """Shares 0..1, float [rows, columns], as colours over a frame of (h, w): ``<svg>``."""
    with imported("matplotlib").rc_context({**STYLE, "axes.grid": False}):
        axes = _axes(width=4.6, height=2.6)
        drawn = axes.imshow(
            shares, cmap="magma", vmin=0, vmax=1, extent=(0, size[1], size[0], 0), aspect="equal"
        )
        axes.set_axis_off()
        axes.figure.colorbar(
            drawn, format=imported("matplotlib.ticker").PercentFormatter(1, 0), shrink=0.8
        ).outline.set_visible(False)
        return _svg(axes.figure)


def speedups(found: Sequence[Any]) -> str:
    """Measured speedups over float32 as dots, what the formula says as lines: ``<svg>``.

    Args:
      found: `experiments.links.Speed` of codecs on links. A line is drawn for the mean ``r`` and
        ``kappa`` of a codec over its links.
    """
    codecs = list(dict.fromkeys(one.codec for one in found if one.codec != "float32"))
    rho = np.geomspace(min(one.rho for one in found) / 2, 2 * max(one.rho for one in found), 100)
    with imported("matplotlib").rc_context(STYLE):
        axes = _axes(width=6.4, height=3.6)
        for codec, color in zip(codecs, itertools.cycle(_SERIES)):
            ours = [one for one in found if one.codec == codec]
            r, kappa = (np.mean([getattr(one, name) for one in ours]) for name in ("r", "kappa"))
            axes.plot(rho, (1 + rho) / (1 + rho / r + kappa), color=color, linewidth=1, alpha=0.7)
            places, heights = [one.rho for one in ours], [one.speedup for one in ours]
            axes.plot(places, heights, "o", color=color, label=codec)
        axes.set_xscale("log")
        axes.set_xlabel("rho: seconds of float32 on the link over those of a step without it")
        axes.set_ylabel("times float32's images per second")
        axes.legend()
        return _svg(axes.figure)


def jpeg(image: np.ndarray) -> str:
    """A photograph uint8 [h, w, 3] as a ``data:`` address."""
    buffer = io.BytesIO()
    settings = {"quality": 85}
    imported("matplotlib.image").imsave(buffer, image, format="jpeg", pil_kwargs=settings)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def png(image: np.ndarray) -> str:
    """A grey image uint8 [h, w] as a ``data:`` address, dark on white."""
    buffer = io.BytesIO()
    imported("matplotlib.image").imsave(buffer, 255 - image, cmap="gray", vmin=0, vmax=255)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _axes(width: float = 4.6, height: float = 3.0) -> Any:
    """Empty axes of this size in inches, on a figure that no display knows of."""
    figure = imported("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    return figure.add_subplot()


def _name_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes names beside the right ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    apart = 0.08 * (high - low)
    ends = sorted(ends)
    places = [value for value, _, _ in ends]
    for _ in range(100):  # neighbours push each other away, equally, until all have room
        for below, above in pairwise(range(len(places))):
            push = max(0.0, (apart - (places[above] - places[below])) / 2)
            places[below], places[above] = places[below] - push, places[above] + push
    for place, (_, name, color) in zip(places, ends, strict=True):
        axes.annotate(
            name,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            color=color,
            va="center",
            annotation_clip=False,
        )


def _svg(figure: Any) -> str:
    """The ``<svg>`` element of a figure, without prologue and metadata."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :].strip()
