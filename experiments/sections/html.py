"""Pieces of HTML that the sections of the report share; their styles are in ``report.html``."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

__all__ = ["cards", "claims", "definitions", "listed", "rows", "times"]

_SHOWN = {"yes": "shown", "partly": "in part", "no": "not shown"}


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """Cards with one big figure each: (title, figure, small print), the last two HTML."""
    return "".join(
        f"<div class='card'><h3>{title}</h3><div class='big'>{big}</div>"
        f"<p class='small'>{small}</p></div>"
        for title, big, small in entries
    )


def claims(entries: Iterable[tuple[str, str, str]]) -> str:
    """The rows of a table of claims.

    Args:
      entries: (what the thesis claims, "yes" | "partly" | "no", what the demo shows), HTML.
    """
    head = "<tr><th>The thesis claims</th><th></th><th>This demo</th></tr>"
    return head + "".join(
        f"<tr><td>{claim}</td><td><span class='shown {shown}'>{_SHOWN[shown]}</span></td>"
        f"<td>{found}</td></tr>"
        for claim, shown, found in entries
    )


def definitions(entries: Mapping[str, Any]) -> str:
    """A mapping as ``<dt>`` and ``<dd>``, without the entries that are None."""
    shown = ((key, value) for key, value in entries.items() if value is not None)
    return "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(_word(value))}</dd>"
        for key, value in shown
    )


def listed(sentences: Iterable[str]) -> str:
    """Sentences, HTML, as ``<li>``."""
    return "".join(f"<li>{sentence}</li>" for sentence in sentences)


def rows(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """The rows of a table, the headings first; cells are HTML."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = ("".join(f"<td>{cell}</td>" for cell in cells) for cells in lines)
    return f"<tr>{head}</tr>" + "".join(f"<tr>{cells}</tr>" for cells in body)


def times(ratio: float, better: str, worse: str) -> str:
    """A ratio in words, whichever way it points; small ones to two decimals."""
    word, ratio = (better, ratio) if ratio >= 1 else (worse, 1 / ratio)
    return f"{ratio:.{2 if ratio < 2 else 1}f}× {word}"


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
