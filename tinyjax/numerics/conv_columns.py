"""Integer convolutions as matrix products over columns.

Every output pixel gets a row with all input pixels that its window sees (im2col), in int8, and the
convolution is a dot product with the kernel as a matrix: for any number of space axes, stride,
dilation and padding, and one group. In memory the columns are as many times the input as the kernel
has taps, so the weight gradient, a sum over pixels, takes them block by block.

On GPUs XLA refuses convolutions with int32 sums (`jax#7637
<https://github.com/jax-ml/jax/issues/7637>`_) but has such dot products; sizes that are no
multiples of 4, as cuBLAS wants them, it pads itself.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.conv_taps import ConvSpec, Space, as_dense, padded, views
from tinyjax.numerics.integer_ops import MAX_CONTRACTION, Sums, dot, spans
from tinyjax.numerics.layout import keep, row_major

__all__ = ["column_conv", "column_conv_dw", "column_conv_dx"]

Array = jax.Array


def column_conv(x: Array, w: Array, spec: ConvSpec) -> Sums:
    """:func:`integer_conv.conv`, as one product."""
    taps, (c, features) = w.shape[:-2], w.shape[-2:]
    out = spec.out_space(x.shape[1:-1], taps)
    parts = dot(_columns(x, spec, taps, out), w.reshape(math.prod(taps) * c, features))
    return tuple(part.reshape(x.shape[0], *out, features) for part in parts)


def column_conv_dx(g: Array, w: Array, spec: ConvSpec, space: Space) -> Sums:
    """:func:`integer_conv.conv_dx`, as one product, with zeros between the pixels of a stride."""
    return column_conv(*as_dense(g, w, spec, space))


def column_conv_dw(x: Array, g: Array, spec: ConvSpec, taps: Space, cached: int) -> Sums:
    """:func:`integer_conv.conv_dw`, as a sum over blocks of pixels.

    Blocks are cut along the longest space axis, never through the batch, which may be on several
    devices. ``cached`` bounds the bytes of columns at a time, down to one row of all samples.
    """
    out, c, features = g.shape[1:-1], x.shape[-1], g.shape[-1]
    axis = out.index(max(out))
    dense = spec._replace(padding=((0, 0),) * len(taps))
    row = g.size // max(1, features * out[axis])  # pixels
    reach, stride = (taps[axis] - 1) * spec.dilation[axis] + 1, spec.strides[axis]
    x = padded(x, spec.padding)

    def block(start: Any, rows: int) -> Sums:
        """From ``rows`` rows of the gradient: [features, taps * c]."""
        seen = lax.dynamic_slice_in_dim(x, start * stride, (rows - 1) * stride + reach, axis + 1)
        space = (*out[:axis], rows, *out[axis + 1 :])
        columns = _columns(seen, dense, taps, space)
        grads = lax.dynamic_slice_in_dim(g, start, rows, axis + 1)
        return dot(keep(grads.reshape(-1, features).T), columns)

    def part(s: slice) -> Sums:
        length = s.stop - s.start
        fitting = min(length, max(1, cached // max(1, row * math.prod(taps) * c)))
        rows = max(d for d in range(1, fitting + 1) if length % d == 0)
        if rows == length:
            return block(s.start, rows)
        # Several rows only where int32 holds their sum, so a block has one part.
        add = lambda total, start: (total + block(start, rows)[0], None)
        zeros = jnp.zeros((features, math.prod(taps) * c), jnp.int32)
        return (lax.scan(add, zeros, jnp.arange(s.start, s.stop, rows))[0],)

    parts = (part(s) for s in spans(out[axis], max(1, MAX_CONTRACTION // max(1, row))))
    # Laid out before it is turned, or XLA turns the product around instead.
    turned = (row_major(p).T for each in parts for p in each)
    return tuple(p.reshape(*taps, c, features) for p in turned)


def _columns(x: Array, spec: ConvSpec, taps: Space, out: Space) -> Array:
    """``[n * out, taps * c]``: a row for every output pixel."""
    rows, depth = x.shape[0] * math.prod(out), math.prod(taps) * x.shape[-1]
    # With keep, slices are fused into the concatenation: faster where pixels fill cache lines.
    slices = [keep(v) if x.shape[-1] >= 64 else v for v in views(x, spec, taps, out)]
    return jnp.concatenate(slices, axis=-1).reshape(rows, depth)
