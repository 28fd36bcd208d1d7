"""The smallest of three streams, and the codes of any of them: what all coders share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics import pack_bits, rans, tables, unpack_bits
from tinyjax.streams import BY_CONTEXT, ORDER0, RAW, Stream, carried_bits, raw_bits, words_for

__all__ = ["Decoding", "Turns", "by_tables", "smallest", "steps_of"]

Array = jax.Array
Decoding = Callable[[rans.Reader, Array], tuple[rans.Reader, Array]]
Turns = Sequence[tuple[Array, Array]]


def steps_of(x: Array, lanes: int, fill: int) -> Array:
    """Rows as steps of the coder, as many at a time as there are lanes.

    Args:
      x: ``[rows, width]``.
      lanes: at a time.
      fill: for what is missing in the last step of a row.

    Returns:
      ``[rows, ceil(width / lanes), lanes]``.

    Example:
      >>> import jax.numpy as jnp
      >>> steps_of(jnp.array([[1, 2, 3]]), 2, 0).tolist()
      [[[1, 2], [3, 0]]]
    """
    steps = -(-x.shape[1] // lanes)
    x = jnp.pad(x, ((0, 0), (0, steps * lanes - x.shape[1])), constant_values=x.dtype.type(fill))
    return x.reshape(len(x), steps, lanes)


def smallest(
    raw: Callable[[], Array], turns: Turns, size: int, frequencies: Array, tag: Array | int = 0
) -> Stream:
    """The smallest stream of some codes.

    Args:
      raw: makes the codes, uint8 of that size, in the order of a raw stream.
      turns: the same as the coder takes them: some steps of each turn, then the next of each. Of
        each, context and code, uint8 ``[rounds, steps, lanes]``: a row of ``frequencies``, or one
        more for the table of order 0, or two more where there is no code.
      size: how many codes there are.
      frequencies: uint32 ``[contexts, symbols]``; may have no rows.
      tag: uint32, of their state.

    Returns:
      A stream.

    Example:
      >>> import jax.numpy as jnp
      >>> code, no_tables = jnp.zeros((1, 4, 2), jnp.uint8), jnp.zeros((0, 16), jnp.uint32)
      >>> int(smallest(lambda: code, [(code, code)], 8, no_tables).mode)
      2
    """
    contexts, symbols = frequencies.shape
    lanes, capacity = turns[0][0].shape[-1], words_for(size, symbols)
    count_of = functools.partial(tables.joint_histogram, contexts=contexts + 2, symbols=symbols)
    joint = functools.reduce(jnp.add, [count_of(context, code) for context, code in turns])
    counts = jnp.sum(joint[: contexts + 1], axis=0, dtype=jnp.int32)
    table = tables.frequencies(counts, unseen=False)
    # Rounded as it comes: the stream carries the choice, so nobody has to repeat it.
    bits = tables.table_bits(counts, table) + carried_bits(table).astype(jnp.float32)
    order0 = jnp.bool_(not contexts) | (bits < tables.table_bits(joint[:contexts], frequencies))
    entries = tables.encode_table(_with_table(frequencies, table, order0))
    words, count, states = _written(turns, entries, lanes, capacity)
    table = jnp.where(order0, table, jnp.uint32(0)).astype(jnp.uint16)
    carried = jnp.where(order0, carried_bits(table) // 16, 0)
    is_raw = count + 2 * lanes + carried >= capacity
    most = [jnp.max(code, initial=0) for _, code in turns]
    known = functools.reduce(jnp.maximum, most).astype(jnp.int32) < symbols
    return Stream(
        lax.cond(is_raw, lambda: _packed(raw(), symbols), lambda: words),
        jnp.where(known, jnp.where(is_raw, capacity, count), -1),
        jnp.where(is_raw, jnp.uint32(0), states),
        jnp.where(is_raw, jnp.uint16(0), table),
        jnp.where(is_raw, RAW, jnp.where(order0, ORDER0, BY_CONTEXT)).astype(jnp.uint8),
        jnp.where(is_raw, jnp.uint32(0), jnp.uint32(tag)),
    )


def _written(turns: Turns, entries: Array, lanes: int, capacity: int) -> tuple[Array, Array, Array]:
    """Words, their count and the states."""

    def one(writer: rans.Writer, turns: Turns) -> tuple[rans.Writer, None]:
        for context, code in reversed(turns):
            writer = rans.rans_encode(writer, entries, context, code)
        return writer, None

    # Written down, or XLA would make the table again for each symbol.
    entries = lax.optimization_barrier(entries)
    writer = rans.rans_begun(lanes, capacity)
    # Nobody reads what is there before; made of the table, XLA makes room for it no sooner.
    writer = writer._replace(words=jnp.full_like(writer.words, entries[0, -1].astype(jnp.uint16)))
    writer, _ = lax.scan(one, writer, turns, reverse=True)
    return rans.rans_written(writer, capacity)


def by_tables(
    stream: Stream,
    shape: tuple[int, ...],
    frequencies: Array,
    run: Decoding,
    tag: Array | int = 0,
) -> tuple[Array, Array]:
    """The codes of a stream of any mode, and whether it ends as an encoded one does.

    Args:
      stream: of the right shapes.
      shape: of the codes.
      frequencies: uint32 ``[contexts, symbols]``; may have no rows.
      run: from a reader and decoding tables ``[contexts + 2, 4096]`` to the reader after the last
        code, and the codes.
      tag: uint32, of the state that the tables are of.

    Returns:
      ``(q, valid)``: uint8 of that shape, bool.

    Example:
      >>> import jax.numpy as jnp
      >>> no_tables = jnp.zeros((0, 16), jnp.uint32)
      >>> q = jnp.zeros((1, 1, 1), jnp.uint8)
      >>> stream = smallest(lambda: q, [(q, q)], 1, no_tables)
      >>> q, valid = by_tables(stream, (1, 1), no_tables, lambda reader, table: (reader, q[0]))
      >>> q.tolist(), bool(valid)
      ([[0]], True)
    """
    symbols = frequencies.shape[1]

    def coded() -> tuple[Array, Array]:
        order0 = stream.mode == ORDER0
        table = stream.table.astype(jnp.uint32)
        sound = jnp.where(
            order0, jnp.sum(table, dtype=jnp.uint32) == tables.SLOTS, ~jnp.any(table > 0)
        )
        known = order0 if not len(frequencies) else order0 | (stream.mode == BY_CONTEXT)
        # Shares above 4096 would spill into other fields of the decoding table.
        table = jnp.minimum(table, jnp.uint32(tables.SLOTS))
        decoding = tables.decode_table(_with_table(frequencies, table, order0))
        reader, q = run(rans.Reader(stream.states, stream.words), decoding)
        return q, sound & known & rans.rans_ended(reader, stream.count)

    named = stream.state == jnp.where(stream.mode == RAW, jnp.uint32(0), jnp.uint32(tag))
    q, valid = lax.cond(stream.mode == RAW, lambda: _unpacked(stream, shape, symbols), coded)
    return q, valid & named


def _with_table(frequencies: Array, table: Array, order0: Array) -> Array:
    """The tables there are (or this one in place of each), this one, and one for no code at all."""
    none = jnp.zeros_like(table).at[0].set(jnp.uint32(tables.SLOTS))
    return jnp.concatenate([jnp.where(order0, table, frequencies), jnp.stack([table, none])])


def _packed(q: Array, symbols: int) -> Array:
    """Raw codes in words, low byte first."""
    bits, capacity = raw_bits(symbols), words_for(q.size, symbols)
    rows = jnp.pad(q.reshape(-1, 1), ((0, 16 // bits * capacity - q.size), (0, 0)))
    low, high = pack_bits(rows, bits).reshape(-1, 2).T.astype(jnp.uint16)
    return low | (high << jnp.uint16(8))


def _unpacked(stream: Stream, shape: tuple[int, ...], symbols: int) -> tuple[Array, Array]:
    """The codes of raw words, and whether they are all codes."""
    bits, size, words = raw_bits(symbols), math.prod(shape), stream.words
    packed = jnp.stack([words, words >> jnp.uint16(8)], axis=1).astype(jnp.uint8).reshape(-1, 1)
    q = unpack_bits(packed, bits, 16 // bits * len(words)).reshape(-1)
    unused = ~(jnp.any(stream.states > 0) | jnp.any(stream.table > 0) | jnp.any(q[size:] > 0))
    valid = unused & jnp.all(q.astype(jnp.int32) < symbols) & (stream.count == len(words))
    return q[:size].reshape(shape), valid
