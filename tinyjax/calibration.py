"""Measures how far activations reach, for scales that are frozen afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from tinyjax.base import Array, Op, Site, Transform, Vars
from tinyjax.numerics import abs_max
from tinyjax.rewrite import rewrite

__all__ = ["calibrate"]


def calibrate(
    apply: Callable[..., Any], params: Any, batches: Iterable[tuple[Any, ...]], **kwargs: Any
) -> dict[str, float]:
    """The largest magnitude of every site's activation over some batches, in float32.

    Args:
      apply: the forward function; its output is not used.
      params: its first argument.
      batches: tuples of its further arguments; of one shape, lest it is compiled again.
      **kwargs: its keywords, the same for all.

    Returns:
      Site path -> magnitude, for :func:`tinyjax.frozen`.

    Raises:
      ValueError: if there are no batches, or if an activation is NaN, Inf or nothing but zeros.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda params, x: x @ params["w"]
      >>> batches = [(jnp.array([[1.0, -2.0]]),), (jnp.array([[0.5, 1.0]]),)]
      >>> tinyjax.calibrate(apply, {"w": jnp.eye(2)}, batches)
      {'w': 2.0}
    """
    tracking = rewrite(_tracking(), apply)
    step = jax.jit(lambda vars, params, args: tracking.apply(vars, params, *args, **kwargs)[1])
    vars: dict[str, Vars] | None = None
    for args in batches:
        vars = tracking.init(params, *args, **kwargs) if vars is None else vars
        vars = step(vars, params, tuple(args))
    if vars is None:
        raise ValueError("there are no batches: give at least one tuple of arguments")
    found = {path: float(value) for path, value in vars.items()}
    for path, value in found.items():
        if not 0 < value < float("inf"):
            raise ValueError(
                f"the activation of {path!r} reaches {value}: calibrate with data that are finite "
                "and not all zeros there"
            )
    return found


def _tracking() -> Transform:
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
        del site, key
        return op(x, w, epilogue, **overrides), jnp.maximum(vars, abs_max(x).reshape(()))

    return Transform(lambda site: jnp.float32(0), call)
