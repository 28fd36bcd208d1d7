"""Octo's claims (chapter 3; USENIX ATC 2021)."""

from experiments.claims.base import Claim, Evidence, Finding, counted, spread
from experiments.doc_tables import GAPS, arms, interval, within

__all__ = ["CLAIMS"]

FASTER = 1.1  # times; machines here move by a tenth
_LEARNED = 0.5  # points
_RIVALS = ("switchback", "row_wise", "ui8", "per_tensor", "dai8")
_PARTS = "simple_cnn on mnist 5000x5"
_ABSTRACT = "abstract (octo.md A.1); its figures could not be had"
_ABLATION = ("python -m experiments ablation --config mnist",)


def _accuracy(evidence: Evidence) -> Finding:
    tasks = evidence.experiment("ablation")["tasks"]
    told, held = [], []
    for task, name, limit in GAPS:
        to = arms(tasks[task])["int8 bn"]["to_float32"]
        inside = within(to, limit)
        held.append(inside is True)
        said = {True: "within", False: "outside", None: "undecided at"}[inside]
        told.append(f"{name}: {interval(to)} points, {to['seeds']} seeds, {said} {limit}.")
    return Finding(tuple(told), counted(held))


def _rivals(evidence: Evidence) -> Finding:
    found = arms(evidence.experiment("ablation")["tasks"][_PARTS])
    told = tuple(
        f"`{name}` less `int8`: {interval(found[f'{name} bn']['to_int8'])} points."
        for name in (*_RIVALS, "octo", "released")
    )
    return Finding(told, counted(found[f"{name} bn"]["to_int8"]["high"] < 0 for name in _RIVALS))


def _adaptation(evidence: Evidence) -> Finding:
    (task,) = evidence.experiment("adapt")["tasks"].values()
    to = arms(task)["int8"]["to_float32"]
    accuracy = " and ".join(f"{arm['arm']} {arm['accuracy']:.1%}" for arm in task)
    told = f"Digits turned and noisy, learned from 300: {accuracy}; {interval(to)} points."
    return Finding((told,), counted([within(to, _LEARNED) is True]))


def _parts(*names: str):
    """Whether arms with a part of Octo's are better than int8 without."""

    def judge(evidence: Evidence) -> Finding:
        found = arms(evidence.experiment("ablation")["tasks"][_PARTS])
        pairs = {name: found[name]["to_int8"] for part in names for name in (part, f"{part} bn")}
        told = (f"`{name}` less `int8`: {interval(to)} points." for name, to in pairs.items())
        return Finding(tuple(told), counted(to["low"] > 0 for to in pairs.values()))

    return judge


def _speed(evidence: Evidence) -> Finding:
    rows = evidence.benchmark("int8")["rows"]
    told = tuple(
        f"`{row['case']}`: {row['speedup_best']:.2f}x the best float32 program, "
        f"{row['speedup']:.2f}x XLA's default."
        for row in rows
    )
    return Finding(told, counted(row["speedup_best"] >= FASTER for row in rows))


def _kept(evidence: Evidence) -> Finding:
    rows = [row for row in evidence.benchmark("int8")["rows"] if row["saved_bytes_ratio"]]
    ratios = [row["saved_bytes_ratio"] for row in rows]
    told = f"{spread(ratios, '.1f', 'x')} fewer bytes kept, {len(rows)} networks."
    return Finding((told,), counted(ratio >= FASTER for ratio in ratios))


def _scratch(evidence: Evidence) -> Finding:
    rows = evidence.benchmark("int8")["rows"]
    told = tuple(
        f"`{row['case']}`: float32's is {row['temp_bytes_ratio']:.2f}x int8's." for row in rows
    )
    return Finding(told, counted(row["temp_bytes_ratio"] >= FASTER for row in rows))


_BENCH = ("python -m benchmarks int8 --json benchmarks/results/int8.json",)

CLAIMS = (
    Claim(
        "Octo",
        "int8 in the forward and the backward pass trains as well as float32.",
        _ABSTRACT,
        "Holds for a network and data set where the 90 % interval of int8 less float32 is within "
        "the limit named; confirmed where it holds for all.",
        _accuracy,
        (
            "python -m experiments ablation --config gap",
            *_ABLATION,
        ),
    ),
    Claim(
        "Octo",
        "It trains better than other quantized-training methods of its time.",
        "abstract (octo.md A.1); which methods is not known, these are ours, SwitchBack and DAI8 "
        "among them",
        f"Holds for a rival of {', '.join(_RIVALS)} whose 90 % interval against our int8 is below "
        "0.",
        _rivals,
        _ABLATION,
    ),
    Claim(
        "Octo",
        "A device learns on, in int8, from what it meets.",
        "the setting of the thesis (thesis.md); no figure is known",
        f"The 90 % interval of int8 less float32 is within {_LEARNED} points.",
        _adaptation,
        ("python -m experiments adapt",),
    ),
    Claim(
        "Octo",
        "Loss-aware compensation (LAC) makes up for the error of quantization.",
        "abstract and outline of the talk (octo.md A.1); its form is from the released code (B.3)",
        "Holds for an arm that is better than plain int8: its 90 % interval is above 0.",
        _parts("int8+lac", "zero_point"),
        _ABLATION,
    ),
    Claim(
        "Octo",
        "Parameterized range clipping (PRC) helps the backward pass.",
        "abstract and outline of the talk (octo.md A.1); the factor 0.95 is from the code (B.4)",
        "Holds for an arm that is better than plain int8: its 90 % interval is above 0.",
        _parts("int8+prc"),
        _ABLATION,
    ),
    Claim(
        "Octo",
        "An adequate gain in processing speed over full precision.",
        "abstract (octo.md A.1); neither figure nor device is known",
        f"Holds for a train step that is {FASTER}x as fast as the best float32 program found.",
        _speed,
        _BENCH,
    ),
    Claim(
        "Octo",
        "Less memory: what is kept for the backward pass.",
        "abstract (octo.md A.1); no figure is known, and the released code keeps floats (B.4)",
        f"Holds for a network that keeps {FASTER}x fewer bytes than float32.",
        _kept,
        _BENCH,
    ),
    Claim(
        "Octo",
        "Less memory: scratch of the compiled train step.",
        "abstract (octo.md A.1); no figure is known",
        f"Holds for a train step with {FASTER}x less scratch memory than float32's.",
        _scratch,
        _BENCH,
    ),
)
