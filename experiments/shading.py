"""What a run of `experiments.skip` looks like: its video with the skipped patches shaded.

All of it follows from a record and the video that the record names.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments import skip, video
from experiments.progress import Follow, unfollowed
from experiments.results import Record

__all__ = ["masks", "movie", "shaded", "still"]


def masks(record: Record, arm: str) -> np.ndarray:
    """The patches of the frame that a gate had recomputed: bool [frames, rows, columns]."""
    rows, columns = record["metrics"]["grid"]
    found = record["metrics"][arm]["recomputed"]
    return np.stack([video.unpacked(digits, (rows, columns)) for digits in found])


def shaded(record: Record, arm: str) -> Iterator[np.ndarray]:
    """The frames of the run, uint8 [h, w, 3], what was skipped dark and grey.

    Raises:
      UserError: if the video is no longer there.
    """
    config = skip.Config(**record["config"])
    pairs = zip(skip.frames(config), masks(record, arm), strict=True)
    return (video.shade(frame, active, config.patch) for frame, active in pairs)


def still(record: Record, arm: str, index: int) -> np.ndarray:
    """One frame of `shaded`."""
    return next(frame for at, frame in enumerate(shaded(record, arm)) if at == index)


def movie(record: Record, path: Path, follow: Follow = unfollowed) -> None:
    """Writes the video of the threshold gate as mp4; the same record gives the same bytes.

    Args:
      record: of `experiments.skip`.
      path: of the mp4.
      follow: shows the progress.
    """
    frames = shaded(record, "threshold")
    with follow("video", len(record["metrics"]["dense_ms"])) as watch:

        def watched() -> Iterator[np.ndarray]:
            for index, frame in enumerate(frames):
                yield _even(frame)
                watch(index + 1, path.name)

        video.write(path, watched(), record["metrics"]["fps"])


def _even(frame: np.ndarray) -> np.ndarray:
    """Without the last row or column of an odd size, which mp4 cannot hold."""
    h, w = frame.shape[:2]
    return frame[: h - h % 2, : w - w % 2]
