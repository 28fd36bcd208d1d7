"""Reports how far skipping drifts from the whole computation along a clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax.base import Array, Rewritten

__all__ = ["Drift", "drift"]


class Drift(NamedTuple):
    """What :func:`tinyjax.drift` saw, frame by frame; ``str`` sums it up.

    Attributes:
      held_back: how far a value of the frame is from the effective input, at most: float32
        ``[frames]``, in units of the frame.
      error: of the output, ``sqrt(sum |out - dense|^2 / sum |dense|^2)``: float32 ``[frames]``.
      age: frames since the oldest patch was taken: int32 ``[frames]``.
      active: share of the cells that were recomputed, mean over the blocks: float32 ``[frames]``.

    Example:
      >>> import numpy as np, tinyjax
      >>> quiet = np.zeros(8, np.float32)
      >>> print(tinyjax.Drift(quiet, np.repeat(np.float32([0, 0.2]), 4), quiet.astype(int), quiet))
      8 frames, 0.0% of cells recomputed, the oldest patch 0 frames old, held back at most 0
      output error by quarters: 0, 0, 0.2, 0.2
    """

    held_back: np.ndarray
    error: np.ndarray
    age: np.ndarray
    active: np.ndarray

    def quarters(self) -> tuple[float, ...]:
        """The mean output error of each quarter of the clip; nan of a quarter without frames.

        An error that settles has a last quarter like the second; the first begins exact.
        """
        parts = np.array_split(self.error, 4)
        return tuple(float(part.mean()) if len(part) else math.nan for part in parts)

    def __str__(self) -> str:
        return (
            f"{len(self.error)} frames, {self.active.mean():.1%} of cells recomputed, the oldest "
            f"patch {self.age.max()} frames old, held back at most {self.held_back.max():.3g}\n"
            f"output error by quarters: {', '.join(f'{e:.3g}' for e in self.quarters())}"
        )


def drift(
    skipping: Rewritten, apply: Callable[..., Any], params: Any, frames: Iterable[Array]
) -> Drift:
    """How far a clip's effective input and output are from the whole computation, frame by frame.

    Both are computed for every frame, the whole one too. What a gate holds back does not add up
    with :func:`tinyjax.threshold`; with gates of your own it may, and this shows it.

    Args:
      skipping: ``rewrite(pass_skip(...), apply)``.
      apply: the function itself, ``apply(params, frame)``.
      params: its parameters.
      frames: successive frames, ``[1, h, w, c]`` each, taken one at a time.

    Returns:
      An entry per frame. A frame that holds NaN has an error of NaN.

    Raises:
      ValueError: if there are no frames.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda params, frame: jnp.tanh(frame @ params)
      >>> tx = tinyjax.pass_skip(patch=8, gate=tinyjax.threshold(0.1))
      >>> ramp = (jnp.full((1, 16, 16, 3), 0.03 * t) for t in range(20))
      >>> found = tinyjax.drift(tinyjax.rewrite(tx, apply), apply, jnp.eye(3), ramp)
      >>> round(float(found.held_back.max()), 2), found.age.max().item()
      (0.09, 3)

    References:
      Zhu et al., `Deep Feature Flow <https://arxiv.org/abs/1611.07715>`_, CVPR 2017: features of
      key frames are reused, and what that costs grows with the distance to them.
    """

    def step(state: Any, params: Any, x: Array) -> tuple[Any, tuple[Array, ...]]:
        out, state = skipping.apply(state, params, x)
        floats = lambda a: a.astype(jnp.float32)
        squares = lambda tree: sum(
            (jnp.square(floats(a)).sum() for a in jax.tree.leaves(tree)), jnp.float32(0)
        )
        right = apply(params, x)
        wrong = jax.tree.map(lambda a, b: floats(a) - floats(b), out, right)
        held_back = jnp.abs(floats(x) - floats(state.ref)).max()
        shares = [cells.astype(jnp.float32).mean() for cells in state.active]
        active = jnp.stack(shares).mean()
        return state, (held_back, squares(wrong), squares(right), state.age.max(), active)

    donating, state, seen = jax.jit(step, donate_argnums=0), None, []
    for x in frames:
        state = skipping.init(params, x) if state is None else state
        state, figures = donating(state, params, x)
        seen.append(jax.device_get(figures))
    if not seen:
        raise ValueError("there are no frames: give some, [1, h, w, c] each")
    held_back, wrong, right, age, active = map(np.array, zip(*seen, strict=True))
    error = np.sqrt(wrong / np.maximum(right, np.finfo(np.float32).tiny))
    return Drift(held_back, error, age, active)
