"""Bytes of any kind as few words: one table, made from them and carried along.

For gradients, whose codes have hardly a neighbour to be predicted from. See
:mod:`tinyjax.streams`.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.choice import by_tables, smallest, steps_of
from tinyjax.numerics import rans
from tinyjax.streams import Stream, check_mask, check_stream, checked_lanes

__all__ = ["decode_order0", "encode_order0", "mask_tag", "place_hash"]

Array = jax.Array


def encode_order0(
    q: Array, mask: Array | None = None, *, symbols: int = 256, lanes: int | None = None
) -> Stream:
    """Encodes bytes of any kind with a single table, made from them.

    Args:
      q: uint8 or int8; below ``symbols`` as uint8.
      mask: bool, of the same shape: where codes are sent. The others are decoded as 0, and cost
        nothing. None for all.
      symbols: 2 to 256.
      lanes: a power of two; :func:`tinyjax.streams.lanes_for` by default.

    Returns:
      A stream for :func:`decode_order0`: order 0, or raw if that is smaller.

    Raises:
      ValueError: if ``q`` is of another dtype or empty, ``mask`` is of another shape or dtype, or
        ``lanes`` is no power of two.

    Example:
      >>> import jax.numpy as jnp
      >>> stream = encode_order0(jnp.zeros((400, 50), jnp.int8).at[3].set(-5))
      >>> int(stream.mode), int(stream.count) < 40
      (1, True)
    """
    if q.dtype not in (jnp.uint8, jnp.int8) or q.size == 0:
        raise ValueError(f"{q.dtype.name} {list(q.shape)} cannot be encoded: use uint8 or int8")
    check_mask(mask, q.shape)
    stream = _encoded(q, mask, symbols, checked_lanes(lanes, q.size, symbols))
    return stream if mask is None else dataclasses.replace(stream, state=mask_tag(mask))


def decode_order0(
    stream: Stream, shape: tuple[int, ...], dtype: str = "uint8", mask: Array | None = None
) -> tuple[Array, Array]:
    """The codes of a stream from :func:`encode_order0`.

    Whatever the stream, nothing outside it is read and nothing fails.

    Args:
      stream: from there, or of the same shapes from anywhere.
      shape: of the codes.
      dtype: of the codes, ``"uint8"`` or ``"int8"``.
      mask: that they were encoded with.

    Returns:
      ``(q, valid)``: the codes, and whether the stream ends as an encoded one does, bool. Damage is
      hardly ever missed, but a checksum is surer.

    Raises:
      ValueError: if the shapes do not fit each other.

    Example:
      >>> import jax.numpy as jnp
      >>> q, valid = decode_order0(encode_order0(jnp.int8([[0, -128, 127]])), (1, 3), "int8")
      >>> q.tolist(), bool(valid)
      ([[0, -128, 127]], True)
    """
    check_stream(stream, math.prod(shape), jnp.size(stream.table))
    check_mask(mask, shape)
    if dtype not in ("uint8", "int8"):
        raise ValueError(f"dtype is {dtype!r}: use 'uint8' or 'int8'")
    named = True
    if mask is not None:
        named = stream.state == mask_tag(mask)
        stream = dataclasses.replace(stream, state=jnp.uint32(0))
    q, valid = _decoded(stream, mask, tuple(shape))
    valid &= named
    return lax.bitcast_convert_type(q, jnp.dtype(dtype)), valid


@jax.jit
def mask_tag(mask: Array) -> Array:
    """What a stream names its mask by: uint32 scalar, never 0; other masks hardly ever have it.

    Example:
      >>> import jax.numpy as jnp
      >>> int(mask_tag(jnp.array([True, False]))), int(mask_tag(jnp.array([False, True])))
      (1561565219, 3573156909)
    """
    places = jnp.where(mask.reshape(-1), place_hash(mask.size), 0)
    return jnp.sum(places, dtype=jnp.uint32) | jnp.uint32(1)


def place_hash(size: int) -> Array:
    """A number for each place: uint32 ``[size]``.

    Example:
      >>> place_hash(2).tolist()
      [1561565218, 3573156908]
    """
    place = jnp.arange(1, size + 1, dtype=jnp.uint32) * jnp.uint32(0x9E3779B1)
    place = (place ^ (place >> jnp.uint32(15))) * jnp.uint32(0x85EBCA77)
    return place ^ (place >> jnp.uint32(13))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _encoded(q: Array, mask: Array | None, symbols: int, lanes: int) -> Stream:
    q = lax.bitcast_convert_type(q, jnp.uint8)
    q = (q if mask is None else jnp.where(mask, q, jnp.uint8(0))).reshape(1, -1)
    # Written down, or XLA would make each once for counting and once for coding.
    q, context = lax.optimization_barrier((q, _context(mask, q.size, lanes)))
    turn = context, steps_of(q, lanes, 0)
    return smallest(lambda: q, [turn], q.size, _no_tables(symbols))


@functools.partial(jax.jit, static_argnums=2)
def _decoded(stream: Stream, mask: Array | None, shape: tuple[int, ...]) -> tuple[Array, Array]:
    size, symbols = math.prod(shape), len(stream.table)

    def by_table(reader: rans.Reader, table: Array) -> tuple[rans.Reader, Array]:
        context = _context(mask, size, len(stream.states))[0]
        reader, code = rans.rans_decode(reader, table, context)
        return reader, code.reshape(-1)[:size].reshape(shape)

    q, valid = by_tables(stream, shape, _no_tables(symbols), by_table)
    return q, valid if mask is None else valid & ~jnp.any((q > 0) & ~mask)


def _context(mask: Array | None, size: int, lanes: int) -> Array:
    """The codes that are sent in the one table, the others and the rest of the last step not."""
    context = jnp.zeros((1, size), jnp.uint8)
    if mask is not None:
        context = (~mask).astype(jnp.uint8).reshape(1, size)
    return steps_of(context, lanes, 1)


def _no_tables(symbols: int) -> Array:
    return jnp.zeros((0, symbols), jnp.uint32)
