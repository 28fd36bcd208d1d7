"""States of coders as bytes, and back from bytes that nobody need trust.

All numbers are little-endian::

    channels u32  symbols u32
    sources  u16 [c, 8]
    weights  i16 [2, 3, c, 18]
    edges    i32 [3, 13], splits i32 [3, 14, 2]
    tables   u16 [126, symbols]

There is no checksum and no version: a frame around it has both. The length that the first two
numbers ask for must be there before anything is allocated, and what a decoder could not follow is
refused: a channel predicted from one that comes later, a weight that leaves int32, a table that
does not add up.
"""

from __future__ import annotations

import itertools
import math
import struct

import numpy as np

from tinyjax.contexts import CONTEXTS, DTYPES, MAX_CHANNELS, State, rounds_of, tagged
from tinyjax.numerics.contexts import BINS, CLASSES, MAX_WEIGHT, SOURCES
from tinyjax.numerics.tables import SLOTS

__all__ = ["state_from_bytes", "state_to_bytes"]

_HEAD = struct.Struct("<II")


def state_to_bytes(state: State) -> bytes:
    """A state as bytes: 232 for each channel, and about 4 kB of tables.

    Args:
      state: with concrete arrays.

    Returns:
      Bytes for :func:`state_from_bytes`.

    Raises:
      ValueError: if the arrays do not make a state.

    Example:
      >>> import numpy as np
      >>> from tinyjax.contexts import fit_contexts
      >>> len(state_to_bytes(fit_contexts(np.zeros((1, 4, 4, 8), np.uint8))))
      6388
    """
    c, symbols = np.shape(state.sources)[0], np.shape(state.frequencies)[-1]
    values = {name: np.asarray(getattr(state, name)) for name in _fields(c, symbols)}
    for name, (dtype, shape) in _fields(c, symbols).items():
        found = values[name]
        if (found.dtype, found.shape) != (np.dtype(dtype).newbyteorder("="), shape):
            raise ValueError(
                f"{name} of this state is {found.dtype} {list(found.shape)} where {c} channels and "
                f"{symbols} symbols need {np.dtype(dtype).name} {list(shape)}: give a fitted state"
            )
    problem = _damage(values)
    if not problem and int(tagged(**values).tag) != int(state.tag):
        problem = "since its tag is another's"
    if problem:
        raise ValueError(f"this is no state of a coder, {problem}: give a fitted state")
    body = [
        values[name].astype(dtype).tobytes() for name, (dtype, _) in _fields(c, symbols).items()
    ]
    return b"".join([_HEAD.pack(c, symbols), *body])


def state_from_bytes(data: bytes) -> State:
    """The state of these bytes.

    Args:
      data: from :func:`state_to_bytes`, or from anywhere.

    Returns:
      The state.

    Raises:
      ValueError: for all bytes that do not make a state.

    Example:
      >>> state_from_bytes(bytes(8))
      Traceback (most recent call last):
      ...
      ValueError: these 8 bytes are no state of a coder, ...: have it sent again
    """
    _demand(data, "too short for a header" if len(data) < _HEAD.size else "")
    c, symbols = _HEAD.unpack_from(data)
    known = 0 < c <= MAX_CHANNELS and 2 <= symbols <= 16
    _demand(data, "" if known else "of a size that there is not")
    fields = _fields(c, symbols)
    sizes = [np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in fields.values()]
    length = _HEAD.size + sum(sizes)
    _demand(data, "" if len(data) == length else f"whose header asks for {length}")
    starts = itertools.accumulate(sizes, initial=_HEAD.size)
    values = {
        name: np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        for (name, (dtype, shape)), start in zip(fields.items(), starts, strict=False)
    }
    _demand(data, _damage(values))
    return tagged(**values)


def _demand(data: bytes, problem: str) -> None:
    """Refuses bytes that have a problem."""
    if problem:
        raise ValueError(
            f"these {len(data)} bytes are no state of a coder, {problem}: have it sent again"
        )


def _fields(c: int, symbols: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays of a state: dtype and shape of each, in order."""
    shapes = {
        "sources": (c, SOURCES),
        "weights": (2, 3, c, 2 * SOURCES + 2),
        "edges": (3, BINS - 1),
        "splits": (3, BINS, CLASSES - 1),
        "frequencies": (CONTEXTS, symbols),
    }
    return {name: (dtype, shapes[name]) for name, dtype in DTYPES.items()}


def _damage(values: dict[str, np.ndarray]) -> str:
    """What is wrong with arrays of the right shapes, if anything."""
    sources, weights, shares = values["sources"], values["weights"], values["frequencies"]
    size = rounds_of(len(sources))[1]
    first = np.arange(len(sources)) // size * size  # of the round of each channel
    if (sources >= np.maximum(first, 1)[:, None]).any():
        return "since a channel is predicted from one that comes no earlier"
    if weights[:, :, :size, : 2 * SOURCES].any() or weights[:, 0, :, 2 * SOURCES].any():
        return "since something is predicted from what is not there yet"
    if (weights > MAX_WEIGHT).any() or (weights < -MAX_WEIGHT).any():
        return "since a weight is out of range"
    if not shares.all() or (shares.sum(axis=1, dtype=np.int64) != SLOTS).any():
        return f"since the shares of a table are not {SLOTS} together"
    return ""
