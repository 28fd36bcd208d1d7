"""What a device and the cloud say to each other, as bytes that nobody need trust.

A message, all numbers little-endian::

    "TJCM"     version u8  kind u8  0 u16
    device     u32         who sends it, or to whom it is sent
    sequence   u64         number of the step it is about, from 1; 0 before the first
    durable    u64         the last step that the sender could go on from after being killed
    loss       f32         of a gradient, else 0
    labels     u32         how many there are
    frame      u32         its length in bytes
    labels     i32 each
    frame      features, a gradient, parameters, a digest or a sentence, by kind
    CRC-32     u32 of all before it

Every message has exactly one byte string. The length that the header asks for must be the length
that is there before anything is allocated, and labels are a view of the bytes. Nothing is
unpickled. The checksum finds damage; who is talking is settled before any of this is read.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import NamedTuple

import numpy as np

__all__ = ["Kind", "Message", "read", "write"]

_HEAD = struct.Struct("<4sBBHIQQfII")
_CHECKSUM = struct.Struct("<I")
_MAGIC, _VERSION = b"TJCM", 1
_NO_LABELS = np.zeros(0, np.int32)


class Kind(enum.IntEnum):
    """What a message is.

    Example:
      >>> from tinyjax import collab
      >>> collab.Kind.STEP.name, int(collab.Kind.STEP)
      ('STEP', 1)
    """

    HELLO = 0  # both ways, first: how far the sender is; the frame is a digest of the job
    STEP = 1  # to the cloud: labels, and features in the frame
    GRADIENT = 2  # the answer to it: loss, and gradient in the frame
    AVERAGE = 3  # both ways: parameters of a lower half, float32; the answer is everyone's mean
    FINISH = 4  # to the cloud: this device has no more steps
    DURABLE = 5  # the answer to it, once everything is saved
    ERROR = 6  # to a device: a sentence in the frame; the connection ends


_WITH_LABELS = (Kind.STEP,)
_WITHOUT_FRAME = (Kind.FINISH, Kind.DURABLE)


class Message(NamedTuple):
    """One message.

    Attributes:
      kind: what it is.
      device: who sends it, or to whom it is sent.
      sequence: number of the step it is about.
      durable: the last step the sender has saved.
      loss: of a gradient.
      labels: int32 ``[n]``, of a step.
      frame: bytes whose meaning depends on the kind.

    Example:
      >>> from tinyjax import collab
      >>> collab.Message(collab.Kind.FINISH, device=3, sequence=10).sequence
      10
    """

    kind: Kind
    device: int = 0
    sequence: int = 0
    durable: int = 0
    loss: float = 0.0
    labels: np.ndarray = _NO_LABELS
    frame: bytes = b""


def write(message: Message) -> bytes:
    """The bytes of a message.

    Args:
      message: labels int32 ``[n]``.

    Returns:
      Bytes for :func:`read`.

    Raises:
      ValueError: if its labels are not int32 ``[n]``, or a number has no place in the header.

    Example:
      >>> from tinyjax import collab
      >>> len(collab.write(collab.Message(collab.Kind.STEP, frame=b"abc")))
      47
    """
    labels = np.asarray(message.labels)
    if labels.dtype != np.int32 or labels.ndim != 1:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}: give int32 [n]")
    kind, device, sequence, durable, loss = message[:5]
    numbers = (kind, 0, device, sequence, durable, loss, len(labels), len(message.frame))
    try:
        head = _HEAD.pack(_MAGIC, _VERSION, *numbers)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"message {numbers} does not fit its header: {error}") from error
    data = head + labels.astype("<i4").tobytes() + message.frame
    return data + _CHECKSUM.pack(zlib.crc32(data))


def read(data: bytes) -> Message:
    """The message of some bytes.

    Args:
      data: from :func:`write`, or from anywhere.

    Returns:
      The message; its labels are a read-only view of ``data``.

    Raises:
      ValueError: for every byte string that :func:`write` does not make of a message.

    Example:
      >>> from tinyjax import collab
      >>> collab.read(collab.write(collab.Message(collab.Kind.FINISH, sequence=7))).sequence
      7
      >>> collab.read(b"GET / HTTP/1.1")
      Traceback (most recent call last):
      ...
      ValueError: these 14 bytes are no message: too short for a header
    """
    if len(data) < _HEAD.size + _CHECKSUM.size:
        raise _no_message(data, "too short for a header")
    magic, version, kind, zero, *numbers = _HEAD.unpack_from(data)
    device, sequence, durable, loss, labels, frame = numbers
    if (magic, version, zero) != (_MAGIC, _VERSION, 0) or kind not in list(Kind):
        raise _no_message(data, "unknown to this version")
    kind, end = Kind(kind), len(data) - _CHECKSUM.size
    if _HEAD.size + 4 * labels + frame != end:
        raise _no_message(data, "its header asks for another length")
    if (labels and kind not in _WITH_LABELS) or (frame and kind in _WITHOUT_FRAME):
        raise _no_message(data, f"a {kind.name.lower()} has no such content")
    if _CHECKSUM.unpack_from(data, end)[0] != zlib.crc32(memoryview(data)[:end]):
        raise _no_message(data, "its checksum is another")
    if kind is not Kind.GRADIENT and struct.pack("<f", loss) != bytes(4):
        raise _no_message(data, f"a {kind.name.lower()} has no loss")
    view = np.frombuffer(data, "<i4", labels, _HEAD.size).astype(np.int32, copy=False)
    return Message(kind, device, sequence, durable, loss, view, data[end - frame : end])


def _no_message(data: bytes, problem: str) -> ValueError:
    return ValueError(f"these {len(data)} bytes are no message: {problem}")
