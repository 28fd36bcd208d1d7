"""Convolutions of int8 arrays with int32 accumulation: forward, input and weight gradient.

Channels last: activations ``[n, *space, c]``, kernels ``[*taps, c // groups, features]``. There are
three formulations with the same integers. The *library* form is one convolution whose operands are
laid out as XLA's CPU kernels want them (two space axes, one group, row-major, no dilation of the
input, wide enough); written as autodiff would write it, it is up to 300 times slower. The *column*
form is a product over columns: all of them at once where XLA may have no integer convolution (on
backends other than the CPU) or there are few channels, and block by block for weight gradients. The
*tap* form is a sum over kernel taps of plain products, for any number of space axes and grouping;
depthwise convolutions are shifts, multiplies and adds.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.conv_columns import column_conv, column_conv_dw, column_conv_dx
from tinyjax.numerics.conv_taps import (
    ConvSpec,
    dx_padding,
    padded,
    tap_conv,
    tap_conv_dw,
    tap_conv_dx,
)
from tinyjax.numerics.integer_ops import MAX_CONTRACTION, Sums
from tinyjax.numerics.layout import cpu_kernels, keep, row_major

__all__ = ["ConvSpec", "conv", "conv_dw", "conv_dx"]

Array = jax.Array
NARROW = 16  # library kernels need more channels than this on one side
WIDENED = 24  # features, with which narrow ones take least time
FEW = 4  # channels of a narrow kernel, up to which columns take less
CACHED = 2 << 20  # bytes of columns at a time


def conv(x: Array, w: Array, spec: ConvSpec) -> Sums:
    """The convolution of ``x`` with ``w``.

    Args:
      x: int8 ``[n, *space, c]``.
      w: int8 ``[*taps, c // groups, features]``.
      spec: the rest.

    Returns:
      int32 ``[n, *out_space, features]``, in as many parts as the contraction needs.

    Raises:
      ValueError: if the operands are not int8 or do not fit each other.

    Example:
      >>> import jax.numpy as jnp
      >>> spec = ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
      >>> x, w = jnp.ones((1, 4, 4, 3), jnp.int8), jnp.ones((3, 3, 3, 2), jnp.int8)
      >>> conv(x, w, spec)[0][0, 0, 0].tolist()
      [27, 27]
    """
    _check(x, w, spec)
    taps = w.shape[:-2]
    if _grouped(w.shape[-2], spec):
        pairs = zip(_split(x, spec), _split(w, spec), strict=True)
        return _join(conv(a, b, _one_group(spec)) for a, b in pairs)
    if _columned(spec):
        return column_conv(x, w, spec)
    if spec.groups > 1 or math.prod(taps) * x.shape[-1] > MAX_CONTRACTION or x.ndim != 4:
        return tap_conv(x, w, spec)
    if _narrow(w) and x.shape[-1] <= FEW:
        return column_conv(x, w, spec)
    out = spec.out_space(x.shape[1:-1], taps)
    if any(o > n for o, n in zip(out, x.shape[1:-1], strict=True)):
        x, spec = padded(x, spec.padding), spec._replace(padding=((0, 0),) * len(taps))
    return (_library(x, w, spec.strides, spec.padding, spec.dilation),)


def conv_dx(g: Array, w: Array, spec: ConvSpec, space: tuple[int, ...]) -> Sums:
    """The gradient of :func:`conv` with respect to ``x``.

    Args:
      g: int8 ``[n, *out_space, features]``.
      w: int8 ``[*taps, c // groups, features]``.
      spec: of the forward convolution.
      space: extent of ``x``.

    Returns:
      int32 ``[n, *space, c]``, in as many parts as the contraction needs.

    Example:
      >>> import jax.numpy as jnp
      >>> spec = ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
      >>> g, w = jnp.ones((1, 2, 2, 2), jnp.int8), jnp.ones((3, 3, 3, 2), jnp.int8)
      >>> conv_dx(g, w, spec, (4, 4))[0][0, 1, 1].tolist()
      [8, 8, 8]
    """
    taps = w.shape[:-2]
    if _grouped(w.shape[-2], spec):
        pairs = zip(_split(g, spec), _split(w, spec), strict=True)
        return _join(conv_dx(a, b, _one_group(spec), space) for a, b in pairs)
    short = math.prod(taps) * w.shape[-1] // spec.groups <= MAX_CONTRACTION
    if short and max(spec.strides) > 1 and max(spec.dilation) == 1:
        return (_by_phases(g, w, spec, space),)
    if _columned(spec):
        return column_conv_dx(g, w, spec, space)
    if spec.groups > 1 or not short or g.ndim != 4:
        return tap_conv_dx(g, w, spec, space)
    if _narrow(w) and g.shape[-1] <= FEW:
        return column_conv_dx(g, w, spec, space)
    padding = dx_padding(taps, spec, space, g.shape[1:-1])
    reach = [(k - 1) * d for k, d in zip(taps, spec.dilation, strict=True)]
    dense = set(spec.strides) == {1}
    if (
        not dense
        or min(map(min, padding)) < 0
        or any(sum(p) > r for p, r in zip(padding, reach, strict=True))
    ):
        g, padding = padded(g, padding, spec.strides), ((0, 0),) * len(taps)
    flipped = keep(lax.rev(w, range(len(taps))).swapaxes(-1, -2))
    return (_library(g, flipped, (1,) * len(taps), padding, spec.dilation),)


def _by_phases(g: Array, w: Array, spec: ConvSpec, space: tuple[int, ...]) -> Array:
    """:func:`conv_dx` of a strided convolution without products with zeros.

    Input pixels at one remainder modulo the stride (a phase) meet every stride-th tap, and get the
    gradient of the convolution with stride 1 by these taps.
    """
    axes = tuple(zip(w.shape[:-2], spec.strides, spec.padding, strict=True))
    extent = tuple(-(-n // s) for n, s in zip(space, spec.strides, strict=True))
    n, c, d = len(g), w.shape[-2] * spec.groups, len(axes)

    def phase(remainders: tuple[int, ...]) -> Array:
        starts = [r + p for r, (_, _, (p, _)) in zip(remainders, axes, strict=True)]
        sub = w[tuple(slice(b % s, k, s) for b, (k, s, _) in zip(starts, axes, strict=True))]
        if not sub.size:
            return jnp.zeros((n, *extent, c), jnp.int32)
        before = tuple((b // s, 0) for b, (_, s, _) in zip(starts, axes, strict=True))
        dense = spec._replace(strides=(1,) * len(axes), padding=before)
        return conv_dx(g, sub, dense, extent)[0]

    phases = [phase(r) for r in itertools.product(*map(range, spec.strides))]
    out = jnp.stack(phases).reshape(*spec.strides, *phases[0].shape)
    order = (d, *(a for i in range(d) for a in (d + 1 + i, i)), 2 * d + 1)
    full = tuple(m * s for m, s in zip(extent, spec.strides, strict=True))
    return lax.slice(out.transpose(order).reshape(n, *full, c), (0,) * (d + 2), (n, *space, c))


def conv_dw(x: Array, g: Array, spec: ConvSpec, taps: tuple[int, ...]) -> Sums:
    """The gradient of :func:`conv` with respect to ``w``.

    Args:
      x: int8 ``[n, *space, c]``.
      g: int8 ``[n, *out_space, features]``.
      spec: of the forward convolution.
      taps: extent of the kernel.

    Returns:
      int32 ``[*taps, c // groups, features]``, in as many parts as the contraction (over batch
      and output space) needs.

    Example:
      >>> import jax.numpy as jnp
      >>> spec = ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
      >>> x, g = jnp.ones((2, 4, 4, 3), jnp.int8), jnp.ones((2, 4, 4, 2), jnp.int8)
      >>> conv_dw(x, g, spec, (3, 3))[0][1, 1, 0].tolist()
      [32, 32]
    """
    if _grouped(x.shape[-1] // spec.groups, spec):
        pairs = zip(_split(x, spec), _split(g, spec), strict=True)
        return _join(conv_dw(a, b, _one_group(spec), taps) for a, b in pairs)
    if spec.groups > 1 or not g.size:
        return tap_conv_dw(x, g, spec, taps)
    return column_conv_dw(x, g, spec, taps, CACHED if cpu_kernels() else sys.maxsize)


def _columned(spec: ConvSpec) -> bool:
    """Where the choice is made; depthwise convolutions are elementwise on every backend."""
    return spec.groups == 1 and not cpu_kernels()


# --- library form --------------------------------------------------------------------------------


def _library(
    x: Array,
    w: Array,
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> Array:
    """Narrow kernels get features of zeros: theirs is the smallest array to widen."""
    features = w.shape[-1]
    if _narrow(w):
        widening = [(0, 0, 0)] * (w.ndim - 1) + [(0, WIDENED - features, 0)]
        w = keep(lax.pad(w, jnp.zeros((), w.dtype), widening))
    out = lax.conv_general_dilated(
        row_major(x),
        row_major(w),
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.int32,
    )
    return out[..., :features]


def _narrow(w: Array) -> bool:
    return max(w.shape[-2:]) <= NARROW


# --- groups: several channels each, so every group is a convolution of its own -------------------


def _grouped(channels: int, spec: ConvSpec) -> bool:
    return spec.groups > 1 and channels > 1


def _one_group(spec: ConvSpec) -> ConvSpec:
    return spec._replace(groups=1)


def _split(x: Array, spec: ConvSpec) -> list[Array]:
    return jnp.split(x, spec.groups, axis=-1)


def _join(groups: Iterable[Sums]) -> Sums:
    return tuple(jnp.concatenate(part, axis=-1) for part in zip(*groups, strict=True))


def _check(x: Array, w: Array, spec: ConvSpec) -> None:
    if x.dtype != jnp.int8 or w.dtype != jnp.int8:
        raise ValueError(f"operands are {x.dtype} and {w.dtype}: quantize both to int8")
    if x.ndim != w.ndim or len(spec.strides) != x.ndim - 2:
        raise ValueError(
            f"shapes {x.shape} and {w.shape} with {len(spec.strides)} space axes do not fit: use "
            "[n, *space, c] and [*taps, c // groups, features]"
        )
    if x.shape[-1] != w.shape[-2] * spec.groups or w.shape[-1] % spec.groups:
        raise ValueError(
            f"{x.shape[-1]} channels do not meet a kernel of shape {w.shape} in {spec.groups} "
            "groups: the kernel's channels times groups must be the input's, and groups must "
            "divide its features"
        )
