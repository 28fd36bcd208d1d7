"""Pages hold the figures of committed results, and verdicts follow from figures."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.rate import report as rate
from experiments import claims, doc_tables, pages
from experiments.__main__ import main
from experiments.claims import written
from experiments.claims.base import Claim, Evidence, Finding, judged

RESULTS = "experiments/results"


# --- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [written.main, readme.main, rate.main])
def test_every_page_has_the_figures_of_the_committed_runs(command, capsys):
    assert command(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("folder", [RESULTS, "benchmarks/results"])
def test_records_name_no_folder_of_a_machine(folder):
    files = [file for file in (pages.ROOT / folder).rglob("*") if file.is_file()]
    assert files
    for file in files:
        assert file.suffix in (".json", ".svg", ".html"), f"{file} is not a result"
        assert not re.search(r'[ "=]/(\w+/)', file.read_text(encoding="utf-8")), file


# Where figures are only between comments. Elsewhere, prose sums up the tables above it.
@pytest.mark.parametrize(
    ("page", "part"),
    [
        ("README.md", r"## Measured\n(.*?)\n## "),
        ("experiments/README.md", r"## Claims and verdicts\n(.*)"),
    ],
)
def test_no_figure_is_written_by_hand(page, part):
    (text,) = re.findall(part, (pages.ROOT / page).read_text(), re.DOTALL)
    rest = re.sub(r"<!-- begin .*?<!-- end .*? -->", "", text, flags=re.DOTALL)
    assert rest != text
    assert re.findall(r"\d+(?:\.\d+)?(?:x\b| ms| ?%| dB| GB/s)", rest) == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}" for name in doc_tables.PAGES)])
def test_no_table_of_figures_is_written_by_hand(page):
    text = (pages.ROOT / page).read_text()
    rest = re.sub(r"<!-- begin .*?<!-- end .*? -->", "", text, flags=re.DOTALL)
    tables = [line for line in rest.splitlines() if line.startswith("|")]
    assert [line for line in tables if re.search(r"\d\.\d+x|\[[+-]\d|\d(\.\d+)?%", line)] == []


def test_parts_are_filled_in_and_those_of_others_stay():
    page = "<!-- begin x: make x -->\nold<!-- end x -->\n<!-- begin y: make y -->\n<!-- end y -->"
    fresh = pages.filled(page, {"x": "new\n"}, "make x")
    assert fresh == page.replace("old", "\nnew\n\n")
    assert pages.filled(fresh, {"x": "new"}, "make x") == fresh
    with pytest.raises(ValueError, match="write the comments that are missing"):
        pages.filled(page, {}, "make x")
    with pytest.raises(ValueError, match=r"places for \['y'\] of `make y`"):
        pages.filled(page, {"y": "1", "z": "2"}, "make y")


@pytest.fixture
def copy(tmp_path):
    """What the report reads and writes."""
    for name in ("docs", RESULTS, "benchmarks/results"):
        built = shutil.ignore_patterns("_build", "figures")
        shutil.copytree(pages.ROOT / name, tmp_path / name, ignore=built)
    shutil.copy(pages.ROOT / "experiments" / "README.md", tmp_path / "experiments")
    return tmp_path


def changed(path: Path, change) -> None:
    """A JSON with another content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def slower(content):
    content["rows"][1]["speedup_best"] *= 0.9


def less_accurate(content):
    content["arms"][3]["accuracies"][0] -= 0.01


def test_another_result_makes_pages_stale(copy, capsys):
    assert written.main(["--check"], copy) == 0
    changed(copy / "benchmarks/results/int8.json", slower)
    assert written.main(["--check"], copy) == 1
    said = capsys.readouterr().out
    assert "README.md is stale: run python -m experiments report" in said
    assert "claims.html is stale" in said
    assert written.main([], copy) == 0
    assert written.main(["--check"], copy) == 0
    changed(copy / RESULTS / "split_accuracy.json", less_accurate)
    assert {path.name for path in written.stale(copy)} == {"split.md", "README.md", "claims.html"}


def test_the_page_of_claims_may_be_missing_or_edited(copy):
    page = copy / RESULTS / "claims.html"
    page.write_text(page.read_text().replace("confirmed", "refuted"))
    assert written.stale(copy) == [page]
    page.unlink()
    assert written.stale(copy) == [page]


def test_a_readme_of_another_run_is_stale(tmp_path, monkeypatch, capsys):
    shutil.copytree(pages.ROOT / "benchmarks/results", tmp_path / "results")
    monkeypatch.setattr(readme, "_RESULTS", tmp_path / "results")
    assert readme.main(["--check"]) == 0
    changed(tmp_path / "results/int8.json", slower)
    assert readme.main(["--check"]) == 1
    assert "README.md is stale: run python -m benchmarks.readme" in capsys.readouterr().out


def test_a_wrong_word_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--chek"])
    assert "--chek" in capsys.readouterr().err
    assert main(["report", "--check"]) == 0


# --- verdicts ------------------------------------------------------------------------------------


def verdict(root: Path, words: str) -> str:
    (claim,) = (claim for claim in claims.CLAIMS if words in f"{claim.method}: {claim.text}")
    return judged(claim, root).finding.verdict


def every(key, value):
    """Sets a key in every row or arm of a JSON."""

    def change(content):
        for row in content.get("rows") or content.get("arms") or content["links"]:
            row[key] = value

    return change


def moved(low, high):
    """Sets every interval of the ablation."""

    def change(content):
        for arms in content["tasks"].values():
            for arm in arms:
                for to in ("to_float32", "to_int8"):
                    if arm[to]:
                        arm[to] |= {"low": low, "high": high, "points": (low + high) / 2}

    return change


def ratios(value):
    def change(content):
        for arm in content["arms"]:
            arm["ratios"] |= {"float32": value}

    return change


def over(value):
    def change(content):
        for link in content["links"]:
            link["over"] = dict.fromkeys(link["over"], value)

    return change


@pytest.mark.parametrize(
    ("words", "name", "change", "expected"),
    [
        ("trains as well", "ablation", moved(-0.2, 0.2), "confirmed"),
        ("trains as well", "ablation", moved(-0.4, 0.2), "partly"),
        ("trains as well", "ablation", moved(-2.0, -1.5), "not reproduced"),
        ("trains better", "ablation", moved(-0.4, -0.2), "confirmed"),
        ("trains better", "ablation", moved(-0.4, 0.2), "not reproduced"),
        ("A device learns on", "adapt", moved(-0.6, 0.2), "not reproduced"),
        ("(LAC)", "ablation", moved(0.1, 0.2), "confirmed"),
        ("(PRC)", "ablation", moved(0.1, 0.2), "confirmed"),
        ("(PRC)", "ablation", moved(-0.1, 0.2), "not reproduced"),
        ("processing speed", "int8", every("speedup_best", 1.2), "confirmed"),
        ("processing speed", "int8", every("speedup_best", 1.0), "not reproduced"),
        ("kept for the backward", "int8", every("saved_bytes_ratio", 1.0), "not reproduced"),
        ("scratch of the", "int8", every("temp_bytes_ratio", 1.2), "confirmed"),
        ("even with 4 bits", "split_accuracy", every("to_float32", None), None),
        ("read as over float32", "split_accuracy", ratios(15.9), "not reproduced"),
        ("read as over uniform 4-bit", "split_accuracy", ratios(200.0), "confirmed"),
        ("sends float32", "split_link", over(9.2), "not reproduced"),
        ("really sent", "split_link", over(9.3), "confirmed"),
    ],
)
def test_verdicts_follow_from_figures(copy, words, name, change, expected):
    folder = "benchmarks/results" if name == "int8" else RESULTS
    changed(copy / folder / f"{name}.json", change)
    if expected is None:  # a result that lacks what is judged is never a verdict
        with pytest.raises(TypeError):
            verdict(copy, words)
    else:
        assert verdict(copy, words) == expected


def outcome(copy, change):
    (path,) = (copy / RESULTS / "outcomes").glob("*.json")
    changed(path, lambda content: change(content["metrics"]))


def folds(copy, **figures):
    for path in (copy / RESULTS / "tasks").glob("*.json"):
        changed(path, lambda content: content["metrics"]["arms"]["key"].update(figures))


def clip(**figures):
    def change(metrics):
        for arm in metrics["environments"]["clip"]["arms"].values():
            arm.update(figures)

    return change


LOST = {"f1_points": -1.1, "mota_points": -1.1}


def environments(**figures):
    def change(metrics):
        for found in metrics["environments"].values():
            for arm in found["arms"].values():
                arm.update(figures)

    return change


@pytest.mark.parametrize(
    ("words", "change", "of_folds", "expected"),
    [
        ("Faster processing", clip(speedup=1.2), {"speedup": 1.2}, "confirmed"),
        ("Faster processing", clip(speedup=1.2), {"speedup": 1.0}, "partly"),
        ("Faster processing", clip(speedup=1.0), {"speedup": 1.0}, "not reproduced"),
        ("9.43x", clip(speedup=9.5, output_error=0.009), {}, "confirmed"),
        ("9.43x", clip(speedup=9.5, output_error=0.011), {}, "partly"),
        ("12.19x", clip(speedup=12.1, output_error=0.009), {}, "partly"),
        ("PASS: Less memory", clip(state_bytes=0, temp_bytes=1), {"state_bytes": 0}, "partly"),
        (
            "PASS: Less memory",
            clip(state_bytes=0, temp_bytes=1),
            {"state_bytes": 0, "temp_bytes": 1},
            "confirmed",
        ),
        ("Less computation", clip(macs_share=0.95), {"macs_share": 0.95}, "not reproduced"),
        ("quality is kept", clip(output_error=0.009), {"f1_points": -0.9}, "confirmed"),
        ("quality is kept", clip(output_error=0.011), LOST, "not reproduced"),
        ("Stable predictions", environments(change=0.0), {"flips": 0.0}, "confirmed"),
        ("Stable predictions", environments(change=9.0), {"flips": 1.0}, "not reproduced"),
        ("Adaptation", environments(speedup=1.0, output_error_p95=0.01), {}, "confirmed"),
        ("Adaptation", environments(speedup=0.8, output_error_p95=0.01), {}, "not reproduced"),
    ],
)
def test_verdicts_of_pass_follow_from_figures(copy, words, change, of_folds, expected):
    outcome(copy, change)
    folds(copy, **of_folds)
    assert verdict(copy, words) == expected


def test_speedups_of_real_clips_count_once_they_are_measured(copy):
    path = copy / "benchmarks/results/clips.json"
    path.unlink(missing_ok=True)
    assert verdict(copy, "9.43x") == "partly"
    row = {"case": "street, exact", "speedup": 10.0, "error": 0.02}
    path.write_text(json.dumps({"rows": [row]}))
    assert verdict(copy, "9.43x") == "partly"
    path.write_text(json.dumps({"rows": [row | {"error": 0.005}]}))
    assert verdict(copy, "9.43x") == "confirmed"
    changed(copy / "benchmarks/results/pass.json", every("speedup", 5.0))
    path.unlink()
    assert verdict(copy, "9.43x") == "not reproduced"


def test_the_learned_gate_is_judged_at_equal_activity(copy):
    gate = copy / RESULTS / "learned_gate.json"
    assert verdict(copy, "learn by themselves") == "partly"

    def better(content):
        for point in content["metrics"]["points"]:
            point["error"] |= {"learned": 0.9 * point["error"]["threshold"]}

    changed(gate, better)
    assert verdict(copy, "learn by themselves") == "confirmed"

    def elsewhere(content):
        content["metrics"]["gate_ms"]["learned"] = content["metrics"]["dense_ms"]
        for point in content["metrics"]["points"]:
            point["activity"]["learned"] = point["activity"]["threshold"] + 0.03

    changed(gate, elsewhere)
    assert verdict(copy, "learn by themselves") == "not reproduced"


def thesis(folder: Path, off: str, every: int, **metrics) -> None:
    """A record as `experiments.thesis` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"off": off, "every": every, "fold": 0, "cores": 0, "memory": 0, "link": ""}
    base = {"half_ms": 10.0, "whole_ms": 20.0, "up": 1000.0, "f1": 0.9} | metrics
    content = {"config": config, "metrics": base}
    (folder / f"{off}-{every}.json").write_text(json.dumps(content))


def test_what_was_not_run_is_told_and_judged_once_it_is(copy):
    folder = copy / RESULTS / "thesis"
    shutil.rmtree(folder, ignore_errors=True)
    assert verdict(copy, "streamed") == "not run yet"
    assert verdict(copy, "while it learns") == "not run yet"
    for path in (*copy.glob(f"{RESULTS}/**/*.json"), *copy.glob("benchmarks/results/*.json")):
        path.unlink()
    found = {row.finding.verdict for row in written.rows(copy)}
    assert found == {"not run yet", "not testable here"}
    thesis(folder, "nothing", 0, half_ms=3.0, up=70.0, f1=0.89)
    thesis(folder, "all", 0)
    assert verdict(copy, "streamed") == "confirmed"
    thesis(folder, "nothing", 0, half_ms=3.0, up=90.0, f1=0.89)
    assert verdict(copy, "streamed") == "partly"
    thesis(folder, "nothing", 0, half_ms=9.0, up=900.0, f1=0.8)
    assert verdict(copy, "streamed") == "not reproduced"
    assert verdict(copy, "has its share") == "not run yet"
    thesis(folder, "sgq", 0, up=2000.0)
    thesis(folder, "int8", 0, half_ms=8.0)
    assert verdict(copy, "has its share") == "partly"


def test_claims_are_whole():
    texts = [claim.text for claim in claims.CLAIMS]
    assert len(set(texts)) == len(texts)
    for number in ("15.97x", "9.22x", "9.43x", "12.19x"):
        assert any(number in text for text in texts)
    for claim in claims.CLAIMS:
        assert all(command.startswith("python -m ") for command in claim.commands), claim
        row = judged(claim, pages.ROOT)
        unseen = ("not run yet", "not testable here")
        assert row.files or row.finding.verdict in unseen
        if row.finding.verdict != "not testable here":
            assert claim.commands


def test_machines_and_loads_are_told(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    where = {"cpu": "A", "cores": 2, "jax": "1"}
    for name, load in (("a", 1.0), ("b", 7.2), ("c", 9.0)):
        env = where | {"load_average": [load, 0, 0]}
        (folder / f"{name}.json").write_text(json.dumps({"env": env}))
    (folder / "d.json").write_text("{}")

    def judge(evidence: Evidence) -> Finding:
        for name in "abcd":
            evidence.benchmark(name)
        return Finding(("told",), "confirmed")

    row = judged(Claim("Octo", "a", "b", "c", judge, ()), tmp_path)
    busy = "A, 2 cores, jax 1, beside other work (load 7 to 9)"
    assert row.machines == (busy, "machine not recorded")
    assert len(row.files) == 4


# --- the page ------------------------------------------------------------------------------------


class Tags(html.parser.HTMLParser):
    """Whether tags close as they open, and what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file():
    text = (pages.ROOT / RESULTS / "claims.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert (tags.open, tags.fetched) == ([], [])
    assert "url(" not in text
    assert "@import" not in text
    assert "$" not in text
    for claim in claims.CLAIMS:
        assert all(command in text for command in claim.commands)
    assert text.count("class='verdict ") == len(claims.CLAIMS) + len(
        {row.finding.verdict for row in written.rows()}
    )


def test_a_browser_shows_the_page_without_errors(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    page = pages.ROOT / RESULTS / "claims.html"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('class="verdict ') >= len(claims.CLAIMS)
