"""What the command line prints at the end of a run: compact rich tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from experiments.extras import imported
from experiments.results import Outcome, Record
from experiments.uplink import markdown

__all__ = ["TABLES", "demo", "finished", "grid", "split_accuracy", "split_link"]

Table = Callable[[Record], Any]  # of a record


def _octo(record: Record) -> Any:
    """One arm."""
    metrics = record["metrics"]
    macs = metrics["macs"]
    rows = {
        "test accuracy": f"{metrics['test_accuracy']:.1%}",
        "  in the arm's own arithmetic": f"{metrics['test_accuracy_as_trained']:.1%}",
        "step": f"{metrics['step_ms']:.1f} ms",
        "compilation": f"{metrics['compile_seconds']:.1f} s",
        "saved for backward": _megabytes(metrics["saved_bytes"]),
        "scratch memory": _megabytes(metrics["temp_bytes"]),
        "multiply-accumulates in int8": f"{macs.get('int8', 0) / sum(macs.values()):.0%}",
    }
    table = _table(record["name"], "")
    for label, value in rows.items():
        table.add_row(label, value)
    return table


def _compare(record: Record) -> Any:
    """The float32 and the int8 arm side by side."""
    metrics = record["metrics"]
    single, whole, summary = metrics["float32"], metrics["int8"], metrics["summary"]
    table = _table("Octo", "float32", f"int{record['config']['bits']}", "")
    table.add_row(
        "test accuracy",
        f"{single['test_accuracy']:.2%}",
        f"{whole['test_accuracy']:.2%}",
        f"{summary['accuracy_points']:+.2f} points",
    )
    seconds = (median(metrics[f"{arm}_seconds"]) for arm in ("float32", "int8"))
    table.add_row(
        "step", *(f"{1e3 * taken:.1f} ms" for taken in seconds), f"{summary['speedup']:.2f}x"
    )
    for label, key in (("saved for backward", "saved_bytes"), ("scratch memory", "temp_bytes")):
        cells = (_megabytes(arm[key]) for arm in (single, whole))
        table.add_row(label, *cells, f"{summary[key + '_ratio']:.2f}x")
    table.add_row("multiply-accumulates in int8", "0%", f"{summary['int8_share']:.0%}", "")
    return table


def _sgq(record: Record) -> Any:
    """Both arms, and what crosses the cut per step in every way."""
    metrics = record["metrics"]
    arms = _table("SGQ", "float32", "sgq")
    for label, key in (
        ("test accuracy", "test_accuracy"),
        ("  with features as in training", "test_accuracy_as_trained"),
    ):
        arms.add_row(label, *(f"{metrics[arm][key]:.2%}" for arm in ("float32", "sgq")))
    ways = _table("per step", "up", "down", "less", "features", "gradient error")
    single = 4 * metrics["features"]
    ways.add_row("float32", *(2 * [f"{single / 1e3:.1f} kB"]), "1.0x", "exact", "0%")
    for name, way in metrics["crossings"].items():
        up, down = way["up"], way["down"]
        ways.add_row(
            name,
            f"{up / 1e3:.1f} kB",
            f"{down / 1e3:.1f} kB",
            f"{2 * single / (up + down):.1f}x",
            f"{way['features_db']:.1f} dB",
            f"{way['gradient_error']:.1%}",
        )
    return imported("rich.console").Group(arms, ways)


def _pass(record: Record) -> Any:
    """Both gates against the dense network."""
    metrics = record["metrics"]
    table = _table("PASS", "dense", "exact", "threshold")
    add = lambda label, dense, show: table.add_row(
        label, dense, *(show(metrics[arm]) for arm in ("exact", "threshold"))
    )
    add("speed-up over the clip", "1x", lambda arm: f"{arm['speedup']:.2f}x")
    dense = f"{median(metrics['dense_ms']):.1f} ms"
    add("frame, median", dense, lambda arm: f"{median(arm['ms']):.1f} ms")
    add("patches recomputed", "100%", lambda arm: f"{mean(arm['active']):.1%}")
    add("multiply-accumulates", "100%", lambda arm: f"{arm['macs_share']:.1%}")
    add("output error", "0%", lambda arm: f"{arm['output_error']:.2%}")
    add("largest difference", "0", lambda arm: f"{arm['largest_difference']:.3g}")
    return table


def _gate(record: Record) -> Any:
    """Both gates at equal activity, and what they cost."""
    metrics = record["metrics"]
    points = _table("noise", "threshold", "patches taken", "learned's", "output error", "learned's")
    for point in metrics["points"]:
        points.add_row(
            f"{point['noise']:g}",
            f"{point['level']:g}",
            *(f"{share:.1%}" for share in point["activity"].values()),
            *(f"{error:.2%}" for error in point["error"].values()),
        )
    costs = _table("a frame", "network", "threshold", "learned")
    shares = (f"{ms:.2f} ms, {ms / metrics['dense_ms']:.1%}" for ms in metrics["gate_ms"].values())
    costs.add_row("time", f"{metrics['dense_ms']:.1f} ms", *shares)
    macs = metrics["gate_macs"], metrics["dense_macs"]
    costs.add_row("multiply-accumulates", f"{macs[1]}", "", f"{macs[0]}, {macs[0] / macs[1]:.2%}")
    return imported("rich.console").Group(points, costs)


def _outcomes(record: Record) -> Any:
    """Every gate in every environment."""
    headings = ("speed-up", "patches", "MACs", "error", "change", "dense's")
    table = _table("scene", "gate", *headings)
    for name, found in record["metrics"]["environments"].items():
        for gate, arm in found["arms"].items():
            shares = (arm["active"], arm["macs_share"], arm["output_error"], arm["change"])
            cells = (f"{share:.1%}" for share in (*shares, found["dense_change"]))
            table.add_row(name, gate, f"{arm['speedup']:.2f}x", *cells)
    return table


def _audit(record: Record) -> Any:
    """The audit's own table."""
    return imported("rich.text").Text(record["metrics"]["table"] + "\n")


def _fidelity(record: Record) -> Any:
    """Cosines with float32's gradients."""
    table = _table("cosine with float32", "median kernel", "least kernel", "least of the rest")
    for name, policy in record["metrics"]["policies"].items():
        cells = (policy[key] for key in ("median", "least", "least_other"))
        table.add_row(name, *(f"{cell:.4f}" for cell in cells))
    return table


def _uplink(record: Record) -> Any:
    """Bytes of differences by activity."""
    title = "bit-equal in every frame" if record["metrics"]["equal"] else "NOT bit-equal"
    header, _, *rows = ([cell.strip() for cell in r.split("|")[1:-1]] for r in markdown(record))
    table = imported("rich.table").Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    return table


TABLES: dict[str, Table] = {
    "octo": _octo,
    "sgq": _sgq,
    "pass": _pass,
    "uplink": _uplink,
    "gate": _gate,
    "outcomes": _outcomes,
    "audit": _audit,
    "fidelity": _fidelity,
}
_PARTS: dict[str, Table] = {**TABLES, "octo": _compare}  # of the demo


def finished(table: Table, outcome: Outcome) -> Any:
    """The table of a finished experiment, and where its figures are."""
    record = outcome.record
    note = f"results: [bold]{outcome.path}[/bold]"
    if outcome.reused:
        commit = record["environment"]["commit"]
        note += (
            f"\nnot run again: it finished on {record['finished'][:10]} (commit {commit}); "
            "remove the file to run it anew"
        )
    return imported("rich.console").Group(table(record), note)


def demo(records: Mapping[str, Record], report: Path) -> Any:
    """A table per part of the demo, and where the report is."""
    tables = (_PARTS[part](record) for part, record in records.items())
    return imported("rich.console").Group(*tables, f"report: [bold]{report}[/bold]")


def grid(summary: Mapping[str, Any], out: Path) -> Any:
    """A table per task of a grid, the best arm first, and where the figures are."""
    tables = []
    for task, arms in summary.items():
        table = _table("arm", "accuracy", "spread", "seeds", "to float32", "to int8", "step")
        table.title = task
        for arm in arms:
            table.add_row(
                arm["arm"],
                f"{arm['accuracy']:.2%}",
                "" if arm["spread"] is None else f"{100 * arm['spread']:.2f}",
                str(arm["seeds"]),
                _difference(arm["to_float32"]),
                _difference(arm["to_int8"]),
                f"{arm['step_ms']:.1f} ms",
            )
        tables.append(table)
    note = "differences in percentage points, paired by seed, with 90 % intervals"
    where = f"summary: [bold]{out / 'summary.json'}[/bold]"
    return imported("rich.console").Group(*tables, note, where)


def split_accuracy(arms: Sequence[Any]) -> Any:
    """Codecs of split training: accuracy next to float32's, traffic, gradients.

    Args:
      arms: of `links.accuracy`.
    """
    headings = ("codec", "accuracy", "to float32", "up", "down", "both ways less than float32")
    table = _table(*headings, "than int4_zstd", "cosine of gradients")
    for arm in arms:
        to = None if arm.to_float32 is None else arm.to_float32._asdict()
        table.add_row(
            arm.codec,
            f"{mean(arm.accuracies):.2%}",
            _difference(to),
            f"{arm.up_ratio:.1f}x",
            f"{arm.down_ratio:.1f}x",
            f"{arm.ratios['float32']:.2f}x",
            f"{arm.ratios['int4_zstd']:.2f}x",
            f"{arm.cosine_at_start:.3f} to {arm.cosine:.3f}",
        )
    return table


def split_link(found: Sequence[Any]) -> Any:
    """Codecs on links: images per second, and how many times float32's next to the formula.

    Args:
      found: of `links.link`.
    """
    headings = ("codec", "link", "rho", "r", "kappa", "images/s", "over float32", "formula")
    table = _table(*headings, "deviation", "beforehand", "over int8", "int4", "int4_zstd")
    for one in found:
        table.add_row(
            one.codec,
            one.link,
            f"{one.rho:.1f}",
            f"{one.r:.2f}",
            f"{one.kappa:.3f}",
            f"{one.images_per_second:.1f}",
            f"{one.speedup:.2f}x",
            f"{one.predicted:.2f}x",
            f"{one.deviation:+.1%}",
            f"{one.beforehand:.2f}x",
            *(f"{one.over.get(name, math.nan):.2f}x" for name in ("int8", "int4", "int4_zstd")),
        )
    return table


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["low"] is None:
        return f"{found['points']:+.2f} ({found['verdict']})"
    bounds = rf"\[{found['low']:+.2f}, {found['high']:+.2f}]"  # not rich's markup
    return f"{found['points']:+.2f} {bounds} {found['verdict']}"


def _table(*headings: str) -> Any:
    """An empty table, labels to the left and figures to the right."""
    table = imported("rich.table").Table(box=imported("rich.box").SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
