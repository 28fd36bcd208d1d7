"""Parts of Markdown pages that are made from committed results, between two comments.

A page says where a part goes and which command writes it::

    <!-- begin NAME: COMMAND -->

    what the command writes

    <!-- end NAME -->

The command fills in every part that is its own. A page is stale where that would change it.
"""

import argparse
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["ROOT", "filled", "main", "paragraph", "table", "updated"]

ROOT = Path(__file__).parents[1]
_PART = re.compile(r"<!-- begin ([\w.-]+): (.+?) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
_WIDTH = 100  # of a line of prose


def filled(text: str, parts: Mapping[str, str], command: str) -> str:
    """A page with its parts made anew.

    Args:
      text: of the page, in Markdown.
      parts: what belongs between the comments, by name.
      command: whose parts these are; those of other commands stay.

    Raises:
      ValueError: if the page has no place for a part, or a place for one that there is not.

    >>> page = "<!-- begin sum: make sum -->\\n3<!-- end sum -->"
    >>> print(filled(page, {"sum": "1 + 1 = 2"}, "make sum"))
    <!-- begin sum: make sum -->
    <BLANKLINE>
    1 + 1 = 2
    <BLANKLINE>
    <!-- end sum -->
    """
    places = [name for name, whose, _ in _PART.findall(text) if whose == command]
    if sorted(places) != sorted(parts):
        raise ValueError(
            f"the page has places for {sorted(places)} of `{command}` and there are parts for "
            f"{sorted(parts)}: write the comments that are missing, and remove what is too much"
        )

    def made(found: re.Match[str]) -> str:
        name, whose = found[1], found[2]
        if whose != command:
            return found[0]
        return f"<!-- begin {name}: {whose} -->\n\n{parts[name].strip()}\n\n<!-- end {name} -->"

    return _PART.sub(made, text)


def updated(
    pages: Mapping[Path, Mapping[str, str]], command: str, *, check: bool = False
) -> list[Path]:
    """Writes the parts of a command into their pages.

    Args:
      pages: the parts of every page, by its path.
      command: whose parts these are.
      check: leave the pages as they are.

    Returns:
      The pages that were stale.
    """
    stale = []
    for path, parts in pages.items():
        text = path.read_text(encoding="utf-8")
        fresh = filled(text, parts, command)
        if fresh != text:
            stale.append(path)
            if not check:
                path.write_text(fresh, encoding="utf-8")
    return stale


def main(stale: Callable[[bool], list[Path]], command: str, about: str, argv: Sequence[str]) -> int:
    """The command line of a command that writes pages; returns the exit code.

    Args:
      stale: the files that are stale; given False, it writes them too.
      command: how it is called.
      about: what it says of itself.
      argv: nothing, or ``--check``, with which stale files are an error.
    """
    parser = argparse.ArgumentParser(prog=command, description=about)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    check = parser.parse_args(argv).check
    found = stale(check)
    for path in found:
        print(f"{path} {f'is stale: run {command}' if check else 'is written'}")
    return int(check and bool(found))


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown of a table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    written = (" | ".join(cells) for cells in (header, ["---"] * len(header), *lines))
    return "\n".join(f"| {line} |" for line in written)


def paragraph(*sentences: str) -> str:
    """Sentences as lines of prose, those that are empty left out.

    >>> paragraph("One.", "", "Two.")
    'One. Two.'
    """
    text = " ".join(sentence for sentence in sentences if sentence)
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
