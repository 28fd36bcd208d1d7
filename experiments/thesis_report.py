"""What a person looks at of `experiments.thesis`: a table, and the same as Markdown."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import segmenter
from experiments.extras import imported
from experiments.results import Record
from experiments.thesis import OFF

__all__ = ["HEADINGS", "Row", "markdown", "rows", "table", "written"]

HEADINGS = (
    "mode",
    "on",
    "F1",
    "to all off",
    "device, frames/s",
    "to all off",
    "half, ms",
    "coding, ms",
    "learning, ms",
    "whole, frames/s",
    "bytes up a frame",
    "fewer",
    "bytes down",
    "recomputed",
    "int8 MACs",
    "float32 MACs",
    "computing",
    "radio",
    "resident",
)
_NAMES = {
    "nothing": "all three",
    "pass": "no PASS",
    "int8": "no int8",
    "sgq": "no SGQ",
    "all": "all off",
}

Group = tuple[str, str, int]  # (scene, circumstances, frames between updates)


class Row(NamedTuple):
    """One arm, over the folds that all arms of its group have."""

    off: str
    f1: float  # of the pixels of all folds together
    device_ms: float  # means over the frames of all folds, as of `thesis.Results`
    half_ms: float
    coding_ms: float
    learning_ms: float
    whole_ms: float
    up: float
    down: float
    active: float
    int8_macs: float
    float_macs: float
    compute_mj: float
    radio_mj: float
    peak_bytes: int  # the most of all folds


def rows(records: Sequence[Record]) -> dict[Group, dict[str, Row]]:
    """Every arm of every group, the folds put together.

    A group has one scene, link and confinement and one mode; only folds count of which every arm of
    the group has a record.
    """
    groups: dict[Group, dict[str, dict[int, Record]]] = {}
    for record in records:
        config = record["config"]
        where = [config["link"]] if config["link"] else []
        where += [f"{config['cores']} core"] if config["cores"] else []
        where += [f"{config['memory']} MiB"] if config["memory"] else []
        key = (config["scene"], ", ".join(where), config["every"])
        groups.setdefault(key, {}).setdefault(config["off"], {})[config["fold"]] = record
    found = {}
    for key, arms in groups.items():
        folds = set.intersection(*(set(runs) for runs in arms.values()))
        chosen = {off: [arms[off][fold] for fold in sorted(folds)] for off in OFF if off in arms}
        found[key] = {off: _row(off, runs) for off, runs in chosen.items() if runs}
    return {key: arms for key, arms in found.items() if arms}


def _row(off: str, runs: Sequence[Record]) -> Row:
    metrics = [run["metrics"] for run in runs]
    weights = [len(each["frame_ms"]) for each in metrics]
    mean = lambda key: float(np.average([each[key] for each in metrics], weights=weights))
    macs = lambda kind: float(
        np.average([each["macs"].get(kind, 0) for each in metrics], weights=weights)
    )
    tally = segmenter.Counts(*np.sum([each["counts"] for each in metrics], 0).tolist())
    same = [key for key in Row._fields if key in metrics[0] and key not in ("f1", "peak_bytes")]
    return Row(
        off=off,
        f1=float(segmenter.f1(tally)),
        int8_macs=macs("int8"),
        float_macs=macs("float32"),
        peak_bytes=max(each["peak_bytes"] for each in metrics),
        **{key: mean(key) for key in same},
    )


def _cells(key: Group, arms: dict[str, Row]) -> Iterator[list[str]]:
    scene, where, every = key
    mode = ", ".join(filter(None, [f"K = {every}" if every else "streaming", where]))
    base = arms.get("all")
    for off, row in arms.items():
        shown = base is not None and off != "all"
        over = lambda value, text, shown=shown: text.format(value) if shown else ""
        yield [
            mode if scene == "highway" else f"{mode}, {scene}",
            _NAMES[off],
            f"{100 * row.f1:.2f} %",
            over(100 * (row.f1 - base.f1) if base else 0, "{:+.2f}"),
            f"{1e3 / row.device_ms:.0f}",
            over(base.device_ms / row.device_ms if base else 0, "{:.2f}x"),
            f"{row.half_ms:.1f}",
            f"{row.coding_ms:.1f}",
            f"{row.learning_ms:.1f}",
            f"{1e3 / row.whole_ms:.1f}",
            f"{row.up:,.0f}",
            over(base.up / row.up if base else 0, "{:.0f}x"),
            f"{row.down:,.0f}",
            f"{100 * row.active:.0f} %",
            f"{1e-6 * row.int8_macs:.0f} M",
            f"{1e-6 * row.float_macs:.0f} M",
            f"{row.compute_mj:.2f} mJ",
            f"{row.radio_mj:.1f} mJ",
            f"{row.peak_bytes / 2**20:.0f} MiB",
        ]


def _lines(records: Sequence[Record]) -> list[list[str]]:
    return [cells for key, arms in sorted(rows(records).items()) for cells in _cells(key, arms)]


def markdown(records: Sequence[Record]) -> str:
    """The table in Markdown."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *_lines(records)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def written(records: Sequence[Record], out: Path) -> None:
    """Writes ``table.md`` into a folder."""
    (out / "table.md").write_text(markdown(records), encoding="utf-8")


def table(records: Sequence[Record], out: Path) -> Any:
    """The table for a terminal."""
    shown = imported("rich.table").Table(title=f"thesis ({out})", title_justify="left")
    for heading in HEADINGS:
        shown.add_column(heading)
    for line in _lines(records):
        shown.add_row(*line)
    return shown
