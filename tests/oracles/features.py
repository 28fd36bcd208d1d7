"""Contexts and order of feature codes, pixel by pixel, from the arrays of a state."""

import math

import numpy as np

NO_CODE = 127  # the table after the 126 contexts and the one of order 0


def steps(q, sources, weights, edges, splits, lanes, mask=None):
    """Symbols and contexts, each [steps][lanes], of codes [n, *space, c], or those of a mask."""
    n, *space, c = q.shape
    h, w = ([1, 1, *space])[-2:]
    mask = np.ones(q.shape, bool) if mask is None else mask
    mask = mask.reshape(n * math.prod(space[:-2]), h, w, c)
    q = q.reshape(n * math.prod(space[:-2]), h, w, c).astype(np.int64)
    size = -(-c // 8)
    symbols, contexts = [], []
    for first in range(0, c, size):
        for phase in range(3):
            row = [
                _pixel(q, i, y, x, k, phase, sources, weights, edges, splits)
                if k < c and mask[i, y, x, k]
                else (0, NO_CODE)
                for k in range(first, first + size)
                for parity in ([(0, 0)], [(1, 1)], [(0, 1), (1, 0)])[phase]
                for i in range(len(q))
                for y in range(parity[0], h, 2)
                for x in range(parity[1], w, 2)
            ]
            row += [(0, NO_CODE)] * (-len(row) % lanes)
            for start in range(0, len(row), lanes):
                symbols.append([s for s, _ in row[start : start + lanes]])
                contexts.append([t for _, t in row[start : start + lanes]])
    return symbols, contexts


def _around(q, i, y, x, k, offsets):
    """Sum over neighbours of a pixel, 0 beyond the edge."""
    _, h, w, _ = q.shape
    return sum(q[i, y + dy, x + dx, k] for dy, dx in offsets if 0 <= y + dy < h and 0 <= x + dx < w)


DIRECT = [(0, 1), (0, -1), (1, 0), (-1, 0)]
DIAGONAL = [(1, 1), (1, -1), (-1, 1), (-1, -1)]


def _pixel(q, i, y, x, k, phase, *arrays):
    """The code of a pixel and its context."""
    return int(q[i, y, x, k]), context(q, i, y, x, k, phase, *arrays)


def context(q, i, y, x, k, phase, sources, weights, edges, splits):
    """The context of a pixel, from codes that come before it."""
    known = [q[i, y, x, s] for s in sources[k]]
    known += [_around(q, i, y, x, s, DIRECT) for s in sources[k]]
    known.append([0, _around(q, i, y, x, k, DIAGONAL), _around(q, i, y, x, k, DIRECT)][phase])
    known.append(1)
    prediction, activity = (
        sum(int(a) * int(b) for a, b in zip(form[phase][k], known, strict=True)) for form in weights
    )
    place = sum(prediction >= e for e in edges[phase])
    kind = sum(activity >= e for e in splits[phase][place])
    return int(phase * 42 + place * 3 + kind)
