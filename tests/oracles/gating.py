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


def asleep_slopes(skips, reach):
    """Derivatives of the sum of `asleep`: all that are least share it, along columns, then rows."""
    columns = np.array([_least(column, reach)[0] for column in skips.T]).T
    over = np.array([_least(row, reach)[1](np.ones(len(row))) for row in columns])
    pairs = zip(skips.T, over.T, strict=True)
    return np.array([_least(column, reach)[1](g) for column, g in pairs]).T


def _least(line, reach):
    """The least within `reach` of each entry, and how derivatives go back."""
    near = [np.arange(max(0, i - reach), min(len(line), i + reach + 1)) for i in range(len(line))]
    least = np.array([line[places].min() for places in near])

    def back(slopes):
        out = np.zeros(len(line))
        for places, value, slope in zip(near, least, slopes, strict=True):
            ties = places[line[places] == value]
            out[ties] += slope / len(ties)
        return out

    return least, back


def blended(x, ref, skips, patch):
    """[h, w, c]: `ref` in the patches that are skipped, `x` in the others."""
    out = x.copy()
    for i, j in np.argwhere(skips):
        here = np.s_[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
        out[here] = ref[here]
    return out


def terms(f, x, ref, skips, patch, budget, margin, weight, reach):
    """The loss and its terms, of frames [n, h, w, c] and skips bool [n, rows, cols].

    Distances are relative to what the whole change does to the output, and pairs weigh as much as
    that is of the output.
    """
    positive, negative, hinge, change = [], [], [], []
    for one, other, s in zip(x, ref, skips, strict=True):
        a, z = f(one), f(other)
        p, n = f(blended(one, other, s, patch)), f(blended(one, other, ~s, patch))
        whole = ((a - z) ** 2).sum()
        positive.append(((a - p) ** 2).sum() / whole if whole else 0.0)
        negative.append(((a - n) ** 2).sum() / whole if whole else 0.0)
        hinge.append(max(0.0, positive[-1] - negative[-1] + margin))
        change.append(whole / (a**2).sum())
    share = 1 - np.mean([asleep(s, reach) for s in skips])
    loss = np.average(hinge, weights=change) + weight * (share - budget) ** 2
    return loss, np.array(positive), np.array(negative), share
