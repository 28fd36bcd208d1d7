"""What a person looks at of `experiments.tasks`: a table, the same as Markdown, and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.extras import imported
from experiments.results import Record
from experiments.task_kinds import kind
from experiments.tasks import ARMS

__all__ = ["HEADINGS", "TRACKS", "figure", "headings", "rows", "table", "written"]

HEADINGS = (
    "fold",
    "arm",
    "F1",
    "to dense",
    "speed-up",
    "error",
    "95 % frame",
    "patches changed",
    "recomputed",
    "MACs",
    "change of the logits",
    "pixels that turn",
    "cache + scratch",
)

TRACKS = ("MOTA", "to dense", "IDF1", "switches")  # behind F1, where people are followed

_ABOVE = {  # a bar, and readable where a line crosses
    "xytext": (0, 2),
    "textcoords": "offset points",
    "ha": "center",
    "va": "bottom",
    "fontsize": 7,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0},
}

_SHOWN = (0, 1, 2, 3, 4, 5, 8, 9)  # of `HEADINGS`: what fits into a terminal

_COLORS = dict(zip(ARMS, ("#0d9488", "#d97706", "#2563eb", "#db2777", "#9333ea"), strict=True))


def headings(records: Sequence[Record]) -> tuple[str, ...]:
    """Those of the columns: `HEADINGS`, and `TRACKS` in between where people are followed."""
    return (*HEADINGS[:4], *(TRACKS if _followed(records) else ()), *HEADINGS[4:])


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """A row for dense and for every arm, fold by fold, under `headings`.

    Change and what turns are from frame to frame, caches and scratch memory over dense's scratch
    memory.

    Args:
      records: of `experiments.tasks`.
    """
    found, tracks = [], _followed(records)
    for record in records:
        metrics = record["metrics"]
        name = f"{_name(record)} ({metrics['moving']:.1%} {'people' if tracks else 'moving'})"
        dense = ("1.00x", "0 %", "0 %", f"{metrics['changed']:.1%} of pixels", "100 %", "100 %")
        change = (f"{metrics['dense_change']:.2%}", f"{metrics['dense_flips']:.3%}")
        memory = f"{metrics['dense_temp_bytes'] / 1e6:.1f} MB"
        of = _tracks(metrics["dense_tracks"], None) if tracks else ()
        found.append(
            (name, "dense", f"{metrics['dense_f1']:.2%}", "", *of, *dense, *change, memory)
        )
        found += [
            (
                name,
                arm,
                f"{one['f1']:.2%}",
                _points(one["f1_points"]),
                *(_tracks(one["tracks"], one["mota_points"]) if tracks else ()),
                f"{one['speedup']:.2f}x",
                f"{one['output_error']:.2%}",
                f"{one['output_error_p95']:.2%}",
                f"{one['taken']:.1%}",
                f"{one['active']:.1%}",
                f"{one['macs_share']:.1%}",
                f"{one['change']:.2%}",
                f"{one['flips']:.3%}",
                f"{(one['state_bytes'] + one['temp_bytes']) / metrics['dense_temp_bytes']:.2f}x",
            )
            for arm, one in metrics["arms"].items()
        ]
    return found


def _followed(records: Sequence[Record]) -> bool:
    """Whether the records are of people who are followed."""
    return any(record["metrics"].get("dense_tracks") for record in records)


def _tracks(found: Record, points: float | None) -> tuple[str, ...]:
    """The columns under `TRACKS`."""
    to_dense = "" if points is None else _points(points)
    return f"{found['mota']:.2%}", to_dense, f"{found['idf1']:.2%}", f"{found['switches']}"


def _points(difference: float) -> str:
    return f"{round(difference, 2) + 0.0:+.2f}"  # no negative zero


def _name(record: Record) -> str:
    """What tells a record from others of its task: the fold, where there are several."""
    config = record["config"]
    return f"{config['fold']}" if kind(config["scene"]).folds > 1 else config["scene"]


def table(records: Sequence[Record], out: Path) -> Any:
    """The rows as a rich table, without some columns, and where the files are."""
    shown = imported("rich.table").Table(box=imported("rich.box").SIMPLE_HEAD)
    names = headings(records)
    more = len(names) - len(HEADINGS)
    both = (4, 5)[: more // 2]  # MOTA, to dense
    places = [*_SHOWN[:4], *both, *(index + more for index in _SHOWN[4:])]
    for index in places:
        shown.add_column(names[index], justify="right" if index > 1 else "left")
    for row in rows(records):
        shown.add_row(*(row[index] for index in places))
    note = f"results: [bold]{out}[/bold], with report.md and report.png"
    return imported("rich.console").Group(shown, note)


def written(records: Sequence[Record], out: Path) -> None:
    """Writes ``report.md`` and ``report.png`` into a folder."""
    names = headings(records)
    lines = [names, ("---",) * len(names), *rows(records)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (out / "report.md").write_text(text, encoding="utf-8")
    figure(records).savefig(out / "report.png", dpi=150, metadata={"Software": None})


def figure(records: Sequence[Record]) -> Any:
    """Frame by frame what was recomputed, and fold by fold the speed-up."""
    drawn = imported("matplotlib.figure").Figure(figsize=(8, 5.6), layout="constrained")
    above, below = drawn.subplots(2, 1)
    start, edges, tracks = 0, [0], _followed(records)
    for record in records:
        metrics = record["metrics"]
        for arm, one in metrics["arms"].items():
            shares = 100 * np.array(one["frame_active"])
            frames = np.arange(start, start + len(shares))
            above.plot(frames, shares, color=_COLORS[arm], linewidth=0.8)
        start += len(metrics["dense_ms"])
        edges.append(start)
    for edge in edges[1:-1]:
        above.axvline(edge, color="#cbd5e1", linewidth=0.8)
    above.set_xlabel("frame" if len(records) == 1 else "frame, fold after fold")
    above.set_ylabel("recomputed, %")
    above.set_xlim(0, start)
    above.set_ylim(0, 105)
    width = 0.8 / len(ARMS)
    for index, arm in enumerate(ARMS):
        found = [record["metrics"]["arms"][arm] for record in records]
        places = np.arange(len(found)) + (index - (len(ARMS) - 1) / 2) * width
        heights = [one["speedup"] for one in found]
        below.bar(places, heights, 0.9 * width, color=_COLORS[arm], label=arm)
        for place, height, one in zip(places, heights, found, strict=True):
            text = f"{one['f1_points']:+.1f}" if abs(one["f1_points"]) >= 0.05 else ""
            if tracks:
                text = f"{_points(one['f1_points'])}, {_points(one['mota_points'])}"
            below.annotate(text, (place, height), **_ABOVE)
    below.axhline(1, color="#64748b", linewidth=0.8)
    folds = [_label(record) for record in records]
    below.set_xticks(range(len(folds)), folds, fontsize=8)
    below.set_ylabel("times dense's speed")
    score = "F1 and MOTA minus dense's" if tracks else "F1 minus dense's"
    rest = "" if tracks else ", from 0.05 on"
    below.set_title(f"above the bars: {score} in points{rest}", fontsize=8)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    names = below.get_legend_handles_labels()
    drawn.legend(*names, loc="outside lower center", frameon=False, ncols=len(ARMS), fontsize=8)
    return drawn


def _label(record: Record) -> str:
    """What stands below a record's bars."""
    metrics = record["metrics"]
    share, f1 = f"{metrics['moving']:.1%}", f"F1 {metrics['dense_f1']:.1%}"
    if tracks := metrics.get("dense_tracks"):
        lines = [_name(record), f"{share} under boxes", f"{f1}, MOTA {tracks['mota']:.1%}"]
    else:
        lines = [f"fold {_name(record)}", f"{share} moving", f1]
    return "\n".join(lines)
