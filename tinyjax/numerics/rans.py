"""Entropy coding inside XLA: static 12-bit tables, many coders side by side, integers throughout.

Each lane is a range coder with state ``x`` in ``[2**16, 2**32)`` that gives up 16 bits at a time;
all lanes write into one sequence of words. A symbol that has the slots ``[c, c + f)`` of 4096 turns
``x`` into ``(x // f) * 4096 + c + x % f``, and the decoder reads the symbol off ``x % 4096``.
Decoding undoes encoding, so the encoder takes the symbols from the last to the first and decoding
ends where encoding started: every state at ``2**16``, every word read.

Two machines decode the same symbols, since nothing here depends on how floats round.

References:
  Duda, `Asymmetric numeral systems <https://arxiv.org/abs/1311.2540>`_, 2013. Giesen, `Interleaved
  entropy coders <https://arxiv.org/abs/1402.3392>`_, 2014, for lanes that share a stream.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.tables import SLOTS

__all__ = [
    "Reader",
    "rans_decode",
    "rans_encode",
    "rans_ended",
]

Array = jax.Array

_BITS = 12
_START = 1 << 16  # the least state


class Reader(NamedTuple):
    """What a decoder carries from step to step.

    Attributes:
      states: uint32 ``[lanes]``.
      words: uint16 ``[capacity]``, from 1 up.
      position: int32 scalar: words read so far.

    Example:
      >>> import jax.numpy as jnp
      >>> Reader(jnp.full(4, 2**16, jnp.uint32), jnp.zeros(1, jnp.uint16)).position
      0
    """

    states: Array
    words: Array
    position: Array | int = 0


def rans_encode(entries: Array, capacity: int) -> tuple[Array, Array, Array]:
    """Encodes ``steps`` symbols in each of the lanes.

    Args:
      entries: uint32 ``[steps, lanes]``: of each symbol in its context, from
        :func:`tinyjax.numerics.tables.encode_table`. A symbol that has all 4096 slots costs
        nothing and changes nothing.
      capacity: words to have room for.

    Returns:
      ``(words, count, states)``: uint16 ``[capacity]`` with zeros behind the last word, int32
      scalar, uint32 ``[lanes]``. If ``count`` is above ``capacity``, words are missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from tinyjax.numerics.tables import encode_table
      >>> entries = encode_table(jnp.uint32([1, 4095]))[jnp.zeros((4, 1), jnp.int32)]
      >>> words, count, states = rans_encode(entries, capacity=4)
      >>> int(count), words.tolist(), states.tolist()
      (3, [0, 0, 0, 0], [65536])
    """

    def step(x: Array, entry: Array) -> tuple[Array, tuple[Array, Array]]:
        f, start = entry >> jnp.uint32(16), entry & jnp.uint32(0xFFFF)
        full = (x >> jnp.uint32(32 - _BITS)) >= f
        word = x.astype(jnp.uint16)
        x = jnp.where(full, x >> jnp.uint32(16), x)
        quotient, rest = _divided(x, f)
        return (quotient << jnp.uint32(_BITS)) + rest + start, (word, full)

    states = jnp.full(entries.shape[1], _START, jnp.uint32)
    states, (words, full) = lax.scan(step, states, entries, reverse=True)
    words, count = _compacted(words, full, capacity)
    return words, count, states


def rans_decode(reader: Reader, table: Array, context: Array) -> tuple[Reader, Array]:
    """Decodes ``steps`` symbols of each lane; reads no word outside, whatever it is given.

    Args:
      reader: where decoding stands.
      table: uint32 ``[contexts, 4096]`` from :func:`tinyjax.numerics.tables.decode_table`.
      context: int32 ``[steps, lanes]``, below ``contexts``.

    Returns:
      ``(reader, symbols)``, symbols as uint8 ``[steps, lanes]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from tinyjax.numerics.tables import decode_table, encode_table
      >>> freq, q = jnp.uint32([1024, 1024, 2048]), jnp.array([[0, 2], [2, 1], [1, 2]])
      >>> words, count, states = rans_encode(encode_table(freq)[q], capacity=2)
      >>> reader = Reader(states, words)
      >>> reader, symbols = rans_decode(reader, decode_table(freq)[None], jnp.zeros_like(q))
      >>> symbols.tolist(), bool(rans_ended(reader, count))
      ([[0, 2], [2, 1], [1, 2]], True)
    """
    flat, last = table.reshape(-1), reader.words.shape[0] - 1

    def step(carry: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], Array]:
        x, position = carry
        slot = (x & jnp.uint32(SLOTS - 1)).astype(jnp.int32)
        entry = flat.at[row + slot].get(mode="clip")
        f = ((entry >> jnp.uint32(_BITS)) & jnp.uint32(SLOTS - 1)) + jnp.uint32(1)
        x = f * (x >> jnp.uint32(_BITS)) + (entry & jnp.uint32(SLOTS - 1))
        low = x < jnp.uint32(_START)
        ends = position + jnp.cumsum(low, dtype=jnp.int32)
        # Position never turns back, so one that has passed the end stays there to be noticed.
        word = reader.words.at[jnp.minimum(ends - 1, last)].get(mode="clip").astype(jnp.uint32)
        x = jnp.where(low, (x << jnp.uint32(16)) | word, x)
        return (x, ends[-1]), (entry >> jnp.uint32(24)).astype(jnp.uint8)

    start = (reader.states, jnp.asarray(reader.position, jnp.int32))
    rows = context.astype(jnp.int32) << _BITS
    (states, position), symbols = lax.scan(step, start, rows)
    return Reader(states, reader.words, position), symbols


def rans_ended(reader: Reader, count: Array) -> Array:
    """Whether decoding has ended as encoding started; of damaged streams, hardly any does.

    Args:
      reader: after the last symbol.
      count: int32 scalar: words of the stream.

    Returns:
      bool scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> reader = Reader(jnp.full(4, 2**16, jnp.uint32), jnp.zeros(1, jnp.uint16))
      >>> bool(rans_ended(reader, 0)), bool(rans_ended(reader, 1))
      (True, False)
    """
    inside = (reader.position == count) & (reader.position <= reader.words.shape[0])
    return inside & jnp.all(reader.states == jnp.uint32(_START))


def _divided(x: Array, f: Array) -> tuple[Array, Array]:
    """``divmod(x, f)`` for ``x < f << 20``: exact, and several times faster than integer division.

    The quotient is below 2**20 and a float32 has 24 bits, so that even a division that is off by
    several units in the last place is off by at most one here, which the remainder shows.
    """
    quotient = (x.astype(jnp.float32) / f.astype(jnp.float32)).astype(jnp.uint32)
    rest = x - quotient * f
    below, above = rest >= jnp.uint32(2**31), rest >= f
    quotient = quotient - below.astype(jnp.uint32) + (above & ~below).astype(jnp.uint32)
    return quotient, jnp.where(below, rest + f, jnp.where(above, rest - f, rest))


def _compacted(words: Array, used: Array, capacity: int) -> tuple[Array, Array]:
    """The words that are used, in order, and how many they are."""
    inside = jnp.cumsum(used, axis=1, dtype=jnp.int32)
    ends = jnp.cumsum(inside[:, -1], dtype=jnp.int32)
    place = inside - 1 + (ends - inside[:, -1])[:, None]
    place = jnp.where(used, place, capacity)
    found = (
        jnp.zeros(capacity, jnp.uint16).at[place.reshape(-1)].set(words.reshape(-1), mode="drop")
    )
    return found, ends[-1]
