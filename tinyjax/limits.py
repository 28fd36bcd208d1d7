"""Finds how far the tensors inside a network may move unseen, for an error of its output.

References:
  Cavigelli, Benini, `CBinfer <https://arxiv.org/abs/1808.05488>`_, 2018: thresholds are raised
  layer by layer, front to back, while the loss of the whole network allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tinyjax.base import Array, Rewritten

__all__ = ["inner_limits"]

OCTAVES = 16  # from the largest value inside the network down to the smallest limit that is tried


def inner_limits(
    skipping: Rewritten,
    apply: Callable[..., Any],
    params: Any,
    frames: Sequence[Array],
    *,
    tolerance: float = 0.01,
    tries: int = 8,
) -> Array:
    """Limits for :func:`tinyjax.pass_skip`, found on some frames.

    Front to back, each tensor between blocks gets the largest limit that was tried with which the
    output is within its share of the tolerance, all limits before it in place: of ``n`` tensors,
    the first may use ``1 / n`` of the tolerance, the second what is left of ``2 / n``. The error is
    ``sqrt(sum |out - dense|^2 / sum |dense|^2)`` over all frames and outputs, the gate's at the
    input included. Every limit that is returned was run over the frames: the error there is a
    measurement, on other frames it is not bounded.

    Frames that are computed whole have no error, so on a clip that is all motion limits come out
    too large for quieter ones: take frames like those to come, a hundred rather than ten.

    Args:
      skipping: ``rewrite(pass_skip(...), apply)``.
      apply: the function itself, ``apply(params, frame)``.
      params: its parameters.
      frames: successive frames, ``[1, h, w, c]`` each.
      tolerance: of the output, relative, above 0.
      tries: limits tried per tensor, halving an interval of their logarithms.

    Returns:
      float32 ``[tensors]``: for ``inner=`` or for ``state._replace(limits=...)``.

    Raises:
      ValueError: if ``tolerance`` or ``tries`` is out of range, if there are fewer than two frames,
        or if without any limit the error is too large, that is, because of the gate at the input.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda params, frame: jnp.tanh(frame @ params) @ params.T
      >>> skipping = tinyjax.rewrite(tinyjax.pass_skip(patch=8), apply)
      >>> frames = [jnp.full((1, 16, 16, 3), value) for value in (0.5, 0.6)]
      >>> tinyjax.inner_limits(skipping, apply, jnp.eye(3), frames).shape  # all is one block
      (0,)

    References:
      Cavigelli, Benini, CBinfer, 2018 (see the module).
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance is {tolerance}: use a relative error above 0, say 0.01")
    if isinstance(tries, bool) or not isinstance(tries, int) or tries < 1:
        raise ValueError(f"tries is {tries!r}: use a number of limits from 1 up")
    if len(frames) < 2:
        raise ValueError(f"there are {len(frames)} frames: give two or more in succession")
    start = skipping.init(params, frames[0])
    whole, step = jax.jit(apply), jax.jit(skipping.apply)
    dense = [jax.tree.map(_floats, whole(params, x)) for x in frames]
    norm = math.sqrt(sum(_squares(out) for out in dense))

    def error(limits: Array) -> float:
        state, total = start._replace(limits=limits), 0.0
        for x, want in zip(frames, dense, strict=True):
            out, state = step(state, params, x)
            total += _squares(jax.tree.map(lambda a, b: _floats(a) - b, out, want))
        return math.sqrt(total) / max(norm, math.ulp(0))

    limits = jnp.zeros_like(start.limits)
    if not (least := error(limits)) <= tolerance:
        raise ValueError(
            f"the output's error is {least:.3g} before any inner limit, more than {tolerance}: "
            "let the gate at the input take more"
        )
    cuts = step(start, params, frames[0])[1].cuts
    top = math.log2(max(2.0**-100, *(float(jnp.abs(_floats(c)).max()) for c in cuts)))
    for at in range(limits.size):
        allowed = least + (tolerance - least) * (at + 1) / limits.size
        low, high = top - OCTAVES, top
        for _ in range(tries):
            middle = (low + high) / 2
            tried = limits.at[at].set(2.0**middle)
            fits = error(tried) <= allowed
            low, high = (middle, high) if fits else (low, middle)
            limits = tried if fits else limits
    return limits


def _floats(a: Array) -> Array:
    return a.astype(jnp.float32)


def _squares(out: Any) -> float:
    return sum(float(jnp.sum(jnp.square(a))) for a in jax.tree.leaves(out))
