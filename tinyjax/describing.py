"""Describes how a function over frames is divided: blocks, cells, halos, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tinyjax import compat
from tinyjax.base import BlockTransform
from tinyjax.blocks import Block, break_even, divided, macs_of

__all__ = ["BlockAdvice", "Description", "describe"]

Pair = tuple[int, ...]  # of height and width


class BlockAdvice(NamedTuple):
    """A block of a function, as :func:`tinyjax.describe` found it.

    Attributes:
      products: its convolutions and other products in order, by the path of their weights.
      size: height and width of its outputs.
      grid: rows and columns of cells.
      cell: height and width of a cell of its outputs.
      low: how far the window of a cell reaches beyond it in its inputs, above and to the left, at
        most, in positions of the input.
      high: likewise, below and to the right.
      macs: multiply-accumulates of the whole block.
      cell_macs: of one cell, with what its halos add.
      break_even: share of the cells from which on the block costs less as a whole, by the model of
        the cost that divided the function.

    Example:
      >>> import tinyjax
      >>> tinyjax.BlockAdvice._fields[:3]
      ('products', 'size', 'grid')
    """

    products: tuple[str, ...]
    size: Pair
    grid: Pair
    cell: Pair
    low: Pair
    high: Pair
    macs: int
    cell_macs: int
    break_even: float


class Description(NamedTuple):
    """How a function is divided; ``str`` is a table.

    Attributes:
      frame: shape of a frame.
      patch: side of its patches.
      blocks: in order.
      in_full: operations that are computed whole for every frame, by name: how many.
      macs_in_full: multiply-accumulates in them.
      break_even: share of all cells from which on a whole frame costs less.

    Example:
      >>> import tinyjax
      >>> tinyjax.Description._fields[:3]
      ('frame', 'patch', 'blocks')
    """

    frame: Pair
    patch: int
    blocks: tuple[BlockAdvice, ...]
    in_full: Mapping[str, int]
    macs_in_full: int
    break_even: float

    def __str__(self) -> str:
        pair = lambda sides: "x".join(map(str, sides))
        total = self.macs_in_full + sum(block.macs for block in self.blocks)
        rows = [("block", "output", "cells", "of", "halo", "MACs", "halo adds", "breaks even")]
        for number, block in enumerate(self.blocks):
            cells = block.grid[0] * block.grid[1] * block.cell_macs
            rows.append(
                (
                    str(number),
                    pair(block.size),
                    pair(block.grid),
                    pair(block.cell),
                    f"{pair(block.low)}, {pair(block.high)}",
                    f"{block.macs:,}",
                    f"{cells / block.macs - 1:.0%}",
                    f"{block.break_even:.0%}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        ]
        lines += [f"{n}: {', '.join(block.products)}" for n, block in enumerate(self.blocks)]
        full = ", ".join(f"{count} {name}" for name, count in self.in_full.items()) or "nothing"
        return "\n".join(
            [
                f"frames {pair(self.frame)}, patches of {self.patch}, {total:,} MACs",
                *lines,
                f"in full for every frame: {full}, {self.macs_in_full:,} MACs",
                f"predicted to cost less as a whole from {self.break_even:.0%} of the cells on",
            ]
        )


def describe(
    tx: BlockTransform, apply: Callable[..., Any], params: Any, *args: Any, **kwargs: Any
) -> Description:
    """How a transform of blocks divides a function of one frame; evaluates nothing.

    What it costs follows from a model with the rates of one machine, so shares are a guide.

    Args:
      tx: ``pass_skip(...)``.
      apply: ``apply(params, frame)``.
      params: its parameters, or their shapes.
      *args: its frame ``[1, h, w, c]``, or its shape (``jax.ShapeDtypeStruct``), and what else.
      **kwargs: its keywords.

    Returns:
      A description; print it.

    Raises:
      ValueError: if the transform works on sites, or if the function cannot be divided.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, tinyjax
      >>> model = nn.Sequential([nn.Conv(32, (3, 3)), nn.relu, nn.Conv(32, (3, 3))])
      >>> frame = jnp.zeros((1, 128, 128, 3))
      >>> params = model.init(jax.random.key(0), frame)
      >>> tx = tinyjax.pass_skip(patch=16, fuse=False)
      >>> found = tinyjax.describe(tx, model.apply, params, frame)
      >>> [(block.products[0], block.grid, block.macs) for block in found.blocks]
      [('params/layers_0/kernel', (8, 8), 14155776), ('params/layers_2/kernel', (8, 8), 150994944)]
      >>> print(str(found).splitlines()[0])
      frames 1x128x128x3, patches of 16, 165,150,720 MACs

    References:
      Alwani et al., `Fused-Layer CNN Accelerators
      <https://doi.org/10.1109/MICRO.2016.7783725>`_, MICRO 2016: layers are fused by the cost of
      what they compute twice.
    """
    if not isinstance(tx, BlockTransform):
        raise ValueError(
            f"the transform is a {type(tx).__name__}, which works on sites: give pass_skip(...)"
        )
    flat, parts = divided(tx, apply, params, *args, **kwargs)
    full = [*(eqn for block in parts.blocks for eqn in block.before), *parts.tail]
    return Description(
        frame=parts.frame.aval.shape,
        patch=tx.patch,
        blocks=tuple(_advice(block, flat.names) for block in parts.blocks),
        in_full=dict(Counter(eqn.primitive.name for eqn in full)),
        macs_in_full=sum(map(_macs, full)),
        break_even=break_even(parts.blocks),
    )


def _advice(block: Block, names: Mapping[Any, str]) -> BlockAdvice:
    out, halos = block.outs[0], [block.halos[v] for v in block.ins]
    most = lambda sides: tuple(map(max, zip(*sides, strict=True)))
    macs, cell_macs = macs_of(block)
    return BlockAdvice(
        products=_products(block, names),
        size=block.sizes[out],
        grid=block.grid,
        cell=block.cells[out],
        low=most([halo.low for halo in halos]),
        high=most([halo.high for halo in halos]),
        macs=macs,
        cell_macs=cell_macs,
        break_even=break_even([block]),
    )


def _products(block: Block, names: Mapping[Any, str]) -> tuple[str, ...]:
    """Products by their weights; where these are computed, by what they are."""
    eqns: Sequence[Any] = [s.eqn for s in block.steps if s.eqn.primitive.name in compat.KINDS]
    return tuple(names.get(eqn.invars[1], eqn.primitive.name) for eqn in eqns)


def _macs(eqn: compat.Eqn) -> int:
    kind = compat.KINDS.get(eqn.primitive.name)
    if kind is None:
        return 0
    x, w = (v.aval for v in eqn.invars)
    return compat.macs(kind, eqn.params, x, w, eqn.outvars[0].aval)
