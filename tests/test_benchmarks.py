"""The benchmarks run, and their JSON has the promised form; what they measure is not tested."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cases, gpu, int8, peers, sgq, skip
from benchmarks.__main__ import main
from experiments import models, networks, train

METRICS = {
    "model_mmacs",
    "f32_ms",
    "f32_best_ms",
    "int8_ms",
    "speedup",
    "speedup_best",
    "stochastic_share",
    "saved_mb_f32",
    "saved_mb_int8",
    "saved_bytes_ratio",
    "temp_mb_f32",
    "temp_mb_int8",
    "temp_bytes_ratio",
    "f32_compile_s",
    "int8_compile_s",
    "compile_ratio",
}
MACS = {  # of one image, worked out by hand; dense layers last
    "mlp": 3072 * 1024 + 1024 * 1024 + 1024 * 10,
    "vgg6": 9 * (32**2 * (3 + 64) * 64 + 16**2 * (64 + 128) * 128 + 8**2 * (128 + 256) * 256)
    + 256 * 10,
    "resnet": 9 * 32**2 * (3 + 64 + 64) * 64
    + 16**2 * (9 * (64 + 128) + 64) * 128
    + 8**2 * (9 * (128 + 256) + 128) * 256
    + 256 * 10,
    "resnet20": 9 * 32**2 * (3 + 6 * 16) * 16
    + 16**2 * (9 * (16 + 5 * 32) + 16) * 32
    + 8**2 * (9 * (32 + 5 * 64) + 32) * 64
    + 64 * 10,
    "mobilenet": 32**2 * 27 * 32
    + 32**2 * 192 * (32 + 9 + 16)
    + 32**2 * 96 * (16 + 9 + 24)
    + 144 * (32**2 * 24 + 16**2 * (9 + 32))
    + 192 * (16**2 * 32 + 8**2 * (9 + 64))
    + 384 * 8**2 * (64 + 9 + 96)
    + 96 * 10,
    "conv_b8": 9 * 32**2 * 64 * 64,
}
MACS["vgg6_bn"] = MACS["vgg6"]
SLOW = pytest.mark.slow
WAYS = ("encode", "decode")


@pytest.fixture
def without_peers(monkeypatch):
    """As on a machine that has neither qwix nor PyTorch."""
    for name in ("qwix", "torch"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_peers")
@pytest.mark.parametrize(
    "case",
    [pytest.param(each, marks=SLOW) for each in ("mlp", "vgg6", "vgg6_bn", "conv_b8")],
)
def test_json_has_environment_and_rows(tmp_path, capsys, case):
    file = tmp_path / "deep" / "out.json"
    assert main(["int8", "--quick", "--case", case, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert {"jax", "cpu", "load_average", "commit", "peers"} <= found["env"].keys()
    (row,) = found["rows"]
    assert row["case"] == case
    assert row.keys() >= METRICS
    assert row["int8_mac_share"] == 1.0
    assert row["speedup"] == pytest.approx(row[f"{int8.CASES[case].baseline}_ms"] / row["int8_ms"])
    assert row["f32_best_ms"] <= row["f32_ms"]
    absent = {key for key, value in row.items() if value is None}
    assert absent == {key for key in row if key.startswith(("qwix", "torch"))}
    assert capsys.readouterr().out.count("not installed") == len(absent)
    if case == "mlp":
        names = ("qwix", "torch_f32", "torch_bf16")
        assert absent == {f"{name}_{unit}" for name in names for unit in ("ms", "ratio")}


def test_a_case_leaves_programs_out_and_runs_slow_ones_apart(monkeypatch):
    small = models.Mlp(hidden=(4,))
    case = cases.Case(
        small,
        2,
        small,
        slow=("f32",),
        left_out=("f32_rewritten",),
        baseline="f32_edited",
    )
    monkeypatch.setitem(int8.CASES, "small", case)
    monkeypatch.setattr(int8, "_options", lambda: {"": None})
    (row,) = int8.run("small", rounds=1)
    times = {key.removesuffix("_ms") for key in row if key.endswith("_ms")}
    floats = {"f32", "f32_edited", "f32_best"}
    assert times == floats | {"int8", "int8_nearest", "octo", "policy"}
    assert row["speedup"] == row["f32_edited_ms"] / row["int8_ms"]


def test_an_unknown_case_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["int8", "--case", "lenet"])
    assert "no case ['lenet']: choose from mlp, vgg6" in capsys.readouterr().err


@pytest.mark.parametrize("name", int8.CASES)
def test_a_case_has_the_documented_size_and_trains(monkeypatch, name):
    monkeypatch.setattr(train, "_RUN_ONCE", None)  # options of a compiler, and nothing is compiled
    case = int8.CASES[name]
    assert cases.model_macs(case) == MACS[name]
    batch = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in cases.batch_of(case, 2)]
    shapes = {}
    for model in filter(None, (case.model, case.edited)):
        create = lambda images, model=model: train.create_state(
            model, images, learning_rate=0.1, steps=1, seed=0
        )
        state = jax.eval_shape(create, batch[0])
        shapes[model] = jax.tree.map(lambda leaf: leaf.shape, state.params)
        _, out = jax.eval_shape(case.step, state, *batch)
        assert case.step is cases.both_gradients or out["loss"].shape == ()
    assert all(found == shapes[case.model] for found in shapes.values())


@pytest.mark.usefixtures("without_peers")
def test_missing_peers_are_none():
    images, labels = np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int32)
    assert peers.qwix_model(models.Mlp()) is None
    steps = peers.torch_steps(models.Mlp(), images, labels)
    assert steps == {"torch_f32": None, "torch_bf16": None}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of flax.nnx, which qwix looks through
@pytest.mark.usefixtures("standard_promotion")
def test_qwix_keeps_the_parameters():
    pytest.importorskip("qwix", exc_type=ImportError)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    model = models.Vgg6(widths=(4, 8))
    shapes = [
        jax.eval_shape(each.init, jax.random.key(0), image)
        for each in (model, peers.qwix_model(model))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("model", [models.Mlp(hidden=(8,)), models.Vgg6(widths=(4, 8))])
def test_torch_trains_the_same_layers(model):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    image = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    network = peers._torch_network(torch, model, (8, 8, 3))
    sizes = [sum(map(int, (leaf.size for leaf in jax.tree.leaves(params))))]
    assert sizes == [sum(each.numel() for each in network.parameters())]
    for step in peers.torch_steps(model, images, np.arange(6, dtype=np.int32)).values():
        first = step()
        assert [step() for _ in range(9)][-1] < first


def test_torch_refuses_what_is_not_written():
    pytest.importorskip("torch", exc_type=ImportError)
    with pytest.raises(ValueError, match="ResNet is not written in PyTorch"):
        peers.torch_steps(networks.ResNet(), np.zeros((1, 8, 8, 3)), np.zeros(1))


def sgq_rows(file):
    """What the benchmark of SGQ wrote, by case."""
    assert main(["sgq", "--quick", "--json", str(file)]) == 0
    rows = {row["case"]: row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == set(sgq.CASES)
    for row in rows.values():
        assert row.keys() >= {"ratio_f32", "encode_gbps", "decode_gbps"}
    return rows


def test_sgq_has_a_row_for_every_case(tmp_path, rng, monkeypatch):
    x = np.maximum(rng.normal(size=(4, 5, 3, 32)), 0)
    known, unseen = jnp.asarray(x, jnp.float32), jnp.asarray(x[::-1], jnp.float32)
    monkeypatch.setattr(sgq, "_known_and_unseen", lambda shrink: (known, unseen))
    # Streams by context and inside one program compile long: here all are of one table.
    monkeypatch.setattr(sgq.entropy, "fit", lambda code: None)
    monkeypatch.setattr(sgq, "_compressed", lambda name, *_: {f"{name} {w}": int for w in WAYS})
    monkeypatch.setattr(sgq, "sgq_encode", jax.jit(sgq.sgq_encode))
    sgq._measured.cache_clear()
    rows = sgq_rows(tmp_path / "sgq.json")
    sgq._measured.cache_clear()
    assert rows["sgq_packed"]["ratio_f32"] > 4 > rows["int8"]["ratio_f32"]
    assert rows["int4"]["snr_db"] < rows["groups_packed"]["snr_db"] < rows["int8"]["snr_db"]


@SLOW
def test_sgq_finds_the_figures_of_real_features(tmp_path):
    rows = sgq_rows(tmp_path / "sgq.json")
    assert 7.9 < rows["sgq_packed"]["ratio_f32"] < 8
    assert 7.9 < rows["groups_packed"]["ratio_f32"] < 8
    assert 3.9 < rows["int8"]["ratio_f32"] < 4
    assert rows["int4"]["snr_db"] < rows["groups_packed"]["snr_db"] < rows["int8"]["snr_db"]
    assert 17 < rows["sgq_packed"]["snr_db"] < rows["int8"]["snr_db"]
    assert rows["int4_zstd"]["ratio_f32"] > rows["int4"]["ratio_f32"]
    ratios = [rows[f"sgq_{how}"]["ratio_f32"] for how in ("packed", "order0", "contexts")]
    assert ratios == sorted(ratios)
    assert rows["sgq_contexts"]["state_bytes"] == 24 + 8 + 4 + 232 * 64 + 156 + 336 + 252 * 16


@pytest.mark.parametrize(
    "case", ["block", *(pytest.param(case, marks=SLOW) for case in skip.CASES if case != "block")]
)
def test_pass_has_a_row_for_every_share(tmp_path, case):
    file = tmp_path / "pass.json"
    assert main(["pass", "--quick", "--case", case, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["active"] for row in rows] == list(skip.CASES[case].shares)
    for row in rows:
        assert row["case"] == case
        assert row.keys() >= {"dense_ms", "skip_ms", "speedup"}
        assert row["max_abs_err"] <= 1e-6 * row["max_abs"]
        if case in ("block", "backbone"):  # of four patches, or whole
            assert row["recomputed"] in (round(4 * row["active"]) / 4, 1.0)


@SLOW
def test_clips_have_a_row_for_every_gate_and_level(tmp_path):
    file = tmp_path / "clips.json"
    assert main(["clips", "--quick", "--case", "one_by_one_person", "--json", str(file)]) == 0
    exact, *others = json.loads(file.read_text())["rows"]
    assert exact["case"] == "one_by_one_person, exact"
    assert exact["error"] <= 1e-6
    assert exact["within"] == 1
    levels = {"threshold": [4, 8, 12, 16], "root_mean_square": [2, 3, 4, 5]}
    for gate, wanted in levels.items():
        rows = [row for row in others if row["case"].endswith(gate)]
        assert [row["level"] for row in rows] == wanted
        taken = [exact["taken"], *(row["taken"] for row in rows)]
        assert taken == sorted(taken, reverse=True)
    for row in others:
        assert 0 < row["recomputed"] <= 1
        assert row["of_predicted"] == row["speedup"] / row["predicted"]
        assert row["within"] == float(row["error"] <= 0.01 and row["error_95"] <= 0.02)


@SLOW
def test_portable_stands_beside_native(tmp_path):
    file = tmp_path / "portable.json"
    assert main(["portable", "--quick", "--case", "mlp", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row.keys() >= {"native_ms", "portable_ms"}
    assert row["portable_over_native"] == pytest.approx(row["portable_ms"] / row["native_ms"])
    assert row["same_bits"] == 1.0


@pytest.mark.slow
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
    assert found["codes"] == [{"nearest": 1.0, "stochastic": 1.0}]  # here both are the CPU


@pytest.mark.slow
def test_the_gpu_script_finds_where_skipping_pays(tmp_path):
    file = tmp_path / "gpu.json"
    assert gpu.main(["pass", "--smoke", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["crossover"]
    assert [row["size"] for row in rows] == 3 * ["720p"] + 3 * ["1080p"]
    assert all(row["equal"] for row in rows)
    assert rows[0].keys() >= {"dense_ms", "skip_ms", "whole_ms", "speedup"}


@pytest.mark.slow
def test_the_bits_of_sgq_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    file = tmp_path / "gpu.json"
    assert gpu.main(["sgq", "--smoke", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert all(row["encode_mps"] > 0 and row["decode_mps"] > 0 for row in found["speeds"])
    equal = {"frames_equal": True, "expanded_equal": True, "decoded_equal": True}
    assert found["bits"] == [{"codes_equal": 1.0, **equal}]
    wrong = {"frames_equal": False}
    monkeypatch.setitem(gpu.BENCHMARKS, "sgq", lambda *_: [("bits", wrong)])
    assert gpu.main(["sgq", "--smoke", "--json", str(file)]) == 1


def test_the_gpu_script_wants_a_gpu(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["int8"])
    assert "found no GPU here" in capsys.readouterr().err
