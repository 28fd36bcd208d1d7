"""The tables of the documentation that come from committed runs of the experiments.

`PAGES` says for every page which parts `python -m experiments report` writes into it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments import pages, task_report, uplink
from experiments.results import Record

__all__ = ["GAPS", "PAGES", "RESULTS", "SPEED", "TRAFFIC", "arms", "interval", "within"]

RESULTS = pages.ROOT / "experiments" / "results"

# "Up to", in the abstract of SGQ: times less traffic, times the images per second.
TRAFFIC, SPEED = 15.97, 9.22

# int8 against float32: (task of the ablation, how the page calls it, the limit in points).
GAPS = (
    ("simple_cnn on mnist 20000x3", "SimpleCNN, MNIST, 20,000 images for 3 epochs", 0.3),
    (
        "vgg6_half on fashion_mnist 8000x3",
        "VGG6 at half width, Fashion-MNIST, 8,000 for 3",
        0.5,
    ),
    ("vgg6_half on cifar10 8000x3", "VGG6 at half width, CIFAR-10 subset, 8,000 for 3", 1.0),
    ("resnet20 on fashion_mnist 5000x2", "ResNet-20, Fashion-MNIST, 5,000 for 2", 0.5),
    ("resnet20 on cifar10 5000x2", "ResNet-20, CIFAR-10 subset, 5,000 for 2", 1.0),
)
_PARTS = "simple_cnn on mnist 5000x5"  # the task that compares Octo's parts
_ARMS = {
    "int8": "`int8`",
    "int8+lac": "`int8+lac`",
    "int8+prc": "`int8+prc`",
    "int8+lac+prc": "`int8+lac+prc`",
    "zero_point": "`zero_point`",
    "switchback": "`switchback`",
    "row_wise": "`row_wise`",
    "ui8": "`ui8`",
    "per_tensor": "`per_tensor`",
    "octo": "`octo` (both, one scale per tensor)",
    "dai8": "`dai8`",
    "released": "`released`",
}
_GRADIENTS = {
    "default": "default: a scale per row or feature, stochastic",
    "one scale per gradient": "one scale per gradient, stochastic",
    "default, nearest": "default, to nearest",
    "clipped to 0.95, nearest": "clipped to 0.95, to nearest",
    "one scale per tensor, nearest": "one scale per tensor, weights too, to nearest",
}
_Arms = Mapping[str, Mapping[str, Any]]


def interval(found: Mapping[str, Any] | None) -> str:
    """A difference in points with its 90 % interval, of a summary; empty where there is none.

    >>> interval({"points": -0.5, "low": -1.0, "high": 0.001})
    '-0.50 [-1.00, +0.00]'
    """
    if found is None or found["low"] is None:
        return ""
    sign = lambda value: f"{round(value, 2) + 0.0:+.2f}"  # no negative zero
    return f"{sign(found['points'])} [{sign(found['low'])}, {sign(found['high'])}]"


def within(found: Mapping[str, Any], limit: float) -> bool | None:
    """Whether a 90 % interval lies within a limit on both sides; None where that is undecided."""
    if -limit <= found["low"] and found["high"] <= limit:
        return True
    return False if found["high"] < -limit or found["low"] > limit else None


def arms(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The arms of a task by name."""
    return {row["arm"]: row for row in rows}


def _gaps(results: Path) -> str:
    tasks = _read(results / "ablation.json")["tasks"]
    lines = []
    for task, name, limit in GAPS:
        found = arms(tasks[task])
        to = found["int8 bn"]["to_float32"]
        said = {True: "within it", False: "outside", None: "undecided"}[within(to, limit)]
        base = f"{100 * found['float32 bn']['accuracy']:.1f} %"
        lines.append([name, base, interval(to), f"{limit}", said])
    return pages.table(["network, data", "float32", "int8 - float32", "limit", "verdict"], lines)


def _octo_parts(results: Path) -> str:
    found = arms(_read(results / "ablation.json")["tasks"][_PARTS])
    lines = []
    for arm, name in _ARMS.items():
        alone, normed = found.get(arm), found[f"{arm} bn"]
        cells = [interval(alone and alone["to_int8"]), interval(normed["to_int8"])]
        worst = f"{normed['worst_dw_cosine']:.3f}"
        lines.append([name, *cells, interval(normed["to_float32"]), worst])
    header = ["arm", "without norm, to `int8`", "with BatchNorm, to `int8`"]
    return pages.table([*header, "BatchNorm, to `float32`", "worst cosine, BatchNorm"], lines)


def _fidelity(results: Path) -> str:
    models = ("vgg6", "resnet")
    found = [_read(results / f"fidelity_{m}.json")["metrics"]["policies"] for m in models]
    lines = (
        [name, *(f"{each[key]['median']:.3f}, {each[key]['least']:.3f}" for each in found)]
        for key, name in _GRADIENTS.items()
    )
    return pages.table(["gradients", *models], lines)


def _split_accuracy(results: Path) -> str:
    header = ["codec", "accuracy, %", "to float32", "up", "down", "both ways"]
    lines = (
        [
            arm["codec"],
            f"{100 * mean(arm['accuracies']):.2f}",
            interval(arm["to_float32"]),
            f"{arm['up_ratio']:.1f}x",
            f"{arm['down_ratio']:.1f}x",
            f"{arm['ratios']['float32']:.2f}x",
            f"{arm['cosine_at_start']:.3f} to {arm['cosine']:.3f}",
        ]
        for arm in _read(results / "split_accuracy.json")["arms"]
    )
    return pages.table([*header, "cosine of gradients"], lines)


def _split_link(results: Path) -> str:
    header = ["codec", "rho", "r", "kappa", "images/s", "over float32", "formula", "off by"]
    lines = (
        [
            one["codec"],
            f"{one['rho']:.1f}",
            f"{one['r']:.2f}",
            f"{one['kappa']:.3f}",
            f"{one['images_per_second']:.1f}",
            f"{one['speedup']:.2f}",
            f"{one['predicted']:.2f}",
            f"{100 * one['deviation']:+.1f}%",
            *(f"{one['over'][rival]:.2f}" for rival in ("int8", "int4", "int4_zstd")),
        ]
        for one in _read(results / "split_link.json")["links"]
    )
    return pages.table([*header, "over int8", "int4", "int4_zstd"], lines)


def _split_accuracy_said(results: Path) -> str:
    found = {arm["codec"]: arm for arm in _read(results / "split_accuracy.json")["arms"]}
    plain, masked = found["sgq_entropy"], found["sgq_masked"]
    less = [arm["ratios"]["float32"] for arm in (plain, masked)]
    near = [f"`{name}`" for name, arm in found.items() if _learns(arm)]
    four = [
        one["less"]["float32"]
        for one in _read(results / "split_link.json")["links"]
        if one["codec"] == "int4"
    ]
    over = [ratio / mean(four) for ratio in less]
    reading = lambda ratios: "passed" if max(ratios) >= TRAFFIC else "not reached"
    cosine = min(arm["cosine"] for arm in (plain, masked))
    return pages.paragraph(
        f"Within half a point of float32 are {', '.join(near)} (90 % intervals).",
        f"The round trip of whole epochs takes {less[0]:.0f} times fewer bytes than float32's,",
        f"{less[1]:.0f} times with masked gradients; the abstract's {TRAFFIC} is",
        f"{reading(less)} if it is",
        "meant against float32. Against uniform four-bit codes, packed, which are",
        f"{mean(four):.1f} times smaller than float32, it is {over[0]:.1f} and",
        f"{over[1]:.1f} times;",
        f"{TRAFFIC} is {reading(over)} in that reading. Against int4 with",
        "zstandard, which comes to",
        f"{interval(found['int4_zstd']['to_float32'])} points, SGQ's bytes are",
        f"{plain['ratios']['int4_zstd']:.2f} times fewer without masks and",
        f"{masked['ratios']['int4_zstd']:.2f} times with them: below 1 is more.",
        f"The least of the seeds' cosines is {cosine:.2f} at the end of",
        "training; 0.95 was aimed at.",
    )


def _learns(arm: Mapping[str, Any]) -> bool:
    return arm["to_float32"] is not None and within(arm["to_float32"], 0.5) is True


def _split_link_said(results: Path) -> str:
    links = _read(results / "split_link.json")["links"]
    off = sorted(abs(one["deviation"]) for one in links)
    at = max(one["rho"] for one in links)
    last = {one["codec"]: one for one in links if one["rho"] == at}
    plain, masked = last["sgq_entropy"], last["sgq_masked"]
    fast = [one["speedup"] for one in (plain, masked)]
    uniform = [one["over"][rival] for one in (plain, masked) for rival in ("int8", "int4")]
    slow = min(one["rho"] for one in links)
    most = max(one["speedup"] for one in links if one["rho"] == slow)
    reading = lambda speeds: "passed" if max(speeds) >= SPEED else "not reached"
    return pages.paragraph(
        f"Every speed is within {math.ceil(100 * off[-1])} % of the formula, all but one within",
        f"{math.ceil(100 * off[-2])} %. Where `rho` is {at:.1f} SGQ is",
        f"{fast[0]:.1f} times as fast as",
        f"float32, {fast[1]:.1f} times with masked gradients: the abstract's",
        f"{SPEED} is {reading(fast)}",
        "if it is meant against training that sends float32. Against codes that are really sent in",
        f"eight or four bits it is {reading(uniform)} ({uniform[0]:.1f} and {uniform[1]:.1f},",
        f"{uniform[2]:.1f} and {uniform[3]:.1f} with masks). Against int4 with zstandard SGQ is",
        f"{plain['over']['int4_zstd']:.2f} times as fast without masks, and",
        f"{masked['over']['int4_zstd']:.2f} times with them. {SPEED} means",
        "nothing without `rho`: at",
        f"{slow:.1f} the fastest is {most:.1f} times as fast as float32.",
    )


def _learned(results: Path) -> str:
    points = _read(results / "learned_gate.json")["metrics"]["points"]
    # Where the largest level is within several errors, it is several points.
    lines = {(point["noise"], -point["level"]): point for point in points}
    return pages.table(
        ["noise", "threshold", "patches taken", "output error of `threshold`", "of `learned`"],
        (
            [
                f"{noise:g}" if noise else "none",
                f"{-level:g}",
                f"{point['activity']['learned']:.1%}",
                f"{point['error']['threshold']:.2%}",
                f"{point['error']['learned']:.2%}",
            ]
            for (noise, level), point in sorted(lines.items())
        ),
    )


def _task(scene: str) -> Callable[[Path], str]:
    """The table of a task with labels."""

    def made(results: Path) -> str:
        records = [_read(path) for path in sorted((results / "tasks").glob(f"{scene}-*.json"))]
        return pages.table(task_report.headings(records), task_report.rows(records))

    return made


def _uplink(name: str) -> Callable[[Path], str]:
    """What an encoder's features take, and the table by activity."""

    def made(results: Path) -> str:
        (path,) = (results / "uplink").glob(f"{name}-*.json")
        record = _read(path)
        metrics = record["metrics"]
        frames, sent = zip(metrics["key"], metrics["bytes"], strict=True), sum(metrics["bytes"])
        key_bytes = sum(size for key, size in frames if key)
        equal = "in every frame" if metrics["equal"] else "**not** in every frame"
        said = pages.paragraph(
            f"**`{name}`**, features {metrics['shape']}, {len(metrics['key'])} frames of which "
            f"{sum(metrics['key'])} are key frames: {sum(metrics['whole']) / sent:.1f} times fewer "
            f"bytes than all frames whole; key frames are {key_bytes / sent:.0%} of what is sent.",
            f"The cloud's features were the device's {equal}.",
        )
        return "\n".join([said, "", *uplink.markdown(record)])

    return made


def _read(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8"))


# Page of the documentation: its parts, each made from the folder of results.
PAGES: Mapping[str, Mapping[str, Callable[[Path], str]]] = {
    "octo.md": {"gaps": _gaps, "parts": _octo_parts, "fidelity": _fidelity},
    "split.md": {
        "accuracy": _split_accuracy,
        "accuracy-said": _split_accuracy_said,
        "link": _split_link,
        "link-said": _split_link_said,
    },
    "pass.md": {"learned": _learned},
    "pass_tasks.md": {scene: _task(scene) for scene in ("highway", "vtest")},
    "uplink.md": {name: _uplink(name) for name in uplink.CONFIGS},
}
