"""A video of a few small frames, the same in every file of tests, so that it is compiled once."""

from pathlib import Path

import numpy as np

from experiments import video

SIZE = (96, 128)


def pictures(count: int) -> list[np.ndarray]:
    """Black frames, in which a square moves in the middle ones."""
    found = [np.zeros((*SIZE, 3), np.uint8) for _ in range(count)]
    for index in range(2, count - 1):
        found[index][8:16, 8 * index : 8 * index + 8] = 200
    return found


def written(folder: Path) -> Path:
    """A file of seven such frames."""
    path = folder / "square.mp4"
    video.write(path, pictures(7), 10)
    return path
