"""The three methods together: a camera, a device, the cloud."""

from statistics import mean
from typing import Any

from experiments.claims.base import Claim, Evidence, Finding, counted, spread

__all__ = ["CLAIMS"]

_FRAMES = 3.0  # times the frames per second of the device's half
_BYTES = 12.0  # times fewer bytes per frame
_POINTS = 1.5  # of F1
_EVERY = 30  # frames between updates
_SAVES = {"pass": "half_ms", "int8": "half_ms", "sgq": "up"}  # method: what it is for


def _runs(evidence: Evidence, every: int) -> dict[str, dict[int, dict[str, Any]]]:
    """The metrics of runs on all cores and the loopback, by what is off and fold."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for record in evidence.experiments("thesis/*"):
        config = record.get("config", {})
        plain = not (config.get("cores") or config.get("link") or config.get("memory"))
        if plain and config.get("every") == every:
            found.setdefault(config["off"], {})[config["fold"]] = record["metrics"]
    return found


def _whole(every: int):
    """All on against all off."""

    def judge(evidence: Evidence) -> Finding:
        runs = _runs(evidence, every)
        folds = sorted(runs.get("nothing", {}).keys() & runs.get("all", {}).keys())
        if not folds:
            mode = f"an update every {every} frames" if every else "streaming alone"
            return Finding((f"There is no run of {mode}.",), "not run yet")
        pairs = [(runs["nothing"][fold], runs["all"][fold]) for fold in folds]
        faster = [off["half_ms"] / on["half_ms"] for on, off in pairs]
        fewer = [off["up"] / on["up"] for on, off in pairs]
        points = [100 * (on["f1"] - off["f1"]) for on, off in pairs]
        whole = [off["whole_ms"] / on["whole_ms"] for on, off in pairs]
        told = (
            f"Frames per second of the device's half: {spread(faster, '.2f', 'x')}, mean "
            f"{mean(faster):.2f}x, {len(folds)} folds; of the whole {spread(whole, '.2f', 'x')}.",
            f"Bytes per frame at the socket: {spread(fewer, '.1f', 'x')} fewer up.",
            f"F1: {spread(points, '+.2f')} points.",
        )
        held = [mean(faster) >= _FRAMES, mean(fewer) >= _BYTES, min(points) >= -_POINTS]
        return Finding(told, counted(held))

    return judge


def _shares(evidence: Evidence) -> Finding:
    runs = _runs(evidence, 0)
    on = runs.get("nothing", {})
    told, held = [], []
    for method, key in _SAVES.items():
        folds = sorted(on.keys() & runs.get(method, {}).keys())
        if not folds:
            continue
        gains = [runs[method][fold][key] / on[fold][key] for fold in folds]
        what = "bytes" if key == "up" else "milliseconds of the device's half"
        ratios = spread(gains, ".2f", "x")
        told.append(f"Without {method}: {ratios} the {what}, {len(folds)} folds.")
        held.append(mean(gains) > 1)
    if not held:
        return Finding(("No runs with one method switched off.",), "not run yet")
    return Finding(tuple(told), counted(held))


_COMMAND = ("python -m experiments thesis --out experiments/results/thesis",)
_SOURCE = "the setting of the thesis (thesis.md); the limits are this project's own"

CLAIMS = (
    Claim(
        "Thesis",
        "The three methods together: a camera's frames streamed through device and cloud.",
        _SOURCE,
        f"Three conditions, means over folds: {_FRAMES:g}x the frames per second of the device's "
        f"half, {_BYTES:g}x fewer bytes, F1 within {_POINTS} points of all off.",
        _whole(0),
        _COMMAND,
    ),
    Claim(
        "Thesis",
        f"The same while it learns, one update every {_EVERY} frames.",
        _SOURCE,
        "The same three conditions.",
        _whole(_EVERY),
        _COMMAND,
    ),
    Claim(
        "Thesis",
        "Each method has its share.",
        _SOURCE,
        "Holds for a method without which what it is for (time of the device's half, bytes) "
        "is more, mean over folds.",
        _shares,
        _COMMAND,
    ),
)
