"""Local operations: equations whose every output position reads a fixed window of a frame.

Convolutions, pools, products over channels and everything elementwise are local, if all their
other operands are the same at every position of the frame. Strides and padding are read from the
equations, never from a rule.

References:
  Windows are those of receptive fields: Araujo, Norris, Sim, `Computing Receptive Fields of
  Convolutional Neural Networks <https://distill.pub/2019/computing-receptive-fields>`_, 2019.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from tinyjax import compat
from tinyjax.numerics.patches import Pair

__all__ = ["Geometry", "Halo", "Layout", "Step", "Var", "local", "widen"]

Var = Any  # a variable of a jaxpr

POINTWISE = frozenset(
    {
        "abs",
        "acos",
        "acosh",
        "add",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cbrt",
        "ceil",
        "clamp",
        "convert_element_type",
        "copy",
        "copy_p",
        "cos",
        "cosh",
        "div",
        "eq",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "integer_pow",
        "is_finite",
        "le",
        "log",
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "name",
        "ne",
        "neg",
        "nextafter",
        "not",
        "or",
        "pow",
        "reduce_precision",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
    }
)
POOLS = {"reduce_window_max": -math.inf, "reduce_window_sum": 0.0}  # -> what padding holds


class Halo(NamedTuple):
    """How far a window reaches beyond its cell, per axis."""

    low: Pair
    high: Pair


class Geometry(NamedTuple):
    """What positions an operation reads: ``out[i]`` reads ``x[stride * i - before + t]``.

    Here ``0 <= t < extent``, along each axis; ``outside`` is what the operation finds outside the
    frame, or None if it never looks there.
    """

    stride: Pair
    before: Pair
    extent: Pair
    outside: float | None


class Layout(NamedTuple):
    """The frame in a tensor ``[1, h, w, c]``."""

    size: Pair  # h and w
    scale: Pair  # positions of the network's input per position, along them


class Step(NamedTuple):
    """One local operation."""

    eqn: compat.Eqn
    reads: tuple[Var, ...]  # its operands that hold a frame
    out: Var
    geometry: Geometry | None  # None: reads the same position, elementwise or over channels


def local(
    eqn: compat.Eqn, layouts: dict[Var, Layout], framed: set[Var], makers: dict[Var, compat.Eqn]
) -> tuple[Step, Layout] | None:
    """A local operation and the layout of what it makes; None for all others.

    Args:
      eqn: an equation that depends on the frame.
      layouts: of the tensors known to hold it locally.
      framed: all variables that depend on it.
      makers: variable -> its equation, of those that do not.
    """
    reads = tuple(dict.fromkeys(v for v in eqn.invars if not compat.is_literal(v) and v in framed))
    if any(v not in layouts for v in reads) or len(eqn.outvars) != 1 or eqn.effects:
        return None
    (out,), layout = eqn.outvars, layouts[reads[0]]
    others = [v for v in eqn.invars if v not in reads]
    # An operand may be larger than the frame (more rows, more samples), and then so is the result.
    same = len(out.aval.shape) == 4 and out.aval.shape[:3] == (1, *layout.size)
    if eqn.primitive.name in POINTWISE:
        alike = all(layouts[v] == layout for v in reads)
        fits = same and alike and all(_uniform(v, makers) for v in others)
        return (Step(eqn, reads, out, None), layout) if fits else None
    if len(reads) > 1 or eqn.invars[0] not in reads or len(others) + 1 != len(eqn.invars):
        return None
    if eqn.primitive.name == compat.DOT:
        (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
        fits = same and tuple(contracted) == (3,) and not batch
        return (Step(eqn, reads, out, None), layout) if fits else None
    if (geometry := _geometry(eqn)) is None:
        return None
    scale = tuple(a * b for a, b in zip(layout.scale, geometry.stride, strict=True))
    return Step(eqn, reads, out, geometry), Layout(out.aval.shape[1:3], scale)


def _uniform(atom: Any, makers: dict[Var, compat.Eqn]) -> bool:
    """Whether an operand without a frame is the same at every position of one.

    Sides of 1 are, since elementwise primitives broadcast them.
    """
    shape = atom.aval.shape
    if not shape or shape[1:3] == (1, 1):
        return True
    maker = None if compat.is_literal(atom) else makers.get(atom)
    if maker is None or maker.primitive.name != "broadcast_in_dim":
        return False
    operand, given = maker.invars[0].aval.shape, maker.params["broadcast_dimensions"]
    return all(axis not in given or operand[given.index(axis)] == 1 for axis in (1, 2))


def _geometry(eqn: compat.Eqn) -> Geometry | None:
    """The geometry of a convolution or pool along the axes of the frame."""
    p, name = eqn.params, eqn.primitive.name
    if name == compat.CONV:
        numbers, nhwc = p["dimension_numbers"], (0, 3, 1, 2)
        if numbers.lhs_spec != nhwc or numbers.out_spec != nhwc or set(p["lhs_dilation"]) != {1}:
            return None
        kernel = [eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
        stride, dilation, padding = p["window_strides"], p["rhs_dilation"], p["padding"]
        outside = 0.0
    elif name in POOLS and set(p["base_dilation"]) == {1}:
        keys = ("window_dimensions", "window_strides", "window_dilation", "padding")
        kernel, stride, dilation, padding = (p[key][1:3] for key in keys)
        still = [(p[keys[0]][a], p[keys[1]][a], *p["padding"][a]) for a in (0, 3)]
        if still != [(1, 1, 0, 0)] * 2 or not jnp.issubdtype(
            eqn.invars[0].aval.dtype, jnp.floating
        ):
            return None
        outside = POOLS[name]
    else:
        return None
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    looks = any(side for pair in padding for side in pair)
    before = tuple(low for low, _ in padding)
    return Geometry(tuple(stride), before, extent, outside if looks else None)


def widen(geometry: Geometry | None, halo: Halo) -> Halo:
    """The halo of an operand from the halo of the result.

    Example:
      >>> widen(Geometry((2, 1), (0, 1), (3, 3), 0.0), Halo((1, 1), (1, 1)))
      Halo(low=(2, 2), high=(3, 2))
    """
    if geometry is None:
        return halo
    along = list(zip(*geometry[:3], *halo, strict=True))
    return Halo(
        tuple(s * low + a for s, a, _, low, _ in along),
        tuple(s * high + k - s - a for s, a, k, _, high in along),
    )
