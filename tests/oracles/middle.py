"""The middle of a range that keeps 0.0 a code, by trying every code."""

import numpy as np


def middle(x: np.ndarray, limit: int) -> float:
    """Of all ``c`` from 0 to the middle that are whole numbers of steps, the one furthest from 0.

    A step is ``max|x - c| / limit``, of values that include 0.
    """
    high, low = max(float(x.max()), 0.0), min(float(x.min()), 0.0)
    best = 0.0
    for k in range(-limit, limit + 1):
        # The far end lies limit steps from c: to the right of it, or to the left.
        for end, side in ((high, 1), (low, -1)):
            if limit * side + k == 0:
                continue
            step = end / (limit * side + k)
            c = k * step
            reach = max(high - c, c - low)
            whole = step >= 0 and abs(reach - limit * step) <= 1e-9 * max(reach, 1e-30)
            towards = c * (high + low) >= 0
            if whole and towards and abs(best) < abs(c) <= abs(high + low) / 2 * (1 + 1e-9):
                best = c
    return best
