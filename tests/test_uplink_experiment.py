"""The experiment of the uplink: what it counts, its page, and a whole run of it."""

from pathlib import Path

import numpy as np
import pytest

from experiments import doc_tables, results, uplink
from experiments.__main__ import main
from experiments.errors import UserError
from tests import clips

RECORDS = [
    results.read(doc_tables.RESULTS / "uplink" / f"{name}-{results.digest(config)}.json")
    for name, config in uplink.CONFIGS.items()
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])
def test_a_row_is_of_the_frames_it_says(record):
    metrics = record["metrics"]
    names = ("active", "sent", "bytes", "whole")
    key = np.array(metrics["key"])
    active, sent, size, whole = (np.array(metrics[name])[~key] for name in names)
    assert metrics["equal"]
    assert sum(row["frames"] for row in metrics["by_activity"][:-1]) == len(active)
    for row in metrics["by_activity"]:
        inside = (active > row["from"]) & (active <= row["to"])
        inside |= (active == 0) & (row["from"] == 0)
        assert row["frames"] == inside.sum()
        assert np.isclose(row["ratio"], size[inside].sum() / (active * whole)[inside].sum())
        for name, values in zip(names, (active, sent, size, whole), strict=True):
            assert np.isclose(row[name], values[inside].mean())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])
def test_every_difference_is_within_its_share_of_the_whole_frame(record):
    """At most 1.3 x active x whole, and a header: recounted from the frames."""
    metrics = record["metrics"]
    _, h, w, _ = metrics["shape"]
    cell = record["config"]["cell"]
    header = 24 + 4 * 4 + 10 + 4 + -(-(-(-h // cell) * -(-w // cell)) // 8)
    frames = zip(*(metrics[k] for k in ("key", "active", "bytes", "whole")), strict=True)
    checked = [
        size <= 1.3 * share * whole + header for key, share, size, whole in frames if not key
    ]
    assert len(checked) > 200
    assert all(checked)


@pytest.mark.slow
def test_a_run_end_to_end(tmp_path):
    clip = clips.written(tmp_path)
    words = ["uplink", "--smoke", "--config", "mobilenet", "--out", str(tmp_path / "out")]
    assert main([*words, "--set", f"video={clip}"]) == 0
    (path,) = Path(tmp_path / "out").glob("*.json")
    metrics = results.read(path)["metrics"]
    assert metrics["key"] == [True, False, False, False]
    assert metrics["equal"]
    still, *moved = metrics["bytes"][1:]
    assert still == 24 + 4 * 4 + 10 + 4
    assert still < max(moved)


@pytest.mark.parametrize("changes", [{"encoder": "vgg"}, {"key_every": 0}, {"cell": 0}])
def test_bad_settings_are_refused(changes):
    (key,) = changes
    with pytest.raises(UserError, match=key):
        uplink.Config(**changes)
