"""Batches of a split, as pure functions of a seed and an epoch."""

from collections.abc import Iterator

import numpy as np

from experiments.data.sets import Split
from experiments.errors import UserError

__all__ = ["epoch_batches", "first", "pixels"]


def pixels(images: np.ndarray) -> np.ndarray:
    """Images uint8 0..255 as float32 0..1, of the same shape."""
    return images.astype(np.float32) / np.float32(255)


def first(split: Split, count: int | None) -> Split:
    """The first `count` items of a split; all of them for None."""
    return Split(split.images[:count], split.labels[:count])


def epoch_batches(
    split: Split, batch: int, *, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch of shuffled batches; the ragged tail is dropped, another one in every epoch.

    The order is a function of `(seed, epoch)` alone, so a resumed run sees the batches that the
    uninterrupted one would have seen.

    Args:
      split: images uint8 [n, h, w, c] and labels int32 [n].
      batch: items per batch, 1..n.
      seed: of the run, >= 0.
      epoch: number of the epoch, >= 0.

    Yields:
      (images float32 [batch, h, w, c] in 0..1, labels int32 [batch]), n // batch times.

    Raises:
      UserError: if `batch` is not in 1..n.
    """
    count = len(split.labels)
    if not 1 <= batch <= count:
        raise UserError(f"batch={batch} does not fit {count} items: choose 1 to {count}")
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return (
        (pixels(split.images[chosen]), split.labels[chosen])
        for chosen in order[: count - count % batch].reshape(-1, batch)
    )
