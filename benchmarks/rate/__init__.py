"""Rate and distortion of features and gradients: this codec beside every simple one.

``python -m benchmarks rate`` trains the networks of :mod:`benchmarks.rate.networks` (minutes each),
cuts them, and sends real features and gradients through every codec as real frames. What is done
stays in ``out/rate``, and so does a trained network; remove the folder to measure anew.
``python -m benchmarks.rate.report`` makes tables and plots of it.

States, tables and codebooks are fitted to 128 training images. Features are of 128 test images in
batches of 32; gradients, and cosines of the device's gradient, of training batches of 32 with other
images. The state counts with a 200th of its frame in every batch.

Cases:

``fashion_mnist``, ``cifar10``
    The pooled network on either set.
``cifar10_strided``
    The one without pools.

A row is a cut; ``features`` and ``gradient_curves`` have, for each codec, its points: ``setting``,
``bits`` of an element, ``snr_db``, and for some ``agreement`` (of the predicted class with
float32's) and ``cosine`` (of the device's gradient with float32's). ``bd`` has BD-rates.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rate import features, networks, parts
from benchmarks.rate.networks import CUTS, Config
from benchmarks.rate.parts import Size
from experiments.results import once

__all__ = ["CASES", "run", "table"]

CASES = {
    "fashion_mnist": Config("fashion_mnist", 128),
    "cifar10": Config("cifar10", 256, images=12_000),
    "cifar10_strided": Config("cifar10", 256, pooled=False, images=12_000),
}
_OUT = Path("out") / "rate"


_SMALL = Size(32, 1, 32, 32, 2, 16, (0.35, 0.5, 0.8, 1.2), (0.35, 0.8, 1.2), (5, 15))


class Measured(NamedTuple):
    """A part of what is measured at a cut."""

    row: dict[str, Any]


def run(name: str, *, rounds: int = 1, shrink: int = 1) -> list[dict[str, Any]]:
    """The rows of one case: a cut each.

    Args:
      name: one of ``CASES``.
      rounds: nothing is timed, so not used.
      shrink: above 1, a little of the bundled sample is taken instead, one cut, and nothing kept.
    """
    del rounds
    config = CASES[name]
    if shrink > 1:
        small = Config("fashion_mnist_sample", 128, config.pooled, 256, 1, 32, narrower=8)
        made = [_part(part, "B", small, None, _SMALL) for part in parts.PARTS]
        return [_row(name, "B", made)]
    return [
        _row(name, cut, [_kept(name, cut, part, config) for part in parts.PARTS]) for cut in CUTS
    ]


def _row(name: str, cut: str, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name, "cut": cut}
    return functools.reduce(operator.or_, made, row)


def _kept(name: str, cut: str, part: str, config: Config) -> dict[str, Any]:
    """A part from an earlier run, if it is there."""
    measured = lambda _: Measured(_part(part, cut, config, _OUT / "networks" / name, Size()))
    return once(f"{name}_{cut}_{part}", config, _OUT, measured).record["metrics"]["row"]


def _part(part: str, cut: str, config: Config, folder: Path | None, size: Size) -> dict[str, Any]:
    found = networks.trained(config, folder)
    print(f"  cut {cut}: {part} ...", flush=True)
    return parts.PARTS[part](found, cut, size)


def table(row: Mapping[str, Any]) -> str:
    """A row in short, to be printed."""
    default = next(p for p in row["features"]["sgq"] if p["setting"] == features.DEFAULT)
    lines = [
        f"{row['case']} {row['cut']} {row['shape']}: {32 / default['bits']:.1f}x at "
        f"{default['snr_db']:.1f} dB, agreement {row['rounding']['offset 0.4']['agreement']:.3f}",
        *(f"  BD-rate against {k}: {_percent(v)}" for k, v in row["bd"].items()),
    ]
    for when, steps in row["gradients"].items():
        lines += [
            f"  gradient {when}, {step}: {v['ratio']:.0f}x, cosine {v['cosine']:.4f}"
            for step, v in steps.items()
        ]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "no common range" if share is None else f"{share:+.1%}"
