"""People before a fixed camera, with a box around each: what a detector and a tracker learn from.

``vtest`` is PETS 2009 S2.L1, view 1: 795 frames in OpenCV's sample of that name, with the boxes of
MOTChallenge 2015. Both are for research only and not part of the repository: they are read from
``video/`` in the folder of the data sets, ``$TINYJAX_DATA`` or ``../shared/data`` beside the
repository. ``walkers`` is made here, to try things out: figures that walk over a noisy background.

References:
  Ferryman, Shahrokni, *PETS2009: Dataset and Challenge*, 2009.
  Leal-Taixé, Milan, Reid, Roth, Schindler, *MOTChallenge 2015: Towards a Benchmark for Multi-Target
  Tracking*, arXiv:1504.01942.
  Zhou, Wang, Krähenbühl, *Objects as Points*, arXiv:1904.07850 (maps of centres).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments import video
from experiments.data.files import checked, originals
from experiments.errors import UserError

__all__ = ["CENTRE", "SHA256", "STRIDE", "Walkers", "centres", "rows", "vtest", "walkers"]

SHA256 = {
    "vtest_pets09-s2l1_480x360.avi": (
        "f6f676f1879eadf6b22abd0c2a1f6cecb5ae1ff2a63625512310356514048c5d"
    ),
    "vtest_pets09-s2l1_gt_768x576.txt": (
        "9759f51a2429b17e1f4dfdd76cf9731ca02097069298914b51d35bb9045baf1d"
    ),
}

STRIDE = 4  # pixels of a cell of a map
CENTRE = 255  # of a cell that holds a centre

_SPREAD = 1 / 8  # standard deviation around a centre, in sides of the box


class Walkers(NamedTuple):
    """Successive frames of a fixed camera, and who is where."""

    frames: np.ndarray  # uint8 [n, h, w, 3], RGB
    labels: np.ndarray  # uint8 [n, h / STRIDE, w / STRIDE]: `centres`
    boxes: np.ndarray  # float32 [n, most, 5]: who from 1, left, top, width, height; 0: nobody


def vtest() -> Walkers:
    """All 795 frames, 480x360.

    Raises:
      UserError: if a file is missing or another one.
    """
    clip, truth = (originals("video") / name for name in SHA256)
    cure = "put the original there, or set TINYJAX_DATA to the folder of video/"
    checked(clip, SHA256[clip.name], cure)
    lines = checked(truth, SHA256[truth.name], cure).decode().splitlines()
    frames = np.stack(list(video.frames(clip)))
    scale = frames.shape[2] / 768  # boxes are those of the film's original size
    return _walkers(frames, rows(lines, len(frames), scale, truth.name))


def walkers(count: int = 40, size: tuple[int, int] = (64, 96)) -> Walkers:
    """Three figures that walk over a textured background, under sensor noise; one comes later.

    Args:
      count: of frames.
      size: (h, w) of a frame, multiples of 8 and at least 48.

    Returns:
      The same frames for the same arguments.
    """
    rng = np.random.default_rng(0)
    h, w = size
    frames = rng.integers(60, 120, (h, w, 3)) + rng.integers(-1, 2, (count, h, w, 3))
    boxes = np.zeros((count, 3, 5), np.float32)
    for who, (top, speed, start) in enumerate(((4, 2, 0), (h - 24, -1, 0), (h // 2 - 10, 1, 6))):
        for index in range(start, count):
            left = (7 * who + index * speed) % (w - 8)
            frames[index, top : top + 20, left : left + 8] = 200
            boxes[index, who] = who + 1, left, top, 8, 20
    return _walkers(frames.astype(np.uint8), boxes)


def rows(lines: Sequence[str], count: int, scale: float, name: str) -> np.ndarray:
    """Boxes of MOTChallenge's text: ``frame,id,left,top,width,height,...``, frames from 1.

    Args:
      lines: of the text.
      count: frames there are.
      scale: what a length is multiplied by.
      name: of the text, for errors.

    Returns:
      float32 [count, most, 5]: `Walkers.boxes`, whatever the text says of how sure a box is.

    Raises:
      UserError: if a line is no box, or one of a frame that is not there.

    >>> rows(["2,1,8,16,4,8,1"], 3, 0.5, "gt.txt")[1].tolist()
    [[1.0, 4.0, 8.0, 2.0, 4.0]]
    """
    found: list[list[list[float]]] = [[] for _ in range(count)]
    for number, line in enumerate(lines, 1):
        try:
            frame, who, *box = map(float, line.split(",")[:6])
            if len(box) != 4 or who < 1 or not 1 <= frame <= count or min(box[2:]) <= 0:
                raise ValueError("frame, person or sides are none")
            found[int(frame) - 1].append([who, *(scale * side for side in box)])
        except ValueError as error:
            raise UserError(
                f"{name}, line {number} is no box in {count} frames ({error}): copy the file again"
            ) from error
    boxes = np.zeros((count, max(map(len, found)), 5), np.float32)
    for index, inside in enumerate(found):
        boxes[index, : len(inside)] = np.reshape(inside, (-1, 5))
    return boxes


def centres(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How near to a centre each cell is: 255 where one lies, and a bell around it.

    Args:
      boxes: float32 [most, 5]: of a frame, as in `Walkers`.
      size: (h, w) of the frame, multiples of `STRIDE`.

    Returns:
      uint8 [h / STRIDE, w / STRIDE]; a centre outside of the frame leaves no 255.
    """
    found = np.zeros([side // STRIDE for side in size])
    row, column = np.indices(found.shape) * STRIDE + STRIDE / 2
    inside = boxes[boxes[:, 0] > 0, 1:]
    middles = inside[:, :2] + inside[:, 2:] / 2
    for (x, y), (w, h) in zip(middles, inside[:, 2:], strict=True):
        far = ((column - x) / (_SPREAD * w)) ** 2 + ((row - y) / (_SPREAD * h)) ** 2
        found = np.maximum(found, np.exp(-far / 2))
    cells = np.round((CENTRE - 1) * found).astype(np.uint8)
    at = (middles[:, ::-1] // STRIDE).astype(int)
    at = at[((at >= 0) & (at < cells.shape)).all(1)]
    cells[tuple(at.T)] = CENTRE
    return cells


def _walkers(frames: np.ndarray, boxes: np.ndarray) -> Walkers:
    size = frames.shape[1:3]
    return Walkers(frames, np.stack([centres(one, size) for one in boxes]), boxes)
