"""Streams as the bytes of a frame's body, and back from bytes that nobody need trust.

All numbers little-endian::

    mode u8  log2 of the lanes u8
    by context   states u32 [lanes]
    order 0      states u32 [lanes], which symbols there are: a bit for each, low bit first, their
                 shares of 4096 u16
    raw          nothing
    words u16, up to the end

What is refused here is what no encoder makes. Whether the words are those of any codes, only
decoding shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyjax.frames import CHECKSUM, Head, demand
from tinyjax.numerics.tables import SLOTS
from tinyjax.streams import BY_CONTEXT, MAX_LANES, ORDER0, RAW, Stream, words_for

__all__ = ["read_stream", "written_stream"]

_MOST_TABLES = 16  # symbols that there are contexts for
_LEAST_STATE = 1 << 16


def written_stream(stream: Stream) -> bytes:
    """A stream as bytes.

    Args:
      stream: with concrete arrays, of shapes that :func:`tinyjax.streams.check_stream` accepts.

    Returns:
      Bytes for :func:`read_stream`.

    Raises:
      ValueError: if no encoder makes such a stream, as where a code was no symbol.

    Example:
      >>> import jax.numpy as jnp, tinyjax.order0
      >>> len(written_stream(tinyjax.order0.encode_order0(jnp.zeros(1000, jnp.uint8))))
      40
    """
    words, states, table = (np.asarray(a) for a in (stream.words, stream.states, stream.table))
    count, mode = int(stream.count), int(stream.mode)
    problem = _damage(stream) or ("" if not words[max(count, 0) :].any() else "since it is longer")
    if problem:
        raise ValueError(f"this stream has no frame, {problem}: pack what compress returned")
    parts = [bytes([mode, len(states).bit_length() - 1])]
    if mode != RAW:
        parts.append(states.astype("<u4").tobytes())
    if mode == ORDER0:
        parts.append(np.packbits(table > 0, bitorder="little").tobytes())
        parts.append(table[table > 0].astype("<u2").tobytes())
    return b"".join([*parts, words[:count].astype("<u2").tobytes()])


def read_stream(data: bytes, start: int, head: Head) -> Stream:
    """The stream that is in a frame from ``start`` to its checksum.

    Args:
      data: the frame.
      start: where the stream starts.
      head: the frame's header. Memory for as many codes as it says is taken.

    Returns:
      The stream, of the shapes that the decoder needs.

    Raises:
      ValueError: if no encoder makes such a stream.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> code = tinyjax.entropy.compress(tinyjax.sgq_encode(jnp.ones((2, 4, 4, 8))))
      >>> frame = tinyjax.wire.pack(code)
      >>> head = tinyjax.frames.read(frame, 256)
      >>> start = len(frame) - tinyjax.frames.CHECKSUM.size - head.length + head.size
      >>> int(read_stream(frame, start, head).mode)
      1
    """
    elements, symbols, end = head.elements, 2**head.bits, len(data) - CHECKSUM.size
    place = start

    def taken(dtype: str, count: int) -> np.ndarray:
        nonlocal place
        size = np.dtype(dtype).itemsize * count
        demand(data, "" if place + size <= end else "since its stream is too short")
        place += size
        return np.frombuffer(data, dtype, count, place - size).astype(dtype[1:], copy=False)

    mode, log2_lanes = taken("<u1", 2).tolist()
    known = mode in (BY_CONTEXT, ORDER0, RAW) and log2_lanes < MAX_LANES.bit_length()
    demand(data, "" if known else "since the mode or lanes of its stream are none")
    lanes, capacity = 1 << log2_lanes, words_for(elements, symbols)
    states = np.zeros(lanes, np.uint32) if mode == RAW else taken("<u4", lanes)
    table = np.zeros(symbols, np.uint16)
    if mode == ORDER0:
        present = np.unpackbits(taken("<u1", -(-symbols // 8)), bitorder="little").astype(bool)
        demand(data, "since a symbol is none" if present[symbols:].any() else "")
        table[present[:symbols]] = taken("<u2", int(present.sum()))
        demand(data, "" if table[present[:symbols]].all() else "since a share is 0")
    count, odd = divmod(end - place, 2)
    demand(data, "" if not odd and count <= capacity else "since its stream is too long")
    words = np.zeros(capacity, np.uint16)
    words[:count] = taken("<u2", count)
    values: dict[str, Any] = {
        "words": words,
        "count": np.asarray(np.int32(count)),
        "states": states,
        "table": table,
        "mode": np.asarray(np.uint8(mode)),
        "state": np.asarray(np.uint32(head.state)),
    }
    stream = Stream(**values)
    demand(data, _damage(stream))
    return stream


def _damage(stream: Stream) -> str:
    """What is wrong with a stream of the right shapes, if anything."""
    count, mode, state = int(stream.count), int(stream.mode), int(stream.state)
    capacity, states, table = len(stream.words), np.asarray(stream.states), np.asarray(stream.table)
    if not (count == capacity if mode == RAW else 0 <= count <= capacity):
        return "since its words are not as many as its codes ask for"
    few = len(table) <= _MOST_TABLES
    if (mode == BY_CONTEXT and not (few and state)) or (mode == RAW and few and state):
        return "since it does not fit its state"
    if states.any() if mode == RAW else (states < _LEAST_STATE).any():
        return "since the state of a lane is out of range"
    if table.sum(dtype=np.int64) != (SLOTS if mode == ORDER0 else 0):
        return f"since its shares are not {SLOTS} together"
    return ""
