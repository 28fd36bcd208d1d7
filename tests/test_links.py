"""Comparing codecs over links: what is made of the runs, and runs on next to nothing."""

import json

import pytest

from experiments import links, plots, split, tables
from experiments.__main__ import main
from experiments.results import read
from tinyjax.collab import parse_link


def metrics(up, down, codec, computing=0.1, rate=None):
    """Of a run that takes what the model says."""
    link = 0.0 if rate is None else (up + down) / rate
    return {
        "up": up,
        "down": down,
        "codec_seconds": codec,
        "link_seconds": link,
        "seconds": computing + codec + link,
    }


def test_a_run_that_keeps_to_the_model_is_where_the_formula_says():
    text = "8Mbit/s"
    rate = parse_link(text).rate
    sizes = {"float32": (2e6, 1e6, 0.0), "int8": (5e5, 2.5e5, 0.01), "sgq": (8e4, 4e4, 0.03)}
    runs, free = (
        {name: metrics(*size, rate=r) for name, size in sizes.items()} for r in (rate, None)
    )
    found = {name: links.speed(name, text, free, runs, 50) for name in sizes}
    assert found["float32"].speedup == found["float32"].predicted == 1
    for one in found.values():
        assert one.rho == pytest.approx(30)
        assert one.speedup == pytest.approx(one.predicted) == pytest.approx(one.beforehand)
    sgq = found["sgq"]
    assert (sgq.r, sgq.kappa) == (pytest.approx(25), pytest.approx(0.3))
    assert sgq.predicted == pytest.approx(31 / (1 + 30 / 25 + 0.3))
    assert sgq.images_per_second == pytest.approx(50 / (0.1 + 0.03 + 0.12))
    assert sgq.over == {
        "float32": pytest.approx(3.1 / 0.25),
        "int8": pytest.approx(0.86 / 0.25),
    }
    assert sgq.less == {"float32": pytest.approx(25), "int8": pytest.approx(6.25)}
    assert plots.speedups(list(found.values())).startswith("<svg")


def test_codecs_are_compared_seed_by_seed(tmp_path, monkeypatch):
    def ran(config, folder):
        whole = 1000 if config.codec == "float32" else 100
        accuracy = 0.9 + 0.01 * config.seed + (0 if config.codec == "float32" else 0.001)
        found[folder] = links.Learned(accuracy, 0.99, 0.98)
        return links.Results(1, 0, 0, 0, 0, whole, whole // 2, 10, 9)

    found = {}
    monkeypatch.setattr(links, "run", ran)
    monkeypatch.setattr(links, "learned", lambda config, folder: found[folder])
    arms = {arm.codec: arm for arm in links.accuracy(links.ACCURACY, tmp_path)}
    assert arms["float32"].to_float32 is None
    to = arms["sgq_entropy"].to_float32
    assert (to.points, to.low, to.high) == pytest.approx((0.1, 0.1, 0.1))
    assert to.verdict == "better"
    assert arms["sgq_entropy"].ratios["float32"] == pytest.approx(10)
    assert arms["sgq_entropy"].down_ratio == pytest.approx(10)
    summary = read(tmp_path / "summary.json")
    assert summary["config"]["limit"] == links.ACCURACY.limit
    assert summary["environment"]["cores"]
    assert len(summary["arms"]) == len(arms)
    assert tables.split_accuracy(list(arms.values())).row_count == len(arms)


@pytest.mark.slow
def test_a_link_is_measured_in_two_processes(tmp_path):
    pytest.importorskip("grpc", reason="grpcio, of the extra collab, is not installed")
    config = links.smoke(links.LINK)
    codecs = ("float32", "sgq_entropy")
    found = links.link(config, tmp_path, rhos=(3.0,), codecs=codecs)
    again = links.link(config, tmp_path, rhos=(3.0,), codecs=codecs)  # reads what is there
    assert found == again
    assert len(list(tmp_path.glob("*.json"))) == 5
    exact, sgq = found
    assert exact.r == exact.speedup == 1
    assert sgq.r > 8
    assert sgq.speedup > 1
    for path in tmp_path.glob("sgq_entropy-*.json"):
        of = json.loads(path.read_text())["metrics"]
        assert of["seconds"] > of["codec_seconds"] + of["link_seconds"]
        assert of["counted"] == of["steps"] - 3 == 2


def test_smoke_runs_are_small():
    for config in (links.ACCURACY, links.LINK):
        assert split.steps_of(links.smoke(config).training) == 5


def test_mistakes_are_answered_in_one_sentence(capsys):
    assert main(["sgq", "link", "--set", "devices=0"]) == 2
    assert "devices=0 is too small" in capsys.readouterr().err
