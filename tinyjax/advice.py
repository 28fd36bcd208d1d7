"""What an audit finds: a row of figures for every site, the policy they make, and their table."""

from __future__ import annotations

from typing import NamedTuple

from tinyjax.alone import Products
from tinyjax.base import Site, Transform
from tinyjax.combine import identity, where
from tinyjax.numerics.integer_ops import MAX_CONTRACTION

__all__ = ["Advice", "Audit"]

MARGIN = 0.97  # int8 has to be faster by more than medians move


class Advice(NamedTuple):
    """What one site costs.

    Attributes:
      site: the :class:`tinyjax.Site`.
      first: whether its activation depends on no parameter, so that training needs no ``dx``.
      macs: multiply-accumulates of the three products; 0 for a ``dx`` that nobody needs.
      int8: which of them the transform computes from int8 codes.
      float_bytes: kept by this site from forward to backward, parameters and inputs of the model
        apart.
      int8_bytes: likewise, under the transform.
      float_ms: milliseconds of all its products; ``None`` if not measured.
      int8_ms: likewise, under the transform, with quantization.
      contractions: how many products of codes an element of each int8 product adds up.
      parts: in how many int32 sums, so that none is longer than int32 holds whatever the codes
        are, 133144.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> report = tinyjax.audit(lambda w, x: x @ w, jnp.ones((3, 5)), jnp.ones((2, 3)),
      ...                        measure=False, cache=None)
      >>> report.rows[0].macs, report.rows[0].faster
      (Products(y=30, dx=0, dw=30), False)
    """

    site: Site
    first: bool
    macs: Products
    int8: Products
    float_bytes: int
    int8_bytes: int
    float_ms: float | None
    int8_ms: float | None
    contractions: Products
    parts: Products

    @property
    def faster(self) -> bool:
        """Whether int8 was measured faster than float, by at least 3 %."""
        if self.float_ms is None or self.int8_ms is None:
            return False
        return self.int8_ms <= MARGIN * self.float_ms

    @property
    def sums(self) -> Products:
        """Products of codes in the longest int32 sum of each product, split as it is."""
        pairs = zip(self.contractions, self.parts, strict=True)
        return Products(*(-(-length // parts) for length, parts in pairs))

    @property
    def int8_macs(self) -> int:
        """Multiply-accumulates of the products that are int8."""
        return sum(n for n, int8 in zip(self.macs, self.int8, strict=True) if int8)


class Audit(NamedTuple):
    """What the sites of a model cost, and where int8 pays. Printed, it is a table.

    Attributes:
      rows: an :class:`Advice` for every site, in program order.
      macs: multiply-accumulates of training, those outside of sites included.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> params, x = {"w": jnp.ones((3, 5))}, jnp.ones((2, 3))
      >>> report = tinyjax.audit(lambda p, x: x @ p["w"], params, x, measure=False, cache=None)
      >>> report.int8_share, [report.policy(row.site) for row in report.rows]
      (1.0, [False])
    """

    rows: tuple[Advice, ...]
    macs: int

    @property
    def int8_share(self) -> float:
        """Share of the model's multiply-accumulates in int8, were every site transformed: 0..1."""
        return sum(row.int8_macs for row in self.rows) / max(self.macs, 1)

    def policy(self, site: Site) -> bool:
        """Whether int8 was measured faster at a site, by its path; never where it was not."""
        return any(row.faster for row in self.rows if row.site.path == site.path)

    def choose(self, tx: Transform) -> Transform:
        """The transform that was audited, at the sites where it was faster.

        Args:
          tx: the transform.

        Returns:
          ``where(self.policy, tx)``, or ``identity()`` if it was faster nowhere, where ``where``
          would raise an error.
        """
        return where(self.policy, tx) if any(row.faster for row in self.rows) else identity()

    def __str__(self) -> str:
        return _table(self)


_HEADINGS = (
    ("", "MMAC", "MMAC", "int8", "kept kB", "kept kB", "ms", "ms", "speed", "int32", "int8"),
    ("site", "of y", "of all", "product", "float", "int8", "float", "int8", "-up", "parts", "pays"),
)
_PATH = 22  # characters of a path, its last ones


def _table(audit: Audit) -> str:
    """A line for every site, aligned, with units in the headings; what they come to; a summary."""
    rows = [_line(row) for row in audit.rows]
    outside = audit.macs - sum(sum(row.macs) for row in audit.rows)
    if outside:
        rows.append(("no sites", "", _millions(outside), *[""] * 8))
    rows.append(_total(audit))
    widths = [max(map(len, column)) for column in zip(*_HEADINGS, *rows, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_aligned(row, widths) for row in (*_HEADINGS, *rows)]
    taken = [row for row in audit.rows if row.faster]
    longest = max(max(row.sums) for row in audit.rows)
    summary = (
        f"int8 was measured faster at {len(taken)} of {len(audit.rows)} sites, each alone. The "
        f"longest int32 sum\nadds up {longest} products of codes; {MAX_CONTRACTION} always fit."
    )
    return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1], "", summary])


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    name, *cells = row
    padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *padded]).rstrip()


def _line(row: Advice) -> tuple[str, ...]:
    path = row.site.path
    kinds = (name for name, int8 in zip(Products._fields, row.int8, strict=True) if int8)
    return (
        path if len(path) <= _PATH else f"…{path[1 - _PATH :]}",
        _millions(row.macs.y),
        _millions(sum(row.macs)),
        " ".join(kinds) or "none",
        *_costs(row.float_bytes, row.int8_bytes, row.float_ms, row.int8_ms),
        " ".join(map(str, row.parts)),
        "yes" if row.faster else "no" if row.int8_ms else "?",
    )


def _total(audit: Audit) -> tuple[str, ...]:
    column = lambda field: [getattr(row, field) for row in audit.rows]
    bytes_ = (sum(column(field)) for field in ("float_bytes", "int8_bytes"))
    times = (column(field) for field in ("float_ms", "int8_ms"))
    return (
        "total",
        _millions(sum(macs.y for macs in column("macs"))),
        _millions(audit.macs),
        f"{audit.int8_share:.0%}",
        *_costs(*bytes_, *(None if None in ms else sum(ms) for ms in times)),
        "",
        "",
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 1e9 else f"{count / 1e6:.0f}"


def _costs(
    float_bytes: int, int8_bytes: int, float_ms: float | None, int8_ms: float | None
) -> tuple[str, ...]:
    """Cells of bytes kept, milliseconds and their ratio."""
    kept = (f"{float_bytes / 1e3:.0f}", f"{int8_bytes / 1e3:.0f}")
    if float_ms is None or int8_ms is None:
        return (*kept, "?", "?", "?")
    times = (f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" for ms in (float_ms, int8_ms))
    return (*kept, *times, f"{float_ms / int8_ms:.2f}x")
