"""``python -m benchmarks.rate.report [--check]``: of the committed run, the tables and plots of
docs/sgq.md. With ``--check`` nothing is written, and it fails where the tables are stale.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rate import features
from experiments import pages
from experiments.extras import imported

__all__ = ["COMMAND", "PAGE", "RESULTS", "TABLES", "main", "plotted", "stale"]

COMMAND = "python -m benchmarks.rate.report"
PAGE = pages.ROOT / "docs" / "sgq.md"

RESULTS = Path(__file__).parents[1] / "results" / "rate.json"
_FIGURES = Path(__file__).parents[2] / "docs" / "figures"
_NAMES = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar10_strided": "CIFAR-10, no pool",
}
_LINES = {  # of the plots
    "sgq": "#0d9488",
    "sgq, masked": "#065f46",
    "zstd": "#2563eb",
    "order 0": "#9333ea",
    "order 0, per channel": "#c084fc",
    "DCT": "#d97706",
    "product quantization": "#be123c",
    "top-k": "#64748b",
    "RandTopK": "#94a3b8",
}
_RANGES = {  # of the plots: title, bits, decibels
    "features": ("features", (0.6, 6), (7, 27)),
    "gradient_curves": ("gradients, late", (0.12, 6), (2, 42)),
}
_Rows = Sequence[Mapping[str, Any]]


def _default(rows: _Rows) -> str:
    """What the default codec comes to at every cut."""
    header = ["cut", "test accuracy", "zeros", "bits", "ratio", "SNR", "agreement", "state",
              "ratio at epoch 0.4"]  # fmt: skip

    def lines() -> Iterator[list[str]]:
        for row in rows:
            point, early = _point(row, "sgq", features.DEFAULT), row["features_early"]
            yield [
                _named(row),
                f"{row['accuracy']['late']:.1%}",
                f"{row['zeros']:.0%}",
                f"{point['bits']:.3f}",
                f"**{32 / point['bits']:.1f}x**",
                f"{point['snr_db']:.1f} dB",
                f"{row['rounding']['offset 0.4']['agreement']:.4f}",
                f"{row['state_bytes'] / 1000:.1f} kB",
                f"{32 / early['bits']:.1f}x, {early['snr_db']:.1f} dB",
            ]

    return pages.table(header, lines())


def _rounding(rows: _Rows) -> str:
    """Ratio, signal to noise, agreement and cosine by offset and mask."""

    def cell(found: Mapping[str, float]) -> str:
        return (
            f"{32 / found['bits']:.1f}x, {found['snr_db']:.1f} dB, {found['agreement']:.4f}, "
            f"{found['cosine']:.3f}"
        )

    labels = list(rows[0]["rounding"])
    lines = ([label, *(cell(row["rounding"][label]) for row in rows)] for label in labels)
    return pages.table(["rounding", *map(_named, rows)], lines)


def _bd(rows: _Rows) -> str:
    """BD-rates of the default codec."""
    rivals = {
        "zstd": "strongest zstd",
        "zstd, our codes": "zstd, our codes",
        "order 0": "order 0",
        "order 0, our codes": "order 0, our codes",
        "order 0, per channel": "order 0 per channel",
        "DCT": "DCT",
        "product quantization": "PQ",
        "top-k": "top-k",
    }
    lines = (
        [_named(row), *(_percent(row["bd"][k]) for k in rivals), f"{row['repeated']:.0%}"]
        for row in rows
    )
    return pages.table(["cut", *rivals.values(), "repeated"], lines)


def _codecs(rows: _Rows) -> str:
    """Codecs at one setting: ratio, signal to noise, cosine and agreement at every cut."""
    first = rows[0]["features"]
    shown = [
        (codec, point["setting"]) for codec, points in first.items() for point in points
        if "cosine" in point
    ]  # fmt: skip
    singles = ["float16", "int8 + zstd", "int4 + zstd", "int4 + order 0"]
    shown += [
        (k, first[k][0]["setting"]) for k in singles if (k, first[k][0]["setting"]) not in shown
    ]

    def cell(point: Mapping[str, float]) -> str:
        start = f"{32 / point['bits']:.1f}x, {point['snr_db']:.1f} dB"
        if "cosine" not in point:
            return start
        return f"{start}, {point['agreement']:.3f}, {point['cosine']:.3f}"

    lines = (
        [_setting(codec, setting), *(cell(_point(row, codec, setting)) for row in rows)]
        for codec, setting in shown
    )
    return pages.table(["codec", *map(_named, rows)], lines)


def _setting(codec: str, setting: float) -> str:
    said = {"top-k": f"{setting:.0%}", "RandTopK": f"{setting:.0%}"}
    one_step = codec.startswith(("sgq", "zstd", "order", "DCT"))
    return f"{codec}, {said[codec]}" if codec in said else codec + f", step {setting:g}" * one_step


def _gradients(rows: _Rows) -> str:
    """Gradients early and late at error 0.3, by step and mask, and after finer features."""
    steps = list(rows[0]["gradients"]["late"])

    def cell(found: Mapping[str, float]) -> str:
        return f"{found['ratio']:.0f}x, {found['cosine']:.3f}"

    def line(row: Mapping[str, Any], when: str) -> list[str]:
        found, finer = row["gradients"][when], row["gradients_finer"][when]
        alone = found["solved"]["cosine_features"], found["solved, masked"]["cosine_features"]
        return [
            f"{_named(row)}, {when}",
            *(cell(found[step]) for step in steps),
            "{:.3f} / {:.3f}".format(*alone),
            f"{cell(finer['solved, masked'])}",
            f"{cell(finer['closed form, masked'])}",
        ]

    header = ["cut", *steps, "features alone, without / with mask"]
    header += ["solved, masked, after finer features", "closed form, masked, after finer"]
    return pages.table(header, (line(row, when) for row in rows for when in row["gradients"]))


def _ablation(rows: _Rows) -> str:
    """BD-rates against order 0 and zstd, of the codec without some of its parts."""
    variants = list(rows[0]["ablation"])

    def cell(found: Mapping[str, float | None]) -> str:
        return f"{_percent(found['order 0'])} / {_percent(found['zstd'])}"

    lines = ([variant, *(cell(row["ablation"][variant]) for row in rows)] for variant in variants)
    return pages.table(["BD-rate against order 0 / zstd", *map(_named, rows)], lines)


TABLES: Mapping[str, Callable[[_Rows], str]] = {
    "default": _default,
    "rounding": _rounding,
    "bd": _bd,
    "codecs": _codecs,
    "gradients": _gradients,
    "ablation": _ablation,
}


def _named(row: Mapping[str, Any]) -> str:
    h, w, c = row["shape"]
    return f"{_NAMES[row['case']]} {row['cut']}, {c}x{h}x{w}"


def _point(row: Mapping[str, Any], codec: str, setting: float) -> Mapping[str, float]:
    return next(p for p in row["features"][codec] if p["setting"] == setting)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.0f} %"


def plotted(rows: _Rows) -> Any:
    """A figure of one network: rate against signal to noise of features and of late gradients."""
    settings = {"axes.grid": True, "grid.color": "#e9eef5", "font.size": 9}
    with imported("matplotlib").rc_context(settings):
        size = (5.2 * len(rows), 8)
        figure = imported("matplotlib.figure").Figure(figsize=size, layout="constrained")
        places = figure.subplots(2, len(rows), squeeze=False).ravel()
        drawn = [(row, part) for part in _RANGES for row in rows]
        for axes, (row, part) in zip(places, drawn, strict=True):
            _drawn(axes, row[part])
            what, bits, decibels = _RANGES[part]
            axes.set_title(f"{_named(row)}: {what}")
            axes.set(xlim=bits, ylim=decibels)
        named = places[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
        return figure


def _drawn(axes: Any, codecs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    for name, color in _LINES.items():
        points = sorted(codecs.get(name, ()), key=lambda p: p["bits"])
        if not points:  # what is only of features
            continue
        place = [p["bits"] for p in points], [p["snr_db"] for p in points]
        axes.plot(*place, "o-", color=color, label=name, markersize=4, linewidth=1.5)
    for name in ("int4", "int4, per channel", "int4 + zstd", "int8 + zstd", "int2, clipped"):
        for point in codecs.get(name, ()):
            place = point["bits"], point["snr_db"]
            axes.plot(*place, "s", color="#475569", markersize=4)
            moved = dict(xytext=(5, -3), textcoords="offset points", fontsize=7)
            axes.annotate(name, place, annotation_clip=True, **moved)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bits of an element")
    axes.set_ylabel("SNR in dB")
    axes.xaxis.set_major_formatter(imported("matplotlib.ticker").FormatStrFormatter("%g"))


def stale(check: bool) -> list[Path]:
    """The pages that are stale; unless `check`, they are written, and the plots too."""
    rows = json.loads(RESULTS.read_text())["rows"]
    if not check:
        _FIGURES.mkdir(parents=True, exist_ok=True)
        for case in dict.fromkeys(row["case"] for row in rows):
            figure = plotted([row for row in rows if row["case"] == case])
            path = _FIGURES / f"rate_{case}.png"
            figure.savefig(path, dpi=80, metadata={"Software": None})
    parts = {name: make(rows) for name, make in TABLES.items()}
    return pages.updated({PAGE: parts}, COMMAND, check=check)


def main(argv: Sequence[str]) -> int:
    """Writes tables and plots, or says whether the tables are stale; returns the exit code."""
    return pages.main(stale, COMMAND, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
