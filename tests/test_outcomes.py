"""The six outcomes of PASS: the environments, and what a run of them holds."""

import json
import re
from functools import partial

import numpy as np
import pytest

from experiments import outcomes, results, skip
from experiments.__main__ import main
from experiments.errors import UserError
from experiments.models import Backbone
from tests import clips


def environment(name, images, **changes):
    """The frames of an environment."""
    config = outcomes.Config(**changes)
    made = outcomes.ENVIRONMENTS[name](iter(images), config, np.random.default_rng(0))
    return list(made)


@pytest.mark.parametrize("name", outcomes.ENVIRONMENTS)
@pytest.mark.parametrize("shape", [(4, 6, 3), (5, 3, 3)])
def test_environments_are_frames_and_repeat_themselves(rng, name, shape):
    images = list(rng.integers(0, 256, (7, *shape), dtype=np.uint8))
    before = [image.copy() for image in images]
    found = environment(name, images)
    assert [(frame.shape, frame.dtype) for frame in found] == 7 * [(shape, np.uint8)]
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(found, environment(name, images))


def test_environments_are_what_they_are_called(rng):
    images = list(rng.integers(80, 170, (9, 40, 50, 3), dtype=np.uint8))
    moved = lambda name, **changes: np.subtract(
        environment(name, images, **changes), images, dtype=np.float32
    )
    assert (moved("clip") == 0).all()
    assert moved("noise", noise=3.0).std() == pytest.approx(3, rel=0.03)
    assert moved("noise", noise=3.0).mean() == pytest.approx(0, abs=0.05)
    falls = [np.unique(frame) for frame in moved("drift", drift=32.0)]
    assert [fall.tolist() for fall in falls] == [[-f] for f in (0, 32, 64, 32, 0, 32, 64, 32, 0)]
    still = np.float32(environment("still", images, still_noise=1.0)) - images[0]
    assert still.std() == pytest.approx(1, rel=0.05)
    assert (np.diff(still, axis=0) != 0).any((1, 2, 3)).all()
    turned = [
        (frame == image[:, ::-1]).all()
        for frame, image in zip(environment("cuts", images, stretch=2), images, strict=True)
    ]
    assert turned == [False, False, True, True, False, False, True, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 3}, "frames=3 is too small: choose 4 or more, or 0"),
        ({"stretch": 0}, "stretch=0 is too small: choose 1 or more"),
        ({"noise": -1.0}, r"noise=-1\.0 is negative: choose 0 or more"),
        ({"levels": 4}, "levels=4 is not in 0 to 3: choose from these"),
        ({"patch": 3}, "patch=3 does not fit"),
        ({"threshold": 1.0}, r"threshold=1\.0 is not in 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        outcomes.Config(**changes)


def test_a_smoke_run_says_what_is_promised(tmp_path, capsys, monkeypatch):
    # Two layers in place of five, with the same stride: `test_skip` runs the network itself.
    monkeypatch.setattr(skip, "Backbone", partial(Backbone, widths=(4, 8), strides=(2, 2)))
    clip = clips.written(tmp_path)
    words = ["outcomes", "--smoke", "--set", f"video={clip}", "frames=7", "--out", str(tmp_path)]
    assert main(words) == 0
    assert re.search(r"cuts +threshold", capsys.readouterr().out)
    (path,) = tmp_path.glob("sample-*.json")
    found = results.read(path)["metrics"]
    json.dumps(found, allow_nan=False)
    assert list(found["environments"]) == list(outcomes.ENVIRONMENTS)
    for name, each in found["environments"].items():
        assert (each["frames"], list(each["arms"])) == (7, list(outcomes.GATES)), name
        lossless = each["arms"]["exact"]
        assert lossless["output_error"] <= 1e-6
        assert lossless["change"] == pytest.approx(each["dense_change"], rel=1e-5, abs=1e-7)
        for arm in each["arms"].values():
            assert len(arm["speedup_parts"]) == len(arm["error_parts"]) == outcomes.PARTS
            assert arm["speedup_low"] <= np.mean(arm["speedup_parts"]) <= arm["speedup_high"]
            assert 0 <= arm["active_least"] <= arm["active"] <= arm["active_most"] <= 1
            assert arm["temp_bytes"] > 0
            assert arm["state_bytes"] > 0
    arms = {name: each["arms"] for name, each in found["environments"].items()}
    assert arms["still"]["exact"]["active"] > arms["still"]["threshold"]["active"] == 0
    assert arms["still"]["threshold"]["change"] == 0  # what it reuses does not flicker
    assert found["environments"]["still"]["dense_change"] > 0
    assert arms["clip"]["exact"]["active"] < arms["noise"]["exact"]["active"]
