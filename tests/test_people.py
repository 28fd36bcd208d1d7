"""People in a video: their boxes, the maps a network learns, what is made of them, the scores."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    folds,
    mot,
    pedestrians,
    results,
    segmenter,
    task_kinds,
    task_report,
    tasks,
    tracker,
)
from experiments.__main__ import main
from experiments.data import files, scenes, walkers
from experiments.errors import UserError
from experiments.progress import unwatched
from experiments.train import create_state
from tests.moving import one_sentence

pytestmark = pytest.mark.xdist_group("people")  # which share a run: one process for all

there = (files.originals("video") / next(iter(walkers.SHA256))).is_file()


def box(*sides):
    return np.array([sides], float)


# --- data ----------------------------------------------------------------------------------------


def test_boxes_of_a_text_come_by_frame():
    lines = ["3,7,10,20,30,40,1,-1,-1,-1", "1,2,0,0,8,16,0", "3,1,2,4,6,8,1"]
    found = walkers.rows(lines, 4, 0.5, "gt.txt")
    assert (found.shape, found.dtype) == ((4, 2, 5), np.float32)
    assert found[0].tolist() == [[2, 0, 0, 4, 8], [0] * 5]
    assert found[2].tolist() == [[7, 5, 10, 15, 20], [1, 1, 2, 3, 4]]
    assert not found[[1, 3]].any()


@pytest.mark.parametrize("line", ["", "1,1,2,3,4", "0,1,2,3,4,5", "5,1,2,3,4,5", "1,0,2,3,4,5"])
def test_a_line_that_is_no_box_is_refused_in_one_sentence(line):
    with pytest.raises(UserError, match=r"gt.txt, line 2 is no box in 4 frames") as error:
        walkers.rows(["1,1,2,3,4,5", line], 4, 1.0, "gt.txt")
    one_sentence(error)


def test_a_clip_that_is_not_there_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYJAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"480x360.avi is missing: put the original") as error:
        scenes.load("vtest")
    one_sentence(error)


@pytest.mark.skipif(not there, reason="vtest is not there")
def test_vtest_has_the_people_that_its_text_tells_of():
    found = scenes.load("vtest")
    assert found.frames.shape == (795, 360, 480, 3)
    assert (found.boxes[..., 0] > 0).sum() == 4650
    train, test = task_kinds.kind("vtest").split(found, 0)
    assert (len(train.frames), len(test.frames)) == (594, 201)
    np.testing.assert_array_equal(test.boxes, found.boxes[594:])
    size = pedestrians.sizes(train.boxes)
    # A line of the row says how tall everybody is: that is what detecting relies on.
    seen = test.boxes[test.boxes[..., 0] > 0].astype(float)
    expected = size.height + size.growth * (seen[:, 2] + seen[:, 4] / 2)
    assert np.quantile(np.abs(expected / seen[:, 4] - 1), 0.99) < 0.2


@pytest.mark.parametrize("size", [(64, 96), (48, 56)])
def test_walkers_are_bright_where_their_boxes_are(size):
    scene = walkers.walkers(20, size)
    assert scene.frames.shape == (20, *size, 3)
    assert scene.labels.shape == (20, size[0] // 4, size[1] // 4)
    for frame, boxes in zip(scene.frames, scene.boxes.astype(int), strict=True):
        bright = np.zeros(size, bool)
        for who, left, top, width, height in boxes:
            bright[top : top + height, left : left + width] |= who > 0
        np.testing.assert_array_equal((frame == 200).all(-1), bright)


def test_a_map_has_a_centre_for_everybody_inside_and_bells_around():
    boxes = np.zeros((4, 5), np.float32)
    boxes[0] = 1, 10, 8, 8, 24  # centre (14, 20): column 3, row 5
    boxes[1] = 2, -20, 0, 8, 8  # outside
    boxes[2] = 3, 44, 28, 8, 8  # on the corner of the frame: (48, 32) is outside too
    found = walkers.centres(boxes, (32, 48))
    assert (found.shape, found.dtype) == ((8, 12), np.uint8)
    assert np.argwhere(found == 255).tolist() == [[5, 3]]
    # Cell (4, 3) has its middle 2 right of... the centre's column, and 2 above its row.
    bell = np.exp(-(((18 - 20) / 3) ** 2 + ((14 - 14) / 1) ** 2) / 2)
    assert found[4, 3] == round(254 * bell)
    assert not walkers.centres(np.zeros((3, 5), np.float32), (8, 8)).any()


# --- what a network learns -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 5, 7)])
@pytest.mark.parametrize("people", [0, 3])
def test_the_loss_is_the_focal_one_of_centres(rng, shape, people):
    logits = rng.normal(0, 3, shape).astype(np.float32)
    labels = rng.integers(0, 255, shape).astype(np.uint8)
    labels.flat[rng.choice(labels.size, people, replace=False)] = 255
    expected = 0.0
    for logit, label in zip(logits.ravel().astype(float), labels.ravel(), strict=True):
        p = 1 / (1 + np.exp(-logit))
        if label == 255:
            expected -= (1 - p) ** 2 * np.log(p)
        else:
            expected -= (1 - label / 255) ** 4 * p**2 * np.log(1 - p)
    found = pedestrians.losses(jnp.asarray(logits), jnp.asarray(labels))
    # Some seventy float32 terms of about one.
    np.testing.assert_allclose(found["loss"], expected / max(1, people), rtol=1e-5)
    assert {value.dtype for value in found.values()} == {jnp.dtype(jnp.float32)}


def test_the_accuracy_of_a_training_is_f1_of_peaks():
    labels, logits = np.zeros((1, 12, 12), np.uint8), np.full((1, 12, 12), -5.0, np.float32)
    for row, column in ((2, 2), (2, 9), (9, 5)):
        labels[0, row, column] = 255
    for row, column in ((3, 2), (9, 5), (9, 10)):  # next to one, on one, at nobody
        logits[0, row, column] = 2.0
    found = pedestrians.losses(jnp.asarray(logits), jnp.asarray(labels))
    assert float(found["accuracy"]) == pytest.approx(2 * 2 / (3 + 3))


def test_a_logit_for_every_cell_near_what_it_begins_with(rng):
    model = segmenter.Segmenter(width=8, stride=4, prior=-2.2)
    x = rng.integers(0, 256, (2, 24, 40, 6), np.uint8)
    state = create_state(model, x, learning_rate=0.1, steps=1, seed=0)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = jax.jit(partial(model.apply, train=False))(variables, x)
    assert (logits.shape, logits.dtype) == ((2, 6, 10), jnp.float32)
    assert np.abs(logits + 2.2).max() < 1


def test_parts_of_frames_and_of_maps_are_the_same_parts():
    rows, columns = np.indices((32, 48))
    images = np.stack([rows // 4, columns // 4, *[0 * rows] * 4], -1)[None] / 255
    labels = (12 * (rows // 4) + columns // 4)[::4, ::4][None].astype(np.uint8)
    seen = []

    def losses(logits, labels):
        seen.append(labels)
        return {"loss": logits.sum() * 0, "accuracy": logits.sum() * 0}

    class Echo:
        """A network that gives back what it sees, once per cell."""

        params = batch_stats = ()
        step = 3

        def apply_fn(self, variables, images, mutable):
            del variables, mutable
            seen.append(images[:, ::4, ::4, :2])
            return images.sum((1, 2, 3)), {"batch_stats": {}}

        def apply_gradients(self, grads, batch_stats):
            del grads, batch_stats
            return self

    step = segmenter.crop_step((16, 24), 0, losses)
    with jax.disable_jit():
        step(Echo(), jnp.asarray(images, jnp.float32), jnp.asarray(labels))
    places, cells = map(np.asarray, seen)
    assert cells.shape == (1, 4, 6)
    np.testing.assert_array_equal(12 * places[..., 0].round() + places[..., 1].round(), cells)


# --- boxes of a map ------------------------------------------------------------------------------


def test_sizes_are_a_line_of_the_row(rng):
    boxes = np.zeros((9, 4, 5))
    middle = rng.uniform(20, 200, (9, 4))
    height = 12 + 0.25 * middle
    boxes[..., 0], boxes[..., 2] = 1, middle - height / 2
    boxes[..., 3], boxes[..., 4] = 0.4 * height, height
    boxes[5] = 0
    np.testing.assert_allclose(pedestrians.sizes(boxes), (12, 0.25, 0.4), rtol=1e-9)


def test_boxes_stand_on_the_centres_of_a_map():
    scene = walkers.walkers(12)
    size = pedestrians.sizes(scene.boxes)
    for labels, boxes in zip(scene.labels, scene.boxes, strict=True):
        share = np.clip(labels / 255, 1e-3, 0.95)
        found = pedestrians.boxes(np.log(share / (1 - share)).astype(np.float32), size)
        people = boxes[boxes[:, 0] > 0, 1:]
        assert len(found) == len(people)
        # All walkers are of one size, so that the line has no slope; a cell is four pixels.
        apart = np.abs(found[:, None] - people[None]).max(-1)
        assert apart.min(0).max() <= 2.5


@pytest.mark.parametrize(("far", "count"), [(1, 1), (3, 2)])
def test_of_two_peaks_of_one_person_the_likelier_stays(far, count):
    logits = np.full((12, 12), -9.0, np.float32)
    logits[2, 2], logits[2 + 2 * far, 2] = 1.0, 2.0
    found = pedestrians.boxes(logits, pedestrians.Sizes(32.0, 0.0, 0.5))
    assert len(found) == count
    assert found[0, 1] + 16 == pytest.approx(4 * (2.5 + 2 * far), abs=0.1)
    assert pedestrians.boxes(logits - 9, pedestrians.Sizes(32.0, 0.0, 0.5)).shape == (0, 4)


# --- tracks --------------------------------------------------------------------------------------


def test_overlaps_are_those_of_areas(rng):
    a, b = rng.uniform(1, 9, (3, 4)).round(), rng.uniform(1, 9, (5, 4)).round()
    drawn = np.zeros((8, 20, 20), bool)
    for picture, (left, top, width, height) in zip(drawn, np.r_[a, b].astype(int), strict=True):
        picture[top : top + height, left : left + width] = True
    for i, j in np.ndindex(3, 5):
        both, either = drawn[i] & drawn[3 + j], drawn[i] | drawn[3 + j]
        assert tracker.iou(a, b)[i, j] == pytest.approx(both.sum() / either.sum())
    assert tracker.iou(a[:0], b).shape == (0, 5)


def test_the_best_pairs_are_those_of_all_together():
    overlaps = np.array([[0.9, 0.8], [0.7, 0.1], [0.2, 0.2]])
    assert tracker.assigned(overlaps, 0.3) == [(0, 1), (1, 0)]
    assert tracker.assigned(overlaps, 0.75) == [(0, 1)]
    assert tracker.assigned(overlaps[:0], 0.3) == []


@pytest.mark.parametrize("hidden", [0, 1, 8])
def test_who_walks_on_stays_who_they_are(hidden):
    """Two people walk past each other; one is not seen for some frames."""
    frames = []
    for index in range(30):
        there = [box(3 * index, 10, 10, 30), box(90 - 3 * index, 30, 10, 30)]
        frames.append(np.concatenate(there[: 1 if 6 <= index < 6 + hidden else 2]))
    found = tracker.followed(frames)
    assert len(found[0]) == 0  # one box is no track yet
    for boxes, tracks in zip(frames[1:], found[1:], strict=True):
        np.testing.assert_array_equal(tracks[:, 1:], boxes)
        assert tracks[:, 0].tolist() == [1, 2][: len(boxes)]


def test_who_is_away_for_long_comes_back_as_somebody_else():
    frames = [box(9, 9, 9, 9), box(9, 9, 9, 9), *[np.zeros((0, 4))] * 11, *[box(9, 9, 9, 9)] * 2]
    who = [tracks[:, 0].tolist() for tracks in tracker.followed(frames)]
    assert who == [[], [1], *[[]] * 12, [2]]


def test_frames_without_anybody_have_no_tracks():
    found = tracker.followed([np.zeros((0, 4))] * 3)
    assert [tracks.shape for tracks in found] == [(0, 5)] * 3


# --- scores --------------------------------------------------------------------------------------


def test_f1_and_mota_are_what_counting_by_hand_gives():
    row = lambda who, left: np.r_[who, left, 0, 10, 30]
    truth = [np.array([row(1, 0), row(2, 50), np.zeros(5)])] * 4
    # Right twice; then one missed; then one false; then both, under each other's names.
    names = [(1, 2), (1,), (1, 2, 3), (2, 1)]
    found = [np.array([row(who, 50 * at) for at, who in enumerate(some)]) for some in names]
    scores = mot.tracked(found, truth)
    assert scores.switches == 2
    assert scores.mota == pytest.approx(1 - (1 + 1 + 2) / 8)
    assert (scores.precision, scores.recall) == (pytest.approx(7 / 8), pytest.approx(7 / 8))
    assert scores.idf1 == pytest.approx(2 * 5 / 16)
    # Boxes have no names: seven right, one false, one missed.
    assert mot.f1([boxes[:, 1:] for boxes in found], truth) == pytest.approx(14 / 16)


def test_boxes_that_overlap_by_less_than_half_are_none():
    truth = [np.array([[1.0, 0, 0, 10, 10]])]
    assert mot.f1([box(3, 0, 10, 10)], truth) == pytest.approx(1)  # 7 / 13
    assert mot.f1([box(4, 0, 10, 10)], truth) == pytest.approx(0, abs=1e-8)  # 6 / 14


def test_nothing_found_and_nothing_to_find():
    nobody, none = [np.zeros((3, 5))] * 2, [np.zeros((0, 4))] * 2
    truth = [np.array([[1.0, 0, 0, 10, 10]])] * 2
    assert mot.f1(none, nobody) == 1
    assert mot.f1(none, truth) == pytest.approx(0, abs=1e-8)
    assert mot.tracked([np.zeros((0, 5))] * 2, truth) == (0, 0, 0, 0, 0)


def test_perfect_maps_are_scored_as_perfect():
    scene = walkers.walkers()
    train, test = task_kinds.kind("walkers").split(scene, 0)
    assert (len(train.frames), len(test.frames)) == (30, 10)
    share = np.clip(test.labels / 255, 1e-3, 0.95)
    score = task_kinds.kind("walkers").judge(train)([*np.log(share / (1 - share))], test)
    assert score.f1 == pytest.approx(1)
    assert score.tracks.precision == 1
    assert score.tracks.switches == 0
    assert score.tracks.recall == pytest.approx(0.9)  # the first frame has no tracks
    assert 0 < score.flips < 0.2


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A finished run, as a command line."""
    out = tmp_path_factory.mktemp("people")
    words = ["tasks", "--config", "vtest", "--smoke", "--checkpoints", str(out / "kept")]
    words += ["--out", str(out / "found")]
    with jax.numpy_dtype_promotion("standard"):  # for optax.adam
        assert main(words) == 0
    return words


@pytest.mark.usefixtures("standard_promotion")  # for optax.adam
def test_people_are_found_after_a_training_of_seconds():
    (config,) = tasks.smoke(tasks.CONFIGS["vtest"])
    task = task_kinds.kind(config.scene)
    train, test = task.split(scenes.load(config.scene), config.fold)
    background = segmenter.median(train.frames)
    model = segmenter.Segmenter(config.width, config.blocks, task.stride, task.prior)
    fitted = folds.trained(model, task, config, train, test, background, None, unwatched)
    variables = {"params": fitted.state.params, "batch_stats": fitted.state.batch_stats}
    x = segmenter.beside(test.frames, background)
    score = task.judge(train)(
        [*np.asarray(jax.jit(partial(model.apply, train=False))(variables, x))], test
    )
    assert score.f1 > 0.8
    assert score.tracks.mota > 0.6


@pytest.mark.slow
def test_a_run_measures_every_arm(words):
    (path,) = Path(words[-1]).glob("walkers-*.json")
    metrics = results.read(path)["metrics"]
    assert list(metrics["arms"]) == list(tasks.ARMS)
    assert 0 < metrics["moving"] < 0.2
    assert 0.5 < metrics["dense_f1"] <= 1
    assert metrics["dense_tracks"]["mota"] > 0.2
    exact = metrics["arms"]["exact"]
    assert exact["output_error"] < 1e-5
    assert (exact["f1_points"], exact["mota_points"]) == (0, 0)
    for arm in metrics["arms"].values():
        assert len(arm["ms"]) == 10
        mota = 100 * (arm["tracks"]["mota"] - metrics["dense_tracks"]["mota"])
        assert arm["mota_points"] == pytest.approx(mota)
    lines = (path.parent / "report.md").read_text().splitlines()
    assert len(lines) == 2 + 1 + len(tasks.ARMS)
    columns = len(task_report.HEADINGS) + len(task_report.TRACKS)
    assert {line.count("|") for line in lines} == {columns + 1}


@pytest.mark.slow
def test_a_kept_training_is_measured_again_without_another(words, monkeypatch, capsys):
    (path,) = Path(words[-1]).glob("walkers-*.json")
    before = results.read(path)["metrics"]
    path.unlink()
    monkeypatch.setattr(segmenter, "crop_step", lambda *args: None)  # a step would call None
    assert main([*words, "--set", "tries=1"]) == 0
    assert "MOTA" in capsys.readouterr().out
    (path,) = Path(words[-1]).glob("walkers-*.json")
    after = results.read(path)["metrics"]
    assert (after["dense_f1"], after["history"]) == (before["dense_f1"], before["history"])


@pytest.mark.parametrize("scene", ["highway", "vtest"])
def test_the_page_of_the_tasks_shows_the_committed_runs(scene):
    root = Path(__file__).parents[1]
    records = [
        results.read(path)
        for path in sorted((root / "experiments" / "results" / "tasks").glob(f"{scene}*.json"))
    ]
    assert len(records) == task_kinds.kind(scene).folds
    page = (root / "docs" / "pass_tasks.md").read_text()
    for row in (task_report.headings(records), *task_report.rows(records)):
        assert f"| {' | '.join(row)} |" in page


def test_what_a_training_depends_on_names_it():
    (config,) = tasks.CONFIGS["vtest"]
    name = lambda **changes: results.digest(replace(config, **changes).training)
    assert name() == name(patch=8) == name(tolerance=0.5)
    assert len({name(), name(seed=1), name(epochs=2), name(width=8)}) == 4


def test_checkpoints_are_for_tasks(tmp_path, capsys):
    assert main(["octo", "--checkpoints", str(tmp_path)]) == 2
    assert "--checkpoints is for tasks" in capsys.readouterr().err


def test_a_scene_without_folds_has_one():
    with pytest.raises(UserError, match="fold=1 is none: choose one from 0 to 0"):
        tasks.Config(scene="vtest", fold=1)
    with pytest.raises(UserError, match="there is no scene 'road'"):
        tasks.Config(scene="road")
