"""Codes of few bits or levels in bytes, cut along rows so that no channel moves."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "levels_per_byte",
    "look_up_bits",
    "pack_bits",
    "pack_inner",
    "pack_levels",
    "per_byte",
    "unpack_bits",
    "unpack_inner",
    "unpack_levels",
]

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


def look_up_bits(packed: Array, bits: int, rows: int, values: Array) -> Array:
    """What each code stands for: ``values[unpack_bits(packed, bits, rows)]``, in less time.

    Reading is what takes the time, so four bytes are read as one number if there are none left.

    Args:
      packed: uint8 ``[ceil(rows * bits / 8), c]``.
      bits: 2, 4 or 8.
      rows: of the codes.
      values: ``[2**bits]``.

    Returns:
      ``[rows, c]``, of the dtype of ``values``.

    Raises:
      ValueError: if codes of this width do not fill a byte.

    Example:
      >>> import jax.numpy as jnp
      >>> look_up_bits(jnp.uint8([[81, 98], [3, 4]]), 4, 3, jnp.arange(16) * 10).tolist()
      [[10, 20], [30, 40], [50, 60]]
    """
    # Written down, or XLA would make the value again for each code.
    values = lax.optimization_barrier(values)

    def looked_up(code: Array) -> Array:
        return values.at[code.astype(jnp.int32)].get(mode="promise_in_bounds")

    if packed.size % 4:
        return looked_up(unpack_bits(packed, bits, rows))
    numbers = lax.bitcast_convert_type(packed.reshape(-1, 4), jnp.uint32)[:, None]
    starts = jnp.arange(4, dtype=jnp.uint32) * jnp.uint32(8)
    mask = jnp.uint32(2**bits - 1)
    parts = (numbers >> (starts + jnp.uint32(i * bits)) & mask for i in range(per_byte(bits)))
    return jnp.concatenate([looked_up(part).reshape(packed.shape) for part in parts])[:rows]


def levels_per_byte(levels: int) -> int:
    """How many codes of so many levels fill a byte.

    Raises:
      ValueError: unless ``levels`` is 3 or 4.

    Example:
      >>> levels_per_byte(3)
      5
    """
    if levels not in (3, 4):
        raise ValueError(f"levels is {levels!r}: use 3 or 4, which fill a byte")
    return 5 if levels == 3 else 4  # 3**5 = 243


def pack_levels(q: Array, levels: int) -> Array:
    """Five codes of three levels per byte, or four of four: as :func:`pack_bits`, in that base.

    Args:
      q: uint8 ``[rows, c]``, below ``levels``.
      levels: 3 or 4.

    Returns:
      uint8 ``[ceil(rows / per_byte), c]``, the first rows times 1, the next rows times ``levels``,
      and so on; missing rows are zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> pack_levels(jnp.uint8([[1], [2], [0], [1], [2], [1]]), 3).tolist()
      [[19], [14]]
    """
    parts = levels_per_byte(levels)
    height = -(-len(q) // parts)
    q = jnp.pad(q, ((0, height * parts - len(q)), (0, 0)))
    cut = (q[i * height : (i + 1) * height] * jnp.uint8(levels**i) for i in range(parts))
    return functools.reduce(operator.add, cut)


def unpack_levels(packed: Array, levels: int, rows: int) -> Array:
    """The codes that :func:`pack_levels` was given.

    Args:
      packed: uint8 ``[ceil(rows / per_byte), c]``.
      levels: 3 or 4.
      rows: of the codes.

    Returns:
      uint8 ``[rows, c]``.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack_levels(jnp.uint8([[19], [14]]), 3, rows=6).ravel().tolist()
      [1, 2, 0, 1, 2, 1]
    """
    place = (jnp.uint8(levels**i) for i in range(levels_per_byte(levels)))
    return jnp.concatenate([packed // each % jnp.uint8(levels) for each in place])[:rows]


def pack_inner(q: Array, bits: int) -> Array:
    """Several codes per byte, cut along an axis but the first, over which arrays may be sharded.

    The codes of a byte are added up by a reduction, which XLA does not move into what reads the
    bytes, as it does with shifts alone: it would keep what the codes are made from instead.

    Args:
      q: bool, or uint8 below ``2**bits``.
      bits: 1, 2, 4 or 8.

    Returns:
      uint8, the first axis (but for axis 0) that ``8 // bits`` divides as much shorter; as bytes
      of the same shape if there is none.

    Example:
      >>> import jax.numpy as jnp
      >>> pack_inner(jnp.ones((2, 16, 3), bool), 1).shape, pack_inner(jnp.ones(8, bool), 1).shape
      ((2, 2, 3), (8,))
    """
    q, cut = q.astype(jnp.uint8), _cut(q.shape, bits)
    if cut is None:
        return q
    axis, shape = cut
    parts = q.reshape(shape) << _shifts(shape, axis, bits)
    return lax.reduce(parts, jnp.uint8(0), lax.bitwise_or, (axis,))


def unpack_inner(packed: Array, bits: int, shape: tuple[int, ...]) -> Array:
    """The codes that :func:`pack_inner` was given.

    Args:
      packed: from :func:`pack_inner`.
      bits: likewise.
      shape: of the codes.

    Returns:
      uint8 of that shape.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack_inner(jnp.uint8([[5]]), 1, (1, 8)).tolist()
      [[1, 0, 1, 0, 0, 0, 0, 0]]
    """
    cut = _cut(shape, bits)
    if cut is None:
        return packed
    axis, split = cut
    wide = jnp.expand_dims(packed, axis) >> _shifts(split, axis, bits)
    return (wide & jnp.uint8(2**bits - 1)).reshape(shape)


def _cut(shape: tuple[int, ...], bits: int) -> tuple[int, tuple[int, ...]] | None:
    """The axis that is cut, and the shape with its codes of one byte along an axis of their own."""
    parts = 8 // bits
    axis = next((a for a, n in enumerate(shape) if a and n and n % parts == 0), None)
    if axis is None or parts == 1:
        return None
    return axis, (*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1 :])


def _shifts(shape: tuple[int, ...], axis: int, bits: int) -> Array:
    flat = (1,) * axis + (shape[axis],) + (1,) * (len(shape) - axis - 1)
    return lax.broadcasted_iota(jnp.uint8, flat, axis) * jnp.uint8(bits)
