"""``python -m benchmarks.readme [--check]``: what README.md says was measured, from committed runs.

Between the comments of the page everything comes from ``benchmarks/results`` and
``experiments/results``. With ``--check`` nothing is written, and it fails where the page is stale.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rate import features
from experiments import doc_tables, pages

__all__ = ["COMMAND", "PAGE", "main", "parts", "rows"]

COMMAND = "python -m benchmarks.readme"
PAGE = pages.ROOT / "README.md"
_RESULTS = Path(__file__).parent / "results"
_EXPERIMENTS = pages.ROOT / "experiments" / "results"
_MODELS = {
    "mlp": "3072-1024-1024-10, batch 256",
    "vgg6": "six 3x3 convolutions, 32x32x3, batch 128",
    "vgg6_bn": "with batch normalization",
    "resnet": "64-128-256, norms, batch 64",
    "resnet20": "16-32-64, norms, batch 64",
    "mobilenet": "inverted residuals, norms, batch 64",
    "conv_b8": "one 3x3 convolution, batch 8",
}
_INT8 = (
    "train step",
    "float32",
    "best float32",
    "int8",
    "speed-up",
    "against best",
    "audited, against best",
    "kept for backward",
    "scratch",
)
_TIMES = ("f32_ms", "f32_best_ms", "int8_ms")
_RATIOS = (
    "speedup",
    "speedup_best",
    "policy_speedup_best",
    "saved_bytes_ratio",
    "temp_bytes_ratio",
)
_PATCHES = {
    "block": "`block`: four 3x3 convolutions, 128x128x64, patch 16",
    "backbone": "`backbone`: five 3x3 convolutions, 576x768x3, patch 64",
}
_ENCODERS = {
    "resnet": "ResNet-like encoder, 512x512x3",
    "mobilenet": "MobileNetV2-like encoder, 256x256x3",
    "unet": "U-Net-like, 256x256x3",
}
_Rows = Sequence[Mapping[str, Any]]


def rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """The cells of a line per case of ``int8``, in the order above.

    Args:
      results: what ``python -m benchmarks int8 --json FILE`` writes.
    """
    found = {row["case"]: row for row in results["rows"]}
    for case, model in _MODELS.items():
        if row := found.get(case):
            times = (f"{row[key]:.0f} ms" for key in _TIMES)
            ratios = (f"{row[key]:.2f}x" if row[key] else "–" for key in _RATIOS)
            yield [f"`{case}`: {model}", *times, *ratios]


def parts() -> dict[str, str]:
    """The parts of the page, by name."""
    skipped = _read("pass.json")["rows"]
    return {
        "int8": pages.table(_INT8, rows(_read("int8.json"))),
        "int8-vnni": _vnni(_read("int8_vnni.json")),
        "accuracy": _accuracy(_committed("ablation.json")["tasks"]),
        "pass-patches": _speedups("video, share of patches that change", _PATCHES, skipped),
        "pass-encoders": _speedups(
            "video, share of the area of what moves, patch 16", _ENCODERS, skipped
        ),
        "pass": _skipping(skipped, _read("pass_gradient.json")["rows"]),
        "sgq": _codec(_read("sgq.json"), _read("sgq_one_core.json")),
        "rate": _rate(_read("rate.json")["rows"]),
    }


def _read(name: str) -> Any:
    return json.loads((_RESULTS / name).read_text())


def _committed(name: str) -> Any:
    return json.loads((_EXPERIMENTS / name).read_text())


def _vnni(results: Mapping[str, Any]) -> str:
    row = {row["case"]: row for row in results["rows"]}["vgg6"]
    return pages.paragraph(
        f"On an AVX512-VNNI Xeon an earlier version took vgg6 at {row['speedup']:.2f}x,",
        f"{row['speedup_best']:.2f}x against the best",
        "([int8_vnni.json](benchmarks/results/int8_vnni.json)).",
    )


def _accuracy(tasks: Mapping[str, _Rows]) -> str:
    """What int8 with BatchNorm is from float32, and whether a part of Octo's gained anything."""
    far, seeds = {}, set()
    for task, _, _ in doc_tables.GAPS:
        to = doc_tables.arms(tasks[task])["int8 bn"]["to_float32"]
        far[task] = max(-to["low"], to["high"])
        seeds.add(to["seeds"])
    deep = max(value for task, value in far.items() if task.startswith("resnet"))
    rest = max(value for task, value in far.items() if not task.startswith("resnet"))
    parts = [arm for arm in tasks["simple_cnn on mnist 5000x5"] if _is_part(arm["arm"])]
    gained = [f"`{arm['arm']}`" for arm in parts if arm["to_int8"]["low"] > 0]
    return pages.paragraph(
        f"In accuracy int8 was within {_up(rest, 2)} points of float32 (90 % intervals of",
        f"{max(seeds)} seeds) for a SimpleCNN and for VGG6 on two data sets, and within",
        f"{_up(deep, 1)} for a ResNet-20 that was hardly trained;",
        f"{', '.join(gained)} gained something:"
        if gained
        else "neither compensation nor range clipping gained anything that could be seen:",
        "[docs/octo.md](docs/octo.md).",
    )


def _is_part(arm: str) -> bool:
    return arm.startswith(("int8+", "zero_point"))


def _up(value: float, digits: int) -> str:
    """Rounded up, as a bound has to be."""
    return f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:.{digits}f}"


def _speedups(heading: str, names: Mapping[str, str], found: _Rows) -> str:
    """Speed-ups of some cases by share."""
    lines = {case: [row for row in found if row["case"] == case] for case in names}
    shares = [f"{row['active']:g}" for row in next(iter(lines.values()))]
    cells = ([names[case], *(_times(row["speedup"]) for row in lines[case])] for case in names)
    return pages.table([heading, *shares], cells)


def _times(ratio: float) -> str:
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 1.1 else 2
    return f"{ratio:.{digits}f}x"


def _skipping(found: _Rows, gradient: _Rows) -> str:
    cases = dict.fromkeys(row["case"] for row in found)
    error = {
        case: max(r["max_abs_err"] / r["max_abs"] for r in found if r["case"] == case)
        for case in cases
    }
    equal = [f"`{case}`" for case in cases if error[case] == 0]
    share = {row["case"]: row["share"] for row in gradient if row["active"] == 0.1}
    quiet = [
        _task(f"highway-fold-{fold}-*")["metrics"]["arms"]["key"]["speedup"] for fold in range(5)
    ]
    gains = [f"{ratio:.1f}x" for ratio in quiet if ratio > 1.1]
    people = _task("vtest-*")["metrics"]["arms"]["key"]["speedup"]
    clip = _clip()["exact"]
    return pages.paragraph(
        "Speed-up over `jit` of the same network, mask and comparison included, on two cores of a",
        "shared AMD EPYC: `make bench CASE=pass`,",
        "[benchmarks/results/pass.json](benchmarks/results/pass.json).",
        f"Outputs of {', '.join(equal)} were those of the network bit for bit," if equal else "",
        f"of the others to {_upwards(max(error.values()))} of the largest.",
        "A gradient with a tenth of the patches recomputed takes",
        " and ".join(f"{value:.2f} (`{case}`)" for case, value in share.items()),
        "of the network's (`make bench CASE=pass_gradient`). On the bundled clip, where a person",
        f"moves, {clip['active']:.0%} of the patches are recomputed without loss, and the gain is",
        f"{clip['speedup']:.1f}x (`python -m experiments outcomes`).",
        f"On tasks with labels it is {' and '.join(gains) or 'none'} on quiet scenes of a road, a",
        f"loss on busy ones, and {people:.1f}x where people are found and followed",
        "([docs/pass_tasks.md](docs/pass_tasks.md)).",
    )


def _upwards(value: float) -> str:
    """One digit, rounded up."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(value))
    return f"{math.ceil(value / 10**power - 1e-9) * 10.0**power:.0e}".replace("e-0", "e-")


def _clip() -> Any:
    """Arms of the network on the bundled clip as it is."""
    (path,) = (_EXPERIMENTS / "outcomes").glob("*.json")
    return json.loads(path.read_text())["metrics"]["environments"]["clip"]["arms"]


def _task(name: str) -> Any:
    (path,) = (_EXPERIMENTS / "tasks").glob(f"{name}.json")
    return json.loads(path.read_text())


def _codec(two: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    row = {row["case"]: row for row in two["rows"]}
    alone = {row["case"]: row for row in one["rows"]}["sgq_contexts"]
    speeds = lambda case: (
        f"{_speed(row[case]['encode_gbps'])} and {_speed(row[case]['decode_gbps'])}"
    )
    busy = max(env["load_average"][0] for env in (two["env"], one["env"])) > two["env"]["cores"]
    packed = row["sgq_packed"]
    return pages.paragraph(
        f"Packed frames of the default codec are {packed['ratio_f32']:.1f} times smaller than",
        f"float32, at {packed['snr_db']:.1f} dB; encoding and decoding run at",
        f"{speeds('sgq_packed')} GB/s of float32, where uniform INT4 has {speeds('int4')} and",
        f"copies of memory {speeds('memcpy')}. Through the lossless stage, all in one program, it",
        f"is {alone['encode_mps']:.0f} and {alone['decode_mps']:.0f} million elements/s on one",
        "core",
        "(`make bench CASE=sgq`, [sgq.json](benchmarks/results/sgq.json),",
        "[sgq_one_core.json](benchmarks/results/sgq_one_core.json)"
        + ("; others were using the two cores as well)." if busy else ")."),
    )


def _speed(gbps: float) -> str:
    return f"{gbps:.0f}" if gbps >= 10 else f"{gbps:.1f}"


def _rate(found: _Rows) -> str:
    points = [
        next(p for p in row["features"]["sgq"] if p["setting"] == features.DEFAULT) for row in found
    ]
    pooled = [row["case"] != "cifar10_strided" for row in found]
    masked = [
        [row["gradients"][when]["solved, masked"]["ratio"] for when in row["gradients"]]
        for row in found
    ]
    gains = lambda pool: [
        ratio
        for here, ratios in zip(pooled, masked, strict=True)
        if here is pool
        for ratio in ratios
    ]
    fewer = lambda rival: _range([-100 * row["bd"][rival] for row in found])
    cuts = f"{len(found)} cuts of {len({row['case'] for row in found})} networks"
    return pages.paragraph(
        "Behind the lossless stage the default's features are",
        f"{_range([32 / p['bits'] for p in points])} times smaller than float32, at",
        f"{_range([p['snr_db'] for p in points])} dB, states and headers counted, at {cuts}; at",
        f"equal signal to noise they take {fewer('zstd')} % fewer bytes than zstandard on uniform",
        f"codes, and {fewer('order 0')} % fewer than an order-0 coder. Gradients, sent where",
        f"features are not 0, are {_range(gains(True))} times smaller where a pool follows the",
        f"cut, and {_range(gains(False))} where none does: `make bench CASE=rate`,",
        "[docs/sgq.md](docs/sgq.md), which also says what was asked for and missed.",
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def main(argv: Sequence[str]) -> int:
    """Writes the page, or says whether it is stale; returns the exit code."""
    stale = lambda check: pages.updated({PAGE: parts()}, COMMAND, check=check)
    return pages.main(stale, COMMAND, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
