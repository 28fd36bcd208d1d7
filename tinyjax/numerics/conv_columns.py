"""Integer convolutions as one matrix product each, over columns: for backends without their own.

Every output pixel gets a row with all input pixels that its window sees (im2col), in int8, and the
convolution is a dot product with the kernel as a matrix. On GPUs XLA refuses convolutions with
int32 sums (`jax#7637 <https://github.com/jax-ml/jax/issues/7637>`_) but has such dot products;
sizes that are no multiples of 4, as cuBLAS wants them, it pads itself. One group; in memory the
columns are as many times the input as the kernel has taps.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.conv_taps import ConvSpec, Space, padded, views
from tinyjax.numerics.integer_ops import Sums, dot, dot_dw

__all__ = ["column_conv", "column_conv_dw", "column_conv_dx", "dx_padding"]

Array = jax.Array


def column_conv(x: Array, w: Array, spec: ConvSpec) -> Sums:
    """:func:`integer_conv.conv`, as one product."""
    taps, (c, features) = w.shape[:-2], w.shape[-2:]
    out = spec.out_space(x.shape[1:-1], taps)
    parts = dot(_columns(x, spec, taps, out), w.reshape(math.prod(taps) * c, features))
    return tuple(part.reshape(x.shape[0], *out, features) for part in parts)


def column_conv_dx(g: Array, w: Array, spec: ConvSpec, space: Space) -> Sums:
    """:func:`integer_conv.conv_dx`, as one product, with zeros between the pixels of a stride."""
    taps = w.shape[:-2]
    g = padded(g, dx_padding(taps, spec, space, g.shape[1:-1]), spec.strides)
    flipped = lax.rev(w, range(len(taps))).swapaxes(-1, -2)
    dense = ConvSpec((1,) * len(taps), ((0, 0),) * len(taps), spec.dilation, 1)
    return column_conv(g, flipped, dense)


def column_conv_dw(x: Array, g: Array, spec: ConvSpec, taps: Space) -> Sums:
    """:func:`integer_conv.conv_dw`, as one product."""
    columns = _columns(x, spec, taps, g.shape[1:-1])
    parts = dot_dw(columns, g.reshape(len(columns), g.shape[-1]))
    return tuple(part.reshape(*taps, x.shape[-1], g.shape[-1]) for part in parts)


def dx_padding(
    taps: Space, spec: ConvSpec, space: Space, out: Space
) -> tuple[tuple[int, int], ...]:
    """Around the output gradient, spread by the strides: what its dense convolution needs."""
    reach = [(k - 1) * d for k, d in zip(taps, spec.dilation, strict=True)]
    before = [r - p[0] for r, p in zip(reach, spec.padding, strict=True)]
    rows = zip(space, out, spec.strides, before, reach, strict=True)
    after = [n + r - ((o - 1) * s + 1) - b for n, o, s, b, r in rows]
    return tuple(zip(before, after, strict=True))


def _columns(x: Array, spec: ConvSpec, taps: Space, out: Space) -> Array:
    """``[n * out, taps * c]``: a row for every output pixel."""
    rows, depth = x.shape[0] * math.prod(out), math.prod(taps) * x.shape[-1]
    return jnp.concatenate([*views(x, spec, taps, out)], axis=-1).reshape(rows, depth)
