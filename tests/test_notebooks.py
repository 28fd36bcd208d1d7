"""Notebooks: paired, short, without outputs; every cell runs, and finds what the text says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyjax

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs_short_and_paired(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    lines = [line for source in code(notebook) for line in source.splitlines() if line.strip()]
    assert len(lines) <= 60
    paired = notebook.with_suffix(".py").read_text()
    for cell in cells:
        source = "".join(cell["source"])
        text = source.replace("\n", "\n# ").replace("# \n", "#\n")
        assert (source if cell["cell_type"] == "code" else text) in paired


def learned(found: dict[str, Any]) -> None:
    assert found["curves"]["int8"][-1] < found["curves"]["int8"][0]


def inside(found: dict[str, Any]) -> None:
    """Sums are int32, one scale for all is unkind to narrow columns, random rounding is fair."""
    assert found["sums"].dtype == "int32"
    assert found["errors"][:64].mean() > 5 * found["errors"][64:].mean()  # the last: per tensor
    assert abs(found["up_or_down"].mean(0) - found["g"]).max() < 0.3


def sent(found: dict[str, Any]) -> None:
    assert bool(found["valid"])
    assert (found["back"].packed == found["code"].packed).all()
    sizes = found["sizes"]
    assert sizes["lossless"] < sizes["codes"] < sizes["float32"] / 7.9


def skipped(found: dict[str, Any]) -> None:
    assert 0 < found["taken"].mean() < 0.3
    assert (found["limited"].mean(0) <= found["active"].mean(0) + 1e-6).all()


def together(found: dict[str, Any]) -> None:
    assert 0 < found["taken"][1:].mean() < 0.5
    assert found["features"].nbytes > 8 * found["sizes"].mean()


def written(found: dict[str, Any]) -> None:
    """Every column of ternary weights is a scale times -1, 0 and 1; no two arms are the same."""
    w = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    ternary = tinyjax.rewrite(found["ternary"](), lambda params, x: x @ params["w"])
    rounded = np.asarray(ternary.apply({}, {"w": w}, np.eye(64, dtype=np.float32))[0])
    for column in rounded.T:
        np.testing.assert_allclose(np.unique(column) / column.max(), [-1, 0, 1], rtol=1e-6)
    curves = found["curves"]
    assert all(losses[-1] < losses[0] for losses in curves.values())
    assert len({tuple(losses) for losses in curves.values()}) == len(curves)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "01": learned,
    "02": inside,
    "03": sent,
    "04": skipped,
    "05": together,
    "06": written,
}
# Less of what takes long; `make notebooks` runs them as they are.
SHORTER = {"range(60)": "range(12)", "tries=4": "tries=1"}
SLOW = ("02", "03", "04", "05", "06")


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, marks=[pytest.mark.slow] if path.stem[:2] in SLOW else [])
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_every_cell_runs(notebook, monkeypatch, standard_promotion):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", plt.close)
    monkeypatch.chdir(notebook.parent)
    namespace: dict = {"__name__": "__main__"}
    for source in code(notebook):
        for long, short in SHORTER.items():
            source = source.replace(long, short)
        exec(compile(source, notebook.name, "exec"), namespace)
    CHECKS[notebook.stem[:2]](namespace)
