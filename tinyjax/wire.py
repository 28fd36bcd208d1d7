"""SGQ codes as bytes, and back from bytes that nobody need trust.

A frame, all numbers little-endian::

    "SGQR"  version u8  kind u8  bits u8  dtype u8  axes u8  0 u8  groups u16
    shape   u32 of each axis
    body    features: scale u16 [n, groups], zero point u8 [n, groups], ids u8 [c], packed codes u8
            gradient: step f32, codes i8
    CRC-32  u32 of all before it

Every code has exactly one frame. The length that the header asks for must be the length that is
there before anything is allocated, and the arrays of the result are views of the bytes, so that
reading takes no more memory than a few times the frame. Nothing is unpickled or decompressed. The
checksum finds damage, not forgery.

The format is this project's own, since the paper's was not at hand.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from tinyjax.codes import DTYPES, MAX_GROUPS, SGQCode, SGQGradient

__all__ = ["pack", "unpack"]

_HEAD = struct.Struct("<4sBBBBBBH")
_CHECKSUM = struct.Struct("<I")
_MAGIC, _VERSION = b"SGQR", 1
_FEATURES, _GRADIENT = 0, 1
_MAX_AXES = 8
_NAN, _LEAST, _MOST = 0x7FC0, 0x0080, 0x7E80  # scales: NaN, or from 2**-126 to below 2**126


class _Head(NamedTuple):
    """What the header says; trusted only after `_refusal` has seen it."""

    kind: int
    bits: int
    dtype: int  # a place in DTYPES
    groups: int  # 0 for a gradient
    shape: tuple[int, ...]

    @property
    def fields(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The arrays of the body: dtype and shape of each, in order."""
        if self.kind == _GRADIENT:
            return {"step": ("<f4", ()), "codes": ("i1", self.shape)}
        n, *_, c = self.shape
        height = -(-math.prod(self.shape[:-1]) * self.bits // 8)
        return {
            "scale": ("<u2", (n, self.groups)),
            "zero_point": ("u1", (n, self.groups)),
            "ids": ("u1", (c,)),
            "packed": ("u1", (height, c)),
        }


def pack(code: SGQCode | SGQGradient) -> bytes:
    """The frame of a code.

    Args:
      code: of features or a gradient, with concrete arrays.

    Returns:
      Bytes for :func:`unpack`.

    Raises:
      ValueError: if it is no such code, or its arrays do not fit its metadata, as those of a code
        from inside ``vmap`` do not.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> code = tinyjax.sgq_encode(jnp.ones((2, 4, 4, 8)), group_size=4)
      >>> len(tinyjax.wire.pack(code)), 4 * 2 * 4 * 4 * 8
      (180, 1024)
    """
    head = _head_of(code)
    if problem := _refusal(head):
        raise ValueError(f"this code has no frame, {problem}: pack what an encoder returned")
    values = {name: np.asarray(getattr(code, name)) for name in head.fields}
    for name, (dtype, shape) in head.fields.items():
        found = values[name]
        if (found.dtype, found.shape) != (np.dtype(dtype).newbyteorder("="), shape):
            raise ValueError(
                f"{name} of this code is {found.dtype} {list(found.shape)} where its metadata "
                f"says {np.dtype(dtype).name} {list(shape)}: pack each code of a vmap by itself"
            )
    if problem := _damage(head, values):
        raise ValueError(f"this code has no frame, {problem}: pack what an encoder returned")
    body = [values[name].astype(dtype).tobytes() for name, (dtype, _) in head.fields.items()]
    data = b"".join([_written(head), *body])
    return data + _CHECKSUM.pack(zlib.crc32(data))


def unpack(data: bytes) -> SGQCode | SGQGradient:
    """The code of a frame, bit for bit.

    Args:
      data: from :func:`pack`, or from anywhere.

    Returns:
      The code; its arrays are read-only NumPy views of ``data``.

    Raises:
      ValueError: for every byte string that :func:`pack` does not write.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> frame = tinyjax.wire.pack(tinyjax.sgq_encode(15 * jnp.ones((1, 2)), group_size=2))
      >>> tinyjax.sgq_decode(tinyjax.wire.unpack(frame)).tolist()
      [[15.0, 15.0]]
      >>> tinyjax.wire.unpack(frame[:-1])
      Traceback (most recent call last):
      ...
      ValueError: these 30 bytes are no SGQ frame, ...: have the code packed and sent again
    """
    if not isinstance(data, bytes):
        raise ValueError(f"unpack was given {type(data).__name__}: give it the bytes of a frame")
    head = _read(data)
    values: dict[str, Any] = {}
    start = _HEAD.size + 4 * len(head.shape)
    for name, (dtype, shape) in head.fields.items():
        flat = np.frombuffer(data, dtype, math.prod(shape), start)
        start += flat.nbytes
        values[name] = flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(shape)
    _demand(data, _damage(head, values))
    if head.kind == _GRADIENT:
        return SGQGradient(**values, dtype=DTYPES[head.dtype])
    return SGQCode(**values, shape=head.shape, bits=head.bits, dtype=DTYPES[head.dtype])


def _head_of(code: Any) -> _Head:
    if not isinstance(code, SGQCode | SGQGradient) or code.dtype not in DTYPES:
        raise ValueError(f"pack was given {type(code).__name__}: give it a code of tinyjax.sgq")
    dtype = DTYPES.index(code.dtype)
    if isinstance(code, SGQGradient):
        return _Head(_GRADIENT, 8, dtype, 0, tuple(np.shape(code.codes)))
    return _Head(_FEATURES, code.bits, dtype, np.shape(code.scale)[-1], tuple(code.shape))


def _written(head: _Head) -> bytes:
    kind, bits, dtype, groups, shape = head
    first = _HEAD.pack(_MAGIC, _VERSION, kind, bits, dtype, len(shape), 0, groups)
    return first + struct.pack(f"<{len(shape)}I", *shape)


def _read(data: bytes) -> _Head:
    """The header of a frame of which header, length and checksum are right."""
    _demand(data, "too short for a header" if len(data) < _HEAD.size else "")
    magic, version, kind, bits, dtype, axes, zero, groups = _HEAD.unpack_from(data)
    start = _HEAD.size + 4 * axes
    known = (magic, version, zero) == (_MAGIC, _VERSION, 0) and axes <= _MAX_AXES
    _demand(data, "" if known else "unknown to this version")
    _demand(data, "too short for its shape" if len(data) < start else "")
    shape = struct.unpack_from(f"<{axes}I", data, _HEAD.size)
    head = _Head(kind, bits, dtype, groups, shape)
    _demand(data, _refusal(head))
    sizes = (np.dtype(d).itemsize * math.prod(shape) for d, shape in head.fields.values())
    length = start + sum(sizes) + _CHECKSUM.size
    _demand(data, "" if length == len(data) else f"whose header asks for {length}")
    end = len(data) - _CHECKSUM.size
    right = _CHECKSUM.unpack_from(data, end) == (zlib.crc32(memoryview(data)[:end]),)
    _demand(data, "" if right else "whose checksum is another")
    return head


def _refusal(head: _Head) -> str:
    """What is wrong with a header, if anything."""
    kind, bits, dtype, groups, shape = head
    if dtype >= len(DTYPES) or len(shape) > _MAX_AXES or not all(0 < s < 2**32 for s in shape):
        return "since its dtype or shape is none"
    if kind == _GRADIENT:
        return "" if (bits, groups) == (8, 0) else "since a gradient has 8 bits and no groups"
    if kind != _FEATURES or bits not in (2, 4, 8) or len(shape) < 2:
        return "since its kind, bits or axes are none"
    balanced = 0 < groups <= MAX_GROUPS and shape[-1] % groups == 0
    return "" if balanced else "since its groups are not equal"


def _damage(head: _Head, values: dict[str, np.ndarray]) -> str:
    """What is wrong with a body of the right size, if anything."""
    if head.kind == _GRADIENT:
        if (values["codes"] == -128).any():
            return "since it has a code -128"
        return "" if not values["step"] <= 0 else "since its step is not positive"
    scale, zero_point, packed = values["scale"], values["zero_point"], values["packed"]
    if not (((scale >= _LEAST) & (scale < _MOST)) | (scale == _NAN)).all():
        return "since a scale is out of range"
    if (zero_point > 2**head.bits - 1).any():
        return "since a zero point is no code"
    count = np.bincount(values["ids"], minlength=head.groups)
    if len(count) != head.groups or (count != head.shape[-1] // head.groups).any():
        return "since its groups are not equal"
    rows, height = math.prod(head.shape[:-1]), len(packed)
    for i in range(8 // head.bits):  # the places of rows that are not there
        beyond = packed[min(max(rows - i * height, 0), height) :]
        if ((beyond >> (i * head.bits)) & (2**head.bits - 1)).any():
            return "since its padding is not zero"
    return ""


def _demand(data: bytes, problem: str) -> None:
    """Refuses bytes that have a problem."""
    if problem:
        raise ValueError(
            f"these {len(data)} bytes are no SGQ frame, {problem}: have the code packed and sent "
            "again"
        )
