"""Max pooling over non-overlapping windows, with a gradient that costs one pass.

XLA differentiates a pooling window into a five-output window reduction with full-size index
tensors. Remembering which place of the window won is enough: two bits for four places.
"""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.packing import pack_inner, unpack_inner

__all__ = ["max_pool"]

Array = jax.Array


def max_pool(x: Array, window: tuple[int, ...]) -> Array:
    """Maximum over non-overlapping windows that start at the origin.

    Equal to ``lax.reduce_window`` with ``strides == window`` and no padding, values and
    gradient: of equal values the first in row-major order gets the gradient, and an incomplete
    window at the end is left out. NaN in gives NaN out, and the last NaN gets the gradient. For
    reverse-mode differentiation only.

    Args:
      x: float array.
      window: its extent along each axis of ``x``; at most 127 places in all.

    Returns:
      ``[*(n // w)]``, dtype of ``x``.

    Raises:
      ValueError: if the window does not fit the array or has more than 127 places.

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool(jnp.arange(8.0).reshape(2, 4), (2, 2)).tolist()
      [[5.0, 7.0]]
    """
    if len(window) != x.ndim or any(w < 1 or w > n for w, n in zip(window, x.shape, strict=False)):
        raise ValueError(
            f"window {window} does not fit an array of shape {x.shape}: use one that does"
        )
    if math.prod(window) > 127:
        raise ValueError(f"window {window} has over 127 places: use lax.reduce_window")
    whole = tuple(n // w * w for n, w in zip(x.shape, window, strict=True))
    return _max_pool(window, lax.slice(x, (0,) * x.ndim, whole))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(window: tuple[int, ...], x: Array) -> Array:
    return _winners(window, x)[0]


def _forward(window: tuple[int, ...], x: Array) -> tuple[Array, Array]:
    best, index = _winners(window, x)
    return best, pack_inner(index, _bits(window))


def _bits(window: tuple[int, ...]) -> int:
    """Of a code that names a place of the window, in a width that fills bytes."""
    return next(bits for bits in (1, 2, 4, 8) if 2**bits >= math.prod(window))


def _winners(window: tuple[int, ...], x: Array) -> tuple[Array, Array]:
    """The maximum of each window, and uint8 which place of it that is."""
    places = itertools.product(*map(range, window))
    views = [lax.slice(x, place, x.shape, window) for place in places]
    best, index = views[0], jnp.zeros(views[0].shape, jnp.uint8)
    for i, view in enumerate(views[1:], 1):
        wins = (view > best) | (view != view)  # NaN wins, and nothing wins against it
        best = jnp.where(wins, view, best)
        index = jnp.where(wins, jnp.uint8(i), index)
    return best, index


def _backward(window: tuple[int, ...], packed: Array, g: Array) -> tuple[Array]:
    """Sends each gradient to the place that won: one elementwise pass over the input's shape."""
    index = unpack_inner(packed, _bits(window), g.shape)
    split = tuple(n for pair in zip(g.shape, window, strict=True) for n in pair)
    outer, inner = tuple(range(0, 2 * g.ndim, 2)), tuple(range(1, 2 * g.ndim, 2))
    here = jnp.arange(math.prod(window), dtype=jnp.uint8).reshape(window)
    here = lax.broadcast_in_dim(here, split, inner)
    won = lax.broadcast_in_dim(index, split, outer) == here
    dx = jnp.where(won, lax.broadcast_in_dim(g, split, outer), jnp.zeros((), g.dtype))
    return (dx.reshape([n * w for n, w in zip(g.shape, window, strict=True)]),)


_max_pool.defvjp(_forward, _backward)
