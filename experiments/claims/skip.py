"""PASS's claims (chapter 5; AAAI 2023, TPAMI 2024): six outcomes, and two speed-ups."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.claims.base import Claim, Evidence, Finding, Verdict, counted, spread
from experiments.results import Record

__all__ = ["CLAIMS", "reached"]

FASTER = 1.1  # times; machines here move by a tenth
_POINTS = 1.0  # of F1 that may be lost
_ERROR = 0.01  # of the output over a clip
_BAD = 0.02  # of the output, 95th percentile of the frames
_NEAR = 0.02  # of the patches: activities that far apart are equal
_COST = 0.05  # of the network's time, for a gate
_MOVES = 0.01  # of the frame: less is as good as still
_NOT_SLOWER = 0.9  # times dense's speed
_ARM = "key"  # of the task with labels: the arm that is proposed for use
_GATES = ("exact", "threshold")


def _clip(evidence: Evidence) -> Record:
    (record,) = evidence.experiments("outcomes/*")
    return record["metrics"]


def _folds(evidence: Evidence) -> dict[str, Mapping[str, Any]]:
    """The metrics of the tasks with labels, by name: a fold of highway, or vtest."""
    return {record["name"]: record["metrics"] for record in evidence.experiments("tasks/*")}


def _faster(evidence: Evidence) -> Finding:
    arms = _clip(evidence)["environments"]["clip"]["arms"]
    found = {f"clip, `{gate}`": arms[gate] for gate in _GATES}
    told = [
        f"{name}: {arm['speedup']:.2f}x [{arm['speedup_low']:.2f}, {arm['speedup_high']:.2f}], "
        f"{arm['active']:.0%} recomputed, error {arm['output_error']:.2%}."
        for name, arm in found.items()
    ]
    folds = {name: metrics["arms"][_ARM] for name, metrics in _folds(evidence).items()}
    each = ", ".join(f"{name} {arm['speedup']:.2f}x" for name, arm in folds.items())
    told.append(f"Tasks, `{_ARM}`: {each}.")
    speedups = [arm["speedup"] for arm in (*found.values(), *folds.values())]
    return Finding(tuple(told), counted(speedup >= FASTER for speedup in speedups))


def reached(rows: Sequence[Mapping[str, Any]], ratio: float) -> float | None:
    """The largest share that moves at which a speed-up is still reached.

    Between measured shares the logarithm of the speed-up is taken to be linear.

    Args:
      rows: of one case of ``python -m benchmarks pass``.
      ratio: the speed-up.

    Returns:
      A share of 0..1, or None where not even a still scene reaches it.

    >>> rows = [{"active": 0.0, "speedup": 16.0}, {"active": 0.5, "speedup": 4.0}]
    >>> round(reached(rows, 8.0), 6), reached(rows, 20.0)
    (0.25, None)
    """
    points = sorted((row["active"], math.log(row["speedup"])) for row in rows)
    wanted = math.log(ratio)
    found = None
    for (share, fast), (after, slow) in zip(points, [*points[1:], points[-1]], strict=True):
        if fast < wanted:
            continue
        found = share
        if slow < wanted:
            found += (after - share) * (fast - wanted) / (fast - slow)
    return found


def _reached(ratio: float, peer: str):
    """Whether a speed-up is reached on the clip, or at some share of what moves at all."""

    def judge(evidence: Evidence) -> Finding:
        rows = evidence.benchmark("pass")["rows"]
        shares = {
            case: reached([row for row in rows if row["case"] == case], ratio)
            for case in dict.fromkeys(row["case"] for row in rows)
        }
        said = ", ".join(
            f"`{case}` {'never' if share is None else f'at {share:.2%} or less'}"
            for case, share in shares.items()
        )
        arms = _clip(evidence)["environments"]["clip"]["arms"]
        best = max(arms.values(), key=lambda arm: arm["speedup"])
        good = [arm["speedup"] for arm in arms.values() if arm["output_error"] <= _ERROR]
        clips = evidence.benchmark_if_run("clips")
        real = [row for row in clips["rows"] if row["error"] <= _ERROR] if clips else []
        good += [row["speedup"] for row in real]
        others = (f"{row['case']} {row['speedup']:.2f}x" for row in real)
        told = (
            f"Share of the frame that may move: {said}.",
            *([f"Clips, each within {_ERROR:.0%}: {', '.join(others)}."] if real else []),
            f"Clips: {max(good, default=0):.2f}x at most with an error within {_ERROR:.0%}; "
            f"the bundled one {best['speedup']:.2f}x with an error of {best['output_error']:.1%}.",
            f"{peer}, its weights and a Jetson Nano are not here: these are other networks on "
            "another machine.",
        )
        return Finding(told, _verdict(max(good, default=0) >= ratio, shares))

    def _verdict(on_clip: bool, shares: Mapping[str, float | None]) -> Verdict:
        if on_clip:
            return "confirmed"
        moving = any(share and share >= _MOVES for share in shares.values())
        return "partly" if moving else "not reproduced"

    return judge


def _memory(evidence: Evidence) -> Finding:
    clip = _clip(evidence)
    dense = clip["dense_temp_bytes"]
    arms = clip["environments"]["clip"]["arms"]
    ratios = {
        f"clip, `{gate}`": (arms[gate]["state_bytes"] + arms[gate]["temp_bytes"]) / dense
        for gate in _GATES
    }
    for name, metrics in _folds(evidence).items():
        arm = metrics["arms"][_ARM]
        total = arm["state_bytes"] + arm["temp_bytes"]
        ratios[name] = total / metrics["dense_temp_bytes"]
    told = tuple(f"{name}: {ratio:.2f}x dense's scratch." for name, ratio in ratios.items())
    return Finding(told, counted(ratio < 1 for ratio in ratios.values()))


def _macs(evidence: Evidence) -> Finding:
    arms = _clip(evidence)["environments"]["clip"]["arms"]
    shares = {f"clip, `{gate}`": arms[gate]["macs_share"] for gate in _GATES}
    for name, metrics in _folds(evidence).items():
        shares[name] = metrics["arms"][_ARM]["macs_share"]
    told = tuple(f"{name}: {share:.0%} of dense's." for name, share in shares.items())
    return Finding(told, counted(share <= 1 / FASTER for share in shares.values()))


def _quality(evidence: Evidence) -> Finding:
    folds = {name: metrics["arms"][_ARM] for name, metrics in _folds(evidence).items()}
    points = [arm["f1_points"] for arm in folds.values()]
    tracked = [a["mota_points"] for a in folds.values() if a.get("mota_points") is not None]
    arms = _clip(evidence)["environments"]["clip"]["arms"]
    told = (
        f"Tasks, `{_ARM}`: F1 {spread(points, '+.2f')} points to dense, {len(points)} "
        f"runs; error of the logits {spread([a['output_error'] for a in folds.values()], '.1%')}.",
        *([f"MOTA {spread(tracked, '+.2f')} points to dense."] if tracked else []),
        *(f"Clip, `{gate}`: error {arms[gate]['output_error']:.2%}." for gate in _GATES),
    )
    held = [lost >= -_POINTS for lost in (*points, *tracked)]
    held += [arms[gate]["output_error"] <= _ERROR for gate in _GATES]
    return Finding(told, counted(held))


def _stable(evidence: Evidence) -> Finding:
    told, held = [], []
    for name, found in _clip(evidence)["environments"].items():
        change, dense = found["arms"]["threshold"]["change"], found["dense_change"]
        told.append(f"`{name}`: {change:.2%} from frame to frame, dense {dense:.2%}.")
        held.append(_no_more(change, dense))
    folds = _folds(evidence)
    pairs = [(metrics["arms"][_ARM]["flips"], metrics["dense_flips"]) for metrics in folds.values()]
    said = ", ".join(
        f"{name} {flips:.3%} ({dense:.3%})"
        for name, (flips, dense) in zip(folds, pairs, strict=True)
    )
    told.append(f"Tasks, predictions that turn (dense's): {said}.")
    return Finding(tuple(told), counted([*held, *(_no_more(*pair) for pair in pairs)]))


def _no_more(change: float, dense: float) -> bool:
    """To a thousandth, which float32 sums do not decide about."""
    return change <= 1.001 * dense


def _adapts(evidence: Evidence) -> Finding:
    told, held = [], []
    for name, found in _clip(evidence)["environments"].items():
        arm = found["arms"]["threshold"]
        fits = arm["speedup"] >= _NOT_SLOWER and arm["output_error_p95"] <= _BAD
        held.append(fits)
        told.append(
            f"`{name}`: {arm['active_least']:.0%} to {arm['active_most']:.0%} recomputed, "
            f"{arm['speedup']:.2f}x, error {arm['output_error_p95']:.2%} at the 95th percentile "
            f"(exact: {found['arms']['exact']['speedup']:.2f}x)."
        )
    return Finding(tuple(told), counted(held))


def _learned(evidence: Evidence) -> Finding:
    found = evidence.experiment("learned_gate")["metrics"]
    told, held = [], []
    # Where the largest level is within several errors, it is several points.
    points = {(point["noise"], point["level"]): point for point in found["points"]}
    for point in points.values():
        error, active = point["error"], point["activity"]
        told.append(
            f"Noise {point['noise']:g}, {active['learned']:.1%} of the patches taken: error "
            f"{error['learned']:.2%}, threshold at {active['threshold']:.1%} "
            f"{error['threshold']:.2%}."
        )
        near = abs(active["learned"] - active["threshold"]) <= _NEAR
        held.append(near and error["learned"] <= error["threshold"])
    cost = found["gate_ms"]["learned"] / found["dense_ms"]
    told.append(f"It takes {cost:.1%} of the network's time.")
    return Finding(tuple(told), counted([*held, cost <= _COST]))


_OUTCOMES = "python -m experiments outcomes --out experiments/results/outcomes"
_TASKS = "python -m experiments tasks --out experiments/results/tasks"
_BENCH = "python -m benchmarks pass --json benchmarks/results/pass.json"
_CLIPS = "python -m benchmarks clips --json benchmarks/results/clips.json"
_THESIS = "abstract of the thesis (thesis.md, 3); no figure is known"

CLAIMS = (
    Claim(
        "PASS",
        "Faster processing.",
        _THESIS,
        f"Holds on the clip (exact, threshold) and in a run of the tasks where it is {FASTER}x "
        "as fast as dense.",
        _faster,
        (_OUTCOMES, _TASKS),
    ),
    *(
        Claim(
            "PASS",
            f"Up to {ratio}x over {peer} on a Jetson Nano.",
            "abstracts of both papers (pass.md A); over which input, and at which skip rate, is "
            "not known",
            f"Confirmed where a clip reaches {ratio}x within {_ERROR:.0%} of error; partly where "
            f"a network reaches it while {_MOVES:.0%} of the frame moves.",
            _reached(ratio, peer),
            (_BENCH, _OUTCOMES, _CLIPS),
        )
        for peer, ratio in (("MobileHumanPose", 9.43), ("FairMOT", 12.19))
    ),
    Claim(
        "PASS",
        "Less memory.",
        _THESIS,
        "Holds on the clip and in a fold where caches and scratch are less than dense's scratch.",
        _memory,
        (_OUTCOMES, _TASKS),
    ),
    Claim(
        "PASS",
        "Less computation.",
        _THESIS + "; the released gate costs more than it guards (pass.md A)",
        f"Holds on the clip and in a fold with {FASTER}x fewer multiply-accumulates, margins "
        "included.",
        _macs,
        (_OUTCOMES, _TASKS),
    ),
    Claim(
        "PASS",
        "The model's quality is kept.",
        "abstracts (pass.md A): “without degrading model accuracy”; no figure is known",
        f"Holds in a run that loses no more than {_POINTS:g} point of F1 or MOTA, and on the clip "
        f"with an error within {_ERROR:.0%}.",
        _quality,
        (_TASKS, _OUTCOMES),
    ),
    Claim(
        "PASS",
        "Stable predictions.",
        _THESIS,
        "Holds in an environment where the output changes no more from frame to frame than "
        "dense's, and in a fold where no more pixels turn.",
        _stable,
        (_OUTCOMES, _TASKS),
    ),
    Claim(
        "PASS",
        "Adaptation to the environment.",
        _THESIS,
        f"Holds in an environment where the threshold gate has {_NOT_SLOWER} of dense's speed or "
        f"more, with an error within {_BAD:.0%} in 95 % of the frames.",
        _adapts,
        (_OUTCOMES,),
    ),
    Claim(
        "PASS",
        "Gates that learn by themselves know what to skip.",
        "abstracts (pass.md A): self-supervised, for any task; the released gate runs the whole "
        "convolution, and ours differs (D11)",
        "Holds at a level and noise where the learned gate's output error is no larger than the "
        f"threshold's with as many patches taken; and if it takes {_COST:.0%} of the network's "
        "time or less.",
        _learned,
        ("python -m experiments gate",),
    ),
)
