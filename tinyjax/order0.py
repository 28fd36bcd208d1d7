"""Bytes of any kind as few words: one table, made from them and carried along.

For gradients, whose codes have hardly a neighbour to be predicted from. See
:mod:`tinyjax.streams`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.choice import by_tables, smallest, steps_of
from tinyjax.numerics import rans
from tinyjax.streams import Stream, check_stream, checked_lanes

__all__ = ["decode_order0", "encode_order0"]

Array = jax.Array


def encode_order0(q: Array, *, lanes: int | None = None) -> Stream:
    """Encodes bytes of any kind with a single table, made from them.

    Args:
      q: uint8 or int8.
      lanes: a power of two; :func:`lanes_for` by default.

    Returns:
      A stream for :func:`decode_order0`: order 0, or raw if that is smaller.

    Raises:
      ValueError: if ``q`` is of another dtype or empty, or ``lanes`` is no power of two.

    Example:
      >>> import jax.numpy as jnp
      >>> stream = encode_order0(jnp.zeros((400, 50), jnp.int8).at[3].set(-5))
      >>> int(stream.mode), int(stream.count) < 40
      (1, True)
    """
    if q.dtype not in (jnp.uint8, jnp.int8) or q.size == 0:
        raise ValueError(f"{q.dtype.name} {list(q.shape)} cannot be encoded: use uint8 or int8")
    return _encoded(q, checked_lanes(lanes, q.size, 256))


def decode_order0(
    stream: Stream, shape: tuple[int, ...], dtype: str = "uint8"
) -> tuple[Array, Array]:
    """The codes of a stream from :func:`encode_order0`.

    Whatever the stream, nothing outside it is read and nothing fails.

    Args:
      stream: from there, or of the same shapes from anywhere.
      shape: of the codes.
      dtype: of the codes, ``"uint8"`` or ``"int8"``.

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
    check_stream(stream, math.prod(shape), 256)

    if dtype not in ("uint8", "int8"):
        raise ValueError(f"dtype is {dtype!r}: use 'uint8' or 'int8'")
    q, valid = _decoded(stream, tuple(shape))
    return lax.bitcast_convert_type(q, jnp.dtype(dtype)), valid


@functools.partial(jax.jit, static_argnums=1)
def _encoded(q: Array, lanes: int) -> Stream:
    q = lax.bitcast_convert_type(q, jnp.uint8).reshape(1, -1)
    return smallest(q, steps_of(q, lanes, 0)[0], _context(q.size, lanes), _no_tables())


@functools.partial(jax.jit, static_argnums=1)
def _decoded(stream: Stream, shape: tuple[int, ...]) -> tuple[Array, Array]:
    size = math.prod(shape)

    def by_table(reader: rans.Reader, table: Array, order0: Array) -> tuple[rans.Reader, Array]:
        del order0
        reader, code = rans.rans_decode(reader, table, _context(size, len(stream.states)))
        return reader, code.reshape(-1)[:size].reshape(shape)

    return by_tables(stream, shape, _no_tables(), by_table)


def _context(size: int, lanes: int) -> Array:
    """All codes in the one table, the last step filled up."""
    return steps_of(jnp.zeros((1, size), jnp.int32), lanes, 1)[0]


def _no_tables() -> Array:
    return jnp.zeros((0, 256), jnp.uint32)
