"""Cuts the bundled clip from Intel's sample video and encodes it again, without randomness.

Frames 340 to 579 of ``one-by-one-person-detection.mp4`` at its own size and rate: a man stands and
leaves, the room is empty, a woman comes. One key frame, no B-frames, coarse steps and wide dead
zones, as in a camera with a low bit rate, so that what stands still is coded as "skipped" and
decodes to the same bytes again::

    python -m experiments.data.cut_one_by_one_person <one-by-one-person-detection.mp4>

rewrites ``experiments/data/one_by_one_person/one_by_one_person.mp4`` (with another FFmpeg or x264
the bytes may differ) and prints what the README beside it states, for the source and for the clip.
"""

import sys
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from experiments.data.clips import CLIP
from experiments.extras import imported
from experiments.video import about, frames

__all__ = ["FIRST", "STOP", "cut", "encode", "quiet", "still"]

FIRST, STOP = 340, 580  # of the source, counted from 0

_X264 = (
    "keyint=infinite:scenecut=0:bframes=0:ref=1:weightp=0:mbtree=0:aq-mode=0:psy=0:"
    "trellis=0:deadzone-inter=32:qp=28:ipratio=2.5:threads=1"
)


def cut(source: Path) -> Iterator[np.ndarray]:
    """The frames of the clip, uint8 [h, w, 3], out of the source video."""
    return islice(frames(source), FIRST, STOP)


def encode(path: Path, images: Iterable[np.ndarray], fps: float, size: tuple[int, int]) -> None:
    """Writes frames uint8 [h, w, 3] as H.264, standing parts as skipped macroblocks.

    Args:
      path: of the mp4.
      images: the frames.
      fps: frames per second, a whole number.
      size: (h, w).
    """
    av = imported("av")
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "medium", "x264-params": _X264}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def still(images: Iterable[np.ndarray], block: int = 16) -> float:
    """Share of `block` x `block` squares that equal the same square of the frame before, 0..1.

    Args:
      images: frames uint8 [h, w, 3], h and w multiples of `block`.
      block: side of a square.
    """
    shares = []
    for before, after in pairwise(images):
        h, w = (side // block for side in after.shape[:2])
        same = (before == after).reshape(h, block, w, block * 3)
        shares.append(same.all((1, 3)).mean())
    return float(np.mean(shares))


def quiet(images: Iterable[np.ndarray]) -> float:
    """Share of frames, 0..1, in which under 0.1 % of the pixels move by more than 12 of 255."""
    moved = [
        (np.abs(after.astype(np.int16) - before).max(-1) > 12).mean()
        for before, after in pairwise(images)
    ]
    return float(np.mean(np.array(moved) < 1e-3))


if __name__ == "__main__":
    source = Path(sys.argv[1])
    encode(CLIP, cut(source), about(source).fps, next(frames(source)).shape[:2])
    print(f"{CLIP}: {CLIP.stat().st_size} bytes")
    for name, read in (("source", lambda: cut(source)), ("clip", lambda: frames(CLIP))):
        print(f"{name}: {still(read()):.1%} equal blocks, {quiet(read()):.1%} quiet frames")
