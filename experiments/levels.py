"""How large a change of the input may be let pass, for an error of the output, on some frames.

`tinyjax.threshold` takes the patches in which a value moved by more than a level. What the network
makes of the input that is left is what `tinyjax.pass_skip` gives, so levels are tried without
skipping anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.measure import compared, relative
from tinyjax import threshold

__all__ = ["LEVELS", "Level", "effective", "level", "runs"]

LEVELS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)  # of 0..255


class Level(NamedTuple):
    """A level, and the output error that was measured with it."""

    level: float
    error: float


def runs(count: int, wanted: int, parts: int) -> np.ndarray:
    """Indices of frames for a calibration: as many in a row from the middle of each equal part.

    Args:
      count: frames there are.
      wanted: of them, at most.
      parts: into which they are divided.

    Returns:
      int [n], ascending, n <= wanted.

    >>> runs(40, 8, 4).tolist()
    [4, 5, 14, 15, 24, 25, 34, 35]
    """
    length = max(1, min(wanted, count) // parts)
    starts = [(2 * part + 1) * count // (2 * parts) - length // 2 for part in range(parts)]
    return np.unique([index for start in starts for index in range(start, start + length)])


def effective(frames: Sequence[np.ndarray], level: float, patch: int) -> list[np.ndarray]:
    """The inputs that are left of frames when patches that moved by no more than a level are not
    taken; the first is taken whole.

    `tinyjax.pass_skip` takes more than this where it takes a frame whole.

    Args:
      frames: [1, h, w, c] each.
      level: in units of the frames.
      patch: side of a patch.
    """
    gate = jax.jit(threshold(level), static_argnums=2)
    refs = [frames[0]]
    for x in frames[1:]:
        taken = np.asarray(gate(x[0], refs[-1][0], patch))
        h, w = x.shape[1:3]
        pixels = taken.repeat(patch, 0).repeat(patch, 1)[:h, :w, None]
        refs.append(np.where(pixels, x, refs[-1]))
    return refs


def level(
    apply: Callable[..., Any],
    params: Any,
    frames: Sequence[np.ndarray],
    *,
    patch: int,
    within: Callable[[Sequence[jax.Array], Level], bool],
) -> Level:
    """The largest of `LEVELS` that was tried with which the outputs are good enough.

    Args:
      apply: ``apply(params, frame)``.
      params: its parameters.
      frames: successive frames of 0..255, [1, h, w, c] each.
      patch: side of a patch.
      within: whether outputs, frame by frame, and the level and error that belong to them, will
        do; level 0 is not asked about.

    Returns:
      The level and its error, ``sqrt(sum of squared error / sum of squared dense output)``; halving
      an interval, it takes what is too much to be too much at every higher level.
    """
    dense = jax.jit(apply)
    right = [dense(params, x) for x in frames]
    low, high, best = 0, len(LEVELS), Level(0.0, 0.0)
    while high - low > 1:
        middle = (low + high) // 2
        outs = [dense(params, x) for x in effective(frames, LEVELS[middle], patch)]
        pairs = [compared(y, out) for y, out in zip(right, outs, strict=True)]
        energy, squared = (sum(float(pair[at]) for pair in pairs) for at in (0, 1))
        found = Level(float(LEVELS[middle]), relative(squared, energy))
        if within(outs, found):
            low, best = middle, found
        else:
            high = middle
    return best
