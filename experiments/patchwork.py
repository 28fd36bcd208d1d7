"""Counting patches: which ones moved, and what the blocks of a network spend on theirs."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Block", "changed", "costs", "macs", "moved", "recomputed"]


class Block(NamedTuple):
    """Multiply-accumulates of a block of `tinyjax.pass_skip`."""

    dense: int  # of the whole map
    patch: int  # of one patch computed alone, the margins that its layers need included


class Costs(NamedTuple):
    """Multiply-accumulates of a frame, in convolutions."""

    blocks: list[Block]
    tail: int  # of what is computed in full for every frame

    def dense(self) -> int:
        """All of them."""
        return self.tail + sum(block.dense for block in self.blocks)


def costs(jaxpr: Any, grids: Sequence[Sequence[int]]) -> Costs:
    """What a network costs that ``tinyjax.pass_skip`` divides into blocks, read from its trace.

    A block is a choice between all of it and a loop over its patches; both hold its convolutions.

    Args:
      jaxpr: ``jax.make_jaxpr(skipping.apply)(state, params, frame)``.
      grids: (rows, columns) of every block, as in ``state.active``.

    Returns:
      A block per grid, in order, and the rest.

    Raises:
      ValueError: if there is not one such choice for every grid.
    """
    found, outside = _choices(jaxpr)
    if len(found) != len(grids):
        raise ValueError(
            f"{len(grids)} blocks have {len(found)} choices between all and some: count this "
            "network in another way"
        )
    return Costs(found, outside)


def _choices(jaxpr: Any) -> tuple[list[Block], int]:
    """The choices between a block and its patches, and multiply-accumulates outside of them.

    A choice whose second branch holds other choices is one between the whole network and blocks.
    """
    found, outside = [], 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = [j for value in eqn.params.values() for j in _jaxprs(value)]
        if eqn.primitive.name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
            features = eqn.params["dimension_numbers"].rhs_spec[0]
            outside += out.size * kernel.size // kernel.shape[features]
        elif eqn.primitive.name == "cond":
            sparse, whole = inner  # false, true
            blocks, rest = _choices(sparse)
            loops = [turn for turn in _turns(sparse) if turn]
            if not blocks and loops:
                blocks, rest = [Block(_choices(whole)[1], min(loops))], 0
            found, outside = found + blocks, outside + rest
        else:
            for each in inner:
                blocks, rest = _choices(each)
                found, outside = found + blocks, outside + rest
    return found, outside


def _turns(jaxpr: Any) -> list[int]:
    """Multiply-accumulates in a turn of each loop, of which one takes a patch, others several."""
    found = []
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = [j for value in eqn.params.values() for j in _jaxprs(value)]
        if eqn.primitive.name in ("while", "scan"):
            found.append(sum(_choices(each)[1] for each in inner))
        else:
            found += [turn for each in inner for turn in _turns(each)]
    return found


def _jaxprs(value: Any) -> list[Any]:
    """The traces in a parameter of an equation."""
    values = value if isinstance(value, tuple | list) else [value]
    return [each for each in values if hasattr(each, "eqns") or hasattr(each, "jaxpr")]


def recomputed(costs: Costs, active: Sequence[np.ndarray]) -> float:
    """Share of the patches that were recomputed, blocks weighed by what they cost dense, 0..1.

    Args:
      costs: of the network, whose tail is always recomputed.
      active: for every block bool [rows, columns].
    """
    pairs = zip(costs.blocks, active, strict=True)
    return float(costs.tail + sum(b.dense * on.mean() for b, on in pairs)) / costs.dense()


def macs(costs: Costs, active: Sequence[np.ndarray]) -> int:
    """Multiply-accumulates of a frame; a block that is recomputed whole has no margins."""
    pairs = zip(costs.blocks, active, strict=True)
    return costs.tail + sum(b.dense if on.all() else int(on.sum()) * b.patch for b, on in pairs)


def moved(before: np.ndarray, after: np.ndarray, patch: int) -> float:
    """Share of patches, 0..1, in which two inputs [1, h, w, c] differ."""
    pixels = (before != after).any((0, 3))
    padded = np.pad(pixels, [(0, -side % patch) for side in pixels.shape])
    rows, columns = (side // patch for side in padded.shape)
    return float(padded.reshape(rows, patch, columns, patch).any((1, 3)).mean())


def changed(images: Iterable[np.ndarray]) -> list[float]:
    """Per frame [h, w, c] the share of pixels that differ from the frame before; first, 1."""
    return [1.0, *(float((a != b).any(-1).mean()) for a, b in pairwise(images))]
