"""Windows and flags with loops."""

import math

import numpy as np


def window_any(flags, cell, low, high, grid=None):
    """bool [h, w, c] -> bool [rows, cols]: is a flag within a cell and its halo?"""
    h, w, _ = flags.shape
    rows, cols = grid or (math.ceil(h / cell[0]), math.ceil(w / cell[1]))
    out = np.zeros((rows, cols), bool)
    for i in range(rows):
        for j in range(cols):
            for a in range(i * cell[0] - low[0], (i + 1) * cell[0] + high[0]):
                for b in range(j * cell[1] - low[1], (j + 1) * cell[1] + high[1]):
                    if 0 <= a < h and 0 <= b < w and flags[a, b].any():
                        out[i, j] = True
    return out


def read_window(x, start, size):
    """[1, h, w, c] -> [1, *size, c], zeros outside."""
    out = np.zeros((1, *size, x.shape[3]), x.dtype)
    for a in range(size[0]):
        for b in range(size[1]):
            i, j = start[0] + a, start[1] + b
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                out[0, a, b] = x[0, i, j]
    return out


def add_window(x, window, start):
    """[1, h, w, c] with [1, *size, c] added; what lies outside is dropped."""
    out = x.copy()
    for a in range(window.shape[1]):
        for b in range(window.shape[2]):
            i, j = start[0] + a, start[1] + b
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                out[0, i, j] += window[0, a, b]
    return out


def effective_input(x, ref, taken, patch):
    """The new reference: ``x`` in the patches that were taken, ``ref`` elsewhere; [h, w, c]."""
    out = ref.copy()
    for i, j in np.argwhere(taken):
        here = np.s_[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
        out[here] = x[here]
    return out
