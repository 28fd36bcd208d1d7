"""The demo's report: one HTML file that needs no other file and no network.

A header, a section for every method, and where the figures were taken. What a section shows is in
`experiments.sections`.
"""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from experiments.results import Record
from experiments.sections import html, octo, sgq, skip

__all__ = ["SECTIONS", "Section", "page"]

_TEMPLATE = Path(__file__).with_suffix(".html")


class Section(NamedTuple):
    """How a method is called in the report, and its part of the page."""

    name: str
    about: str
    title: str
    body: Callable[[Record], str]  # the HTML of its record


SECTIONS: dict[str, Section] = {
    "octo": Section(
        "Octo", "computation, chapter 3", "One train step, in float32 and in int8", octo.section
    ),
    "sgq": Section(
        "SGQ",
        "communication, chapter 4",
        "A network cut in two, few bits between",
        sgq.section,
    ),
    "pass": Section(
        "PASS", "execution, chapter 5", "Video, computing only what changed", skip.section
    ),
}


def page(records: Mapping[str, Record]) -> str:
    """The report of the demo, as HTML; the same records give the same page.

    Args:
      records: as in ``results.json``, ``{part: record}``, parts among `SECTIONS`, at least one.
    """
    first = next(iter(records.values()))
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        lead=_LEAD,
        nav="".join(
            f"<a href='#{part}'>{found.name}: {found.title}</a>"
            for part, found in SECTIONS.items()
            if part in records
        ),
        sections="\n".join(_section(part, records[part]) for part in records),
        environment=html.definitions(first["environment"]),
        configs="".join(
            f"<h3>Configuration of {part}</h3><dl>{html.definitions(record['config'])}</dl>"
            for part, record in records.items()
        ),
        command=escape(first["command"]),
    )


def _section(part: str, record: Record) -> str:
    found = SECTIONS[part]
    return (
        f"<section id='{part}'>\n<p class='eyebrow'>{found.name} · {found.about}</p>\n"
        f"<h1>{found.title}</h1>\n{found.body(record)}\n</section>"
    )


_LEAD = (
    "Q. Zhou, <i>Towards efficient tiny machine learning systems for ubiquitous edge "
    "intelligence</i>, The Hong Kong Polytechnic University, 2023. Only its abstract, those of the "
    "papers and partial code were at hand, so no table is reproduced: each section says what is "
    "claimed, and what was measured here, on this machine."
)
