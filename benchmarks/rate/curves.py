"""Rates against distortions: what codecs reach on batches, and how far apart two curves are.

References:
  Bjøntegaard, Calculation of average PSNR differences between RD-curves, VCEG-M33, 2001. The
  logarithm of the rate is interpolated linearly here, and no cubic is fitted.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.rate.codecs import Codec, Coded

__all__ = ["HIGH", "LOW", "Point", "bd_rate", "frontier", "measured", "saving", "summed"]

LOW, HIGH = 12.0, 22.0  # dB: what BD-rates are taken over, as far as both curves reach


class Point(NamedTuple):
    """A codec at one setting."""

    setting: float
    bits: float  # of an element, everything counted
    snr_db: float


def measured(setting: float, codec: Codec, batches: Iterable[np.ndarray]) -> Point:
    """A codec on batches."""
    return summed(setting, ((x, codec(x)) for x in batches))


def summed(setting: float, pairs: Iterable[tuple[np.ndarray, Coded]]) -> Point:
    """Mean rate over arrays and their codes, and the signal to noise of all of them together."""
    size = elements = 0
    power = noise = 0.0
    for x, coded in pairs:
        size, elements = size + coded.size, elements + x.size
        power += float(np.sum(np.square(x, dtype=np.float64)))
        noise += float(np.sum(np.square(coded.decoded - x, dtype=np.float64)))
    decibels = 10 * math.log10(power / noise) if noise else math.inf
    return Point(setting, 8 * size / elements, decibels)


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both rate and distortion, by rising rate."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bits, -p.snr_db)):
        if not best or point.snr_db > best[-1].snr_db:
            best.append(point)
    return best


def bd_rate(
    ours: Sequence[Point], theirs: Sequence[Point], low: float = LOW, high: float = HIGH
) -> float | None:
    """How many more bytes ours take for the same signal to noise, as a share: -0.2 is a fifth less.

    Args:
      ours: a curve.
      theirs: another.
      low: decibels from which on.
      high: to which.

    Returns:
      The mean over the decibels that both have in that range; None where it is less than two.
    """
    curves = [
        np.array([(p.snr_db, math.log(p.bits)) for p in frontier(curve)]).T
        for curve in (ours, theirs)
    ]
    low, high = max(low, *(c[0][0] for c in curves)), min(high, *(c[0][-1] for c in curves))
    if high - low < 2:
        return None
    decibels = np.linspace(low, high, 1001)
    our, their = (np.interp(decibels, *curve) for curve in curves)
    return float(np.exp(np.mean(our - their)) - 1)


def saving(
    variants: Mapping[str, Sequence[Point]], rivals: Mapping[str, Sequence[Point]]
) -> dict[str, dict[str, float | None]]:
    """The BD-rate of every variant against every rival."""
    return {
        name: {rival: bd_rate(points, other) for rival, other in rivals.items()}
        for name, points in variants.items()
    }
