"""What a record of `experiments.sgq` shows: accuracy across the cut, and bytes."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from experiments import plots
from experiments.results import Record
from experiments.sgq import CUTS, PUBLISHED

__all__ = ["section"]

_COLORS = {"sgq": "int8", "float32": "float32"}  # arm -> colour of `plots` and of the page


def section(record: Record) -> str:
    """The part of a report on SGQ, as an HTML fragment.

    Args:
      record: of `experiments.sgq`: its config and metrics.
    """
    config, metrics = record["config"], record["metrics"]
    return "".join(
        (
            f"<p class='lead'>{_lead(config, metrics)}</p>",
            f"<div class='grid four'>{_cards(config, metrics)}</div>",
            "<div class='grid two' style='margin-top:16px'>",
            f"<div class='card'><h3>Test accuracy</h3>{_accuracy(metrics)}{_legend()}</div>",
            f"<div class='card'>{_bars(metrics)}</div></div>",
            "<div class='card' style='margin-top:16px; overflow-x:auto'>",
            f"<h3>What crosses the cut per step, after training</h3>{_table(metrics)}</div>",
            "<div class='card' style='margin-top:16px'><h3>What is claimed, and what is not</h3>",
            f"<ul>{_claims(config, metrics)}</ul></div>",
        )
    )


def _lead(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    return (
        "A device has the first layers, a server the others. What crosses between them in every "
        f"step, features in {config['bits']} bits and gradients in 8, takes "
        f"{_ratio(metrics, 'sgq', 'up', 'down'):.1f}× fewer bytes than <span class='float32'>"
        "float32</span>, and the network learns <span class='int8'>across the cut</span>: "
        f"{100 * metrics['sgq']['test_accuracy_as_trained']:.1f} % of the test images right "
        f"against {100 * metrics['float32']['test_accuracy']:.1f} %."
    )


def _bytes(count: float) -> str:
    return f"{count / 1e3:.1f} kB"


def _percent(way: Mapping[str, Any]) -> str:
    """The relative error of a gradient."""
    return f"{100 * way['gradient_error']:.1f} %"


def _single(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """The crossing of float32."""
    count = 4 * metrics["features"]
    return {"up": count, "down": count}


def _ratio(metrics: Mapping[str, Any], name: str, *ways: str) -> float:
    """How many times fewer bytes than float32, of some ways together."""
    single, way = _single(metrics), metrics["crossings"][name]
    return sum(single[key] for key in ways) / sum(way[key] for key in ways)


def _points(metrics: Mapping[str, Any]) -> float:
    """Accuracy across the cut minus that of float32, in percentage points."""
    return 100 * (metrics["sgq"]["test_accuracy_as_trained"] - metrics["float32"]["test_accuracy"])


def _cards(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    way = metrics["crossings"]["sgq"]
    accuracies = " → ".join(
        f"<span class='{_COLORS[arm]}'>{100 * metrics[arm][key]:.2f} %</span>"
        for arm, key in (("float32", "test_accuracy"), ("sgq", "test_accuracy_as_trained"))
    )
    cards = (
        ("Test accuracy", f"{_points(metrics):+.2f} points".replace("-", "−"), accuracies),
        (
            "Features, up",
            f"{_ratio(metrics, 'sgq', 'up'):.2f}× less",
            f"{config['bits']}-bit codes, with all side information",
        ),
        (
            "Gradients, down",
            f"{_ratio(metrics, 'sgq', 'down'):.2f}× less",
            "unbiased 8-bit codes",
        ),
        (
            "Both, after zstd",
            f"{_ratio(metrics, 'sgq + zstd', 'up', 'down'):.1f}× less",
            f"features at {way['features_db']:.1f} dB, gradients {_percent(way)} off",
        ),
    )
    return "".join(
        f"<div class='card'><h3>{title}</h3><div class='big'>{big}</div>"
        f"<p class='small'>{small}</p></div>"
        for title, big, small in cards
    )


def _accuracy(metrics: Mapping[str, Any]) -> str:
    """Accuracy by epoch; SGQ has int8's colour, as a line without a name of its own."""
    columns = {
        _COLORS[arm]: {"": [epoch["test_accuracy"] for epoch in metrics[arm]["history"]]}
        for arm in _COLORS
    }
    return plots.curves(columns, percent=True).replace(">int8<", ">SGQ<")


def _legend() -> str:
    return (
        "<p class='small'>of the parameters in the plain float32 model, after each epoch of "
        "training <span class='int8'>across the cut</span> and "
        "<span class='float32'>without one</span></p>"
    )


def _bars(metrics: Mapping[str, Any]) -> str:
    """Bytes of both ways, to one scale."""
    single = _single(metrics)
    sizes = {"float32": single["up"] + single["down"]}
    sizes |= {name: way["up"] + way["down"] for name, way in metrics["crossings"].items()}
    return "<h3>Bytes per step, both ways</h3>" + "".join(
        f"<div class='bar' style='grid-template-columns:92px 1fr 78px'><span>{name}</span>"
        f"<span><i style='width:{100 * size / sizes['float32']:.1f}%;"
        f"background:var(--{'int8' if name.startswith('sgq') else 'float32'})'></i></span>"
        f"<span>{_bytes(size)}</span></div>"
        for name, size in sizes.items()
    )


def _table(metrics: Mapping[str, Any]) -> str:
    head = ("", "up", "down", "fewer bytes", "at the start", "features", "gradient error")
    rows = [
        (
            name,
            _bytes(way["up"]),
            _bytes(way["down"]),
            f"{_ratio(metrics, name, 'up', 'down'):.1f}×",
            f"{_at_start(metrics, name):.1f}×",
            f"{way['features_db']:.1f} dB",
            _percent(way),
        )
        for name, way in metrics["crossings"].items()
    ]
    up, down = map(_bytes, _single(metrics).values())
    rows.insert(0, ("float32", up, down, "1×", "1×", "exact", "0 %"))
    cells = lambda row, tag: "".join(f"<{tag}>{cell}</{tag}>" for cell in row)
    lines = (f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(head, 'th')}</tr>{''.join(lines)}</table>"


def _at_start(metrics: Mapping[str, Any], name: str) -> float:
    """How many times fewer bytes than float32 with the first parameters."""
    way = metrics["crossings_at_start"][name]
    return 8 * metrics["features"] / (way["up"] + way["down"])


def _claims(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    tested, accuracy = metrics["test_images"], metrics["float32"]["test_accuracy"]
    error = 100 * sqrt(accuracy * (1 - accuracy) / tested)
    both = _ratio(metrics, "sgq", "up", "down")
    shorter, rival = (_ratio(metrics, name, "up", "down") for name in ("sgq + zstd", "int4 + zstd"))
    quantizers = ", ".join(f"{name} {db:.1f} dB" for name, db in metrics["features_db"].items())
    ways = metrics["crossings"]
    traffic, speed = PUBLISHED["traffic_ratio"], PUBLISHED["images_per_second_ratio"]
    claims = (
        "The codec is SGQ-style, reconstructed from the paper's abstract; its body was not at "
        "hand. The spatial level that the abstract names is not here.",
        f"The network is cut before <code>{CUTS[config['model']]}</code>, in one process: both "
        "sides compute from what they would have decoded. Bytes are those of checked frames of "
        "real batches; labels (a byte an image) and network headers are counted in no row.",
        f"<b>“4-bit at FP32 accuracy”: {_shown(config, metrics, error)}.</b> "
        f"{_points(metrics):+.2f} points with {config['bits']}-bit features and 8-bit gradients, "
        f"one seed; {tested:,} test images have a standard error of {error:.1f} points.",
        f"<b>“Up to {traffic}× less traffic”: not shown by SGQ alone</b>, which sends "
        f"{both:.1f}× fewer bytes than float32, both ways. With a general coder behind it, "
        f"{shorter:.1f}× ({_at_start(metrics, 'sgq + zstd'):.1f}× before training); per-tensor "
        f"INT4 with the same coder, {rival:.1f}× ({_at_start(metrics, 'int4 + zstd'):.1f}×). What "
        "arrives differs: "
        f"features at {ways['sgq']['features_db']:.1f} dB against "
        f"{ways['int4']['features_db']:.1f}, gradients {_percent(ways['sgq'])} off and unbiased "
        f"against {_percent(ways['int4'])} off and rounded to nearest. "
        "INT4 was not trained with.",
        f"<b>“{speed}× images per second”: not shown.</b> It depends on a network's bandwidth and "
        "a device's speed, and neither is here.",
        f"What the quantizers keep of these features, in {config['bits']} bits: {quantizers}. They "
        "differ in what a coder makes of their codes, too.",
    )
    return "".join(f"<li>{claim}</li>" for claim in claims)


def _shown(config: Mapping[str, Any], metrics: Mapping[str, Any], error: float) -> str:
    """Whether the accuracies bear the claim out, in a word."""
    if config["bits"] != 4:
        return "not tried with these settings"
    return "shown for this network and data" if _points(metrics) > -2 * error else "not shown"
