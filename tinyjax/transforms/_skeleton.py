"""What the method does to a site, in one sentence.

The equation, in the symbols of the paper::

    y = gain (x * w)

References:
  Author, `Title <https://arxiv.org/abs/...>`_, venue, year, equation number.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from tinyjax.base import Array, Op, Site, Transform, Vars

__all__ = ["gain"]


def gain(*, start: float = 1.0) -> Transform:
    """Scales the output of every site by a factor that is trained. Copy this file to begin.

    Args:
      start: the factor's first value; finite.

    Returns:
      A transform with one float32 scalar per site.

    Raises:
      ValueError: if ``start`` is not finite.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> from tinyjax.transforms._skeleton import gain
      >>> doubled = tinyjax.rewrite(gain(start=2.0), lambda p, x: x @ p["w"])
      >>> params, x = {"w": jnp.eye(2)}, jnp.ones((1, 2))
      >>> doubled.apply(doubled.init(params, x), params, x)[0].tolist()
      [[2.0, 2.0]]
    """
    if not math.isfinite(start):
        raise ValueError(f"start is {start}: use a finite number")

    def init(site: Site) -> Vars:
        del site
        return jnp.float32(start)

    def call(
        op: Op,
        site: Site,
        vars: Vars,
        key: Any,
        x: Array,
        w: Array,
        epilogue: Any,
        **overrides: Any,
    ) -> tuple[Any, Vars]:
        del site, key, epilogue  # not taken over: the rewrite applies it to what is returned
        return op(x, w, **overrides) * vars, vars

    return Transform(init, call)
