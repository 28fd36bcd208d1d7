"""Codes of 2, 4 or 8 bits in bytes, cut along rows so that no channel moves."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp

__all__ = ["pack_bits", "per_byte", "unpack_bits"]

Array = jax.Array


def per_byte(bits: int) -> int:
    """How many codes of this width fill a byte.

    Raises:
      ValueError: unless ``bits`` is 2, 4 or 8.

    Example:
      >>> per_byte(4)
      2
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"bits is {bits!r}: use 2, 4 or 8, which fill a byte")
    return 8 // bits


def pack_bits(q: Array, bits: int) -> Array:
    """Several codes per byte: the first rows in the low bits, the next rows above them, and so on.

    Neighbouring channels stay neighbours, so that one vector instruction packs many bytes; pairs
    of channels in a byte would need shuffles.

    Args:
      q: uint8 ``[rows, c]``, below ``2**bits``.
      bits: 2, 4 or 8.

    Returns:
      uint8 ``[ceil(rows * bits / 8), c]``; missing rows are zeros.

    Raises:
      ValueError: if codes of this width do not fill a byte.

    Example:
      >>> import jax.numpy as jnp
      >>> pack_bits(jnp.uint8([[1, 2], [3, 4], [5, 6]]), 4).tolist()
      [[81, 98], [3, 4]]
    """
    parts = per_byte(bits)
    height = -(-len(q) // parts)
    q = jnp.pad(q, ((0, height * parts - len(q)), (0, 0)))
    cut = (q[i * height : (i + 1) * height] << jnp.uint8(i * bits) for i in range(parts))
    return functools.reduce(operator.or_, cut)


def unpack_bits(packed: Array, bits: int, rows: int) -> Array:
    """The codes that :func:`pack_bits` was given.

    Args:
      packed: uint8 ``[ceil(rows * bits / 8), c]``.
      bits: 2, 4 or 8.
      rows: of the codes.

    Returns:
      uint8 ``[rows, c]``.

    Raises:
      ValueError: if codes of this width do not fill a byte.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack_bits(jnp.uint8([[81, 98], [3, 4]]), 4, rows=3).tolist()
      [[1, 2], [3, 4], [5, 6]]
    """
    shifts = [jnp.uint8(i * bits) for i in range(per_byte(bits))]
    mask = jnp.uint8(2**bits - 1)
    return jnp.concatenate([(packed >> shift) & mask for shift in shifts])[:rows]
