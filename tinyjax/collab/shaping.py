"""The speed of a link, as text and as a token bucket.

Bandwidth and latency are separate: a byte leaves when the bucket lets it, and arrives a latency
later, while others leave.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

__all__ = ["Bucket", "Link", "parse_link"]

_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_SPEED = re.compile(r"(\d+(?:\.\d+)?) ?([kMG]?)bit/s")
_LATENCY = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s)")


class Link(NamedTuple):
    """How fast a link is, in either direction.

    Attributes:
      rate: bytes per second.
      latency: seconds that each byte is under way.

    Example:
      >>> from tinyjax import collab
      >>> collab.Link(rate=2.5e6, latency=0.03).rate
      2500000.0
    """

    rate: float
    latency: float = 0.0


def parse_link(text: str) -> Link:
    """A link of a text such as ``20Mbit/s,30ms``.

    Args:
      text: a bandwidth in bit/s, kbit/s, Mbit/s or Gbit/s, and a latency in ms or s if it has one.

    Returns:
      The link.

    Raises:
      ValueError: if the text is of another form, or the bandwidth is 0.

    Example:
      >>> from tinyjax import collab
      >>> collab.parse_link("20Mbit/s,30ms")
      Link(rate=2500000.0, latency=0.03)
      >>> collab.parse_link("20Mb")
      Traceback (most recent call last):
      ...
      ValueError: link '20Mb' has no bandwidth: write 20Mbit/s or 20Mbit/s,30ms
    """
    speed, comma, latency = text.strip().partition(",")
    found = _SPEED.fullmatch(speed.strip())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"link {text!r} has no bandwidth: write 20Mbit/s or 20Mbit/s,30ms")
    rate = float(found[1]) * _FACTORS[found[2]] / 8
    if not comma:
        return Link(rate)
    delay = _LATENCY.fullmatch(latency.strip())
    if delay is None:
        raise ValueError(f"link {text!r} has {latency!r} for a latency: write one like 30ms")
    return Link(rate, float(delay[1]) / {"ms": 1e3, "s": 1.0}[delay[2]])


class Bucket:
    """A token bucket, whose clock is its caller's.

    Args:
      rate: bytes per second that flow in.
      burst: bytes that it holds, full at first.

    Example:
      >>> from tinyjax.collab.shaping import Bucket
      >>> bucket = Bucket(rate=100.0, burst=50.0)
      >>> bucket.take(50, now=0.0), bucket.take(10, now=0.0), bucket.take(10, now=0.1)
      (0.0, 0.1, 0.1)
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst / rate
        self._empty = -math.inf  # when it is empty, or was last

    def take(self, size: int, now: float) -> float:
        """Takes ``size`` tokens; returns the seconds until they are all there."""
        self._empty = max(self._empty, now - self._burst) + size / self._rate
        return max(0.0, self._empty - now)
