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
from tinyjax.numerics import levels_per_byte
from tinyjax.numerics.patches import tiles

__all__ = [
    "CHECKSUM",
    "DELTA",
    "DELTA_SIZE",
    "GAINS",
    "GRADIENT",
    "GROUPS",
    "KEY",
    "MOST",
    "STATE",
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
_MAGIC, _VERSION = b"SGQR", 2
STEP, GROUPS, GRADIENT, STATE, GAINS, KEY, DELTA = 0, 1, 2, 3, 4, 5, 6  # the kinds
MOST = 2**26  # elements of a compressed frame, unless its reader allows more
DELTA_SIZE = 10  # bytes of the body of a difference in which nothing changed
_MAX_AXES = 8
_BEYOND = 17  # steps between a code and its centroid, at most
_NAN = 0x7FC0  # a scale is this, or from the first to below the second of
_SCALES = {STEP: (0x0D80, 0x7980), GROUPS: (0x0080, 0x7E80), GAINS: (0x0D80, 0x7F01)}


class Head(NamedTuple):
    """What the header says; trusted only after `refusal` has seen it."""

    kind: int
    flagged: bool  # features: exact; a gradient: masked
    bits: int  # levels, of gains
    dtype: int  # a place in DTYPES
    compressed: bool
    state: int  # of a stream: tag of its contexts or its mask; 0 if none
    groups: int  # 0 but for groups and gains; the side of a cell of a difference
    length: int  # of the body
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Of the features or the gradient."""
        return math.prod(self.shape)

    @property
    def fields(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The arrays of the body but for a stream: dtype and shape of each, in order."""
        return self._beside if self.compressed else self._beside | self._codes

    @property
    def _beside(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """All but the codes."""
        if self.kind == GRADIENT:
            mask = {"mask": ("<u4", ())} if self.flagged and not self.compressed else {}
            return {"step": ("<f4", ()), **mask}
        if self.kind == DELTA:
            flags = {"cells": ("u1", (-(-math.prod(self.grid) // 8),))}
            moved = flags if self.length > DELTA_SIZE else {}
            return {"sequence": ("<u4", ()), "check": ("<u4", ()), "scale": ("<u2", ()), **moved}
        n, *_, c = self.shape
        if self.kind == STEP:
            centroids = ("<u2", (2**self.bits,))
            return {"scale": ("<u2", ()), "centroids": centroids, "zero_point": ("u1", ())}
        scales = (n, self.groups)
        if self.kind == GAINS:
            gains = ("u1", (-(-math.prod(self.shape[:-1]) // 2), self.groups))
            return {"scale": ("<u2", scales), "ids": ("u1", (c,)), "gains": gains}
        return {"scale": ("<u2", scales), "zero_point": ("u1", scales), "ids": ("u1", (c,))}

    @property
    def _codes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        if self.kind == GRADIENT:
            return {"codes": ("i1", (self.length - 8,) if self.flagged else self.shape)}
        height = -(-math.prod(self.shape[:-1]) // self.packing[1])
        return {"packed": ("u1", (height, self.shape[-1]))}

    @property
    def grid(self) -> tuple[int, int]:
        """Of a difference: how many cells there are along each axis."""
        rows, cols = tiles((self.shape[1], self.shape[2]), (self.groups, self.groups))
        return rows, cols

    @property
    def packing(self) -> tuple[int, int]:
        """Of features: how many values a code has, and how many codes are in a byte."""
        if self.kind == GAINS:
            return self.bits, levels_per_byte(self.bits)
        return 2**self.bits, 8 // self.bits

    @property
    def size(self) -> int:
        """Of the arrays of the body."""
        return sum(np.dtype(d).itemsize * math.prod(shape) for d, shape in self.fields.values())


def written(head: Head) -> bytes:
    """Header and shape as bytes."""
    kind, flagged, bits, dtype, compressed, state, groups, length, shape = head
    first = (_MAGIC, _VERSION, kind, compressed, flagged, bits, dtype, len(shape), 0)
    return _HEAD.pack(*first, state, groups, 0, length) + struct.pack(f"<{len(shape)}I", *shape)


def read(data: bytes, most: int) -> Head:
    """The header of a frame of which header, length and checksum are right.

    Args:
      data: from anywhere.
      most: elements of a compressed frame, which a few bytes could say are many.
    """
    demand(data, "too short for a header" if len(data) < _HEAD.size else "")
    magic, version, kind, stage, flags, bits, dtype, axes, zero, state, groups, nought, length = (
        _HEAD.unpack_from(data)
    )
    known = (magic, version, zero, nought) == (_MAGIC, _VERSION, 0, 0)
    known = known and axes <= _MAX_AXES and flags <= 1 and stage <= 1
    demand(data, "" if known else "unknown to this version")
    start = _HEAD.size + 4 * axes
    demand(data, "too short for its shape" if len(data) < start else "")
    asked = start + length + CHECKSUM.size
    demand(data, "" if asked == len(data) else f"whose header asks for {asked}")
    shape = struct.unpack_from(f"<{axes}I", data, _HEAD.size)
    head = Head(kind, bool(flags), bits, dtype, bool(stage), state, groups, length, shape)
    demand(data, refusal(head))
    allowed = not stage or head.elements <= most
    demand(data, "" if allowed else f"of {head.elements} elements where {most} are allowed")
    fits = "" if _fits(head) else f"whose body of {length} is not as long as its shape asks for"
    demand(data, fits)
    end = len(data) - CHECKSUM.size
    right = CHECKSUM.unpack_from(data, end) == (zlib.crc32(memoryview(data)[:end]),)
    demand(data, "" if right else "whose checksum is another")
    return head


def _fits(head: Head) -> bool:
    """Whether the body is as long as the shape asks for, as far as that is known beforehand."""
    if head.kind in (STATE, KEY):
        return True
    if head.compressed:
        return head.size < head.length or (head.kind == DELTA and head.size == head.length)
    masked = head.kind == GRADIENT and head.flagged
    return (not masked or 8 <= head.length <= 8 + head.elements) and head.size == head.length


def refusal(head: Head) -> str:
    """What is wrong with a header, if anything."""
    shape, groups = head.shape, head.groups
    if head.kind in (STATE, KEY):
        plain = head == Head(head.kind, False, 0, 0, False, 0, 0, head.length, ())
        name = "state" if head.kind == STATE else "key frame"
        return "" if plain else f"since a {name} has nothing else in its header"
    if head.kind == GRADIENT:
        if (head.state > 0) != (head.compressed and head.flagged):
            return "since its mask has no tag, or its tag no mask"
    elif head.state and not (head.compressed and head.bits < 8):
        return "since there is no state that it could have"
    if head.dtype >= len(DTYPES) or len(shape) > _MAX_AXES or not all(0 < s < 2**32 for s in shape):
        return "since its dtype or shape is none"
    if head.kind == GRADIENT:
        return "" if (head.bits, groups) == (8, 0) else "since a gradient has 8 bits and no groups"
    if head.kind == DELTA:
        fixed = (head.flagged, head.compressed) == (False, True) and groups > 0
        fixed = fixed and head.bits in (2, 4, 8) and len(shape) == 4 and shape[0] == 1
        return "" if fixed else "since a difference has one sample, a stream and a side of cells"
    widths = {STEP: (2, 4, 8), GROUPS: (2, 4, 8), GAINS: (3, 4)}
    if head.bits not in widths.get(head.kind, ()) or len(shape) < 2:
        return "since its kind, bits or axes are none"
    if head.kind == GAINS and (head.flagged or head.compressed):
        return "since codes with gains are neither exact nor compressed"
    if head.kind == STEP:
        return "" if groups == 0 else "since one step has no groups"
    balanced = 0 < groups <= MAX_GROUPS and shape[-1] % groups == 0
    return "" if balanced else "since its groups are not equal"


def damage(head: Head, values: dict[str, np.ndarray]) -> str:
    """What is wrong with a body of the right size, if anything."""
    if head.kind == GRADIENT:
        if not head.compressed and (values["codes"] == -128).any():
            return "since it has a code -128"
        return "" if not values["step"] <= 0 else "since its step is not positive"
    if head.kind == DELTA:
        return _no_difference(head, values)
    scale, zero_point = values["scale"], values.get("zero_point", np.uint8(0))
    if not _in_range(scale, head.kind):
        return "since a scale is out of range"
    if (zero_point > head.packing[0] - 1).any():
        return "since a zero point is no code"
    if head.kind == STEP and not _sound(values["centroids"], int(zero_point)):
        return "since a centroid is out of range"
    if head.kind != STEP:
        count = np.bincount(values["ids"], minlength=head.groups)
        if len(count) != head.groups or (count != head.shape[-1] // head.groups).any():
            return "since its groups are not equal"
    if head.compressed:
        return ""
    if head.packing == (3, 5) and (values["packed"] >= 3**5).any():
        return "since a byte is no five levels"
    rows = math.prod(head.shape[:-1])
    padded = _padded(values["packed"], rows, *head.packing)
    padded = padded or (head.kind == GAINS and _padded(values["gains"], rows, 16, 2))
    return "since its padding is not zero" if padded else ""


def _no_difference(head: Head, values: dict[str, np.ndarray]) -> str:
    """What is wrong with a difference, its stream apart."""
    if not _in_range(values["scale"], STEP):
        return "since a scale is out of range"
    if "cells" not in values:
        return "since it has a state and no stream" if head.state else ""
    flags = np.unpackbits(values["cells"], bitorder="little")
    count = math.prod(head.grid)
    return "" if flags[:count].any() and not flags[count:].any() else "since its cells are none"


def _in_range(scale: np.ndarray, kind: int) -> bool:
    least, most = _SCALES[kind]
    return bool((((scale >= least) & (scale < most)) | (scale == _NAN)).all())


def _padded(packed: np.ndarray, rows: int, base: int, parts: int) -> bool:
    """Whether there is anything in the places of rows that are not there."""
    height = len(packed)
    for i in range(parts):
        beyond = packed[min(max(rows - i * height, 0), height) :].astype(np.uint16)
        if (beyond // base**i % base).any():
            return True
    return False


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
