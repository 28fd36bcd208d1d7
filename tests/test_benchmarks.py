"""The benchmarks run, and their JSON has the promised form; what they measure is not tested."""

import json

import jax
import pytest

from benchmarks import gpu
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


def test_sgq_has_a_row_for_every_case(tmp_path):
    file = tmp_path / "sgq.json"
    assert main(["sgq", "--quick", "--json", str(file)]) == 0
    rows = {row["case"]: row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == {"sgq_packed", "int8", "int4", "int4_zstd", "sgq_zstd", "memcpy"}
    for row in rows.values():
        assert row.keys() >= {"ratio_f32", "encode_gbps", "decode_gbps"}
    assert 7.9 < rows["sgq_packed"]["ratio_f32"] < 8
    assert 3.9 < rows["int8"]["ratio_f32"] < 4
    assert rows["int4"]["snr_db"] < rows["sgq_packed"]["snr_db"] < rows["int8"]["snr_db"]
    assert rows["int4_zstd"]["ratio_f32"] > rows["int4"]["ratio_f32"]


@pytest.mark.parametrize("case", ["block", pytest.param("backbone", marks=pytest.mark.slow)])
def test_pass_has_a_row_for_every_share(tmp_path, case):
    file = tmp_path / "pass.json"
    assert main(["pass", "--quick", "--case", case, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["active"] for row in rows] == [0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0]
    for row in rows:
        assert row["case"] == case
        assert row.keys() >= {"dense_ms", "skip_ms", "speedup"}
        assert row["max_abs_err"] <= 1e-6 * row["max_abs"]
        assert row["recomputed"] in (round(4 * row["active"]) / 4, 1.0)  # of four patches, or whole


def test_portable_stands_beside_native(tmp_path):
    file = tmp_path / "portable.json"
    assert main(["portable", "--quick", "--case", "mlp", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row.keys() >= {"native_ms", "portable_ms"}
    assert row["portable_over_native"] == pytest.approx(row["portable_ms"] / row["native_ms"])
    assert row["same_bits"] == 1.0


def test_the_gpu_script_runs_as_it_would_there(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    file = tmp_path / "deep" / "gpu.json"
    assert gpu.main(["int8", "--smoke", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert {"device", "backend", "smoke", "commit"} <= found["env"].keys()
    assert {row["product"] for row in found["products"]} == {"forward", "dgrad", "wgrad"}
    assert all(row["integers_equal"] for row in found["products"])
    for row in (*found["products"], *found["steps"]):
        assert row.keys() >= {"int8_ms", "bf16_ms", "f32_ms", "speedup_bf16", "speedup_f32"}
    assert found["codes"] == {"nearest": 1.0, "stochastic": 1.0}  # here both are the CPU


def test_the_gpu_script_wants_a_gpu(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["int8"])
    assert "found no GPU here" in capsys.readouterr().err
