"""The PASS experiment: what it counts, what it measures, and what its video shows."""

import functools
import shlex
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import patchwork, plots, results, shading, skip, turns, video
from experiments.__main__ import main
from experiments.errors import UserError
from experiments.models import Backbone
from experiments.sections import skip as section
from experiments.segmenter import Segmenter
from tests import clips
from tinyjax import count_macs, pass_skip, rewrite


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clips.written(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def words(clip, tmp_path_factory):
    """A finished run, as a command line."""
    out = tmp_path_factory.mktemp("out")
    words = ["pass", "--set", f"video={clip}", "--out", str(out)]
    assert main(words) == 0
    return words


@pytest.fixture(scope="module")
def record(words):
    (path,) = Path(words[-1]).glob("*.json")
    return results.read(path)


# --- counting ------------------------------------------------------------------------------------


def costs_of(apply, params, frame, patch):
    """What the blocks of a network cost, and their grids."""
    skipping = rewrite(pass_skip(patch=patch), apply)
    fresh = functools.partial(skipping.init, params, frame)
    grids = [cells.shape for cells in jax.eval_shape(fresh).active]
    return turns.costs(skipping, fresh, params, frame), grids


def on_shapes(model, shape, dtype=np.float32, **keywords):
    """A network's apply function, its parameters and a frame, as shapes."""
    frame = jax.ShapeDtypeStruct((1, *shape), dtype)
    params = jax.eval_shape(model.init, jax.random.key(0), frame)
    return functools.partial(model.apply, **keywords), params, frame


@pytest.mark.parametrize("patch", [8, 16, 32])
@pytest.mark.parametrize(
    ("network", "shape"),
    [(Backbone(), (96, 128, 3)), (Backbone(), (100, 68, 3)), (Segmenter(16), (64, 72, 6))],
)
def test_blocks_cost_what_the_network_costs(network, shape, patch):
    keywords = {"train": False} if isinstance(network, Segmenter) else {}
    apply, params, frame = on_shapes(network, shape, **keywords)
    costs, grids = costs_of(apply, params, frame, patch)
    whole = count_macs(apply, params, frame)["float32"]
    assert costs.dense() == whole
    active = [np.ones(grid, bool) for grid in grids]
    assert patchwork.macs(costs, active) == whole
    assert patchwork.recomputed(costs, active) == 1
    # A patch costs its share of the whole, and the margins that its layers need.
    for block, grid in zip(costs.blocks, grids, strict=True):
        assert block.patch >= block.dense // np.prod(grid) > 0
    # What is behind the blocks is computed for every frame.
    nothing = [np.zeros(grid, bool) for grid in grids]
    assert patchwork.macs(costs, nothing) == costs.tail < whole
    assert patchwork.recomputed(costs, nothing) == costs.tail / whole


def test_a_patch_costs_its_margins_too():
    layers = Backbone(widths=(8, 8, 8), strides=(1, 1, 1))
    costs, [grid] = costs_of(*on_shapes(layers, (32, 32, 8)), 16)
    (alone,), tail = costs
    side = 32 // grid[0]
    # So many outputs of the last layer need two more, each way, of the one before, and so on.
    assert alone.patch == 9 * 8 * 8 * (side**2 + (side + 2) ** 2 + (side + 4) ** 2)
    assert tail == 0
    some = np.zeros((4, 6), bool)
    some[0, :2] = True
    assert patchwork.macs(costs, [some]) == 2 * alone.patch
    assert patchwork.macs(patchwork.Costs([alone], 7), [some]) == 2 * alone.patch + 7
    assert patchwork.recomputed(patchwork.Costs([alone, alone], 0), [some, ~some]) == 0.5


def test_blocks_that_are_not_found_are_refused():
    apply, params, frame = on_shapes(Backbone(), (96, 128, 3))
    trace = jax.make_jaxpr(apply)(params, frame)
    with pytest.raises(ValueError, match="2 blocks have 0 choices between all and some"):
        patchwork.costs(trace, [(6, 8), (2, 2)])


def test_moved_patches_and_changed_pixels():
    before = np.zeros((1, 20, 40, 3), np.float32)
    after = before.copy()
    after[0, 19, 39, 2] = 1
    assert patchwork.moved(before, after, 16) == 1 / 6  # of 2 x 3, the last ones cut off
    assert patchwork.moved(before, before, 16) == 0
    assert patchwork.changed([before[0], before[0], after[0]]) == [1, 0, 1 / 800]


# --- the experiment ------------------------------------------------------------------------------


def test_skipping_is_exact_and_follows_what_moves(record):
    metrics = record["metrics"]
    exact, lossy = metrics["exact"], metrics["threshold"]
    assert (metrics["size"], metrics["grid"], metrics["fps"]) == ([96, 128], [6, 8], 10)
    lists = (metrics["dense_ms"], metrics["changed"], *(exact[key] for key in ("ms", "taken")))
    assert {len(found) for found in lists} == {7}
    # Outputs are about 1, and their sums of some hundred terms are added in other orders.
    assert exact["largest_difference"] < 1e-4
    assert exact["output_error"] < 1e-6
    assert 0 <= lossy["output_error"] < 0.1
    assert exact["active"][0] == lossy["active"][0] == exact["taken"][0] == 1
    for before, after in zip(exact["taken"], exact["active"], strict=True):
        assert before <= after  # what is taken is recomputed, and what is around it
    assert all(np.array(lossy["taken"]) <= np.array(exact["taken"]))
    assert 0 < exact["taken"][3] < 1
    assert 0 < lossy["macs_share"] <= exact["macs_share"] <= 1.5
    assert exact["speedup"] > 0
    assert exact["state_bytes"] > 4 * (96 * 128 * 3 + 24 * 32 * 64)


def test_the_video_and_the_section_follow_from_the_record(record, tmp_path):
    path = tmp_path / "pass.mp4"
    shading.movie(record, path)
    assert [frame.shape for frame in video.frames(path)] == [(96, 128, 3)] * 7
    found = shading.masks(record, "exact")
    assert (found.shape, found.dtype) == ((7, 6, 8), np.dtype(bool))
    assert found[0].all()
    shaded = shading.still(record, "exact", 3)
    (frame,) = [f for at, f in enumerate(skip.frames(skip.Config(**record["config"]))) if at == 3]
    np.testing.assert_array_equal(shaded, video.shade(frame, found[3], 16))
    page = section.section(record)
    assert page.count("<svg") == 4
    assert page.count("data:image/jpeg") == 2
    assert page.count("data:video/mp4;base64,") == 1
    for claim in ("Faster", "Less memory", "Less computation", "quality", "Stable", "Adaptation"):
        assert claim in page
    assert "9.43" in page
    assert "12.19" in page
    assert section.section(record) == page


def test_pass_writes_json_and_a_video_and_reuses_them(words, record, capsys):
    assert record["command"] == shlex.join(["python", "-m", "experiments", *words])
    folder = Path(words[-1])
    written = {path: path.read_bytes() for path in folder.iterdir()}
    assert {path.suffix for path in written} == {".json", ".mp4"}
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "speed-up over the clip" in told
    assert "not run again" in told
    assert {path: path.read_bytes() for path in folder.iterdir()} == written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 6}, "patch=6 does not fit: choose a multiple of 4"),
        ({"patch": 0}, "patch=0 does not fit"),
        ({"threshold": float("nan")}, "threshold=nan is not in 0 to 1"),
        ({"threshold": -0.1}, "is not in 0 to 1: choose a small one"),
        ({"frames": -1}, "frames=-1 is too small: choose 0 or more"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        skip.Config(**changes)


def test_a_video_smaller_than_a_patch_is_refused_in_one_sentence(clip, tmp_path, capsys):
    words = ["pass", "--set", f"video={clip}", "patch=256", "--out", str(tmp_path)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: patch is 256, more than a side of the frame")
    config = replace(skip.CONFIGS["sample"], video=str(tmp_path / "none.mp4"))
    with pytest.raises(UserError, match=r"none\.mp4 is not there"):
        skip.run(config)


# --- plots ---------------------------------------------------------------------------------------


def test_plots_are_svg_and_equal_for_equal_values():
    draw = lambda: plots.timeline({"dense": [3.0], "exact": [1.0]}, 0.1, "ms", percent=True)
    assert draw().startswith("<svg")
    assert draw() == draw()
    drawn = plots.heat(np.eye(3), (30, 30))
    assert drawn.startswith("<svg")
    assert "http" not in drawn.split("<image")[1].split("/>")[0]
    assert plots.jpeg(np.zeros((8, 8, 3), np.uint8)).startswith("data:image/jpeg;base64,")


# --- a gate that is learned ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_gate_is_trained_and_compared_at_equal_activity(clip, tmp_path):
    assert main(["gate", "--smoke", "--set", f"video={clip}", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    metrics = results.read(path)["metrics"]
    assert metrics["gate_macs"] < 0.01 * metrics["dense_macs"]
    assert len(metrics["points"]) == 8
    for point in metrics["points"]:
        assert set(point["activity"]) == set(point["error"]) == {"threshold", "learned"}
        assert all(0 <= share <= 1 for share in point["activity"].values())
