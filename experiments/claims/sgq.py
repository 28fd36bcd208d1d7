"""SGQ's claims (chapter 4; NeurIPS 2022)."""

from statistics import mean
from typing import Any

from experiments.claims.base import (
    Claim,
    Evidence,
    Finding,
    attained,
    counted,
    spread,
    untestable,
)
from experiments.doc_tables import SPEED, TRAFFIC, interval, within

__all__ = ["CLAIMS"]

_POINTS = 0.5  # of accuracy
_COSINE = 0.98  # of the device's gradient with float32's
_SEEN = 0.01  # of the bytes: what similarity has to be worth to be seen


def _codecs(evidence: Evidence) -> list[dict[str, Any]]:
    found = evidence.experiment("split_accuracy")["arms"]
    return [arm for arm in found if arm["codec"].startswith("sgq")]


def _accuracy(evidence: Evidence) -> Finding:
    found = _codecs(evidence)
    told = tuple(
        f"`{arm['codec']}`: {100 * mean(arm['accuracies']):.2f} %, {interval(arm['to_float32'])} "
        f"points to float32, {len(arm['accuracies'])} seeds."
        for arm in found
    )
    return Finding(told, counted(within(arm["to_float32"], _POINTS) is True for arm in found))


def _traffic(evidence: Evidence) -> Finding:
    found = _codecs(evidence)
    told = [
        f"`{arm['codec']}`: {arm['ratios']['float32']:.1f}x both ways at the socket over whole "
        f"epochs, {arm['up_ratio']:.1f}x up; {interval(arm['to_float32'])} points."
        for arm in found
    ]
    rows = evidence.benchmark("rate")["rows"]
    bits = [p["bits"] for row in rows for p in row["features"]["sgq"] if p["setting"] == 0.5]
    told.append(
        f"Features alone at {len(rows)} cuts: {spread([32 / b for b in bits], '.1f', 'x')}."
    )
    held = (
        arm["ratios"]["float32"] >= TRAFFIC and within(arm["to_float32"], _POINTS) is True
        for arm in found
    )
    return Finding(tuple(told), attained(held))


def _traffic_uniform(evidence: Evidence) -> Finding:
    found = _codecs(evidence)
    arm = {one["codec"]: one for one in evidence.experiment("split_accuracy")["arms"]}
    four = _smaller(evidence, "int4")
    told = [
        f"`{one['codec']}`: {one['ratios']['float32'] / four:.1f}x less than packed uniform 4-bit "
        f"codes, {one['ratios']['int4_zstd']:.2f}x less than those behind zstandard."
        for one in found
    ]
    learns = interval(arm["int4_zstd"]["to_float32"])
    told.append(f"Uniform 4-bit codes learn less: {learns} points to float32.")
    return Finding(
        tuple(told), attained(one["ratios"]["float32"] / four >= TRAFFIC for one in found)
    )


def _smaller(evidence: Evidence, codec: str) -> float:
    """How many times fewer bytes a codec sends than float32, mean over links."""
    links = evidence.experiment("split_link")["links"]
    return mean(one["less"]["float32"] for one in links if one["codec"] == codec)


def _speed(*rivals: str):
    """Whether SGQ has as many times the images per second of training through rivals."""

    def judge(evidence: Evidence) -> Finding:
        links = evidence.experiment("split_link")["links"]
        found = [one for one in links if one["codec"].startswith("sgq")]
        told, held = [], []
        for codec in dict.fromkeys(one["codec"] for one in found):
            pairs = [one for one in found if one["codec"] == codec]
            for rival in rivals:
                said = ", ".join(f"{o['over'][rival]:.2f}x at rho {o['rho']:.1f}" for o in pairs)
                told.append(f"`{codec}` over {rival}: {said}.")
                held.append(max(one["over"][rival] for one in pairs) >= SPEED)
        return Finding(tuple(told), attained(held))

    return judge


def _similarity(evidence: Evidence) -> Finding:
    rows = evidence.benchmark("rate")["rows"]
    random = [row["ablation"]["channels at random"]["default"] for row in rows]
    cosine = [row["ablation"]["channels by cosine"]["default"] for row in rows]
    told = (
        f"Bytes at equal signal to noise, channels in random order: {_percents(random)} of the "
        f"default order's, {len(rows)} cuts.",
        f"Grouped by cosine: {_percents(cosine)}.",
    )
    saved = (r - c for r, c in zip(random, cosine, strict=True))
    return Finding(told, counted(gain >= _SEEN for gain in saved))


def _percents(shares: list[float]) -> str:
    return spread([100 * share for share in shares], "+.1f", " %")


def _contexts(evidence: Evidence) -> Finding:
    rows = evidence.benchmark("rate")["rows"]
    ours = {rival: [row["bd"][rival] for row in rows] for rival in ("zstd", "order 0")}
    told = tuple(
        f"Bytes at equal signal to noise against {rival}: {_percents(found)}, {len(rows)} cuts."
        for rival, found in ours.items()
    )
    return Finding(told, counted(share <= -_SEEN for found in ours.values() for share in found))


def _gradients(evidence: Evidence) -> Finding:
    rows = evidence.benchmark("rate")["rows"]
    found = {
        when: [row["gradients"][when]["solved, masked"] for row in rows]
        for when in ("early", "late")
    }
    told = tuple(
        f"{when.capitalize()}: cosine {spread([f['cosine'] for f in each], '.3f')} at "
        f"{spread([f['ratio'] for f in each], '.0f', 'x')}, error of a gradient "
        f"{spread([f['error'] for f in each], '.2f')}."
        for when, each in found.items()
    )
    return Finding(told, counted(f["cosine"] >= _COSINE for each in found.values() for f in each))


_ACCURACY = "python -m experiments sgq accuracy --seeds 3"
_LINK = "python -m experiments sgq link --rho 5.0 10.0 25.0"
_RATE = "python -m benchmarks rate --json benchmarks/results/rate.json"
_READING = "abstract (sgq.md A); over what it is counted is not said (A.1)"

CLAIMS = (
    Claim(
        "SGQ",
        "Adequate accuracy, as float32's, even with 4 bits.",
        "abstract (sgq.md A); no figure is known",
        f"Holds for a codec whose 90 % interval to float32 is within {_POINTS} points.",
        _accuracy,
        (_ACCURACY,),
    ),
    Claim(
        "SGQ",
        f"Up to {TRAFFIC}x less traffic, read as over float32.",
        _READING,
        f"Confirmed where one codec has {TRAFFIC}x fewer bytes both ways and accuracy within "
        f"{_POINTS} points of float32.",
        _traffic,
        (_ACCURACY, _RATE),
    ),
    Claim(
        "SGQ",
        f"Up to {TRAFFIC}x less traffic, read as over uniform 4-bit codes.",
        _READING,
        f"Confirmed where one codec has {TRAFFIC}x fewer bytes both ways than packed uniform 4-bit "
        "codes.",
        _traffic_uniform,
        (_ACCURACY, _LINK),
    ),
    Claim(
        "SGQ",
        f"Up to {SPEED}x images per second, read as over training that sends float32.",
        _READING + "; it says nothing without rho, a link's seconds over the computing's",
        f"Confirmed where one codec has {SPEED}x float32's images per second on some link.",
        _speed("float32"),
        (_LINK,),
    ),
    Claim(
        "SGQ",
        f"Up to {SPEED}x images per second, read as over uniform codes that are really sent.",
        _READING,
        f"Confirmed where one codec has {SPEED}x those of 8 or 4 bits on some link.",
        _speed("int8", "int4"),
        (_LINK,),
    ),
    Claim(
        "SGQ",
        "Structure between channels and between pixels says more than pixels alone.",
        "abstract (sgq.md A); the mechanism is not known, ours are contexts (B.4)",
        f"Holds for a cut and rival (zstandard, an order-0 coder) with {_SEEN:.0%} fewer bytes at "
        "equal signal to noise.",
        _contexts,
        (_RATE,),
    ),
    Claim(
        "SGQ",
        "Regrouping channels by similarity is what helps.",
        "abstract (sgq.md A); the measure and the grouping are not known, cosines are ours (B.2)",
        f"Holds for a cut where order by cosine takes {_SEEN:.0%} fewer bytes than random order.",
        _similarity,
        (_RATE,),
    ),
    Claim(
        "SGQ",
        "What quantization does to gradients is bounded.",
        "abstract (sgq.md A); the bound's form is not known, ours is sgq.md B.5",
        f"Holds for a cut and time where the cosine with float32's is {_COSINE} or more, features "
        "and gradients coded.",
        _gradients,
        (_RATE,),
    ),
    Claim(
        "SGQ",
        "Sublinear convergence, of the order of SGD.",
        "abstract (sgq.md A); the theorem's conditions are not known (B.6)",
        "There is no figure that could decide about a theorem.",
        untestable("A theorem about limits; runs of two epochs neither show nor refute it."),
        (),
    ),
)
