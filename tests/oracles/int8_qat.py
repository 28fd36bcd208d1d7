"""The three int8 products of a site, from their equations, in NumPy."""

import numpy as np

from tests.oracles import integer
from tests.oracles.quantize import F32, quantize, scale


def forward(x, w, bits, product):
    """``y`` of canonical ``x`` and ``w`` (features last), and what the backward pass keeps."""
    s_x, s_w = scale(x, bits).reshape(()), scale(w, bits, tuple(range(w.ndim - 1))).reshape(-1)
    x_q, w_q = quantize(x, s_x, bits), quantize(w, s_w, bits)
    y = product(x_q, w_q).astype(F32) * (s_x * s_w)
    return y, (x_q, s_x, w_q, s_w)


def backward(kept, g, bits, product_dx, product_dw, seed=None):
    """``dx`` and ``dw``."""
    x_q, s_x, w_q, s_w = kept
    folded = (g * s_w).astype(F32)
    # The folded magnitude is the largest of each feature times its scale, which rounds the same.
    s_r = scale(folded, bits, tuple(range(1, g.ndim)))
    s_g = scale(g, bits, tuple(range(g.ndim - 1))).reshape(-1)
    dx = product_dx(quantize(folded, s_r, bits, seed=seed), w_q).astype(F32) * s_r
    dw = product_dw(x_q, quantize(g, s_g, bits, seed=seed)).astype(F32) * (s_x * s_g)
    return dx, dw


def dot(x, w, g, bits, seed=None):
    """``(y, dx, dw)`` of a dense layer."""
    y, kept = forward(x, w, bits, integer.dot)
    return y, *backward(kept, g, bits, lambda g, w: g @ w.T, lambda x, g: x.T @ g, seed)


def conv(x, w, g, bits, spec, seed=None):
    """``(y, dx, dw)`` of a convolution."""
    y, kept = forward(x, w, bits, lambda x, w: integer.conv(x, w, spec))
    return y, *backward(
        kept,
        g,
        bits,
        lambda g, w: integer.conv_dx(g, w, spec, x.shape[1:-1]),
        lambda x, g: integer.conv_dw(x, g, spec, w.shape[:-2]),
        seed,
    )


def seed_of(key_bits):
    """A uint32 as a Python int."""
    return int(np.asarray(key_bits))
