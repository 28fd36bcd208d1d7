"""A data set of your own: a folder of images in folders of classes.

``train/<class>/<image>`` and ``test/<class>/<image>``, in any format that pillow reads, all of one
size. Classes are numbered in the order of their names.
"""

from pathlib import Path

import numpy as np

from experiments.data.sets import Dataset, Split
from experiments.errors import UserError
from experiments.extras import imported

__all__ = ["read"]


def read(home: Path) -> Dataset:
    """The images of a folder, in an order that is random and always the same.

    Args:
      home: the folder. Where its first image is grey all are read as grey, else as RGB.

    Returns:
      Images uint8 [n, h, w, 1] or [n, h, w, 3], and classes int32 [n], of both splits.

    Raises:
      UserError: if a split is missing or empty, if a class of the test split has no training
        images, or if an image cannot be read or has another size than the first.
    """
    classes = [path.name for path in _within(home / "train") if path.is_dir()]
    return Dataset(*(_split(home / name, classes) for name in ("train", "test")))


def _within(folder: Path) -> list[Path]:
    """What is in a folder, in order, without hidden files."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: make it, with a folder of images for each class")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _split(folder: Path, classes: list[str]) -> Split:
    homes = [path for path in _within(folder) if path.is_dir()]
    if strange := {path.name for path in homes} - set(classes):
        raise UserError(
            f"{folder} has the classes {sorted(strange)}, of which train has none: move"
        )
    found = [(path, classes.index(home.name)) for home in homes for path in _within(home)]
    if not found:
        raise UserError(f"{folder} holds no images: put some in folders, one for each class")
    order = np.random.default_rng(0).permutation(len(found))
    paths, labels = zip(*(found[i] for i in order), strict=True)
    mode = _mode(found[0][0])
    images = [_image(path, mode) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise UserError(
                f"{path} is of size {image.shape[:2]} and {paths[0]} of {images[0].shape[:2]}: "
                "scale them to one size"
            )
    return Split(np.stack(images), np.asarray(labels, np.int32))


def _mode(path: Path) -> str:
    """L for grey, RGB for anything else."""
    with _opened(path) as image:
        return "L" if image.mode in ("1", "L") else "RGB"


def _image(path: Path, mode: str) -> np.ndarray:
    """uint8 [h, w, 1 or 3]."""
    with _opened(path) as image:
        try:
            pixels = np.asarray(image.convert(mode))
        except OSError as error:  # what pillow raises for damaged files
            raise UserError(f"{path} is damaged ({error}): copy it again") from error
    return pixels[..., None] if mode == "L" else pixels


def _opened(path: Path):
    try:
        return imported("PIL.Image").open(path)
    except OSError as error:
        raise UserError(f"{path} is no image ({error}): take it out") from error
