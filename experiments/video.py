"""Video files: reading them frame by frame, writing them for browsers, marking what was recomputed.

PyAV (FFmpeg) does the coding. Frames are uint8 RGB [h, w, 3]; no more than one of them is held.
"""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import UserError
from experiments.extras import imported

__all__ = ["MAX_PIXELS", "About", "about", "frames", "packed", "shade", "unpacked", "write"]

MAX_PIXELS = 4096 * 2304  # of a frame that is read: 28 MB as uint8 RGB

_OUTLINE = np.array([20, 184, 166], np.uint8)  # around what was recomputed
_LUMA = np.array([77, 150, 29], np.uint16)  # BT.601, in 256ths


class About(NamedTuple):
    """What a video says of itself."""

    fps: float  # 25 where the file does not tell
    frames: int  # 0 where the file does not tell


def frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of the first video stream of a file, decoded one at a time.

    Args:
      path: anything that FFmpeg reads.

    Yields:
      uint8 [h, w, 3], RGB; every frame of one size.

    Raises:
      UserError: while iterating: if the file is missing, holds no video, cannot be decoded, ends
        before the frames that it states, changes its size, or has frames over `MAX_PIXELS`.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise UserError(
                f"{path} has frames of {stream.width}x{stream.height}, over the limit of "
                f"{MAX_PIXELS} pixels: scale it down"
            )
        count, size = 0, None
        for frame in _decoded(path, container, stream):
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise UserError(
                    f"{path} changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} "
                    f"at frame {count}: cut it there"
                )
            yield frame.to_ndarray(format="rgb24")
            count += 1
        if count < max(1, stream.frames):  # 0 where the container states no number
            raise UserError(
                f"{path} ends after {count} of {max(1, stream.frames)} frames: copy it again"
            )


def about(path: Path) -> About:
    """What the first video stream of a file says of itself.

    Raises:
      UserError: if the file is missing or holds no video.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        return About(float(stream.average_rate or 25), stream.frames)


def write(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes frames as H.264 in an mp4 that browsers play, whole or not at all.

    Equal frames give equal bytes under one version of FFmpeg.

    Args:
      path: of the file; its folder is made where it is missing.
      frames: uint8 [h, w, 3], RGB; h and w even and the same in every frame.
      fps: frames per second.

    Raises:
      ValueError: if there are no frames, or one of another shape or dtype.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames for {path}: pass at least one")
    _check_frame(first, first.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial.mp4")
    try:
        _encode(beside, chain([first], frames), first.shape, fps)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _encode(path: Path, frames: Iterable[np.ndarray], shape: tuple[int, ...], fps: float) -> None:
    av = imported("av")
    # The index goes to the front, so that playing starts before all is there.
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = shape[:2]
        stream.pix_fmt = "yuv420p"  # all that browsers decode
        stream.options = {"crf": "25", "preset": "veryfast", "threads": "1"}
        for frame in frames:
            _check_frame(frame, shape)
            coded = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(coded))
        container.mux(stream.encode(None))


def shade(frame: np.ndarray, active: np.ndarray, patch: int) -> np.ndarray:
    """A frame with the patches that were skipped dark and grey, the others outlined in colour.

    Args:
      frame: uint8 [h, w, 3].
      active: bool [ceil(h / patch), ceil(w / patch)], the patches that were recomputed.
      patch: side of a patch in pixels.

    Returns:
      uint8 [h, w, 3].

    Raises:
      ValueError: if `active` is not of this shape.
    """
    h, w = frame.shape[:2]
    grid = (-(-h // patch), -(-w // patch))
    if active.shape != grid:
        raise ValueError(
            f"active has shape {active.shape}, expected {grid}: one entry per patch of {patch}"
        )
    inside = active.repeat(patch, 0).repeat(patch, 1)[:h, :w]
    grey = ((frame @ _LUMA) >> 8).astype(np.uint8)
    skipped = np.broadcast_to((grey // 5 * 2)[..., None], frame.shape)
    shaded = np.where(inside[..., None], frame, skipped)
    shaded[inside & _beside(~inside)] = _OUTLINE
    return shaded


def packed(mask: np.ndarray) -> str:
    """A bool array as hexadecimal digits, eight entries in two digits."""
    return np.packbits(mask).tobytes().hex()


def unpacked(digits: str, shape: tuple[int, int]) -> np.ndarray:
    """The bool array of this shape that `packed` wrote."""
    bits = np.frombuffer(bytes.fromhex(digits), np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def _beside(outside: np.ndarray) -> np.ndarray:
    """Whether one of the four neighbours of a pixel is marked: bool [h, w] -> bool [h, w]."""
    padded = np.pad(outside, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _check_frame(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    h, w, colours = shape if len(shape) == 3 else (1, 1, 0)
    if frame.shape != shape or frame.dtype != np.uint8 or colours != 3 or h % 2 or w % 2:
        raise ValueError(
            f"a frame is {frame.dtype} {frame.shape} after a first of shape {shape}: "
            "pass uint8 [h, w, 3] with even h and w, the same for all"
        )


def _opened(path: Path) -> Any:
    """A container with at least one video stream."""
    av = imported("av")
    if not path.is_file():
        raise UserError(f"{path} is not there: give the path of a video file")
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): is it a video?") from error
    if not container.streams.video:
        container.close()
        raise UserError(f"{path} holds no video stream: give the path of a video file")
    return container


def _decoded(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """The decoded frames, with what FFmpeg complains of in a sentence."""
    av = imported("av")
    try:
        yield from container.decode(stream)
    except av.error.FFmpegError as error:
        raise UserError(f"{path} cannot be decoded ({error.strerror}): copy it again") from error
