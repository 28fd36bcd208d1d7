"""The IDX format of the MNIST family: gzip-compressed unsigned bytes behind a big-endian header.

A header is the magic number ``0x0000_08_0r`` (type ``08`` = unsigned byte, ``r`` = rank), followed
by ``r`` big-endian uint32 sizes; then come the bytes in C order, and nothing after them.

References:
  LeCun, Cortes, Burges, *The MNIST database of handwritten digits*, section "File formats".
"""

import gzip
import io
import struct
import zlib

import numpy as np

from experiments.errors import UserError

__all__ = ["MAX_BYTES", "MAX_RANK", "pack", "unpack"]

MAX_BYTES = 2**27  # 134 MB: MNIST's training images are 47 MB; more than this is not of its family
MAX_RANK = 4


def pack(array: np.ndarray) -> bytes:
    """Compresses a uint8 array of rank 1..4 to IDX .gz bytes.

    The gzip header carries neither a name nor a time, so equal arrays give equal bytes under one
    version of zlib.

    Raises:
      ValueError: if the array is not uint8 or not of rank 1..4.
    """
    if array.dtype != np.uint8 or not 1 <= array.ndim <= MAX_RANK:
        raise ValueError(
            f"array of {array.dtype} and rank {array.ndim} cannot be written as IDX: "
            f"pass uint8 of rank 1 to {MAX_RANK}"
        )
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    buffer = io.BytesIO()
    # GzipFile, not gzip.compress: the latter's header byte for the system differs between Pythons.
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(header + array.tobytes())
    return buffer.getvalue()


def unpack(data: bytes, *, rank: int, name: str) -> np.ndarray:
    """Decompresses and parses IDX .gz bytes; never holds more than `MAX_BYTES` of output.

    Args:
      data: the whole compressed file.
      rank: the rank that the header must state: 3 for images, 1 for labels.
      name: how to call the file in an error.

    Returns:
      uint8 array of the stated sizes.

    Raises:
      UserError: if the data are not gzip, or truncated, or not IDX of unsigned bytes of this rank,
        or state sizes over `MAX_BYTES`, or hold fewer or more bytes than stated.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            shape = _shape(file.read(4 + 4 * rank), rank, name)
            stated = int(np.prod(shape, dtype=object))
            if stated > MAX_BYTES:
                raise UserError(
                    f"{name} states {stated} bytes for {shape}, over the limit of {MAX_BYTES}: "
                    "replace it with the original file"
                )
            body = file.read(stated + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{name} is not a whole gzip file ({error}): copy it again") from error
    if len(body) != stated:
        found = f"only {len(body)}" if len(body) < stated else "more"
        raise UserError(f"{name} states {stated} bytes but holds {found}: copy it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _shape(header: bytes, rank: int, name: str) -> tuple[int, ...]:
    """The sizes in an IDX header of `rank` dimensions."""
    magic = struct.pack(">HBB", 0, 0x08, rank)
    if header[:4] != magic or len(header) != 4 + 4 * rank:
        raise UserError(
            f"{name} begins with {header.hex() or 'nothing'}, expected the IDX magic {magic.hex()} "
            f"and {rank} sizes: replace it with the original file"
        )
    return struct.unpack(f">{rank}I", header[4:])
