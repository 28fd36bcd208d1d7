"""Exact strength reductions, by primitive name: the same values and gradients, cheaper.

A rule takes an equation's parameters and inputs and returns its outputs, or ``None`` to leave the
equation as it is. The rewrite applies rules to every equation outside custom derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from tinyjax.numerics.pool import max_pool

__all__ = ["RULES", "Rule"]

Rule = Callable[[dict[str, Any], Sequence[Any]], list[Any] | None]


def _reduce_window_max(params: dict[str, Any], inputs: Sequence[Any]) -> list[Any] | None:
    """Max pooling over non-overlapping windows, whose gradient XLA makes slow and large."""
    (x,) = inputs
    window = params["window_dimensions"]
    plain = (
        tuple(params["window_strides"]) == tuple(window)
        and all(pair == (0, 0) for pair in map(tuple, params["padding"]))
        and set(params["base_dilation"]) | set(params["window_dilation"]) == {1}
        and all(size >= w for size, w in zip(x.shape, window, strict=True))
        and jnp.issubdtype(x.dtype, jnp.floating)
    )
    places = 1
    for w in window:
        places *= w
    return [max_pool(x, tuple(window))] if plain and 1 < places <= 127 else None


RULES: dict[str, Rule] = {"reduce_window_max": _reduce_window_max}
