"""Scenes of a fixed camera with labels: `load(name)` reads or makes one.

Here are those with a label for every pixel; `experiments.data.walkers` has those with boxes.

``highway`` is 500 frames of CDnet *baseline/highway*. They are for research only and not part of
the repository: ``cdnet/highway_000470-000969.zip`` is read from the folder of the data sets,
``$TINYJAX_DATA`` or ``../shared/data`` beside the repository. ``squares`` is made here, to try
things out: squares that wander over a noisy background.

References:
  Wang, Jodoin, Porikli, Konrad, Benezeth, Ishwar, *CDnet 2014: An Expanded Change Detection
  Benchmark Dataset*, CVPR Workshops 2014.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.files import checked, originals
from experiments.data.walkers import Walkers, vtest, walkers
from experiments.errors import UserError
from experiments.extras import imported

__all__ = [
    "MOVING",
    "SCENES",
    "SHA256",
    "STATIC",
    "Scene",
    "archive",
    "highway",
    "load",
    "read",
    "squares",
]

SHA256 = "567f9f2afcf16f918b1fe389f4473a81707a54eda5ea2bd534e2a9f897794140"

STATIC, MOVING = (0, 50), (255,)  # labels: background and shadow, foreground; others are unknown
_UNKNOWN = 170


class Scene(NamedTuple):
    """Successive frames of a fixed camera."""

    frames: np.ndarray  # uint8 [n, h, w, 3], RGB
    labels: np.ndarray  # uint8 [n, h, w]: of `STATIC`, of `MOVING`, or unknown


def archive() -> Path:
    """Where the file belongs; it need not be there."""
    return originals("cdnet") / "highway_000470-000969.zip"


def highway() -> Scene:
    """Frames 470 to 969, 320x240.

    Raises:
      UserError: if the file is missing or another one.
    """
    path = archive()
    cure = "put the original there, or set TINYJAX_DATA to the folder of cdnet/"
    return read(checked(path, SHA256, cure), path.name)


def squares(count: int = 40, size: tuple[int, int] = (64, 96)) -> Scene:
    """Two bright squares that wander over a textured background, under sensor noise.

    Args:
      count: of frames.
      size: (h, w) of a frame, at least 32.

    Returns:
      The same scene for the same arguments; the rim of a square is labelled unknown.
    """
    rng = np.random.default_rng(0)
    h, w = size
    background = rng.integers(60, 120, (h, w, 3))
    frames = background + rng.integers(-1, 2, (count, h, w, 3))
    labels = np.zeros((count, h, w), np.uint8)
    for index in range(count):
        for top, speed, side in ((4, 2, 12), (h - 20, 3, 16)):
            left = index * speed % (w - side)
            frames[index, top : top + side, left : left + side] += 100
            labels[index, top : top + side, left : left + side] = _UNKNOWN
            labels[index, top + 1 : top + side - 1, left + 1 : left + side - 1] = MOVING[0]
    return Scene(frames.astype(np.uint8), labels)


SCENES: dict[str, Callable[[], Scene | Walkers]] = {
    "highway": highway,
    "squares": squares,
    "vtest": vtest,
    "walkers": walkers,
}


def load(name: str) -> Any:
    """The scene of a name: a `Scene` or `experiments.data.walkers.Walkers`.

    Raises:
      UserError: if there is none of this name, or its file cannot be read.

    >>> load("squares").frames.shape
    (40, 64, 96, 3)
    """
    if name not in SCENES:
        raise UserError(f"there is no scene {name!r}: choose one of {', '.join(SCENES)}")
    return SCENES[name]()


def read(content: bytes, name: str) -> Scene:
    """The scene in a zip of CDnet's layout: ``input/in*.jpg`` and ``groundtruth/gt*.png``.

    Args:
      content: of the zip.
      name: of it, for errors.

    Raises:
      UserError: if it is no zip, if a frame has no label or a label no frame, if an image cannot be
        read, or if the images are not all of one size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as files:
            names = sorted(files.namelist())
            frames = {_number(n): files.read(n) for n in names if n.startswith("input/in")}
            labels = {_number(n): files.read(n) for n in names if n.startswith("groundtruth/gt")}
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{name} is no zip that can be read ({error}): copy it again") from error
    if not frames or set(frames) != set(labels):
        raise UserError(
            f"{name} has {len(frames)} frames and {len(labels)} labels, not one of each for every "
            "number: copy it again"
        )
    numbers = sorted(frames)
    pictures = [_picture(frames[number], "RGB", f"{name}, frame {number}") for number in numbers]
    masks = [_picture(labels[number], "L", f"{name}, label {number}") for number in numbers]
    if len(sizes := {array.shape[:2] for array in (*pictures, *masks)}) != 1:
        raise UserError(f"{name} has images of the sizes {sorted(sizes)}, expected one: copy it")
    return Scene(np.stack(pictures), np.stack(masks))


def _number(name: str) -> int:
    return int("".join(filter(str.isdigit, Path(name).stem)) or -1)


def _picture(content: bytes, mode: str, what: str) -> np.ndarray:
    """uint8 [h, w, 3] of mode RGB, [h, w] of mode L."""
    image = imported("PIL.Image")
    try:
        with image.open(io.BytesIO(content)) as found:
            return np.asarray(found.convert(mode))
    except (OSError, SyntaxError) as error:  # what pillow raises for damaged files
        raise UserError(f"{what} is no image ({error}): copy the file again") from error
