"""Frames of SGQ codes: header, arrays of the body, and what a sound one may hold.

``tinyjax.wire`` has the format and the two functions that use this.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

from tinyjax.codes import DTYPES, MAX_GROUPS

__all__ = [
    "CHECKSUM",
    "GRADIENT",
    "GROUPS",
    "STEP",
    "Head",
    "damage",
    "demand",
    "read",
    "refusal",
    "written",
]

_HEAD = struct.Struct("<4sBBBBBBBBIHHI")
CHECKSUM = struct.Struct("<I")
_MAGIC, _VERSION, _AS_IT_IS, _NO_STATE = b"SGQR", 2, 0, 0
STEP, GROUPS, GRADIENT = 0, 1, 2
_MAX_AXES = 8
_BEYOND = 17  # steps between a code and its centroid, at most
_NAN = 0x7FC0  # a scale is this, or from the first to below the second of
_SCALES = {STEP: (0x0D80, 0x7980), GROUPS: (0x0080, 0x7E80)}


class Head(NamedTuple):
    """What the header says; trusted only after `refusal` has seen it."""

    kind: int
    flagged: bool  # features: exact; a gradient: masked
    bits: int
    dtype: int  # a place in DTYPES
    groups: int  # 0 but for groups
    length: int  # of the body
    shape: tuple[int, ...]

    @property
    def fields(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The arrays of the body: dtype and shape of each, in order."""
        if self.kind == GRADIENT and self.flagged:
            return {"step": ("<f4", ()), "mask": ("<u4", ()), "codes": ("i1", (self.length - 8,))}
        if self.kind == GRADIENT:
            return {"step": ("<f4", ()), "codes": ("i1", self.shape)}
        n, *_, c = self.shape
        packed = ("u1", (-(-math.prod(self.shape[:-1]) * self.bits // 8), c))
        if self.kind == STEP:
            centroids = ("<u2", (2**self.bits,))
            return {
                "scale": ("<u2", ()),
                "centroids": centroids,
                "zero_point": ("u1", ()),
                "packed": packed,
            }
        scales = (n, self.groups)
        return {
            "scale": ("<u2", scales),
            "zero_point": ("u1", scales),
            "ids": ("u1", (c,)),
            "packed": packed,
        }

    @property
    def size(self) -> int:
        """Of the arrays of the body."""
        return sum(np.dtype(d).itemsize * math.prod(shape) for d, shape in self.fields.values())


def written(head: Head) -> bytes:
    """Header and shape as bytes."""
    kind, flagged, bits, dtype, groups, length, shape = head
    first = (_MAGIC, _VERSION, kind, _AS_IT_IS, flagged, bits, dtype, len(shape), 0)
    return _HEAD.pack(*first, _NO_STATE, groups, 0, length) + struct.pack(f"<{len(shape)}I", *shape)


def read(data: bytes) -> Head:
    """The header of a frame of which header, length and checksum are right."""
    demand(data, "too short for a header" if len(data) < _HEAD.size else "")
    magic, version, kind, stage, flags, bits, dtype, axes, zero, state, groups, nought, length = (
        _HEAD.unpack_from(data)
    )
    known = (magic, version, zero, nought) == (_MAGIC, _VERSION, 0, 0)
    known = known and axes <= _MAX_AXES and flags <= 1
    demand(data, "" if known else "unknown to this version")
    unreserved = (stage, state) == (_AS_IT_IS, _NO_STATE)
    demand(data, "" if unreserved else "since its stage or state is reserved")
    start = _HEAD.size + 4 * axes
    demand(data, "too short for its shape" if len(data) < start else "")
    asked = start + length + CHECKSUM.size
    demand(data, "" if asked == len(data) else f"whose header asks for {asked}")
    shape = struct.unpack_from(f"<{axes}I", data, _HEAD.size)
    head = Head(kind, bool(flags), bits, dtype, groups, length, shape)
    demand(data, refusal(head))
    fits = 8 <= length <= 8 + math.prod(shape) if kind == GRADIENT and flags else True
    fits = fits and head.size == length
    demand(data, "" if fits else f"whose body of {length} is not as long as its shape asks for")
    end = len(data) - CHECKSUM.size
    right = CHECKSUM.unpack_from(data, end) == (zlib.crc32(memoryview(data)[:end]),)
    demand(data, "" if right else "whose checksum is another")
    return head


def refusal(head: Head) -> str:
    """What is wrong with a header, if anything."""
    shape, groups = head.shape, head.groups
    if head.dtype >= len(DTYPES) or len(shape) > _MAX_AXES or not all(0 < s < 2**32 for s in shape):
        return "since its dtype or shape is none"
    if head.kind == GRADIENT:
        return "" if (head.bits, groups) == (8, 0) else "since a gradient has 8 bits and no groups"
    if head.kind not in (STEP, GROUPS) or head.bits not in (2, 4, 8) or len(shape) < 2:
        return "since its kind, bits or axes are none"
    if head.kind == STEP:
        return "" if groups == 0 else "since one step has no groups"
    balanced = 0 < groups <= MAX_GROUPS and shape[-1] % groups == 0
    return "" if balanced else "since its groups are not equal"


def damage(head: Head, values: dict[str, np.ndarray]) -> str:
    """What is wrong with a body of the right size, if anything."""
    if head.kind == GRADIENT:
        if (values["codes"] == -128).any():
            return "since it has a code -128"
        return "" if not values["step"] <= 0 else "since its step is not positive"
    scale, zero_point, packed = values["scale"], values["zero_point"], values["packed"]
    least, most = _SCALES[head.kind]
    if not (((scale >= least) & (scale < most)) | (scale == _NAN)).all():
        return "since a scale is out of range"
    if (zero_point > 2**head.bits - 1).any():
        return "since a zero point is no code"
    if head.kind == STEP and not _sound(values["centroids"], int(zero_point)):
        return "since a centroid is out of range"
    if head.kind == GROUPS:
        count = np.bincount(values["ids"], minlength=head.groups)
        if len(count) != head.groups or (count != head.shape[-1] // head.groups).any():
            return "since its groups are not equal"
    rows, height = math.prod(head.shape[:-1]), len(packed)
    for i in range(8 // head.bits):  # the places of rows that are not there
        beyond = packed[min(max(rows - i * height, 0), height) :]
        if ((beyond >> (i * head.bits)) & (2**head.bits - 1)).any():
            return "since its padding is not zero"
    return ""


def _sound(centroids: np.ndarray, zero_point: int) -> bool:
    """Whether centroids are near their codes, none is subnormal, and that of 0.0 is 0.0."""
    value = centroids.view(np.float16).astype(np.float32)
    code = np.arange(len(value), dtype=np.float32) - np.float32(zero_point)
    with np.errstate(invalid="ignore"):
        near = np.abs(value - code) <= _BEYOND
    normal = (np.abs(value) >= np.float32(2.0**-14)) | (centroids == 0)
    return bool((near & normal).all() and centroids[zero_point] == 0)


def demand(data: bytes, problem: str) -> None:
    """Refuses bytes that have a problem."""
    if problem:
        raise ValueError(
            f"these {len(data)} bytes are no SGQ frame, {problem}: have the code packed and sent "
            "again"
        )
