"""Draws the bundled sample of Fashion-MNIST from the full set, without randomness.

The first 400 training and the first 200 test images of each class, kept in official order, in the
official format under the official file names::

    TINYJAX_DATA=<folder> python -m experiments.data.draw_fashion_mnist_sample

rewrites ``experiments/data/fashion_mnist_sample/*.gz`` byte for byte (with another deflate library
than zlib the compressed bytes may differ; the images and labels do not).
"""

import numpy as np

from experiments.data import idx
from experiments.data.sets import FILES, SAMPLE, Split, load

__all__ = ["PER_CLASS", "draw", "first_per_class"]

PER_CLASS = {"train": 400, "test": 200}


def first_per_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices [k * count] of the first `count` items of each of k classes, in ascending order.

    Raises:
      ValueError: if a class has fewer than `count` items.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    scarce = min(len(indices) for indices in members)
    if scarce < count:
        raise ValueError(f"a class has only {scarce} items, fewer than {count}: ask for fewer")
    return np.sort(np.concatenate([indices[:count] for indices in members]))


def draw() -> dict[str, bytes]:
    """The sample as `{file name: IDX .gz bytes}`, drawn from the full set (see `sets.load`)."""
    full = load("fashion_mnist")._asdict()
    packed = {}
    for part, count in PER_CLASS.items():
        split: Split = full[part]
        chosen = first_per_class(split.labels, count)
        packed[FILES[part].images] = idx.pack(split.images[chosen, :, :, 0])
        packed[FILES[part].labels] = idx.pack(split.labels[chosen].astype(np.uint8))
    return packed


if __name__ == "__main__":
    for name, data in draw().items():
        (SAMPLE / name).write_bytes(data)
