"""Statistics of patches, and the loss that trains a gate, with loops."""

import math

import numpy as np


def groups_of(channels):
    """Group of every channel: neighbours, at most 8 groups, the first ones larger by one."""
    count = min(8, channels)
    found = []
    for group in range(count):
        found += [group] * (channels // count + (1 if group < channels % count else 0))
    return np.array(found)


def statistics(x, ref, patch):
    """[h, w, c] -> [rows, cols, 3 * groups]: max, mean, mean of squares of |x - ref|."""
    moved = np.abs(x.astype(np.float64) - ref.astype(np.float64))
    h, w, c = moved.shape
    ids = groups_of(c)
    rows, cols, groups = math.ceil(h / patch), math.ceil(w / patch), ids.max() + 1
    out = np.zeros((rows, cols, 3 * groups))
    for i in range(rows):
        for j in range(cols):
            cell = moved[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            for g in range(groups):
                values = cell[..., ids == g]
                out[i, j, g] = values.max()
                out[i, j, groups + g] = values.mean()
                out[i, j, 2 * groups + g] = (values**2).mean()
    return out


def asleep(skips, reach):
    """bool [rows, cols]: no patch up to `reach` away is taken."""
    rows, cols = skips.shape
    out = np.ones_like(skips)
    for i in range(rows):
        for j in range(cols):
            for a in range(max(0, i - reach), min(rows, i + reach + 1)):
                for b in range(max(0, j - reach), min(cols, j + reach + 1)):
                    out[i, j] &= skips[a, b]
    return out


def blended(x, ref, skips, patch):
    """[h, w, c]: `ref` in the patches that are skipped, `x` in the others."""
    out = x.copy()
    for i, j in np.argwhere(skips):
        here = np.s_[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
        out[here] = ref[here]
    return out


def terms(f, x, ref, skips, patch, budget, margin, weight, reach):
    """The loss and its terms, of frames [n, h, w, c] and skips bool [n, rows, cols].

    Distances are relative to what the whole change does to the output; a pair of which that is
    less than a thousandth of the output, in norm, says nothing.
    """
    positive, negative, hinge = [], [], []
    for one, other, s in zip(x, ref, skips, strict=True):
        a, z = f(one), f(other)
        p, n = f(blended(one, other, s, patch)), f(blended(one, other, ~s, patch))
        whole, floor = ((a - z) ** 2).sum(), 1e-6 * (a**2).sum()
        if whole > floor:
            positive.append(((a - p) ** 2).sum() / whole)
            negative.append(((a - n) ** 2).sum() / whole)
            hinge.append(max(0.0, positive[-1] - negative[-1] + margin))
        else:
            positive.append(0.0)
            negative.append(0.0)
            hinge.append(0.0)
    share = 1 - np.mean([asleep(s, reach) for s in skips])
    loss = np.mean(hinge) + weight * (share - budget) ** 2
    return loss, np.array(positive), np.array(negative), share
