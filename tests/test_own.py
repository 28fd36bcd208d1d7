"""Your own models and data, and the template of an experiment."""

import json
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from experiments import audit, my_experiment, octo, own, skip, train, video
from experiments.__main__ import main
from experiments.data import folders
from experiments.errors import UserError
from experiments.models import Mlp

HERE = "tests.test_own"


class Net(nn.Module):
    """As somebody else would write one."""

    classes: int = 10

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class Bare(nn.Module):
    """Has a field without a default."""

    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


class Normed(nn.Module):
    """Keeps running averages."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.BatchNorm(not train)(x)
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


INSTANCE = Net(classes=7)
MAPS = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(4, (3, 3))])


@pytest.fixture
def home(tmp_path, rng):
    """Three classes, of which the test split has two; 12 and 4 images of 6x8 pixels."""
    image = pytest.importorskip("PIL.Image")
    for split, names, count in (("train", ("cat", "dog", "eel"), 4), ("test", ("cat", "eel"), 2)):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
                pixels[0, 0] = (10 * ("cat", "dog", "eel").index(name), number, 0)
                image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


# --- images --------------------------------------------------------------------------------------


def test_a_folder_is_read_with_every_image_under_its_class(home):
    learn, test = folders.read(home)
    assert (learn.images.shape, learn.images.dtype) == ((12, 6, 8, 3), np.uint8)
    assert (test.images.shape, test.labels.dtype) == ((4, 6, 8, 3), np.int32)
    for split, count in ((learn, 4), (test, 2)):
        np.testing.assert_array_equal(split.images[:, 0, 0, 0], 10 * split.labels)
        seen = set(zip(split.labels.tolist(), split.images[:, 0, 0, 1].tolist(), strict=True))
        assert len(seen) == len(split.labels)
        assert {number for _, number in seen} == set(range(count))
    assert learn.labels.tolist() != sorted(learn.labels.tolist())  # not class by class
    again = folders.read(home).train
    np.testing.assert_array_equal(again.images, learn.images)


def test_grey_images_have_one_channel(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / split / "a" / "x.png")
        (tmp_path / split / "a" / ".hidden").write_text("not an image")
    learn, _ = folders.read(tmp_path)
    assert learn.images.tolist() == np.full((1, 4, 4, 1), 9).tolist()


def _other_size(home):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((5, 8, 3), np.uint8)).save(home / "train" / "cat" / "0.png")


def _strange_class(home):
    (home / "test" / "fox").mkdir()


def _no_image(home):
    (home / "train" / "cat" / "notes.txt").write_text("hello")


def _cut_short(home):
    path = home / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])


def _no_test(home):
    (home / "test").rename(home / "tests")


def _empty(home):
    for path in (home / "test").rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_size, "scale them to one size"),
        (_strange_class, "fox"),
        (_no_image, "notes.txt is no image"),
        (_cut_short, "1.png is damaged"),
        (_no_test, "test is not there"),
        (_empty, "holds no images"),
    ],
)
def test_a_folder_that_is_wrong_is_refused_in_a_sentence(home, spoil, message):
    spoil(home)
    with pytest.raises(UserError, match=message) as error:
        folders.read(home)
    assert "\n" not in str(error.value)
    assert ": " in str(error.value)


# --- models --------------------------------------------------------------------------------------


def test_models_are_found_by_name_and_by_path():
    assert own.model("mlp") == Mlp()
    assert own.model(f"{HERE}:Net", classes=3).classes == 3
    assert own.model(f"{HERE}:INSTANCE", classes=3).classes == 7
    assert isinstance(own.model(f"{HERE}:MAPS", classes=3), nn.Sequential)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.nowhere:Net", "cannot be imported"),
        (f"{HERE}:Nothing", "cannot be imported"),
        (":Net", "cannot be imported"),
        (f"{HERE}:HERE", "is no flax.linen module"),
        (f"{HERE}:Bare", "give its fields defaults"),
    ],
)
def test_a_model_that_cannot_be_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        own.model(name)


@pytest.mark.parametrize("config", [octo.Config, audit.Config, skip.Config])
def test_configurations_refuse_what_is_no_path(config):
    with pytest.raises(UserError, match=r"model='resnet99' is unknown.*package.module:Name"):
        config(model="resnet99")


# --- experiments ---------------------------------------------------------------------------------


def test_octo_trains_a_model_of_yours_on_images_of_yours(home):
    found = octo.run(octo.Config(f"{HERE}:Net", str(home), epochs=1, batch=4))
    assert (found.train_images, found.test_images) == (12, 4)
    assert found.parameters == 6 * 8 * 3 * 3 + 3  # as many classes as there are folders
    assert set(found.macs) == {"int8"}


def test_octo_refuses_running_averages(home):
    with pytest.raises(UserError, match="running averages"):
        octo.prepare(octo.Config(f"{HERE}:Normed", str(home), epochs=1, batch=4))


def test_an_audit_finds_the_sites_of_a_model_of_yours():
    found = audit.run(audit.Config(f"{HERE}:Net", batch=2, size=4))
    assert [site["path"] for site in found.sites] == ["params/Dense_0/kernel"]


def test_a_video_goes_through_a_model_of_yours(tmp_path):
    images = [np.full((32, 48, 3), 90, np.uint8) for _ in range(3)]
    images[2] = images[2].copy()
    images[2][4:12, 4:12] = 200
    video.write(tmp_path / "own.mp4", images, 25)
    found = skip.run(skip.Config(str(tmp_path / "own.mp4"), f"{HERE}:MAPS", threshold=0.1))
    assert found.size == [32, 48]
    assert found.threshold.taken[1] == 0 < found.threshold.taken[2] < 1


# --- the template --------------------------------------------------------------------------------


def test_the_template_is_short_runs_and_continues(tmp_path, monkeypatch):
    assert len(Path(my_experiment.__file__).read_text().splitlines()) <= 80
    tiny = my_experiment.smoke(my_experiment.Config(model=f"{HERE}:Net", apart=""))
    tiny = replace(tiny, epochs=2)
    whole = my_experiment.run(tiny)
    assert set(whole.macs) == {"int8"}
    counted, evaluate = [], train.evaluate

    def killed(*args):
        counted.append(args)
        if len(counted) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            my_experiment.run(tiny, tmp_path / "unfinished")
        resumed = my_experiment.run(tiny, tmp_path / "unfinished")
    assert len(counted) == 3  # the first epoch was not repeated
    timeless = lambda found: [epoch._replace(step_ms=0) for epoch in found.history]
    assert timeless(resumed) == timeless(whole)
    monkeypatch.chdir(tmp_path)
    my_experiment.main(["--smoke", f"model={HERE}:Net", "apart="])
    (path,) = (tmp_path / "out" / "my_experiment").glob("*.json")
    assert json.loads(path.read_text())["config"]["apart"] == ""


def test_the_template_leaves_a_layer_apart():
    tiny = my_experiment.smoke(my_experiment.Config(apart="Dense_0", model="mlp"))
    assert set(my_experiment.run(tiny).macs) == {"int8", "float32"}


def test_the_command_line_takes_yours(home, capsys):
    words = ["octo", "--set", f"model={HERE}:Net", f"dataset={home}", "epochs=1", "batch=4"]
    assert main([*words, "--out", str(home / "out")]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert main(["demo", "--set", f"octo.dataset={home}", "--out", str(home / "out")]) == 2
    assert "the demo's report knows" in capsys.readouterr().err
