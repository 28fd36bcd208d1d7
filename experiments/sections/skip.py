"""PASS in the report: a record of `experiments.skip`, with the video that it stands for."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean, median
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from experiments import plots, shading
from experiments.results import Record
from experiments.sections import html
from experiments.skip import ARMS, PUBLISHED

__all__ = ["section"]

_TEMPLATE = Path(__file__).with_suffix(".html")
_WORDS = ("faster", "slower")


def section(record: Record) -> str:
    """The section of a record of `experiments.skip`, as HTML.

    Args:
      record: with config and metrics.
    """
    config, metrics = record["config"], record["metrics"]
    arms = {name: metrics[name] for name in ARMS}
    step = 1 / metrics["fps"]
    shares = {"changed": metrics["changed"]} | {name: arm["active"] for name, arm in arms.items()}
    times = {"dense": metrics["dense_ms"]} | {name: arm["ms"] for name, arm in arms.items()}
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        lead=_lead(metrics),
        cards=html.cards(_cards(metrics)),
        movie=_movie(record),
        source=_source(config["video"]),
        stills="".join(_still(record, name) for name in ARMS),
        active=plots.timeline(shares, step, "of the whole", percent=True),
        times=plots.timeline(
            {name: _smooth(values) for name, values in times.items()}, step, "milliseconds"
        ),
        heats="".join(_heat(record, name) for name in ARMS),
        table=_table(metrics),
        patch=config["patch"],
        threshold=f"{config['threshold']:.3f}",
        claims=html.claims(_claims(metrics)),
        notes=html.listed(_notes(config, metrics)),
    )


def _percent(share: float) -> str:
    if 0 < share < 1e-5:
        return "under 0.001 %"  # rounding of float32
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.3f} %"


def _faster(arm: Mapping[str, Any]) -> str:
    return html.times(arm["speedup"], *_WORDS)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _smooth(values: Sequence[float]) -> list[float]:
    """Medians over five neighbours."""
    return [median(values[max(0, at - 2) : at + 3]) for at in range(len(values))]


def _lead(metrics: Mapping[str, Any]) -> str:
    h, w = metrics["size"]
    lossless, lossy = (metrics[name] for name in ARMS)
    return (
        f"A network looks at {len(metrics['dense_ms'])} frames ({w}x{h}) of a fixed camera, and "
        "most of each frame is as it was. Recomputing only the patches that a changed bit can "
        f"reach is {_faster(lossless)} and loses nothing but rounding "
        "(<span class='exact'>exact</span>); letting small changes pass is "
        f"{_faster(lossy)}, with {_percent(lossy['output_error'])} of error in the output "
        "(<span class='threshold'>threshold</span>)."
    )


def _cards(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    lossless, lossy = (metrics[name] for name in ARMS)
    pair = lambda show: (
        f"<span class='exact'>{show(lossless)}</span> · "
        f"<span class='threshold'>{show(lossy)}</span>"
    )
    return [
        (
            f"Speed-up, {name}",
            _faster(metrics[name]),
            f"<span class='dense'>{median(metrics['dense_ms']):.1f} ms</span> → "
            f"<span class='{name}'>{median(metrics[name]['ms']):.1f} ms</span>",
        )
        for name in ARMS
    ] + [
        (
            "Multiply-adds",
            f"{_percent(lossy['macs_share'])}",
            f"of dense: {pair(lambda arm: _percent(arm['macs_share']))}",
        ),
        (
            "Output error",
            f"{_percent(lossy['output_error'])}",
            pair(lambda arm: _percent(arm["output_error"])),
        ),
    ]


def _source(path: str) -> str:
    if path:
        return f"Source: <code>{escape(path)}</code>."
    return (
        "Clip: “One-by-one person detection”, © Intel, CC BY 4.0, cut and encoded again. Its "
        "source has a key frame every second, at which most patches change a little."
    )


def _movie(record: Record) -> str:
    """The shaded video as a ``data:`` address."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pass.mp4"
        shading.movie(record, path)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def _still(record: Record, name: str) -> str:
    """The frame whose share of recomputed patches is nearest to the threshold gate's mean."""
    shares = np.array(record["metrics"]["threshold"]["active"][1:])
    index = 1 + int(np.abs(shares - shares.mean()).argmin())
    share = record["metrics"][name]["active"][index]
    image = plots.jpeg(shading.still(record, name, index))
    return (
        f"<div class='card'><h3>Frame {index}, {name}: {_percent(share)} recomputed</h3>"
        f"<img class='wide' alt='frame {index}, {name}' src='{image}'></div>"
    )


def _heat(record: Record, name: str) -> str:
    shares = shading.masks(record, name).mean(0)
    drawn = plots.heat(shares, record["metrics"]["size"])
    return f"<div class='card'><h3>Of the frames, {name}</h3>{drawn}</div>"


def _table(metrics: Mapping[str, Any]) -> str:
    row = lambda label, dense, show: (label, dense, *(show(metrics[name]) for name in ARMS))
    series = lambda key: lambda arm: _percent(mean(arm[key]))
    lines = (
        row("Speed-up over the clip", "1", lambda arm: f"{arm['speedup']:.2f}×"),
        row(
            "Frame, median",
            f"{median(metrics['dense_ms']):.1f} ms",
            lambda arm: f"{median(arm['ms']):.1f} ms",
        ),
        row("Pixels that changed, mean", _percent(mean(metrics["changed"])), lambda arm: ""),
        row("Patches that the gate took, mean", "100 %", series("taken")),
        row("Patches recomputed, mean of all blocks", "100 %", series("active")),
        row(
            "Multiply-accumulates, margins included",
            f"{metrics['dense_macs'] / 1e9:.2f} G",
            lambda arm: _percent(arm["macs_share"]),
        ),
        row("Output error over the clip", "0 %", lambda arm: _percent(arm["output_error"])),
        row("… of a frame, 95th percentile", "0 %", lambda arm: _percent(arm["output_error_p95"])),
        row("Largest difference to dense", "0", lambda arm: f"{arm['largest_difference']:.3g}"),
        row(
            "Change of the output from frame to frame",
            _percent(metrics["dense_change"]),
            lambda arm: _percent(arm["change"]),
        ),
        row(
            "Scratch memory",
            _megabytes(metrics["dense_temp_bytes"]),
            lambda arm: _megabytes(arm["temp_bytes"]),
        ),
        row("Caches", "none", lambda arm: _megabytes(arm["state_bytes"])),
        row("Tracing and compiling", "", lambda arm: f"{arm['compile_seconds']:.1f} s"),
    )
    return html.rows(("", "dense", *ARMS), lines)


def _gain(lossless: float, lossy: float) -> str:
    """Whether speed-ups are more than the noise of a shared machine, about a tenth."""
    return "yes" if lossless > 1.1 else "partly" if lossy > 1.1 else "no"


def _claims(metrics: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    lossless, lossy = (metrics[name] for name in ARMS)
    idle = [
        dense / skipped
        for dense, skipped, active in zip(
            metrics["dense_ms"], lossy["ms"], lossy["active"], strict=True
        )
        if active < 0.1
    ]
    spare = "no frame here has so few"
    if idle:
        spare = f"in the {len(idle)} frames with under 10 %, {html.times(median(idle), *_WORDS)}"
    both = " and ".join(f"{ratio}× over {peer}" for peer, ratio in PUBLISHED.items())
    return (
        (
            "Faster processing",
            _gain(lossless["speedup"], lossy["speedup"]),
            f"{_faster(lossless)} without loss, {_faster(lossy)} with the threshold. What is "
            f"gained depends on how much moves: {spare}.",
        ),
        (
            f"Up to {both}, on a Jetson Nano",
            "no",
            "Neither network, weights nor device is here, and the tables were not available.",
        ),
        (
            "Less memory",
            "no",
            f"The caches cost {_megabytes(lossy['state_bytes'])} more, and scratch memory is "
            f"{_megabytes(lossy['temp_bytes'])} against {_megabytes(metrics['dense_temp_bytes'])}, "
            "since a frame may have to be computed whole.",
        ),
        (
            "Less computation",
            "yes" if lossless["macs_share"] < 1 else "no",
            f"{_percent(lossless['macs_share'])} of the multiply-adds for the exact gate, "
            f"{_percent(lossy['macs_share'])} for the threshold, margins of patches included.",
        ),
        (
            "The model's quality is kept",
            "partly",
            f"The exact gate differs from dense by {lossless['largest_difference']:.2g} at most, "
            f"which is rounding; the threshold by {_percent(lossy['output_error'])} of the output. "
            "No task was scored: the weights are random.",
        ),
        (
            "Stable predictions",
            "partly",
            "The output changes from frame to frame by "
            f"{_percent(metrics['dense_change'])} dense, {_percent(lossy['change'])} with the "
            "threshold, and an input is never off by more than the threshold, however long it "
            "drifts. There are no predictions to score.",
        ),
        (
            "Adaptation to the environment",
            "partly",
            "Work follows what happens in front of the camera (the timeline above): between "
            f"{100 * min(lossy['active']):.0f} % and {100 * max(lossy['active']):.0f} % of the "
            "patches. The gate itself does not learn.",
        ),
        (
            "Gates that learn by themselves, for any task",
            "no",
            "These gates compare pixels. The released gate of the paper runs the whole convolution "
            "and saves nothing; here what is skipped is not computed.",
        ),
    )


def _notes(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "Time is from a uint8 frame in memory to the output, with the detection of changes and "
        "without decoding, on both sides; dense and both gates take turns frame by frame in one "
        "process. The speed-up is a ratio of sums over the clip, its dense first frame included.",
        "The output error is the root of the summed squared error over that of the summed squared "
        "dense output. A patch is <i>taken</i> where the gate lets the new input in, "
        "<i>recomputed</i> where its output can depend on one.",
        "The network is five 3x3 convolutions with random weights: only the ratios mean anything, "
        "and another network has others.",
        f"Patches of {config['patch']} pixels, threshold {255 * config['threshold']:.0f}/255. The "
        "pictures show the patches of the first block of layers; the shares are of all blocks.",
        "The bundled clip was encoded so that what stands still mostly decodes to the same bits, "
        "as a camera with a low bit rate does; the exact gate lives on that. A noisy camera "
        "leaves it nothing to skip.",
        "Only abstracts and a partial release of PASS were at hand, not the papers' bodies.",
    )
