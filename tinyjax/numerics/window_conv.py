"""Convolutions whose gradients are fast inside loops.

XLA's CPU compiler lays the operands of a kernel's gradient out for its fast convolution only
outside of loops; inside, the same gradient took some thirty times as long (jax 0.12). Here
the gradients are written as what is fast in either place: one convolution as in the forward
direction for the input; for the kernel one matrix product with the columns of all taps, or one per
tap where the columns are many.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.conv_taps import ConvSpec, as_dense, views

__all__ = ["with_gradients"]

Array = jax.Array
IN_CACHE = 2**20  # numbers
_NUMBERS = ("NHWC", "HWIO", "NHWC")


def with_gradients(
    run: Callable[[Array, Array], Array], spec: ConvSpec
) -> Callable[[Array, Array], Array]:
    """A convolution of floats, with gradients that do not depend on where they are computed.

    Args:
      run: the convolution, of ``x [n, h, w, c]`` and ``w [kh, kw, c // groups, features]``.
      spec: what it is.

    Returns:
      ``run``, with these gradients.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> spec = ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
      >>> conv = with_gradients(lambda x, w: x @ w[0, 0], spec)  # a kernel of 1 x 1
      >>> x, w = jnp.full((1, 2, 2, 3), 2.0), jnp.ones((1, 1, 3, 1))
      >>> jax.grad(lambda w: conv(x, w).sum())(w)[0, 0, :, 0].tolist()
      [8.0, 8.0, 8.0]
    """

    def forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
        return run(x, w), (x, w)

    def backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
        x, w = kept
        spread, kernel, dense = as_dense(g.astype(w.dtype), w, spec, x.shape[1:3])
        dx = lax.conv_general_dilated(
            spread,
            lax.optimization_barrier(kernel),  # or XLA turns the convolution around instead
            (1, 1),
            "VALID",
            rhs_dilation=dense.dilation,
            dimension_numbers=_NUMBERS,
            feature_group_count=spec.groups,
        )
        return dx.astype(x.dtype), _kernel_gradient(x, g, spec, w.shape[:2]).astype(w.dtype)

    conv = jax.custom_vjp(run)
    conv.defvjp(forward, backward)
    return conv


def _kernel_gradient(x: Array, g: Array, spec: ConvSpec, taps: tuple[int, ...]) -> Array:
    """``[*taps, c // groups, features]``, in float32."""
    features, groups = g.shape[-1], spec.groups
    pixels = g.reshape(-1, features).astype(jnp.float32)
    seen = [
        view.reshape(len(pixels), -1).astype(jnp.float32)
        for view in views(x, spec, taps, g.shape[1:3])
    ]
    if groups == 1 and sum(view.size for view in seen) <= IN_CACHE:
        # This way round it took two thirds of the time of a product per tap, on two cores.
        found = lax.dot_general(pixels, lax.concatenate(seen, 1), (((0,), (0,)), ((), ())))
        return found.T.reshape(*taps, -1, features)

    def product(view: Array) -> Array:
        if groups == 1:
            return lax.dot_general(view, pixels, (((0,), (0,)), ((), ())))
        each = pixels.reshape(len(pixels), groups, -1)
        if view.shape[1] == groups:  # depthwise: no product, but a sum
            return (view[:, :, None] * each).sum(axis=0).reshape(1, features)
        grouped = view.reshape(len(pixels), groups, -1)
        found = lax.dot_general(grouped, each, (((0,), (0,)), ((1,), (1,))))
        return found.swapaxes(0, 1).reshape(-1, features)

    return jnp.stack([product(view) for view in seen]).reshape(*taps, -1, features)
