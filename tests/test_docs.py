"""The documentation: nothing public is left out, every page is reached, every example is run."""

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.stem for page in DOCS.glob("*.md"))
API = (DOCS / "api.md").read_text()
MODULES = re.findall(r"automodule:: (\S+)", API)


@pytest.mark.parametrize("module", ["tinyjax", *MODULES])
def test_the_api_page_has_every_public_name(module):
    assert module in MODULES
    found = importlib.import_module(module)
    for name in found.__all__:
        value = getattr(found, name)
        # What autodoc shows by itself; all else has to be written down.
        shown = callable(value) and inspect.getdoc(value)
        assert shown or re.search(rf":: {re.escape(module)}\.{name}\b", API), f"{module}.{name}"


def test_every_page_is_in_a_list_of_contents():
    index = (DOCS / "index.md").read_text()
    listed = [
        line
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
        for line in block.splitlines()
        if line and not line.startswith(":")
    ]
    notebooks = [f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(listed) == sorted([*(page for page in PAGES if page != "index"), *notebooks])
    assert (DOCS / "notebooks").resolve() == ROOT / "notebooks"


def test_every_page_with_examples_is_run():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    run = settings["tool"]["pytest"]["ini_options"]["testpaths"]
    for page in PAGES:
        if ">>> " in (DOCS / f"{page}.md").read_text():
            assert f"docs/{page}.md" in run
