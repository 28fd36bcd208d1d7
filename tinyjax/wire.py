"""SGQ codes as bytes, and back from bytes that nobody need trust.

A frame, all numbers little-endian::

    header  "SGQR"  version u8 = 2  kind u8  stage u8  flags u8  bits u8  dtype u8  axes u8  0 u8
            state u32  groups u16  0 u16  length u32
    shape   u32 of each axis
    body    as long as the header says
    CRC-32  u32 of all before it

The body is, by kind::

    0  features, one step   scale u16, centroids u16 [2^bits], zero point u8, packed codes u8
    1  features, groups     scale u16 [n, groups], zero point u8 [n, groups], ids u8 [c], packed u8
    2  gradient             step f32, codes i8
       with the mask flag   step f32, CRC-32 u32 of the mask, codes i8 where the mask is set

Stages other than 0 (as it is) and states other than 0 (none) are reserved, and refused until there
are some. Every code has exactly one frame. The length that the header asks for must be the length
that is there before anything is allocated, and the arrays of the result are views of the bytes (a
masked gradient's are as large as the features that the reader has itself), so that reading takes
no more memory than a few times the frame. Nothing is unpickled or decompressed. The checksum finds
damage, not forgery.

The format is this project's own, since the paper's was not at hand; ``docs/wire.md`` says all
that a second implementation needs.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

from tinyjax.codes import DTYPES, FeatureCode, GroupCode, SGQGradient, StepCode
from tinyjax.frames import (
    CHECKSUM,
    GRADIENT,
    GROUPS,
    STEP,
    Head,
    damage,
    demand,
    read,
    refusal,
    written,
)

__all__ = ["pack", "unpack"]

_KINDS = {StepCode: STEP, GroupCode: GROUPS, SGQGradient: GRADIENT}


def pack(code: FeatureCode | SGQGradient, features: FeatureCode | None = None) -> bytes:
    """The frame of a code.

    Args:
      code: of features or a gradient, with concrete arrays.
      features: the code of the features that a masked gradient belongs to; only that needs it.

    Returns:
      Bytes for :func:`unpack`.

    Raises:
      ValueError: if it is no such code, or its arrays do not fit its metadata, as those of a code
        from inside ``vmap`` do not; if a masked gradient is given without its features.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> code = tinyjax.sgq_encode(jnp.ones((2, 4, 4, 8)))
      >>> len(tinyjax.wire.pack(code)), 4 * 2 * 4 * 4 * 8
      (207, 1024)
    """
    if type(code) not in _KINDS or code.dtype not in DTYPES:
        raise ValueError(f"pack was given {type(code).__name__}: give it a code of tinyjax.sgq")
    head = _head_of(code)
    if problem := refusal(head):
        raise ValueError(f"this code has no frame, {problem}: pack what an encoder returned")
    values = {name: np.asarray(getattr(code, name)) for name in head.fields if name != "mask"}
    whole = head._replace(flagged=head.flagged and head.kind != GRADIENT)
    for name, (dtype, shape) in whole.fields.items():
        found = values[name]
        if (found.dtype, found.shape) != (np.dtype(dtype).newbyteorder("="), shape):
            raise ValueError(
                f"{name} of this code is {found.dtype} {list(found.shape)} where its metadata "
                f"says {np.dtype(dtype).name} {list(shape)}: pack each code of a vmap by itself"
            )
    if head != whole:
        mask = _mask(features, head)
        if values["codes"][~mask].any():
            raise ValueError(
                "this gradient is not 0 where its features are: pack it with the very features "
                "whose code its encoder was given"
            )
        values |= {"mask": np.asarray(_checksum(mask)), "codes": values["codes"][mask]}
        head = head._replace(length=8 + values["codes"].size)
    else:
        head = head._replace(length=head.size)
    if problem := damage(head, values) or ("" if head.length < 2**32 else "since it is too long"):
        raise ValueError(f"this code has no frame, {problem}: pack what an encoder returned")
    body = [values[name].astype(dtype).tobytes() for name, (dtype, _) in head.fields.items()]
    data = b"".join([written(head), *body])
    return data + CHECKSUM.pack(zlib.crc32(data))


def unpack(data: bytes, features: FeatureCode | None = None) -> FeatureCode | SGQGradient:
    """The code of a frame, bit for bit.

    Args:
      data: from :func:`pack`, or from anywhere.
      features: the code of the features that a gradient belongs to, which a masked one is read
        with; others do not need it.

    Returns:
      The code; its arrays are read-only NumPy views of ``data``, but for a masked gradient's.

    Raises:
      ValueError: for every byte string that :func:`pack` does not write; for a masked gradient
        without its features or with others.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> frame = tinyjax.wire.pack(tinyjax.sgq_encode(15 * jnp.ones((1, 2))))
      >>> tinyjax.sgq_decode(tinyjax.wire.unpack(frame)).tolist()
      [[15.0, 15.0]]
      >>> tinyjax.wire.unpack(frame[:-1])
      Traceback (most recent call last):
      ...
      ValueError: these 72 bytes are no SGQ frame, ...: have the code packed and sent again
    """
    if not isinstance(data, bytes):
        raise ValueError(f"unpack was given {type(data).__name__}: give it the bytes of a frame")
    head = read(data)
    values: dict[str, Any] = {}
    start = len(data) - CHECKSUM.size - head.length
    for name, (dtype, shape) in head.fields.items():
        flat = np.frombuffer(data, dtype, math.prod(shape), start)
        start += flat.nbytes
        values[name] = flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(shape)
    demand(data, damage(head, values))
    dtype = DTYPES[head.dtype]
    if head.kind == GRADIENT:
        if head.flagged:
            mask, known = _mask(features, head), values.pop("mask")
            same = known == _checksum(mask) and values["codes"].size == np.count_nonzero(mask)
            demand(data, "" if same else "or not of these features")
            whole = np.zeros(head.shape, np.int8)
            whole[mask] = values["codes"]
            values["codes"] = whole
        return SGQGradient(**values, dtype=dtype, masked=head.flagged)
    kind = StepCode if head.kind == STEP else GroupCode
    return kind(**values, shape=head.shape, bits=head.bits, dtype=dtype, exact=head.flagged)


def _head_of(code: FeatureCode | SGQGradient) -> Head:
    """The header of a code, but for the length."""
    dtype = DTYPES.index(code.dtype)
    if isinstance(code, SGQGradient):
        shape = tuple(np.shape(code.codes))
        return Head(GRADIENT, bool(code.masked), 8, dtype, 0, 8, shape)
    groups = np.shape(code.scale)[-1] if isinstance(code, GroupCode) else 0
    kind = _KINDS[type(code)]
    return Head(kind, bool(code.exact), code.bits, dtype, groups, 0, tuple(code.shape))


def _mask(features: FeatureCode | None, head: Head) -> np.ndarray:
    """Where the gradient of some features is sent: bool, of their shape."""
    if not isinstance(features, FeatureCode) or not features.exact or features.shape != head.shape:
        raise ValueError(
            f"a masked gradient of shape {list(head.shape)} was given no exact features of that "
            "shape: give pack and unpack the code of its features too"
        )
    rows = math.prod(head.shape[:-1])
    packed, zero_point = np.asarray(features.packed), np.asarray(features.zero_point)
    codes = np.empty((8 // features.bits, *packed.shape), np.uint8)
    for i, part in enumerate(codes):
        np.right_shift(packed, np.uint8(i * features.bits), out=part)
        part &= np.uint8(2**features.bits - 1)
    n, *_, c = head.shape
    if isinstance(features, GroupCode):
        zero_point = zero_point[:, np.asarray(features.ids)][:, None]
    return (codes.reshape(-1, c)[:rows].reshape(n, -1, c) != zero_point).reshape(head.shape)


def _checksum(mask: np.ndarray) -> np.uint32:
    """The CRC-32 of a mask, eight places to a byte from the lowest bit on."""
    return np.uint32(zlib.crc32(np.packbits(mask, bitorder="little").tobytes()))
