"""Differences between a video's frames as the bodies of wire frames, and back.

All numbers little-endian::

    sequence u32  check u32  scale u16
    and, if anything changed:
    cells    a bit for each, row by row, low bit first, the last byte filled up with 0
    stream   as ``tinyjax.stream_frames`` has it

The side of a cell is in the header, and so is the tag of the contexts if codes are sent by them.
What is refused here is what no encoder makes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyjax.codes import DTYPES, DeltaCode
from tinyjax.frames import DELTA, DELTA_SIZE, Head, damage, demand, refusal
from tinyjax.stream_frames import read_stream, written_stream
from tinyjax.streams import check_stream, nothing, sparse_lanes

__all__ = ["delta_of", "written_delta"]


def written_delta(code: DeltaCode) -> tuple[Head, list[Any]]:
    """The header and the body of a difference.

    Args:
      code: with concrete arrays.

    Returns:
      Both, the body as bytes and arrays.

    Raises:
      ValueError: if no encoder makes such a code, or it is from inside ``vmap``.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> uplink, x = tinyjax.delta_uplink(), jnp.ones((1, 8, 8, 4))
      >>> state, _ = uplink.key(uplink.init(x), x)
      >>> head, body = written_delta(uplink.delta(state, x)[1])
      >>> head.length, len(body)
      (10, 3)
    """
    shape, cells = tuple(code.shape), np.asarray(code.cells)
    dtype, state = DTYPES.index(code.dtype), int(code.stream.state) if cells.any() else 0
    head = Head(DELTA, False, code.bits, dtype, True, state, code.cell, DELTA_SIZE, shape)
    if problem := refusal(head):
        raise ValueError(f"this code has no frame, {problem}: pack what an uplink returned")
    if (cells.dtype, cells.shape) != (np.bool_, head.grid):
        raise ValueError(
            f"cells of this code are {cells.dtype} {list(cells.shape)} where its metadata says "
            f"bool {list(head.grid)}: pack each code of a vmap by itself"
        )
    check_stream(code.stream, head.elements, 2**code.bits)
    stream = b""
    if cells.any():
        flags = np.packbits(cells.reshape(-1), bitorder="little").tobytes()
        stream = flags + written_stream(code.stream)
        head = head._replace(length=DELTA_SIZE + len(stream))
    fixed = {"sequence": "<u4", "check": "<u4", "scale": "<u2"}
    values = {name: np.asarray(getattr(code, name)).astype(d) for name, d in fixed.items()}
    if problem := damage(head._replace(state=0, length=DELTA_SIZE), values):
        raise ValueError(f"this code has no frame, {problem}: pack what an uplink returned")
    return head, [*values.values(), stream] if stream else list(values.values())


def delta_of(data: bytes, start: int, head: Head, values: dict[str, Any]) -> DeltaCode:
    """The difference of a frame.

    Args:
      data: the frame.
      start: where its stream starts, if it has one.
      head: the frame's header.
      values: the arrays before that, sound.

    Returns:
      The code, of the shapes that an uplink needs.

    Raises:
      ValueError: if no encoder makes such a stream.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> uplink, x = tinyjax.delta_uplink(), jnp.ones((1, 8, 8, 4))
      >>> state, _ = uplink.key(uplink.init(x), x)
      >>> frame = tinyjax.wire.pack(uplink.delta(state, x)[1])
      >>> tinyjax.wire.unpack(frame).cells.any().item()  # by way of this function
      False
    """
    count, symbols = math.prod(head.grid), 2**head.bits
    lanes = sparse_lanes(head.elements, symbols)
    cells: Any = np.zeros(head.grid, bool)
    stream = nothing(head.elements, symbols, lanes)
    if "cells" in values:
        flags = np.unpackbits(values.pop("cells"), bitorder="little")[:count]
        cells, stream = flags.astype(bool).reshape(head.grid), read_stream(data, start, head)
        demand(data, "" if len(stream.states) == lanes else "since its lanes are others")
    dtype = DTYPES[head.dtype]
    return DeltaCode(
        stream, cells, **values, shape=head.shape, bits=head.bits, dtype=dtype, cell=head.groups
    )
