"""Gates: which patches of a frame are taken, the others keep what was there before.

A gate is a function ``(x, ref, patch) -> bool [rows, cols]`` of the frame and the effective input
of the frame before, both ``[h, w, c]``. It runs on the device, under jit; one that gives a NumPy
array is known before anything is traced. What a gate is to be changed by from frame to frame, a
level or learned weights, a :class:`VariableGate` keeps apart from its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax.numerics.patches import differs, tiles, window_any

__all__ = ["Gate", "VariableGate", "exact", "root_mean_square", "static", "threshold", "top_k"]

Array = jax.Array
Gate = Callable[[Array, Array, int], Any]


@dataclass(frozen=True, eq=False)  # told apart by identity, so that jit can have it for a function
class VariableGate:
    """A gate with values that may change from frame to frame without another compilation.

    It is a gate like any other, at the values it was made with. :func:`tinyjax.pass_skip` keeps a
    copy of them in its state, ``state.gate``, and uses that: ``state._replace(gate=...)`` changes
    them for the frames to come.

    Attributes:
      variables: a pytree of arrays.
      call: ``call(variables, x, ref, patch) -> bool [rows, cols]``.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> darker = lambda level, x, ref, patch: jnp.full((2, 2), x.mean() < level)
      >>> gate = tinyjax.VariableGate(jnp.float32(0.5), darker)
      >>> x = jnp.full((4, 4, 1), 0.6)
      >>> gate(x, x, 2).any().item(), gate.call(jnp.float32(0.7), x, x, 2).any().item()
      (False, True)
    """

    variables: Any
    call: Callable[[Any, Array, Array, int], Any]

    def __call__(self, x: Array, ref: Array, patch: int) -> Any:
        return self.call(self.variables, x, ref, patch)


def exact(x: Array, ref: Array, patch: int) -> Array:
    """The gate that takes every patch in which anything changed; NaN counts as changed.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.zeros((4, 4, 1))
      >>> tinyjax.exact(x.at[0, 3].set(1e-9), x, 2).tolist()
      [[False, True], [False, False]]
    """
    return window_any(differs(x, ref), (patch, patch))


def threshold(limit: float) -> VariableGate:
    """The gate that takes a patch if any of its values moved by more than ``limit``.

    So the effective input never differs from the frame by more than ``limit``, however slowly it
    drifts. The limit may change while frames come: ``state._replace(gate=jnp.float32(0.2))``.

    Args:
      limit: in units of the frame, 0 or more.

    Returns:
      A gate, whose variable is the limit: float32 ``[]``.

    Raises:
      ValueError: if ``limit`` is negative or no number.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.zeros((4, 4, 1))
      >>> tinyjax.threshold(0.1)(x.at[0, 3].set(0.2).at[3, 0].set(0.1), x, 2).tolist()
      [[False, True], [False, False]]
    """
    if not (math.isfinite(limit) and limit >= 0):
        raise ValueError(f"limit is {limit}: use a number from 0 up, in units of the frame")

    def call(limit: Array, x: Array, ref: Array, patch: int) -> Array:
        moved = jnp.abs(x.astype(jnp.float32) - ref.astype(jnp.float32))
        return window_any(~(moved <= limit), (patch, patch))

    return VariableGate(np.float32(limit), call)


def root_mean_square(limit: float) -> VariableGate:
    """The gate that takes a patch if the root of its mean square change is above ``limit``.

    So the effective input of a patch never differs from the frame by more, in the mean. Noise of a
    camera or of a video codec moves few values far and many a little: for the same error of the
    output this gate takes fewer patches of such videos than :func:`threshold`, while single pixels
    may move by any amount unseen. The limit may change like that of :func:`threshold`.

    Args:
      limit: in units of the frame, above 0; the smallest changes have squares of 0.

    Returns:
      A gate, whose variable is the limit: float32 ``[]``.

    Raises:
      ValueError: if ``limit`` is not positive.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.zeros((4, 4, 1))
      >>> gate = tinyjax.root_mean_square(0.1)
      >>> gate(x.at[0, 3].set(0.3).at[3, 0].set(0.1), x, 2).tolist()  # 0.15 and 0.05
      [[False, True], [False, False]]
    """
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"limit is {limit}: use a positive number, or the gate exact for 0")

    def call(limit: Array, x: Array, ref: Array, patch: int) -> Array:
        h, w, c = x.shape
        square = jnp.square(x.astype(jnp.float32) - ref.astype(jnp.float32)).reshape(h, w * c)
        rows, cols = tiles((h, w), (patch, patch))
        padded = jnp.pad(square, ((0, rows * patch - h), (0, (cols * patch - w) * c)))
        # Columns stay joined to channels, as in `window_any`.
        sums = jax.lax.optimization_barrier(padded.reshape(rows, patch, -1).sum(1))
        held = [
            np.minimum(np.arange(n) * patch + patch, side) - np.arange(n) * patch
            for n, side in ((rows, h), (cols, w))
        ]
        counts = jnp.asarray(np.multiply.outer(*held) * c, jnp.float32)
        return ~(sums.reshape(rows, cols, -1).sum(2) <= jnp.square(limit) * counts)

    return VariableGate(np.float32(limit), call)


def top_k(count: int) -> Gate:
    """The gate that takes the patches whose largest value moved furthest, at most so many.

    So the cost of a frame is bounded, while an error is not: what is not taken waits until it is
    among the first. Patches that did not change are never taken; NaN goes first.

    Args:
      count: patches per frame, 1 or more.

    Returns:
      A gate.

    Raises:
      ValueError: if ``count`` is no number of patches.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> x = jnp.zeros((4, 4, 1))
      >>> tinyjax.top_k(1)(x.at[0, 3].set(0.2).at[3, 0].set(0.1), x, 2).tolist()
      [[False, True], [False, False]]
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count is {count!r}: use a number of patches from 1 up")

    def gate(x: Array, ref: Array, patch: int) -> Array:
        moved = jnp.abs(x.astype(jnp.float32) - ref.astype(jnp.float32)).max(2)
        moved = jnp.where(differs(x, ref).any(2) & ~(moved > 0), jnp.inf, moved)
        size = tiles(moved.shape, (patch, patch))
        beyond = [(0, n * patch - side) for n, side in zip(size, moved.shape, strict=True)]
        cells = jnp.pad(moved, beyond).reshape(size[0], patch, size[1], patch)
        scores, places = jax.lax.top_k(cells.max((1, 3)).ravel(), min(count, math.prod(size)))
        taken = jnp.zeros(math.prod(size), bool).at[places].set(scores > 0)
        return taken.reshape(size)

    return gate


def static(mask: Any) -> Gate:
    """The gate that takes the same patches in every frame; known before anything is traced.

    Nothing is compared: what lies outside the mask stays as it was in the first frame.

    Args:
      mask: bool ``[rows, cols]``, a flag per patch.

    Returns:
      A gate.

    Raises:
      ValueError: if the mask is not bool of rank 2; on use, if it does not tile the frame.

    Example:
      >>> import numpy as np, tinyjax
      >>> tinyjax.static(np.eye(2, dtype=bool))(np.ones((4, 4, 1)), np.ones((4, 4, 1)), 2).tolist()
      [[True, False], [False, True]]
    """
    mask = np.array(mask)
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(
            f"mask is {mask.dtype} {mask.shape}, expected bool [rows, cols]: give a flag per patch"
        )
    return lambda x, ref, patch: mask
