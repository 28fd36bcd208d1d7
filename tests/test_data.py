"""The bundled sample, the loaders of full sets, the IDX format, the batches."""

import gzip
import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from experiments import data
from experiments.data import draw_fashion_mnist_sample, idx, sets
from experiments.errors import UserError

SAMPLE = "fashion_mnist_sample"


def files_of(name: str) -> list[Path]:
    return [data.folder(name) / file for files in sets.FILES.values() for file in files]


def needs(name: str) -> None:
    if not data.available(name):
        pytest.skip(f"{name} is not in {data.folder(name)}: set TINYJAX_DATA")


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert ": " in text  # what is wrong, then the cure
    return text


# --- the sample ----------------------------------------------------------------------------------


def test_sample_is_balanced_and_small():
    train, test = data.load(SAMPLE)
    assert train.images.shape == (4000, 28, 28, 1)
    assert test.images.shape == (2000, 28, 28, 1)
    for split, count in ((train, 400), (test, 200)):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        np.testing.assert_array_equal(np.bincount(split.labels), [count] * 10)
    assert sum(path.stat().st_size for path in files_of(SAMPLE)) < 3e6


def test_sample_says_where_it_comes_from():
    home = data.folder(SAMPLE)
    assert "MIT" in (home / "LICENSE").read_text()
    assert "2017 Zalando SE" in (home / "LICENSE").read_text()
    readme = (home / "README.md").read_text()
    assert "1708.07747" in readme
    rows = dict(re.findall(r"`(\S+\.gz)` \| [\d,]+ \| `(\w{64})`", readme))
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(SAMPLE)}
    assert rows == sums


def test_sample_is_drawn_again_from_the_full_set():
    needs("fashion_mnist")
    drawn = draw_fashion_mnist_sample.draw()
    # Another deflate library compresses differently, so the content is what is compared.
    for path in files_of(SAMPLE):
        assert gzip.decompress(drawn[path.name]) == gzip.decompress(path.read_bytes())


def test_too_few_per_class_is_refused():
    with pytest.raises(ValueError, match="only 1 items, fewer than 2"):
        draw_fashion_mnist_sample.first_per_class(np.array([0, 0, 1]), 2)


# --- full sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_full_sets_load(name):
    needs(name)
    train, test = data.load(name)
    assert (len(train.labels), len(test.labels)) == (60_000, 10_000)
    assert train.images.shape[1:] == (28, 28, 1)
    assert set(np.unique(test.labels)) == set(range(10))


def test_cifar10_subset_loads():
    needs("cifar10")
    train, test = data.load("cifar10")
    assert train.images.shape == (20_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(test.labels), [500] * 10)
    assert train.labels.dtype == np.int32
    # The decoded bytes, as they were before packing.
    sums = [hashlib.sha256(split.images.tobytes()).hexdigest()[:8] for split in (train, test)]
    assert sums == ["b895a6ae", "7745271d"]


def test_missing_files_are_named_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYJAX_DATA", str(tmp_path))
    assert not data.available("mnist")
    with pytest.raises(UserError) as error:
        data.load("mnist")
    text = one_sentence(error)
    assert str(tmp_path / "mnist" / "train-images-idx3-ubyte.gz") in text
    assert "TINYJAX_DATA" in text


def test_colours_are_unpacked(rng):
    images = rng.integers(0, 256, (3, 4, 5, 3), np.uint8)
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    planes = np.stack([green, red - green, blue - green], 1)
    residuals = np.diff(planes, axis=2, prepend=np.uint8(0))
    np.testing.assert_array_equal(sets._colours(residuals), images)


@pytest.mark.parametrize("damage", [b"", b"\x00", b"appended"])
def test_corrupt_files_are_named_with_the_cure(tmp_path, monkeypatch, damage):
    home = tmp_path / SAMPLE
    home.mkdir()
    for path in files_of(SAMPLE):
        (home / path.name).write_bytes(path.read_bytes())
    labels = home / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole + damage if damage else whole[:-1])
    monkeypatch.setattr(sets, "SAMPLE", home)
    with pytest.raises(UserError, match="sha256") as error:
        data.load(SAMPLE)
    assert str(labels) in one_sentence(error)


def test_unknown_set_names_the_known_ones():
    with pytest.raises(UserError, match="'cifar': choose one of fashion_mnist_sample") as error:
        data.load("cifar")
    one_sentence(error)


# --- IDX -----------------------------------------------------------------------------------------


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)))
def test_idx_round_trip(array):
    found = idx.unpack(idx.pack(array), rank=array.ndim, name="f")
    np.testing.assert_array_equal(found, array)
    assert idx.pack(array) == idx.pack(array.copy())


@given(st.binary(max_size=200), st.sampled_from([1, 3]))
def test_hostile_bytes_give_one_sentence(content, rank):
    for hostile in (content, gzip.compress(content)):
        with pytest.raises(UserError) as error:
            idx.unpack(hostile, rank=rank, name="f.gz")
        assert "f.gz" in one_sentence(error)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3), st.binary(max_size=50))
def test_hostile_sizes_give_one_sentence(sizes, body):
    header = struct.pack(">HBB3I", 0, 8, 3, *sizes)
    assume(np.prod(sizes, dtype=object) != len(body))
    with pytest.raises(UserError) as error:
        idx.unpack(gzip.compress(header + body), rank=3, name="f.gz")
    one_sentence(error)


def test_idx_limits():
    labels = np.arange(7, dtype=np.uint8)
    packed = idx.pack(labels)
    with pytest.raises(UserError, match="IDX magic 00000803"):
        idx.unpack(packed, rank=3, name="f")
    with pytest.raises(UserError, match="not a whole gzip file"):
        idx.unpack(packed[:-9], rank=1, name="f")
    raw = gzip.decompress(packed)
    with pytest.raises(UserError, match="states 7 bytes but holds only 6"):
        idx.unpack(gzip.compress(raw[:-1]), rank=1, name="f")
    with pytest.raises(UserError, match="states 7 bytes but holds more"):
        idx.unpack(gzip.compress(raw + bytes(10_000)), rank=1, name="f")
    with pytest.raises(UserError, match="over the limit"):
        idx.unpack(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 2**27 + 1)), rank=1, name="f")
    with pytest.raises(ValueError, match="cannot be written as IDX"):
        idx.pack(labels.astype(np.int32))


# --- batches -------------------------------------------------------------------------------------


def a_split(count: int) -> data.Split:
    images = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return data.Split(images, np.arange(count, dtype=np.int32))


@given(st.integers(1, 60), st.data(), st.integers(0, 2**32), st.integers(0, 1000))
def test_batches_are_a_function_of_seed_and_epoch(count, draw, seed, epoch):
    batch = draw.draw(st.integers(1, count))
    first, again = (
        list(data.epoch_batches(a_split(count), batch, seed=seed, epoch=epoch)) for _ in range(2)
    )
    assert len(first) == count // batch
    for (images, labels), (images_again, labels_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)
        assert images.shape == (batch, 1, 1, 1)
        assert images.dtype == np.float32
        # Images stay with their labels, and 255 becomes 1.
        np.testing.assert_array_equal(images.ravel(), labels.astype(np.float32) / np.float32(255))
    seen = np.concatenate([labels for _, labels in first])
    assert len(set(seen.tolist())) == len(seen)


def test_epochs_and_seeds_differ():
    orders = {
        tuple(np.concatenate([y for _, y in data.epoch_batches(a_split(50), 10, seed=s, epoch=e)]))
        for s, e in ((0, 0), (0, 1), (1, 0))
    }
    assert len(orders) == 3


@pytest.mark.parametrize("batch", [0, -1, 11])
def test_batches_that_do_not_fit_are_refused(batch):
    with pytest.raises(UserError, match=f"batch={batch} does not fit 10 items") as error:
        data.epoch_batches(a_split(10), batch, seed=0, epoch=0)
    one_sentence(error)
