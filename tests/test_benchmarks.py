"""The benchmarks run, and their JSON has the promised form; what they measure is not tested."""

import json

import pytest

from benchmarks.__main__ import main

METRICS = {
    "f32_ms",
    "f32_best_ms",
    "int8_ms",
    "speedup",
    "speedup_best",
    "saved_bytes_ratio",
    "temp_bytes_ratio",
}


@pytest.mark.parametrize("case", ["mlp", pytest.param("vgg6", marks=pytest.mark.slow)])
def test_json_has_environment_and_rows(tmp_path, case):
    file = tmp_path / "deep" / "out.json"
    assert main(["int8", "--quick", "--case", case, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert {"jax", "cpu", "load_average", "commit"} <= found["env"].keys()
    (row,) = found["rows"]
    assert row["case"] == case
    assert row.keys() >= METRICS
    assert row["int8_mac_share"] == 1.0
    assert row["speedup"] == pytest.approx(row["f32_ms"] / row["int8_ms"])
    assert row["f32_best_ms"] <= row["f32_ms"]


def test_an_unknown_case_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["int8", "--case", "resnet"])
    assert "no case ['resnet']: choose from mlp, vgg6" in capsys.readouterr().err
