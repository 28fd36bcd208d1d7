"""Dot products of int8 matrices with int32 accumulation: forward, input and weight gradient.

Every product returns a tuple of int32 arrays, whose sum is the result: one array, unless the
contraction is so long (over ``MAX_CONTRACTION``) that int32 could overflow and has to be split.
:func:`total` sums them in float32. The formulations are those that XLA's CPU kernels are fast on
(operands row-major, nothing transposed by dimension numbers); on other backends they are plain
integer products.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.layout import keep, row_major

__all__ = ["MAX_CONTRACTION", "Sums", "dot", "dot_dw", "dot_dx", "total", "zero_point_term"]

Array = jax.Array
Sums = tuple[Array, ...]

# The longest sum of products of codes within +-127 that int32 holds whatever the codes are.
MAX_CONTRACTION = (2**31 - 1) // 127**2


def dot(x: Array, w: Array) -> Sums:
    """``x @ w``.

    Args:
      x: int8 ``[m, k]``.
      w: int8 ``[k, n]``.

    Returns:
      int32 ``[m, n]``, in as many parts as ``k`` needs.

    Example:
      >>> import jax.numpy as jnp
      >>> dot(jnp.int8([[1, 2]]), jnp.int8([[3], [4]]))[0].tolist()
      [[11]]
    """
    _check(x, w)
    return tuple(_product(x[:, s], w[s]) for s in spans(x.shape[1], MAX_CONTRACTION))


def dot_dx(g: Array, w: Array) -> Sums:
    """``g @ w.T``, the gradient of :func:`dot` with respect to ``x``.

    Args:
      g: int8 ``[m, n]``.
      w: int8 ``[k, n]``.

    Returns:
      int32 ``[m, k]``, in as many parts as ``n`` needs.

    Example:
      >>> import jax.numpy as jnp
      >>> dot_dx(jnp.int8([[2]]), jnp.int8([[3], [4]]))[0].tolist()
      [[6, 8]]
    """
    _check(g, w.T)
    # Contracting the second axis of both is as fast as a plain product, and transposes nothing.
    return tuple(_product(g[:, s], w[:, s], axis=1) for s in spans(g.shape[1], MAX_CONTRACTION))


def dot_dw(x: Array, g: Array) -> Sums:
    """``x.T @ g``, the gradient of :func:`dot` with respect to ``w``.

    Args:
      x: int8 ``[m, k]``.
      g: int8 ``[m, n]``.

    Returns:
      int32 ``[k, n]``, in as many parts as ``m`` needs.

    Example:
      >>> import jax.numpy as jnp
      >>> dot_dw(jnp.int8([[1, 2]]), jnp.int8([[5]]))[0].tolist()
      [[5], [10]]
    """
    return dot(keep(x.T), g)


def total(parts: Sums) -> Array:
    """The sum of the parts of an integer product, in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> total((jnp.int32([1]), jnp.int32([2]))).tolist()
      [3.0]
    """
    head, *rest = (part.astype(jnp.float32) for part in parts)
    for part in rest:
        head = head + part
    return head


def zero_point_term(w: Array, zero_point: Array) -> Array:
    """What an affine activation's zero point adds to ``dot(x, w)``: ``zero_point * colsum(w)``.

    ``dot(x, w) - zero_point_term(w, zero_point)`` is the product of ``x - zero_point`` with ``w``,
    exactly. It serves convolutions too if padding is filled with the zero point: then ``w`` is
    the kernel as a matrix ``[taps * channels, features]``.

    Args:
      w: int8 ``[k, n]``.
      zero_point: int32 scalar within +-127.

    Returns:
      int32 ``[n]``.

    Example:
      >>> import jax.numpy as jnp
      >>> zero_point_term(jnp.int8([[3], [4]]), jnp.int32(10)).tolist()
      [70]

    References:
      Jacob et al., 2018, `arXiv:1712.05877 <https://arxiv.org/abs/1712.05877>`_, eq. 7.
    """
    return zero_point * jnp.sum(w, axis=0, dtype=jnp.int32)


def spans(n: int, longest: int) -> Iterator[slice]:
    """Cuts ``range(n)`` into the fewest slices no longer than ``longest``, near equal."""
    pieces = max(1, -(-n // longest))
    bounds = [n * i // pieces for i in range(pieces + 1)]
    return (slice(a, b) for a, b in itertools.pairwise(bounds))


def _check(x: Array, w: Array) -> None:
    if x.dtype != jnp.int8 or w.dtype != jnp.int8:
        raise ValueError(f"operands are {x.dtype} and {w.dtype}: quantize both to int8")
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise ValueError(f"shapes {x.shape} and {w.shape} do not multiply: use [m, k] and [k, n]")


def _product(x: Array, w: Array, axis: int = 0) -> Array:
    """``x`` times ``w``, which is contracted over ``axis``."""
    numbers = (((1,), (axis,)), ((), ()))
    return lax.dot_general(row_major(x), row_major(w), numbers, preferred_element_type=jnp.int32)
