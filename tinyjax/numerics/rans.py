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
    "Writer",
    "rans_begun",
    "rans_decode",
    "rans_encode",
    "rans_ended",
    "rans_written",
]

Array = jax.Array

_BITS = 12
_START = 1 << 16  # the least state
_BLOCK = 1 << 14  # symbols whose words are put in order at a time: they stay in the cache
_GROUP = 32  # lanes that are counted by the bits of a number


class Writer(NamedTuple):
    """What an encoder carries from symbols to those before them.

    Attributes:
      states: uint32 ``[lanes]``.
      words: uint16 ``[16384 + capacity]``, filled from the end.
      position: int32 scalar: of the first of the words so far; below 16384 if there is no room.

    Example:
      >>> writer = rans_begun(lanes=4, capacity=10)
      >>> writer.words.shape, int(writer.position)
      ((16394,), 16394)
    """

    states: Array
    words: Array
    position: Array


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


def rans_begun(lanes: int, capacity: int) -> Writer:
    """An encoder before the last symbol, from which it goes to the first.

    Args:
      lanes: symbols at a time.
      capacity: words to have room for.

    Returns:
      A writer for :func:`rans_encode`.

    Example:
      >>> rans_begun(2, 10).states.tolist()
      [65536, 65536]
    """
    return Writer(
        jnp.full(lanes, _START, jnp.uint32),
        jnp.zeros(_BLOCK + capacity, jnp.uint16),
        jnp.int32(_BLOCK + capacity),
    )


def rans_encode(writer: Writer, table: Array, context: Array, code: Array) -> Writer:
    """Encodes ``steps`` symbols in each of the lanes, before those that have been.

    Args:
      writer: where encoding stands.
      table: uint32 ``[contexts, symbols]`` from :func:`tinyjax.numerics.tables.encode_table`. A
        symbol that has all 4096 slots costs nothing and changes nothing.
      context: integers ``[steps, lanes]``, below ``contexts``.
      code: integers of the same shape: the symbols.

    Returns:
      The writer, for the symbols before these or :func:`rans_written`.

    Example:
      >>> import jax.numpy as jnp
      >>> from tinyjax.numerics.tables import encode_table
      >>> q = jnp.zeros((4, 1), jnp.int32)
      >>> writer = rans_encode(rans_begun(1, 4), encode_table(jnp.uint32([[1, 4095]])), q, q)
      >>> words, count, states = rans_written(writer, 4)
      >>> int(count), words.tolist(), states.tolist()
      (3, [0, 0, 0, 0], [65536])
    """
    (steps, lanes), (contexts, symbols) = context.shape, table.shape
    blocks = -(-steps * lanes // _BLOCK)
    if not blocks:
        return writer
    rows = -(-steps // blocks)
    free = jnp.full(1, SLOTS << 16, jnp.uint32)  # for the steps that are missing in the last block
    entries = jnp.concatenate([table.reshape(-1), free])

    def in_blocks(x: Array, fill: int) -> Array:
        x = jnp.pad(x, ((0, blocks * rows - steps), (0, 0)), constant_values=x.dtype.type(fill))
        return x.reshape(blocks, rows, lanes)

    def one(writer: Writer, block: tuple[Array, Array]) -> tuple[Writer, None]:
        place = block[0].astype(jnp.int32) * symbols + block[1].astype(jnp.int32)
        entry = entries.at[place].get(mode="clip")
        states, before = lax.scan(_encoded, writer.states, entry, reverse=True)
        used = (before >> jnp.uint32(32 - _BITS)) >= (entry >> jnp.uint32(16))
        words, count = _compacted(before.astype(jnp.uint16), used)
        start = (writer.position - len(words),)
        words = lax.dynamic_update_slice(writer.words, words, start)
        return Writer(states, words, writer.position - count), None

    blocked = in_blocks(context, contexts), in_blocks(code, 0)
    return lax.scan(one, writer, blocked, reverse=True)[0]


def rans_written(writer: Writer, capacity: int) -> tuple[Array, Array, Array]:
    """What has been encoded.

    Args:
      writer: after the first symbol.
      capacity: words there is room for.

    Returns:
      ``(words, count, states)``: uint16 ``[capacity]`` with zeros behind the last word, int32
      scalar, uint32 ``[lanes]``. If ``count`` is above ``capacity``, words are missing.

    Example:
      >>> words, count, states = rans_written(rans_begun(1, 4), 4)
      >>> int(count), words.tolist(), states.tolist()
      (0, [0, 0, 0, 0], [65536])
    """
    beyond = jnp.concatenate([writer.words, jnp.zeros(capacity, jnp.uint16)])
    words = lax.dynamic_slice(beyond, (writer.position,), (capacity,))
    return words, _BLOCK + capacity - writer.position, writer.states


def rans_decode(reader: Reader, table: Array, context: Array) -> tuple[Reader, Array]:
    """Decodes ``steps`` symbols of each lane; reads no word outside, whatever it is given.

    Args:
      reader: where decoding stands.
      table: uint32 ``[contexts, 4096]`` from :func:`tinyjax.numerics.tables.decode_table`.
      context: integers ``[steps, lanes]``, below ``contexts``.

    Returns:
      ``(reader, symbols)``, symbols as uint8 ``[steps, lanes]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from tinyjax.numerics.tables import decode_table, encode_table
      >>> freq, q = jnp.uint32([[1024, 1024, 2048]]), jnp.array([[0, 2], [2, 1], [1, 2]])
      >>> writer = rans_encode(rans_begun(2, 2), encode_table(freq), jnp.zeros_like(q), q)
      >>> words, count, states = rans_written(writer, 2)
      >>> reader = Reader(states, words)
      >>> reader, symbols = rans_decode(reader, decode_table(freq), jnp.zeros_like(q))
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
        before, count = _counted(low)
        # Position never turns back, so one that has passed the end stays there to be noticed.
        place = jnp.minimum(position + before, last)
        word = reader.words.at[place].get(mode="clip").astype(jnp.uint32)
        x = jnp.where(low, (x << jnp.uint32(16)) | word, x)
        return (x, position + count), (entry >> jnp.uint32(24)).astype(jnp.uint8)

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


def _encoded(x: Array, entry: Array) -> tuple[Array, Array]:
    """The states after a symbol in each lane, and before it."""
    f, start = entry >> jnp.uint32(16), entry & jnp.uint32(0xFFFF)
    full = (x >> jnp.uint32(32 - _BITS)) >= f
    quotient, rest = _divided(jnp.where(full, x >> jnp.uint32(16), x), f)
    return (quotient << jnp.uint32(_BITS)) + rest + start, x


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


def _compacted(words: Array, used: Array) -> tuple[Array, Array]:
    """The words that are used, in order at the end of as many, and how many they are."""
    before, count = _counted(used)
    place = jnp.where(used, words.size - count + before, words.size).reshape(-1)
    none = jnp.zeros(words.size, jnp.uint16)
    return none.at[place].set(words.reshape(-1), mode="drop"), count


def _counted(used: Array) -> tuple[Array, Array]:
    """How many are used before each, int32, and altogether.

    A cumulative sum by counting the bits of one number for all lanes of a group: XLA's own takes
    several times as long.
    """
    group = min(_GROUP, used.shape[-1])
    lane = lax.iota(jnp.uint32, group)
    bits = used.reshape(-1, group).astype(jnp.uint32) << lane
    # Written down, or XLA would make the sums again for each lane.
    bits = lax.optimization_barrier(lax.reduce(bits, jnp.uint32(0), lax.bitwise_or, (1,)))
    counts = lax.population_count(bits).astype(jnp.int32)
    ends = lax.optimization_barrier(jnp.cumsum(counts))
    below = bits[:, None] & ((jnp.uint32(1) << lane) - jnp.uint32(1))
    before = (ends - counts)[:, None] + lax.population_count(below).astype(jnp.int32)
    return before.reshape(used.shape), ends[-1]
