"""What a person looks at of `experiments.thesis`: two tables, and the same as Markdown.

``python -m experiments.thesis_report`` writes those of ``experiments/results/thesis`` into
``docs/thesis.md``; with ``--check`` it says whether they are there.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import pages, segmenter
from experiments.extras import imported
from experiments.results import Record, read
from experiments.thesis_setup import FOLDS, OFF

__all__ = [
    "COMMAND",
    "COSTS",
    "GAINS",
    "PAGE",
    "RESULTS",
    "Row",
    "parts",
    "rows",
    "stale",
    "table",
    "written",
]

GAINS = (
    "mode",
    "on",
    "F1",
    "to all off",
    "half, frames/s",
    "to all off",
    "device, frames/s",
    "to all off",
    "whole, frames/s",
    "bytes up a frame",
    "fewer",
    "bytes down",
)
COSTS = (
    "mode",
    "on",
    "half",
    "coding",
    "learning",
    "cloud",
    "recomputed",
    "int8 MACs",
    "float32 MACs",
    "computing",
    "radio",
    "resident",
)
COMMAND = "python -m experiments.thesis_report"
PAGE = pages.ROOT / "docs" / "thesis.md"
RESULTS = pages.ROOT / "experiments" / "results" / "thesis"

_SPEED, _BYTES, _POINTS = 3, 12, 1.5  # what was asked for
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
    cloud_ms: float
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


def _gains(arms: dict[str, Row]) -> Iterator[list[str]]:
    """Of each arm: score, speed and traffic, and against all off, if that is there."""
    base = arms.get("all")
    for off, row in arms.items():
        against = base if off != "all" else None
        times = lambda a, b, digits: f"{a / b:.{digits}f}x"
        yield [
            f"{100 * row.f1:.2f} %",
            f"{100 * (row.f1 - against.f1):+.2f}" if against else "",
            f"{1e3 / row.half_ms:.0f}",
            times(against.half_ms, row.half_ms, 2) if against else "",
            f"{1e3 / row.device_ms:.0f}",
            times(against.device_ms, row.device_ms, 2) if against else "",
            f"{1e3 / row.whole_ms:.0f}",
            f"{row.up:,.0f}",
            times(against.up, row.up, 0) if against else "",
            f"{row.down:,.0f}",
        ]


def _costs(arms: dict[str, Row]) -> Iterator[list[str]]:
    """Of each arm, what a frame costs."""
    for row in arms.values():
        yield [
            *(f"{ms:.1f} ms" for ms in (row.half_ms, row.coding_ms, row.learning_ms, row.cloud_ms)),
            f"{100 * row.active:.0f} %",
            f"{1e-6 * row.int8_macs:.0f} M",
            f"{1e-6 * row.float_macs:.0f} M",
            f"{row.compute_mj:.2f} mJ",
            f"{row.radio_mj:.1f} mJ",
            f"{row.peak_bytes / 2**20:.0f} MiB",
        ]


def _lines(records: Sequence[Record], cells: Any) -> list[list[str]]:
    """Lines of a table, each with its mode and what is on."""
    lines = []
    for (scene, where, every), arms in sorted(rows(records).items()):
        mode = ", ".join(filter(None, [f"K = {every}" if every else "streaming", where]))
        mode = mode if scene == "highway" else f"{mode}, {scene}"
        for off, line in zip(arms, cells(arms), strict=True):
            lines.append([mode, _NAMES[off], *line])
    return lines


def parts(records: Sequence[Record]) -> dict[str, str]:
    """What the page has of these records, in Markdown, by name."""
    return {
        "gains": pages.table(GAINS, _lines(records, _gains)),
        "costs": pages.table(COSTS, _lines(records, _costs)),
        "asked": "\n\n".join(_verdict(records)),
        "where": _circumstances(records),
    }


def _verdict(records: Sequence[Record]) -> Iterator[str]:
    """What was asked of streaming, and what it came to."""
    for (scene, where, every), arms in sorted(rows(records).items()):
        if every or not {"nothing", "all"} <= set(arms):
            continue
        ours, none = arms["nothing"], arms["all"]
        half, device = none.half_ms / ours.half_ms, none.device_ms / ours.device_ms
        yield pages.paragraph(
            f"Asked of streaming with all three, against all off, on {scene}"
            f"{', ' * bool(where)}{where}: {_SPEED}x the frames/s of the device's half (here "
            f"{half:.2f}x, and with coding {device:.2f}x), {_BYTES}x fewer bytes a frame "
            f"({none.up / ours.up:.0f}x), F1 within {_POINTS} points "
            f"({100 * (ours.f1 - none.f1):+.2f})."
        )


def _circumstances(records: Sequence[Record]) -> str:
    folds = sorted({r["config"]["fold"] for r in records})
    where = [r["environment"] for r in records]
    loads = sorted(each["load_average"][0] for each in where if each["load_average"])
    machines = sorted(
        {f"{each['cpu']}, {each['cores']} cores, jax {each['jax']}" for each in where}
    )
    busy = f"{loads[0]:.1f} to {loads[-1]:.1f}" if loads else "not known"
    few = "fold" if len(folds) == 1 else "folds"
    return pages.paragraph(
        f"{few.capitalize()} {', '.join(map(str, folds))} of {FOLDS}; {'; '.join(machines)}; load "
        f"average of a minute after each run, both of its processes included: {busy}."
    )


def stale(check: bool) -> list[Path]:
    """Writes the tables of the committed records into the page; the files that were stale."""
    return pages.updated({PAGE: parts(_read(RESULTS))}, COMMAND, check=check)


def _read(folder: Path) -> list[Record]:
    return [read(path) for path in sorted(folder.glob("*.json"))]


def written(out: Path) -> list[Record]:
    """Writes ``table.md`` of all records in a folder; returns them."""
    records = _read(out)
    (out / "table.md").write_text("\n\n".join(parts(records).values()) + "\n", encoding="utf-8")
    return records


def table(records: Sequence[Record], out: Path) -> Any:
    """The first table for a terminal."""
    shown = imported("rich.table").Table(title=f"thesis ({out})", title_justify="left")
    for heading in GAINS:
        shown.add_column(heading)
    for line in _lines(records, _gains):
        shown.add_row(*line)
    return shown


if __name__ == "__main__":
    sys.exit(pages.main(stale, COMMAND, __doc__ or "", sys.argv[1:]))
