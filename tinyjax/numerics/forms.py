"""Any convolution or dot product in one canonical form, with its integer products.

In canonical form the first axis of activations and outputs is rows (samples of a convolution,
rows of a matrix) and the last axis of weights and outputs is features, whatever the layout of the
op it came from. So a method is written once for both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.conv_taps import ConvSpec
from tinyjax.numerics.integer_conv import conv, conv_dw, conv_dx
from tinyjax.numerics.integer_ops import Sums, dot, dot_dw, dot_dx
from tinyjax.numerics.placement import Spec, placed

__all__ = ["Form", "conv_form", "dot_form"]

Array = jax.Array


class Form(NamedTuple):
    """How to compute an op canonically.

    Attributes:
      enter_x: activation -> ``[rows, ..., channels]`` float (``[batch, rows, k]`` if batched).
      enter_w: weight -> ``[..., features]`` (``[batch, k, features]`` if batched).
      leave: canonical output -> the op's own layout.
      exact: ``(x, w) -> y``: the op on float arrays in canonical form.
      y: ``(x, w) -> Sums``: the op on int8 arrays in canonical form.
      dx: ``(g, w) -> Sums``: its gradient with respect to ``x``.
      dw: ``(x, g) -> Sums``: its gradient with respect to ``w``.

    Example:
      >>> import jax.numpy as jnp
      >>> form = dot_form((2, 3), (5, 3), (((1,), (1,)), ((), ())))
      >>> form.enter_w(jnp.ones((5, 3))).shape
      (3, 5)
    """

    enter_x: Callable[[Array], Array]
    enter_w: Callable[[Array], Array]
    leave: Callable[[Array], Array]
    exact: Callable[[Array, Array], Array]
    y: Callable[[Array, Array], Sums]
    dx: Callable[[Array, Array], Sums]
    dw: Callable[[Array, Array], Sums]


def dot_form(
    x_shape: Sequence[int], w_shape: Sequence[int], dimension_numbers: Any, **ignored: Any
) -> Form:
    """The form of ``lax.dot_general(x, w, dimension_numbers)``.

    Args:
      x_shape: shape of the activation.
      w_shape: shape of the weight.
      dimension_numbers: as ``lax.dot_general`` has them.
      **ignored: its other parameters (precision, result type), which integers do not need.

    Returns:
      The form.

    Example:
      >>> import jax.numpy as jnp
      >>> form = dot_form((2, 4, 3), (3, 5), (((2,), (0,)), ((), ())))
      >>> form.enter_x(jnp.ones((2, 4, 3))).shape, form.leave(jnp.ones((8, 5))).shape
      ((8, 3), (2, 4, 5))
    """
    del ignored
    (cx, cw), (bx, bw) = dimension_numbers
    free_x = [a for a in range(len(x_shape)) if a not in (*cx, *bx)]
    free_w = [a for a in range(len(w_shape)) if a not in (*cw, *bw)]

    def size(shape: Sequence[int], axes: Sequence[int]) -> int:
        return math.prod(shape[a] for a in axes)

    batch = [size(x_shape, bx)] if len(bx) else []
    rows, depth, features = size(x_shape, free_x), size(x_shape, cx), size(w_shape, free_w)
    out = [*(x_shape[a] for a in (*bx, *free_x)), *(w_shape[a] for a in free_w)]
    dw_spec = _batched_dw_spec if batch else _dw_spec
    products = ((dot, _y_spec), (dot_dx, _dx_spec), (dot_dw, dw_spec))
    return Form(
        lambda x: _arrange(x, (*bx, *free_x, *cx), (*batch, rows, depth)),
        lambda w: _arrange(w, (*bw, *cw, *free_w), (*batch, depth, features)),
        lambda z: z.reshape(out),
        jnp.matmul,
        *(placed(jax.vmap(product) if batch else product, spec) for product, spec in products),
    )


def conv_form(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    dimension_numbers: Any,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    **ignored: Any,
) -> Form:
    """The form of ``lax.conv_general_dilated``; of one space axis, with a second of extent 1.

    Args:
      x_shape: shape of the activation.
      w_shape: shape of the kernel.
      dimension_numbers: a ``lax.ConvDimensionNumbers``.
      window_strides: as in the equation of the op.
      padding: likewise.
      lhs_dilation: likewise; a dilated input gets its zeros before quantization.
      rhs_dilation: likewise.
      feature_group_count: likewise.
      **ignored: its other parameters, which integers do not need.

    Returns:
      The form.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax import lax
      >>> numbers = lax.conv_dimension_numbers((2, 3, 8), (4, 3, 5), ("NCW", "OIW", "NCW"))
      >>> form = conv_form((2, 3, 8), (4, 3, 5), numbers, (1,), ((2, 2),), (1,), (1,), 1)
      >>> form.enter_x(jnp.ones((2, 3, 8))).shape, form.enter_w(jnp.ones((4, 3, 5))).shape
      ((2, 1, 8, 3), (1, 5, 3, 4))
    """
    del ignored
    x_spec, w_spec, out_spec = dimension_numbers
    single = len(window_strides) == 1
    ones = (1,) if single else ()
    spec = ConvSpec(
        (*ones, *window_strides),
        (*(((0, 0),) if single else ()), *((low, high) for low, high in padding)),
        (*ones, *rhs_dilation),
        feature_group_count,
    )
    taps = (*ones, *(w_shape[a] for a in w_spec[2:]))
    space = [(x_shape[a] - 1) * d + 1 for a, d in zip(x_spec[2:], lhs_dilation, strict=True)]
    dilate = [(0, 0, 0), *((0, 0, d - 1) for d in lhs_dilation), (0, 0, 0)]
    back = [0] * len(out_spec)  # canonical [n, *space, features] -> the op's order
    for place, axis in enumerate((out_spec[0], *out_spec[2:], out_spec[1])):
        back[axis] = place

    def enter_x(x: Array) -> Array:
        x = _arrange(x, (x_spec[0], *x_spec[2:], x_spec[1]))
        if max(lhs_dilation) > 1:
            x = lax.pad(x, jnp.zeros((), x.dtype), dilate)
        return jnp.expand_dims(x, 1) if single else x

    def enter_w(w: Array) -> Array:
        w = _arrange(w, (*w_spec[2:], w_spec[1], w_spec[0]))
        return jnp.expand_dims(w, 0) if single else w

    def leave(z: Array) -> Array:
        return _arrange(jnp.squeeze(z, 1) if single else z, back)

    return Form(
        enter_x,
        enter_w,
        leave,
        functools.partial(_conv, spec),
        placed(functools.partial(conv, spec=spec), _y_spec),
        placed(functools.partial(conv_dx, spec=spec, space=(*ones, *space)), _dx_spec),
        placed(functools.partial(conv_dw, spec=spec, taps=taps), _dw_spec),
    )


def _conv(spec: ConvSpec, x: Array, w: Array) -> Array:
    axes = tuple(range(x.ndim))
    return lax.conv_general_dilated(
        x,
        w,
        spec.strides,
        spec.padding,
        rhs_dilation=spec.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, axes[-1], *axes[1:-1]), (axes[-1], axes[-2], *axes[:-2]), (0, axes[-1], *axes[1:-1])
        ),
        feature_group_count=spec.groups,
    )


def _y_spec(x: Spec, w: Spec) -> Spec:
    return (*x[:-1], w[-1])


def _dx_spec(g: Spec, w: Spec) -> Spec:
    return (*g[:-1], w[-2])


def _dw_spec(x: Spec, g: Spec) -> Spec:
    return (*(None for _ in x[:-2]), x[-1], g[-1])


def _batched_dw_spec(x: Spec, g: Spec) -> Spec:
    return (x[0], x[-1], g[-1])


def _arrange(x: Array, axes: Sequence[int], shape: Sequence[int] | None = None) -> Array:
    """Transposed, then reshaped; the very same array where that changes nothing."""
    if tuple(axes) != tuple(range(x.ndim)):
        x = x.transpose(axes)
    return x if shape is None or tuple(shape) == x.shape else x.reshape(shape)
