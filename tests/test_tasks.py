"""The task with labels: its data, its network and score, its levels, and a whole run of it."""

import functools
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import folds, levels, results, segmenter, task_kinds, task_report, tasks
from experiments.__main__ import main
from experiments.data import scenes
from experiments.errors import UserError
from experiments.extras import imported
from experiments.progress import unwatched
from tests.moving import one_sentence
from tinyjax import pass_skip, rewrite, threshold

pytestmark = pytest.mark.xdist_group("tasks")  # which share a run: one process for all


def packed(frames, labels, number=7):
    """A zip of CDnet's layout; an entry that is bytes goes in as it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for index, picture in enumerate(frames, number):
            file.writestr(f"input/in{index:06}.jpg", coded(picture, "JPEG"))
        for index, picture in enumerate(labels, number):
            file.writestr(f"groundtruth/gt{index:06}.png", coded(picture, "PNG"))
        file.writestr("ROI.bmp", b"")
    return buffer.getvalue()


def coded(picture, form):
    """An image file of an array; bytes stay as they are."""
    if isinstance(picture, bytes):
        return picture
    buffer = io.BytesIO()
    imported("PIL.Image").fromarray(picture).save(buffer, form)
    return buffer.getvalue()


def grey(count, size=(16, 24)):
    """Frames and labels, each of one value."""
    frames = [np.full((*size, 3), 40 * index, np.uint8) for index in range(count)]
    labels = [np.full(size, (0, 50, 170, 255)[index % 4], np.uint8) for index in range(count)]
    return frames, labels


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
def test_a_scene_is_read_in_the_order_of_its_numbers(count):
    frames, labels = grey(count)
    found = scenes.read(packed(frames, labels, number=8), "some.zip")  # 8, 9, 10: not of one length
    assert (found.frames.dtype, found.labels.dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(found.labels, labels)
    # A frame of one grey is within two levels after JPEG.
    assert np.abs(found.frames.astype(int) - np.array(frames)).max() <= 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "some.zip is no zip that can be read"),
        (packed([], []), "some.zip has 0 frames and 0 labels"),
        (packed(grey(3)[0], grey(2)[1]), "some.zip has 3 frames and 2 labels, not one of each"),
        (packed(grey(1)[0], [b"\x89PNG\r\n\x1a\n broken"]), "some.zip, label 7 is no image"),
        (packed([b"jpg"], grey(1)[1]), "some.zip, frame 7 is no image"),
        (packed(grey(1)[0], grey(1, (8, 8))[1]), r"images of the sizes \[\(8, 8\), \(16, 24\)\]"),
    ],
)
def test_a_damaged_scene_is_refused_in_one_sentence(content, message):
    with pytest.raises(UserError, match=message) as error:
        scenes.read(content, "some.zip")
    one_sentence(error)


def test_a_scene_that_is_not_there_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYJAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"zip is missing: put the original there") as error:
        scenes.load("highway")
    one_sentence(error)
    scenes.archive().parent.mkdir()
    scenes.archive().write_bytes(packed(*grey(1)))
    with pytest.raises(UserError, match=r"has sha256 .*, expected 567f9f2afcf1") as error:
        scenes.load("highway")
    one_sentence(error)
    with pytest.raises(UserError, match="there is no scene 'road': choose one of highway, squares"):
        scenes.load("road")


@pytest.mark.skipif(not scenes.archive().is_file(), reason="CDnet highway is not there")
def test_highway_has_the_labels_that_cdnet_promises():
    found = scenes.load("highway")
    assert found.frames.shape == (500, 240, 320, 3)
    assert np.unique(found.labels).tolist() == [0, 50, 170, 255]
    moving = [round(100 * (block == 255).mean(), 1) for block in np.split(found.labels, 5)]
    assert moving == [0.3, 1.5, 4.6, 10.9, 7.6]


@pytest.mark.parametrize("size", [(64, 96), (48, 41)])
def test_squares_are_labelled_where_they_are(size):
    scene = scenes.squares(40, size)
    assert scene.frames.shape == (40, *size, 3)
    background = np.median(scene.frames, 0)
    apart = np.abs(scene.frames - background).max(-1)
    assert (apart[scene.labels == 255] > 50).mean() > 0.5
    assert (apart[scene.labels == 0] > 50).mean() < 0.2


@pytest.mark.parametrize("count", [10, 13, 500])
def test_folds_are_consecutive_and_share_nothing(count):
    numbers = np.arange(count)
    scene = scenes.Scene(numbers, numbers)
    tested = []
    for fold in range(5):
        train, test = folds.split(scene, fold, 5)
        assert np.union1d(train.frames, test.labels).tolist() == numbers.tolist()
        assert len(train.frames) + len(test.frames) == count
        assert set(np.diff(test.frames)) <= {1}
        tested += test.frames.tolist()
    assert tested == numbers.tolist()
    with pytest.raises(UserError, match="9 frames make no 5 folds"):
        folds.split(scenes.Scene(numbers[:9], numbers[:9]), 0, 5)


# --- network and score ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (24, 40)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_logit_for_every_pixel(rng, size, blocks):
    model = segmenter.Segmenter(width=4, blocks=blocks)
    x = rng.integers(0, 256, (2, *size, 6), np.uint8)
    variables = model.init(jax.random.key(0), x)
    logits = model.apply(variables, x, train=False)
    assert (logits.shape, logits.dtype) == ((2, *size), jnp.float32)
    # In its training it is given the same values as floats.
    same = model.apply(variables, x.astype(np.float32), train=False)
    np.testing.assert_array_equal(logits, same)


def test_f1_is_that_of_known_pixels(rng):
    labels = rng.choice(np.array([0, 50, 85, 170, 255], np.uint8), (3, 20, 30))
    found = rng.random((3, 20, 30)) < 0.4
    hits = false = missed = 0
    for label, one in zip(labels.ravel().tolist(), found.ravel().tolist(), strict=True):
        hits += label == 255 and one
        false += label in (0, 50) and one
        missed += label == 255 and not one
    assert segmenter.counts(found, labels) == (hits, false, missed)
    precision, recall = hits / (hits + false), hits / (hits + missed)
    expected = 2 * precision * recall / (precision + recall)
    assert segmenter.f1(segmenter.counts(found, labels)) == pytest.approx(expected)
    nothing = np.zeros((4, 4), np.uint8)
    assert segmenter.f1(segmenter.counts(nothing > 0, nothing)) == 1
    assert segmenter.f1(segmenter.counts(nothing == 0, nothing)) < 1e-9


def test_the_background_is_what_is_there_most_of_the_time(rng):
    scene = scenes.squares(40)
    found = segmenter.median(scene.frames)
    assert (found.shape, found.dtype) == ((64, 96, 3), np.uint8)
    calm = (scene.labels > 0).mean(0) < 0.3
    noise = np.abs(scene.frames[0].astype(int) - found)[calm & (scene.labels[0] == 0)]
    assert noise.max() <= 2  # sensor noise is -1, 0 or 1, and so is what is left in the median
    both = segmenter.beside(scene.frames, found)
    np.testing.assert_array_equal(both[3, :, :, 3:], found)
    np.testing.assert_array_equal(segmenter.beside(jnp.asarray(scene.frames), found), both)


# --- levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "wanted"), [(40, 8), (41, 60), (400, 60), (4, 3)])
def test_frames_for_a_calibration_are_runs_inside(count, wanted):
    found = levels.runs(count, wanted, 4)
    assert 0 <= found.min() <= found.max() < count
    assert len(found) <= max(wanted, 4)
    assert (np.diff(found) > 0).all()
    assert (np.diff(found) > 1).sum() <= 3


@pytest.mark.parametrize("size", [(32, 48), (37, 50)])
@pytest.mark.parametrize("level", [0, 3, 60])
def test_effective_inputs_are_those_of_pass_skip(level, size):
    frames = [frame[None] for frame in scenes.squares(8, size).frames]
    apply = lambda params, x: x.astype(jnp.float32) @ params
    params = jnp.ones((3, 2))
    tx = pass_skip(patch=8, gate=threshold(level), dense_above=1.0)
    skipping = rewrite(tx, apply)
    state, step = skipping.init(params, frames[0]), jax.jit(skipping.apply)
    for x, expected in zip(frames, levels.effective(frames, level, 8), strict=True):
        _, state = step(state, params, x)
        np.testing.assert_array_equal(state.ref, expected)


def test_a_level_is_the_largest_within_the_tolerance():
    frames = [frame[None] for frame in scenes.squares(8).frames]
    apply = lambda params, x: jnp.tanh(x.astype(jnp.float32) @ params)
    params = jnp.full((3, 2), 1e-3)
    find = functools.partial(levels.level, apply, params, frames, patch=8)
    allowed = (1e-9, 0.01, 0.05, 10.0)
    found = [find(within=lambda outs, one, most=most: one.error <= most) for most in allowed]
    assert [one.level for one in found] == sorted(one.level for one in found)
    assert found[0].error == 0.0  # noise of one level is in every patch
    assert found[-1].level == levels.LEVELS[-1]
    for one, most in zip(found, allowed, strict=True):
        assert one.error <= most
    # What decides sees an output for every frame.
    assert find(within=lambda outs, one: len(outs) == 8).level == levels.LEVELS[-1]


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A finished run, as a command line."""
    out = tmp_path_factory.mktemp("tasks")
    words = ["tasks", "--smoke", "--out", str(out)]
    assert main(words) == 0
    return words


@pytest.fixture(scope="module")
def record(words):
    (path,) = Path(words[-1]).glob("*.json")
    return results.read(path)


def test_a_run_measures_every_arm(record):
    metrics = record["metrics"]
    assert list(metrics["arms"]) == list(tasks.ARMS)
    assert (record["config"]["scene"], len(metrics["dense_ms"])) == ("squares", 8)
    assert 0 < metrics["moving"] < 0.2
    assert 0 < metrics["changed"] <= 1
    exact = metrics["arms"]["exact"]
    # Sums of some hundred terms are added in other orders.
    assert exact["output_error"] < 1e-5
    assert abs(exact["f1_points"]) < 0.5
    for arm in metrics["arms"].values():
        assert {len(arm["ms"]), len(arm["frame_active"])} == {8}
        assert arm["frame_active"][0] == 1  # whole, the first
        assert 0 < arm["active"] <= 1
        assert arm["f1_points"] == pytest.approx(100 * (arm["f1"] - metrics["dense_f1"]))
        assert arm["speedup"] == pytest.approx(sum(metrics["dense_ms"]) / sum(arm["ms"]), rel=1e-3)
        assert arm["state_bytes"] > 64 * 96 * 6
    assert metrics["arms"]["key"]["frame_active"][4] == 1
    assert metrics["errors"]["threshold"] <= 0.01
    assert metrics["errors"]["inner"] <= 0.008
    assert metrics["arms"]["loose"]["limits"] == metrics["arms"]["key"]["limits"] != []


def test_a_run_is_reused_and_reported(words, record, capsys):
    folder = Path(words[-1])
    written = {path: path.read_bytes() for path in folder.iterdir()}
    assert {path.suffix for path in written} == {".json", ".md", ".png"}
    assert main(words) == 0
    assert "speed-up" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.iterdir()} == written
    lines = (folder / "report.md").read_text().splitlines()
    assert len(lines) == 2 + 1 + len(tasks.ARMS)
    assert {line.count("|") for line in lines} == {len(task_report.HEADINGS) + 1}


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path):
    (config,) = tasks.smoke(tasks.CONFIGS["cdnet"][2:3])
    config = replace(config, epochs=2, crop=16)
    task = task_kinds.kind(config.scene)
    train, test = task.split(scenes.load(config.scene), config.fold)
    model = segmenter.Segmenter(config.width, config.blocks)
    background = segmenter.median(train.frames)
    fit = functools.partial(folds.trained, model, task, config, train, test, background)

    def interrupting(done, standing):
        del standing
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, interrupting)
    steps = []
    resumed = fit(tmp_path, lambda done, standing: steps.append(done))
    assert steps == [*range(17, 33), 32]  # from the second epoch on
    whole = fit(None, unwatched)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, whole.state.params)
    plain = lambda fitted: [epoch._replace(step_ms=0.0) for epoch in fitted.history]
    assert plain(resumed) == plain(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 5}, "fold=5 is none: choose one from 0 to 4"),
        ({"patch": 12}, "patch=12 does not fit: choose a multiple of 8"),
        ({"crop": 0}, "crop=0 does not fit: choose a multiple of 8"),
        ({"width": 3}, "width=3 does not fit: choose a multiple of 8"),
        ({"tolerance": float("nan")}, "tolerance=nan is not in 0 to 1"),
        ({"points": -1.0}, "points=-1.0 or widen=1.1 is not in 0.. or 1 to 10"),
        ({"widen": float("nan")}, "widen=nan is not in 0.. or 1 to 10"),
        ({"calibration": 1}, "calibration=1 is too small: choose 2 or more"),
        ({"epochs": 0}, "epochs=0 is too small: choose 1 or more"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tasks.Config(**changes)


def test_parts_larger_than_a_frame_are_refused(tmp_path, capsys):
    words = ["tasks", "--smoke", "--set", "crop=128", "--out", str(tmp_path)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: crop=128 is more than a side of a frame: choose a smaller one"
