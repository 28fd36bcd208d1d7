"""Products and convolutions in int64, as sums over indices."""

import itertools

import numpy as np


def dot(x, w):
    """[m, k] x [k, n]."""
    return x.astype(np.int64) @ w.astype(np.int64)


def _meetings(space, taps, out, spec):
    """Every (tap, output pixel, input pixel) of a convolution that lies inside the input."""
    strides, padding, dilation, _ = spec
    for tap in itertools.product(*map(range, taps)):
        for o in itertools.product(*map(range, out)):
            i = tuple(
                p * s + t * d - pad[0]
                for p, s, t, d, pad in zip(o, strides, tap, dilation, padding, strict=True)
            )
            if all(0 <= a < n for a, n in zip(i, space, strict=True)):
                yield tap, o, i


def out_space(space, taps, spec):
    """Extent of the output."""
    strides, padding, dilation, _ = spec
    return tuple(
        max(0, (n + sum(p) - (k - 1) * d - 1) // s + 1)
        for n, k, s, p, d in zip(space, taps, strides, padding, dilation, strict=True)
    )


def conv(x, w, spec):
    """y[o] = sum over taps of x[i] w[tap], group by group."""
    x, w = x.astype(np.int64), w.astype(np.int64)
    space, taps, groups = x.shape[1:-1], w.shape[:-2], spec[3]
    out = out_space(space, taps, spec)
    y = np.zeros((x.shape[0], *out, w.shape[-1]), np.int64)
    for xs, ws, ys in _groups(x, w, y, groups):
        for tap, o, i in _meetings(space, taps, out, spec):
            ys[(slice(None), *o)] += xs[(slice(None), *i)] @ ws[tap]
    return y


def conv_dx(g, w, spec, space):
    """dx[i] = sum over taps of g[o] w[tap]^T."""
    g, w = g.astype(np.int64), w.astype(np.int64)
    taps, groups = w.shape[:-2], spec[3]
    dx = np.zeros((g.shape[0], *space, w.shape[-2] * groups), np.int64)
    for xs, ws, gs in _groups(dx, w, g, groups):
        for tap, o, i in _meetings(space, taps, g.shape[1:-1], spec):
            xs[(slice(None), *i)] += gs[(slice(None), *o)] @ ws[tap].T
    return dx


def conv_dw(x, g, spec, taps):
    """dw[tap] = sum over samples and pixels of x[i]^T g[o]."""
    x, g = x.astype(np.int64), g.astype(np.int64)
    groups = spec[3]
    dw = np.zeros((*taps, x.shape[-1] // groups, g.shape[-1]), np.int64)
    for xs, ws, gs in _groups(x, dw, g, groups):
        for tap, o, i in _meetings(x.shape[1:-1], taps, g.shape[1:-1], spec):
            ws[tap] += xs[(slice(None), *i)].T @ gs[(slice(None), *o)]
    return dw


def _groups(x, w, y, groups):
    """Views of one group at a time: its input channels, its kernel, its features."""
    c, f = x.shape[-1] // groups, y.shape[-1] // groups
    for k in range(groups):
        a, b = slice(k * c, (k + 1) * c), slice(k * f, (k + 1) * f)
        yield x[..., a], w[..., b], y[..., b]
