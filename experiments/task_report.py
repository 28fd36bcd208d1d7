"""What a person looks at of `experiments.tasks`: a table, the same as Markdown, and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.extras import imported
from experiments.results import Record
from experiments.tasks import ARMS

__all__ = ["HEADINGS", "figure", "rows", "table", "written"]

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

_SHOWN = (0, 1, 2, 3, 4, 5, 8, 9)  # of `HEADINGS`: what fits into a terminal

_COLORS = dict(zip(ARMS, ("#0d9488", "#d97706", "#2563eb", "#db2777", "#9333ea"), strict=True))


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """A row for dense and for every arm, fold by fold, under `HEADINGS`.

    Change and pixels that turn are from frame to frame, caches and scratch memory over dense's
    scratch memory.

    Args:
      records: of `experiments.tasks`.
    """
    found = []
    for record in records:
        metrics = record["metrics"]
        name = f"{record['config']['fold']} ({metrics['moving']:.1%} moving)"
        dense = ("1.00x", "0 %", "0 %", f"{metrics['changed']:.1%} of pixels", "100 %", "100 %")
        change = (f"{metrics['dense_change']:.2%}", f"{metrics['dense_flips']:.3%}")
        memory = f"{metrics['dense_temp_bytes'] / 1e6:.1f} MB"
        found.append((name, "dense", f"{metrics['dense_f1']:.2%}", "", *dense, *change, memory))
        found += [
            (
                name,
                arm,
                f"{one['f1']:.2%}",
                f"{round(one['f1_points'], 2) + 0.0:+.2f}",  # no negative zero
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


def table(records: Sequence[Record], out: Path) -> Any:
    """The rows as a rich table, without some columns, and where the files are."""
    shown = imported("rich.table").Table(box=imported("rich.box").SIMPLE_HEAD)
    for index in _SHOWN:
        shown.add_column(HEADINGS[index], justify="right" if index > 1 else "left")
    for row in rows(records):
        shown.add_row(*(row[index] for index in _SHOWN))
    note = f"results: [bold]{out}[/bold], with report.md and report.png"
    return imported("rich.console").Group(shown, note)


def written(records: Sequence[Record], out: Path) -> None:
    """Writes ``report.md`` and ``report.png`` into a folder."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows(records)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (out / "report.md").write_text(text, encoding="utf-8")
    figure(records).savefig(out / "report.png", dpi=150, metadata={"Software": None})


def figure(records: Sequence[Record]) -> Any:
    """Frame by frame what was recomputed, and fold by fold the speed-up."""
    drawn = imported("matplotlib.figure").Figure(figsize=(8, 5.6), layout="constrained")
    above, below = drawn.subplots(2, 1)
    start, edges = 0, [0]
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
    above.set_xlabel("frame, fold after fold")
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
            below.annotate(text, (place, height), ha="center", va="bottom", fontsize=7)
    below.axhline(1, color="#64748b", linewidth=0.8)
    folds = [
        f"fold {r['config']['fold']}\n{r['metrics']['moving']:.1%} moving\n"
        f"F1 {r['metrics']['dense_f1']:.1%}"
        for r in records
    ]
    below.set_xticks(range(len(folds)), folds, fontsize=8)
    below.set_ylabel("times dense's speed")
    below.set_title("above the bars: F1 minus dense's in points, from 0.05 on", fontsize=8)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    names = below.get_legend_handles_labels()
    drawn.legend(*names, loc="outside lower center", frameon=False, ncols=len(ARMS), fontsize=8)
    return drawn
