"""Integer convolutions as sums over kernel taps, each a plain product of shifted views.

The general form: any number of space axes, stride, dilation, padding; one group, or depthwise
(every input channel its own group), which is shifts, multiplies and adds. :mod:`integer_conv`
takes it where the library form does not apply.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.integer_ops import MAX_CONTRACTION, Sums, dot, spans
from tinyjax.numerics.layout import channels_to_front, keep, row_major

__all__ = [
    "ConvSpec",
    "as_dense",
    "dx_padding",
    "padded",
    "tap_conv",
    "tap_conv_dw",
    "tap_conv_dx",
    "total_of",
    "views",
]

Array = jax.Array
Space = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


class ConvSpec(NamedTuple):
    """What a convolution is besides its operands; one entry per space axis.

    Attributes:
      strides: steps of the window.
      padding: ``(before, after)``, in pixels; negative crops.
      dilation: distance between kernel taps.
      groups: feature groups; ``c`` of them makes a depthwise convolution.

    Example:
      >>> ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 1).out_space((32, 32), (3, 3))
      (32, 32)
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def out_space(self, space: tuple[int, ...], taps: tuple[int, ...]) -> tuple[int, ...]:
        """Space extent of the output."""
        rows = zip(space, taps, self.strides, self.padding, self.dilation, strict=True)
        return tuple(max(0, (n + sum(p) - (k - 1) * d - 1) // s + 1) for n, k, s, p, d in rows)


def tap_conv(x: Array, w: Array, spec: ConvSpec) -> Sums:
    """:func:`integer_conv.conv`, tap by tap."""
    taps = w.shape[:-2]
    kernels = w.reshape(-1, *w.shape[-2:])
    out = spec.out_space(x.shape[1:-1], taps)
    return tuple(
        total_of(
            _mix(v, k, spec.groups) for v, k in zip(views(c, spec, taps, out), ks, strict=True)
        )
        for c, ks in _channel_spans(x, kernels.swapaxes(0, 1), spec.groups, len(kernels))
    )


def tap_conv_dx(g: Array, w: Array, spec: ConvSpec, space: Space) -> Sums:
    """:func:`integer_conv.conv_dx`, tap by tap: a dense convolution of the padded gradient.

    To put each tap's product back where its pixels came from would be as many products, but a
    padding for each, and in a fused pad every value that is read is behind a branch.
    """
    return tap_conv(*as_dense(g, w, spec, space))


def as_dense(g: Array, w: Array, spec: ConvSpec, space: Space) -> tuple[Array, Array, ConvSpec]:
    """The input gradient as a convolution without stride or padding: its operands and the rest."""
    taps, groups = w.shape[:-2], spec.groups
    g = padded(g, dx_padding(taps, spec, space, g.shape[1:-1]), spec.strides)
    # [*taps, features, groups * c]: flipped, and transposed group by group
    kernel = lax.rev(w, range(len(taps))).reshape(*taps, w.shape[-2], groups, -1)
    kernel = jnp.moveaxis(kernel, -1, -3).swapaxes(-1, -2)
    kernel = kernel.reshape(*taps, w.shape[-1] // groups, -1)
    ones, none = (1,) * len(taps), ((0, 0),) * len(taps)
    return g, kernel, ConvSpec(ones, none, spec.dilation, groups)


def dx_padding(taps: Space, spec: ConvSpec, space: Space, out: Space) -> Pads:
    """Around the output gradient, spread by the strides: what its dense convolution needs."""
    reach = [(k - 1) * d for k, d in zip(taps, spec.dilation, strict=True)]
    before = [r - p[0] for r, p in zip(reach, spec.padding, strict=True)]
    rows = zip(space, out, spec.strides, before, reach, strict=True)
    after = [n + r - ((o - 1) * s + 1) - b for n, o, s, b, r in rows]
    return tuple(zip(before, after, strict=True))


def tap_conv_dw(x: Array, g: Array, spec: ConvSpec, taps: Space) -> Sums:
    """:func:`integer_conv.conv_dw`, tap by tap, contracting pixels first and the batch last.

    Pixels and batch stay axes of their own: merged, a batch that is sharded over devices would
    have to be gathered.
    """
    n, c, features = x.shape[0], x.shape[-1], g.shape[-1]
    seen = [v.reshape(-1, n, c) for v in views(_batch_inside(x), spec, taps, g.shape[1:-1])]
    if spec.groups == 1:
        # Gradient first, so that all taps share one transpose; each result is laid out before it
        # is turned, or XLA turns the product around instead.
        turned = channels_to_front(g).reshape(features, -1, n)

        def product(v: Array, p: slice, b: slice) -> Array:
            return row_major(_over_pixels(turned[:, p, b], v[p, b])).T
    else:
        pixels = _batch_inside(g).reshape(-1, n, spec.groups, features // spec.groups)

        def product(v: Array, p: slice, b: slice) -> Array:
            each = v[p, b, :, None].astype(jnp.int32) * pixels[p, b].astype(jnp.int32)
            return jnp.sum(each, axis=(0, 1)).reshape(1, features)

    return tuple(
        jnp.stack([product(v, p, b) for v in seen]).reshape(*taps, -1, features)
        for b in spans(n, MAX_CONTRACTION)
        for p in spans(len(seen[0]), max(1, MAX_CONTRACTION // max(1, b.stop - b.start)))
    )


def _over_pixels(g: Array, v: Array) -> Array:
    """``[features, pixels, n] x [pixels, n, c] -> [features, c]``, int32."""
    numbers = (((1, 2), (0, 1)), ((), ()))
    return lax.dot_general(row_major(g), row_major(v), numbers, preferred_element_type=jnp.int32)


def views(x: Array, spec: ConvSpec, taps: Space, out: Space) -> Iterator[Array]:
    """For each tap, the input pixels that meet it: ``[n, *out, c]``."""
    x = padded(x, spec.padding)
    for tap in _indices(taps):
        start = [t * d for t, d in zip(tap, spec.dilation, strict=True)]
        stop = [b + (o - 1) * s + 1 for b, o, s in zip(start, out, spec.strides, strict=True)]
        yield lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *spec.strides, 1))


def padded(x: Array, padding: Pads, strides: Space | None = None) -> Array:
    """Zeros around the space axes (negative crops) and, given strides, between pixels."""
    between = [s - 1 for s in strides or (1,) * len(padding)]
    config = [(*p, i) for p, i in zip(padding, between, strict=True)]
    if not any(map(any, config)):
        return x
    out = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    # Materialised, since XLA would fold zeros between pixels into a dilation it is slow on.
    return row_major(keep(out)) if x.dtype == jnp.int8 else out


def _channel_spans(
    x: Array, kernels: Array, groups: int, taps: int
) -> Iterator[tuple[Array, Array]]:
    """Cuts the contracted channels (first axis of ``kernels``) so that int32 holds all taps."""
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    for s in spans(len(kernels), max(1, MAX_CONTRACTION // max(taps, 1))):
        yield grouped[..., s].reshape(*x.shape[:-1], -1), kernels[s].swapaxes(0, 1)


def _mix(v: Array, k: Array, groups: int) -> Array:
    """``[..., groups * a] x [a, groups * b] -> [..., groups * b]``, int32."""
    if groups == 1:
        (out,) = dot(v.reshape(-1, v.shape[-1]), k)
        return out.reshape(*v.shape[:-1], -1)
    grouped = v.reshape(*v.shape[:-1], groups, len(k)).astype(jnp.int32)
    kernel = k.reshape(len(k), groups, -1).astype(jnp.int32)
    out = total_of(grouped[..., i, None] * kernel[i] for i in range(len(k)))
    return out.reshape(*v.shape[:-1], -1)


def _batch_inside(x: Array) -> Array:
    """``[n, *space, c]`` as ``[1, *space, n * c]``: space is space, all else a channel."""
    inside = jnp.moveaxis(x, 0, -2)
    return row_major(keep(inside)).reshape(1, *x.shape[1:-1], -1)


def _indices(taps: Space) -> Iterator[Space]:
    return itertools.product(*map(range, taps))


def total_of(terms: Iterable[Array]) -> Array:
    """The sum of one or more arrays of one dtype."""
    head, *rest = terms
    for term in rest:
        head = head + term
    return head
