"""Recognizes nearest upsampling by whole factors, in the forms in which jax writes it.

``jnp.repeat``, ``jnp.broadcast_to`` with a reshape, and ``jax.image.resize(..., "nearest")``, which
is a gather at computed places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tinyjax import compat
from tinyjax.numerics.patches import Pair

__all__ = ["Repeat", "repeated"]

Makers = Mapping[Any, compat.Eqn]  # variable -> the equation that makes it


class Repeat(NamedTuple):
    """Every row and column of a tensor ``[1, h, w, c]``, several times."""

    operand: Any
    times: Pair
    eqns: tuple[compat.Eqn, ...]  # from the operand to the result


def repeated(eqn: compat.Eqn, makers: Makers) -> Repeat | None:
    """What an equation, with those before it, repeats; None if it does something else."""
    if eqn.primitive.name == "reshape":
        return _broadcast(eqn, makers)
    return _gathered(eqn, makers) if eqn.primitive.name == "gather" else None


def _broadcast(eqn: compat.Eqn, makers: Makers) -> Repeat | None:
    """New axes behind rows and columns, filled by broadcasting and merged by a reshape."""
    chain, v = [eqn], eqn.invars[0]
    while not compat.is_literal(v) and v in makers:
        if makers[v].primitive.name != "broadcast_in_dim":
            break
        chain.append(makers[v])
        v = chain[-1].invars[0]
    size, wide = v.aval.shape, eqn.invars[0].aval.shape
    if len(chain) == 1 or len(size) != 4:
        return None
    axes = (0, 1, 2, 3)
    for maker in reversed(chain[1:]):
        axes = tuple(maker.params["broadcast_dimensions"][axis] for axis in axes)
    times = math.prod(wide[axes[1] + 1 : axes[2]]), math.prod(wide[axes[2] + 1 : axes[3]])
    in_place = axes[:2] == (0, 1) and axes[3] == len(wide) - 1
    same = in_place and not compat.is_literal(v) and tuple(wide[axis] for axis in axes) == size
    out = (size[0], size[1] * times[0], size[2] * times[1], size[3])
    return (
        Repeat(v, times, tuple(chain[::-1])) if same and eqn.outvars[0].aval.shape == out else None
    )


def _gathered(eqn: compat.Eqn, makers: Makers) -> Repeat | None:
    """Whole rows, or whole columns, taken at places that are known: each as often as the next."""
    x, places = eqn.invars
    numbers, size = eqn.params["dimension_numbers"], getattr(x.aval, "shape", ())
    if len(size) != 4 or numbers.start_index_map not in ((1,), (2,)):
        return None
    (axis,) = numbers.start_index_map
    others = tuple(a for a in range(4) if a != axis)
    slices = tuple(1 if a == axis else n for a, n in enumerate(size))
    rows = numbers.collapsed_slice_dims == (axis,) and numbers.offset_dims == others
    known = _known(places, makers) if rows and eqn.params["slice_sizes"] == slices else None
    count = eqn.outvars[0].aval.shape[axis] if known is not None else 0
    if known is None or count % size[axis] or known.shape != (count, 1):
        return None
    times = count // size[axis]
    if (known[:, 0] != np.arange(count) // times).any():
        return None
    return Repeat(x, (times, 1) if axis == 1 else (1, times), (eqn,))


def _known(atom: Any, makers: Makers) -> np.ndarray | None:
    """The value of a variable that follows from no input; None if it does."""
    if compat.is_literal(atom):
        return np.asarray(atom.val)
    if atom not in makers:
        return None
    eqn = makers[atom]
    args = [_known(v, makers) for v in eqn.invars]
    if any(arg is None for arg in args) or len(eqn.outvars) != 1:
        return None
    with jax.ensure_compile_time_eval():
        return np.asarray(compat.bind(eqn, args)[0])
