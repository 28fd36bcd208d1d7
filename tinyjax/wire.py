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
    3  state of a coder     as ``tinyjax.states`` has it
    4  features, gains      scale u16 [n, groups], ids u8 [c], packed gains u8, packed codes u8
    5  key frame            sequence u32, a frame of kind 0
    6  difference           sequence u32, check u32, scale u16, and if anything changed the cells
                            in which it did, a bit each, and a stream

Stage 0 is this; stage 1, from ``tinyjax.entropy.compress``, has a stream in place of packed codes,
or of a mask's checksum and codes: see ``tinyjax.stream_frames``. State is the tag of what a stream
was coded by, or 0.

Every code has exactly one frame. The length that the header asks for must be the length that is
there before anything is allocated, and the arrays of the result are views of the bytes (a masked
gradient's are as large as the features that the reader has itself), so that reading takes no more
memory than a few times the frame. A few compressed bytes may stand for many elements: how many, the
reader says. Nothing is unpickled, and nothing decoded here. The checksum finds damage, not forgery.

The format is this project's own, since the paper's was not at hand; ``docs/wire.md`` says all
that a second implementation needs.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

import numpy as np

from tinyjax.codes import (
    DTYPES,
    DeltaCode,
    FeatureCode,
    GainCode,
    GroupCode,
    KeyCode,
    SGQGradient,
    StepCode,
)
from tinyjax.contexts import State
from tinyjax.delta_frames import delta_of, written_delta
from tinyjax.frames import (
    CHECKSUM,
    DELTA,
    GAINS,
    GRADIENT,
    GROUPS,
    KEY,
    MOST,
    STATE,
    STEP,
    Head,
    damage,
    demand,
    read,
    refusal,
    written,
)
from tinyjax.states import state_from_bytes, state_to_bytes
from tinyjax.stream_frames import read_stream, written_stream
from tinyjax.streams import Stream, check_stream

__all__ = ["pack", "unpack"]

Packable = FeatureCode | SGQGradient | State | KeyCode | DeltaCode

_SEQUENCE = struct.Struct("<I")
_KINDS = {StepCode: STEP, GroupCode: GROUPS, SGQGradient: GRADIENT, GainCode: GAINS}


def pack(code: Packable, features: FeatureCode | None = None) -> bytes:
    """The frame of a code, or of a state.

    Args:
      code: of features or a gradient, compressed or not, of an uplink's frame, or a state from
        ``tinyjax.entropy.fit``; with concrete arrays.
      features: the code of the features that a masked gradient belongs to; only that needs it, and
        only if it is not compressed.

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
    if isinstance(code, State):
        body = state_to_bytes(code)
        return _signed(Head(STATE, False, 0, 0, False, 0, 0, len(body), ()), [body])
    if isinstance(code, KeyCode):
        body = _SEQUENCE.pack(int(code.sequence)) + pack(code.features)
        return _signed(Head(KEY, False, 0, 0, False, 0, 0, len(body), ()), [body])
    if isinstance(code, DeltaCode):
        return _signed(*written_delta(code))
    if type(code) not in _KINDS or code.dtype not in DTYPES:
        raise ValueError(f"pack was given {type(code).__name__}: give it a code of tinyjax.sgq")
    head, stream = _head_of(code), b""
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
    if head.compressed:
        stream = written_stream(_codes_of(code))
        length = head.size + len(stream)
    elif head != whole:
        mask = _mask(features, head)
        if values["codes"][~mask].any():
            raise ValueError(
                "this gradient is not 0 where its features are: pack it with the very features "
                "whose code its encoder was given"
            )
        values |= {"mask": np.asarray(_checksum(mask)), "codes": values["codes"][mask]}
        length = 8 + values["codes"].size
    else:
        length = head.size
    head = head._replace(length=length)
    if problem := damage(head, values) or ("" if head.length < 2**32 else "since it is too long"):
        raise ValueError(f"this code has no frame, {problem}: pack what an encoder returned")
    body = [np.ascontiguousarray(values[name], dtype) for name, (dtype, _) in head.fields.items()]
    return _signed(head, [*body, stream])


def unpack(data: bytes, features: FeatureCode | None = None, *, most: int = MOST) -> Packable:
    """What a frame holds, bit for bit.

    Args:
      data: from :func:`pack`, or from anywhere.
      features: the code of the features that a gradient belongs to, which a masked one that is not
        compressed is read with; others do not need it.
      most: elements that a compressed code may have. Memory for their codes is taken, however
        short the frame is.

    Returns:
      The code or the state. Its arrays are read-only NumPy views of ``data``, but for a masked
      gradient's, a stream and a state. A stream from anywhere may turn out to be none when
      ``tinyjax.entropy.expand`` decodes it.

    Raises:
      ValueError: for every byte string that :func:`pack` does not write; for a masked gradient
        without its features or with others; for a compressed code of more elements.

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
    head = read(data, most)
    start, end = len(data) - CHECKSUM.size - head.length, len(data) - CHECKSUM.size
    if head.kind == STATE:
        return state_from_bytes(data[start:end])
    if head.kind == KEY:
        return _key(data, start, end, most)
    values: dict[str, Any] = {}
    for name, (dtype, shape) in head.fields.items():
        flat = np.frombuffer(data, dtype, math.prod(shape), start)
        start += flat.nbytes
        values[name] = flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(shape)
    demand(data, damage(head, values))
    if head.kind == DELTA:
        return delta_of(data, start, head, values)
    if head.compressed:
        name = "codes" if head.kind == GRADIENT else "packed"
        values[name] = read_stream(data, start, head)
    elif head.kind == GRADIENT and head.flagged:
        mask, known = _mask(features, head), values.pop("mask")
        same = known == _checksum(mask) and values["codes"].size == np.count_nonzero(mask)
        demand(data, "" if same else "or not of these features")
        whole = np.zeros(head.shape, np.int8)
        whole[mask] = values["codes"]
        values["codes"] = whole
    dtype = DTYPES[head.dtype]
    if head.kind == GRADIENT:
        return SGQGradient(**values, shape=head.shape, dtype=dtype, masked=head.flagged)
    if head.kind == GAINS:
        return GainCode(**values, shape=head.shape, levels=head.bits, dtype=dtype)
    kind = StepCode if head.kind == STEP else GroupCode
    return kind(**values, shape=head.shape, bits=head.bits, dtype=dtype, exact=head.flagged)


def _key(data: bytes, start: int, end: int, most: int) -> KeyCode:
    """A key frame, from the body of its frame."""
    inner = start + _SEQUENCE.size
    # Before anything is read, or frames in frames would go as deep as they are long.
    one = end - inner > 5 and data[inner + 5] == STEP
    demand(data, "" if one else "since its key frame has other features than those of one step")
    features: Any = unpack(data[inner:end], most=most)
    sequence: Any = np.asarray(np.uint32(_SEQUENCE.unpack_from(data, start)[0]))
    return KeyCode(features, sequence)


def _signed(head: Head, body: list[Any]) -> bytes:
    """The frame of these, bytes or arrays, each copied once."""
    parts, checksum = [written(head), *body], 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([*parts, CHECKSUM.pack(checksum)])


def _codes_of(code: FeatureCode | SGQGradient) -> Any:
    """Codes of features or a gradient, as a stream if they are compressed."""
    return code.codes if isinstance(code, SGQGradient) else code.packed


def _head_of(code: FeatureCode | SGQGradient) -> Head:
    """The header of a code, but for the length."""
    dtype, codes, shape = DTYPES.index(code.dtype), _codes_of(code), tuple(code.shape)
    compressed, state = isinstance(codes, Stream), 0
    if isinstance(codes, Stream):
        bits = 8 if isinstance(code, SGQGradient) else _width(code)
        check_stream(codes, math.prod(shape), 2**bits)
        state = int(codes.state)
    if isinstance(code, SGQGradient):
        return Head(GRADIENT, bool(code.masked), 8, dtype, compressed, state, 0, 8, shape)
    groups = 0 if isinstance(code, StepCode) else np.shape(code.scale)[-1]
    kind, exact = _KINDS[type(code)], bool(code.exact)
    return Head(kind, exact, _width(code), dtype, compressed, state, groups, 0, shape)


def _width(code: FeatureCode) -> int:
    """What the header has for bits."""
    return code.levels if isinstance(code, GainCode) else code.bits


def _mask(features: FeatureCode | None, head: Head) -> np.ndarray:
    """Where the gradient of some features is sent: bool, of their shape."""
    if (
        not isinstance(features, StepCode | GroupCode)
        or not features.exact
        or features.shape != head.shape
    ):
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
