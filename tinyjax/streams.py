"""Coded symbols as words, and which of three codings was the smallest.

A stream says how it is coded, and the encoder takes the smallest:

* by context: tables that both sides know, one of which is chosen for each code (see
  :mod:`tinyjax.lossless`);
* order 0: one table, made from the codes and carried by the stream;
* raw: codes in as few bits as hold each of them.

Everything but the choice is integers, and the stream carries the choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax.numerics import tables

__all__ = [
    "BY_CONTEXT",
    "MAX_LANES",
    "ORDER0",
    "RAW",
    "Stream",
    "carried_bits",
    "check_mask",
    "check_stream",
    "checked_lanes",
    "coded_bits",
    "lanes_for",
    "nothing",
    "order0_bits",
    "raw_bits",
    "sparse_lanes",
    "words_for",
]

Array = jax.Array

BY_CONTEXT, ORDER0, RAW = 0, 1, 2  # the modes
MAX_LANES = 8192
_LANE_BITS = 24  # a lane takes 32 bits for its state, which says about 8 more than where it began


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """Codes as words; a pytree of arrays, all shapes of which follow from the codes' shape.

    Attributes:
      words: uint16 ``[capacity]``, zeros from ``count`` on; see :func:`words_for`.
      count: int32 scalar: words that are used; -1 if there was a code that is no symbol.
      states: uint32 ``[lanes]``; zeros if raw.
      table: uint16 ``[symbols]``: shares of 4096 if order 0; else zeros.
      mode: uint8 scalar: 0 by context, 1 order 0, 2 raw.
      state: uint32 scalar: tag of the :class:`tinyjax.contexts.State` by which the codes were
        ordered, 0 if raw; tag of a mask (:func:`tinyjax.order0.mask_tag`); 0 if there was neither.

    Example:
      >>> import jax.numpy as jnp, tinyjax.order0
      >>> stream = tinyjax.order0.encode_order0(jnp.zeros(1000, jnp.uint8))
      >>> int(stream.mode), int(stream.count), stream.states.shape
      (1, 0, (1,))
    """

    words: Array
    count: Array
    states: Array
    table: Array
    mode: Array
    state: Array


def lanes_for(elements: int, symbols: int = 16) -> int:
    """Lanes for a payload: a power of two, each with 400 bytes at least if a code takes two bits.

    Example:
      >>> lanes_for(2**20), lanes_for(16384), lanes_for(1)
      (512, 8, 1)
    """
    payload = elements * min(raw_bits(symbols), 4) // 16
    return min(1 << (max(payload // 400, 1).bit_length() - 1), MAX_LANES)


def sparse_lanes(elements: int, symbols: int = 16) -> int:
    """Lanes where most places have no code: an eighth, as each takes four bytes.

    Example:
      >>> sparse_lanes(2**20), sparse_lanes(1)
      (64, 1)
    """
    return max(lanes_for(elements, symbols) // 8, 1)


def nothing(elements: int, symbols: int, lanes: int) -> Stream:
    """The stream of so many codes of 0, raw; of NumPy arrays.

    Example:
      >>> int(nothing(8, 16, 1).count)
      2
    """
    capacity = words_for(elements, symbols)
    values: dict[str, Any] = {
        "words": np.zeros(capacity, np.uint16),
        "count": np.asarray(np.int32(capacity)),
        "states": np.zeros(lanes, np.uint32),
        "table": np.zeros(symbols, np.uint16),
        "mode": np.asarray(np.uint8(RAW)),
        "state": np.asarray(np.uint32(0)),
    }
    return Stream(**values)


def words_for(elements: int, symbols: int = 16) -> int:
    """The capacity of a stream: what codes take raw.

    Example:
      >>> words_for(8), words_for(9), words_for(3, 256)
      (2, 3, 2)
    """
    return max(-(-elements * raw_bits(symbols) // 16), 1)


def coded_bits(stream: Stream) -> Array:
    """Bits that a stream takes, apart from saying how many and of which kind: int32 scalar.

    Beside :func:`order0_bits` it says whether contexts still fit.

    Example:
      >>> import jax.numpy as jnp, tinyjax.order0
      >>> int(coded_bits(tinyjax.order0.encode_order0(jnp.zeros(1000, jnp.uint8))))
      304
    """
    lanes = jnp.where(stream.mode == RAW, 0, 32 * len(stream.states))
    table = jnp.where(stream.mode == ORDER0, carried_bits(stream.table), 0)
    return 16 * stream.count + lanes + table


def carried_bits(table: Array) -> Array:
    """Bits of a table in a stream, int32: which symbols it has, and 16 for the share of each.

    Example:
      >>> import jax.numpy as jnp
      >>> int(carried_bits(jnp.uint16([4000, 0, 96, 0])))
      48
    """
    return 16 * (-(-len(table) // 16) + jnp.count_nonzero(table)).astype(jnp.int32)


def order0_bits(q: Array, symbols: int = 16, *, lanes: int | None = None) -> Array:
    """Bits that codes take with a single table made from them, the table included.

    Args:
      q: uint8, below ``symbols``.
      symbols: how many there are.
      lanes: :func:`lanes_for` by default.

    Returns:
      float32 scalar: what :func:`coded_bits` would say of order 0, to a few bits for each lane.

    Example:
      >>> import jax.numpy as jnp
      >>> float(order0_bits(jnp.arange(1600, dtype=jnp.uint8) % 16))
      6696.0
    """
    counts = tables.histogram(q, symbols)
    lanes = checked_lanes(lanes, q.size, symbols)
    table = tables.frequencies(counts, unseen=False)
    bits = tables.table_bits(counts, table) + carried_bits(table).astype(jnp.float32)
    return bits + jnp.float32(_LANE_BITS * lanes)


def checked_lanes(lanes: int | None, elements: int, symbols: int) -> int:
    """The lanes to use.

    Raises:
      ValueError: unless they are a power of two up to ``MAX_LANES``.

    Example:
      >>> checked_lanes(None, 2**20, 16), checked_lanes(64, 1, 16)
      (512, 64)
    """
    if lanes is None:
        return lanes_for(elements, symbols)
    if lanes not in [1 << i for i in range(MAX_LANES.bit_length())]:
        raise ValueError(f"lanes is {lanes!r}: use a power of two up to {MAX_LANES}")
    return lanes


def check_stream(stream: Stream, elements: int, symbols: int) -> None:
    """Refuses a stream that is not for so many codes.

    Raises:
      ValueError: if a shape or dtype is not what :class:`Stream` says.

    Example:
      >>> import jax.numpy as jnp, tinyjax.order0
      >>> check_stream(tinyjax.order0.encode_order0(jnp.zeros(9, jnp.uint8)), 9, 16)
      Traceback (most recent call last):
      ...
      ValueError: ...
    """
    checked_lanes(jnp.size(stream.states), elements, symbols)
    expected = {
        "words": (jnp.uint16, (words_for(elements, symbols),)),
        "count": (jnp.int32, ()),
        "states": (jnp.uint32, (jnp.size(stream.states),)),
        "table": (jnp.uint16, (symbols,)),
        "mode": (jnp.uint8, ()),
        "state": (jnp.uint32, ()),
    }
    for name, (dtype, shape) in expected.items():
        found = getattr(stream, name)
        if (found.dtype, found.shape) != (dtype, shape):
            raise ValueError(
                f"{name} of this stream is {found.dtype} {list(found.shape)} where {elements} "
                f"codes of {symbols} symbols need {jnp.dtype(dtype).name} {list(shape)}: decode to "
                "the shape that was encoded"
            )


def check_mask(mask: Array | None, shape: tuple[int, ...]) -> None:
    """Refuses a mask that is not for codes of this shape.

    Raises:
      ValueError: if it is there and of another shape or dtype than bool.

    Example:
      >>> import jax.numpy as jnp
      >>> check_mask(jnp.ones(3, bool), (3,))
    """
    if mask is not None and (mask.dtype, mask.shape) != (jnp.bool_, tuple(shape)):
        raise ValueError(
            f"mask is {mask.dtype.name} {list(mask.shape)}: give bool {list(shape)}, as the codes"
        )


def raw_bits(symbols: int) -> int:
    """Bits of a raw code: 2, 4 or 8.

    Example:
      >>> raw_bits(16), raw_bits(256)
      (4, 8)
    """
    return next(bits for bits in (2, 4, 8) if symbols <= 1 << bits)
