"""The data sets of the experiments: a bundled sample of Fashion-MNIST, and sets from a folder.

The others are read from a folder, never downloaded: ``$TINYJAX_DATA``, else ``../shared/data``
beside the repository. It holds ``fashion-mnist/`` and ``mnist/``, each with the four official .gz
files, and ``cifar10/`` with a balanced subset of CIFAR-10 in one file, whose accuracies cannot be
compared with published ones. Every file is checked against its sha256 before it is parsed.

References:
  Xiao, Rasul, Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
  Algorithms*, arXiv:1708.07747, 2017.
  LeCun, Bottou, Bengio, Haffner, *Gradient-based learning applied to document recognition*,
  Proceedings of the IEEE 86(11), 1998.
  Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, technical report, 2009.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import idx
from experiments.data.files import checked, originals
from experiments.errors import UserError

__all__ = [
    "CLASSES",
    "FILES",
    "NAMES",
    "SAMPLE",
    "Dataset",
    "Files",
    "Split",
    "available",
    "folder",
    "load",
]


class Split(NamedTuple):
    """Images and their classes."""

    images: np.ndarray  # uint8 [n, h, w, c]; of clothes and digits [n, 28, 28, 1], 0 = background
    labels: np.ndarray  # int32 [n], 0..9


class Dataset(NamedTuple):
    """A training and a test split."""

    train: Split
    test: Split


class Files(NamedTuple):
    """The names of the two files of a split."""

    images: str
    labels: str


FILES = {
    "train": Files("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": Files("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}

SAMPLE = Path(__file__).parent / "fashion_mnist_sample"

# sha256 of train images, train labels, test images, test labels.
_SHA256: Mapping[str, tuple[str, str, str, str]] = {
    "fashion_mnist_sample": (
        "33485a81665baf84848585a860a583e61e0f1d097c443fd6da8d22f84760d7b1",
        "b226f804b92d86457257d56920c56e0d10e01ca1a9e6192b0dc9f88993e5e2ad",
        "e60ede7714c657ced2d723c33140572b5476b46df34b385a6e176b0757dc4318",
        "e6d25f5f3e85bb315a10172898c1c8f69ce52c4f9306c5821205c821bfca8847",
    ),
    "fashion_mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}

_CIFAR10 = (
    "cifar10_train20k_test5k.npz",
    "b84d64dc1b08f67120d194f1f60923a943a695e798e1ee878629b92e1981cce2",
)

NAMES = (*_SHA256, "cifar10")

_CLOTHES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
CLASSES: Mapping[str, tuple[str, ...]] = {
    "fashion_mnist_sample": _CLOTHES,
    "fashion_mnist": _CLOTHES,
    "mnist": tuple("0123456789"),
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
}


def folder(name: str) -> Path:
    """Where the files of a data set belong; the folder need not exist.

    Raises:
      ValueError: if there is no data set of this name.
    """
    if name not in NAMES:
        raise UserError(f"there is no data set {name!r}: choose one of {', '.join(NAMES)}")
    if name == SAMPLE.name:
        return SAMPLE
    return originals(name.replace("_", "-"))


def available(name: str) -> bool:
    """Whether the files of a data set are there; says nothing about their content."""
    home = folder(name)
    if name == "cifar10":
        return (home / _CIFAR10[0]).is_file()
    return all((home / file).is_file() for files in FILES.values() for file in files)


def load(name: str) -> Dataset:
    """Reads a data set: 4,000 + 2,000 images (sample), 60,000 + 10,000, or 20,000 + 5,000 (CIFAR).

    Args:
      name: one of `NAMES`.

    Raises:

    >>> load("fashion_mnist_sample").train.images.shape
    (4000, 28, 28, 1)
    """
    home = folder(name)
    if name == "cifar10":
        return _cifar10(_checked(home / _CIFAR10[0], _CIFAR10[1]))
    names = [file for files in FILES.values() for file in files]
    train_images, train_labels, test_images, test_labels = (
        _checked(home / file, sha256) for file, sha256 in zip(names, _SHA256[name], strict=True)
    )
    return Dataset(_split(train_images, train_labels), _split(test_images, test_labels))


def _cifar10(content: bytes) -> Dataset:
    """The two splits of the subset, colours unpacked."""
    with np.load(io.BytesIO(content)) as arrays:
        return Dataset(
            *(
                Split(_colours(arrays[f"x_{part}_res"]), arrays[f"y_{part}"].astype(np.int32))
                for part in ("train", "test")
            )
        )


def _colours(residuals: np.ndarray) -> np.ndarray:
    """Planes G, R - G and B - G as vertical differences modulo 256, to RGB uint8 [n, h, w, 3]."""
    planes = np.cumsum(residuals, axis=2, dtype=np.uint8)
    green, red, blue = planes[:, 0], planes[:, 1], planes[:, 2]
    return np.stack([red + green, green, blue + green], -1)


def _split(images: bytes, labels: bytes) -> Split:
    """Parses the compressed bytes of the two files of a split."""
    pictures = idx.unpack(images, rank=3, name="the file of images")
    classes = idx.unpack(labels, rank=1, name="the file of labels")
    return Split(pictures[..., None], classes.astype(np.int32))


def _checked(path: Path, sha256: str) -> bytes:
    """The bytes of one file, with the cure that fits its set."""
    cure = "restore it from the repository"
    if path.parent != SAMPLE:
        cure = f"put the original there, or set TINYJAX_DATA to the folder of {path.parent.name}/"
    return checked(path, sha256, cure)
