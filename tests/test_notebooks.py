"""Notebooks: text and notebook agree, no outputs, short, and every cell runs."""

import json
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(notebook, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", plt.close)
    monkeypatch.chdir(notebook.parent)
    namespace: dict = {"__name__": "__main__"}
    for source in code(notebook):
        # A fifth of the steps: `make notebooks` takes them all.
        shorter = source.replace("range(60)", "range(12)")
        exec(compile(shorter, notebook.name, "exec"), namespace)
    curves = namespace["curves"]
    assert curves["int8"][-1] < curves["int8"][0]
