"""``python -m experiments report [--check]``: the claims, with figures, verdicts and commands.

Written are a table in ``experiments/README.md``, the page ``experiments/results/claims.html``, and
the tables of the documentation, all from committed results. With ``--check`` nothing is written,
and it fails where one of them is stale.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import get_args

from experiments import doc_tables, pages
from experiments.claims import CLAIMS
from experiments.claims.base import Row, Verdict, judged

__all__ = ["COMMAND", "html", "main", "markdown", "rows", "stale"]

COMMAND = "python -m experiments report"
_TEMPLATE = Path(__file__).with_name("page.html")
_METHODS = {
    "Octo": "training in int8 (chapter 3; USENIX ATC 2021)",
    "SGQ": "compressing what crosses a cut (chapter 4; NeurIPS 2022)",
    "PASS": "skipping patches of video (chapter 5; AAAI 2023, TPAMI 2024)",
    "Thesis": "all three together",
}
_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def rows(root: Path = pages.ROOT) -> list[Row]:
    """Every claim, judged by the results that are committed.

    Args:
      root: of the repository.
    """
    return [judged(claim, root) for claim in CLAIMS]


def markdown(found: Sequence[Row]) -> str:
    """The claims as tables of Markdown, a method each, behind how many came to what."""
    header = ["claim", "source, and how far established", "measured here", "verdict, by which rule"]
    parts = [pages.paragraph(f"{_counted(found)}.")]
    for method, some in _by_method(found).items():
        lines = [
            [
                row.claim.text,
                row.claim.source,
                "<br>".join((*row.finding.figures, f"*{_where(row)}*" if row.machines else "")),
                f"**{row.finding.verdict}**<br>{row.claim.rule}",
                "<br>".join(f"`{command}`" for command in row.claim.commands),
            ]
            for row in some
        ]
        parts += [
            f"### {method}: {_METHODS[method]}",
            pages.table([*header, "commands"], ([_cell(c) for c in line] for line in lines)),
        ]
    return "\n\n".join(parts)


def html(found: Sequence[Row]) -> str:
    """The same as a page that needs no other file."""
    sections = []
    for method, some in _by_method(found).items():
        body = "".join(map(_html_row, some))
        sections.append(
            f"<section id='{method.lower()}'><h2>{method}: {escape(_METHODS[method])}</h2>"
            "<table><tr><th>Claim</th><th>Measured here</th><th>Verdict</th></tr>"
            f"{body}</table></section>"
        )
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        counts="".join(
            f"<li>{_pill(verdict)} <b>{count}</b></li>" for verdict, count in _counts(found).items()
        ),
        sections="\n".join(sections),
        command=COMMAND,
    )


def stale(root: Path = pages.ROOT, *, check: bool = True) -> list[Path]:
    """The files that the committed results would change.

    Args:
      root: of the repository.
      check: leave them as they are; otherwise they are written.
    """
    found = rows(root)
    results = root / "experiments" / "results"
    parts: dict[Path, Mapping[str, str]] = {
        root / "docs" / page: {name: make(results) for name, make in made.items()}
        for page, made in doc_tables.PAGES.items()
    }
    parts[root / "experiments" / "README.md"] = {"claims": markdown(found)}
    changed = pages.updated(parts, COMMAND, check=check)
    page, whole = results / "claims.html", html(found)
    if not page.exists() or page.read_text(encoding="utf-8") != whole:
        changed.append(page)
        if not check:
            page.write_text(whole, encoding="utf-8")
    return changed


def main(argv: Sequence[str], root: Path = pages.ROOT) -> int:
    """Writes what is stale, or says it; returns the exit code."""
    changed = lambda check: stale(root, check=check)
    return pages.main(changed, COMMAND, __doc__ or "", argv)


def _by_method(found: Iterable[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {method: [] for method in _METHODS}
    for row in found:
        grouped[row.claim.method].append(row)
    return grouped


def _counts(found: Iterable[Row]) -> dict[Verdict, int]:
    counts = Counter(row.finding.verdict for row in found)
    return {verdict: counts[verdict] for verdict in _VERDICTS if counts[verdict]}


def _counted(found: Sequence[Row]) -> str:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(found).items())
    return f"Of {len(found)} claims: {counts}"


def _where(row: Row) -> str:
    return "; ".join(row.machines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").removesuffix("<br>")


def _pill(verdict: Verdict) -> str:
    return f"<span class='verdict {verdict.split()[0]}'>{verdict}</span>"


def _html_row(row: Row) -> str:
    claim, finding = row.claim, row.finding
    figures = "".join(f"<li>{_inline(figure)}</li>" for figure in finding.figures)
    commands = "".join(f"<code>{escape(command)}</code>" for command in claim.commands)
    files = ", ".join(map(escape, row.files))
    small = f"<p class='small'>{escape(_where(row))}<br>{files}</p>" if row.files else ""
    return (
        f"<tr><td><p class='claim'>{_inline(claim.text)}</p>"
        f"<p class='small'>{_inline(claim.source)}</p></td>"
        f"<td><ul>{figures}</ul>{small}</td>"
        f"<td>{_pill(finding.verdict)}<p class='small'>{_inline(claim.rule)}</p>"
        f"<p class='commands'>{commands}</p></td></tr>"
    )


def _inline(text: str) -> str:
    """Code in backquotes as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
