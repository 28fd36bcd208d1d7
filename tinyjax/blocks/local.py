"""Local operations: equations whose every output position reads a fixed window of a frame.

Convolutions, pools, nearest upsampling, products over channels, concatenated channels and
everything elementwise are local. What else they read may be the same at every position, or a map
that no frame changes; or it depends on the frame as a whole, and then it is *shared*: a change of
it is a change everywhere. Strides and padding are read from the equations, never from a rule.

References:
  Windows are those of receptive fields: Araujo, Norris, Sim, `Computing Receptive Fields of
  Convolutional Neural Networks <https://distill.pub/2019/computing-receptive-fields>`_, 2019.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp

from tinyjax import compat
from tinyjax.blocks.nearest import repeated
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
    """What positions an operation reads: ``out[i]`` reads ``x[(stride * i - before + t) / up]``.

    Here ``0 <= t < extent``, along each axis, where ``up`` divides; ``outside`` is what the
    operation finds outside the frame, or None if it never looks there.
    """

    stride: Pair
    before: Pair
    extent: Pair
    outside: float | None
    up: Pair = (1, 1)


class Layout(NamedTuple):
    """The frame in a tensor ``[1, h, w, c]``."""

    size: Pair  # h and w
    scale: tuple[Fraction, Fraction]  # positions of the network's input per position, along them


class Step(NamedTuple):
    """One local operation; or, if it reads nothing locally, one that is computed in full."""

    eqns: tuple[compat.Eqn, ...]  # the last one makes the result
    reads: tuple[Var, ...] = ()  # operands that are read at or around the result's position
    geometry: Geometry | None = None  # None: at the same position, elementwise or over channels

    @property
    def eqn(self) -> compat.Eqn:
        """The equation that makes the result."""
        return self.eqns[-1]

    @property
    def out(self) -> Var:
        """The result, of a local operation."""
        return self.eqn.outvars[0]

    @property
    def made(self) -> list[Var]:
        """All that is made on the way."""
        return [v for eqn in self.eqns for v in eqn.outvars]

    @property
    def needs(self) -> list[Var]:
        """All that must be there before."""
        atoms = dict.fromkeys(
            v for eqn in self.eqns for v in eqn.invars if not compat.is_literal(v)
        )
        return [v for v in atoms if v not in self.made]


def local(
    eqn: compat.Eqn, layouts: dict[Var, Layout], framed: set[Var], makers: dict[Var, compat.Eqn]
) -> tuple[Step, Layout] | None:
    """A local operation and the layout of what it makes; None for all others.

    Args:
      eqn: an equation that depends on the frame.
      layouts: of the tensors known to hold it locally; maps that it reads are added.
      framed: all variables that depend on it.
      makers: variable -> its equation.
    """
    if len(eqn.outvars) != 1 or eqn.effects:
        return None
    if (found := repeated(eqn, makers)) is not None:
        v, up = found.operand, found.times
        if v not in layouts:
            return None
        geometry = Geometry((1, 1), tuple(u - 1 for u in up), up, None, up)
        return _spaced(found.eqns, v, geometry, layouts[v])
    reads = tuple(dict.fromkeys(v for v in eqn.invars if not compat.is_literal(v) and v in layouts))
    if not any(v in framed for v in reads):
        return None
    (out,), layout = eqn.outvars, next(layouts[v] for v in reads if v in framed)
    others = [v for v in eqn.invars if compat.is_literal(v) or v not in layouts]
    # An operand may be larger than the frame (more rows, more samples), and then so is the result.
    same = len(out.aval.shape) == 4 and out.aval.shape[:3] == (1, *layout.size)
    if eqn.primitive.name in POINTWISE:
        maps = [v for v in others if not _uniform(v, makers)]
        flat = all(v.aval.shape[:-1] == (1, *layout.size) and v not in framed for v in maps)
        if not same or not flat or any(layouts[v] != layout for v in reads):
            return None
        layouts.update(dict.fromkeys(maps, layout))
        return Step((eqn,), (*reads, *dict.fromkeys(maps))), layout
    if eqn.primitive.name == "concatenate":
        alike = not others and all(layouts[v] == layout for v in reads)
        return (Step((eqn,), reads), layout) if alike and eqn.params["dimension"] == 3 else None
    if len(reads) > 1 or eqn.invars[0] not in reads or len(others) + 1 != len(eqn.invars):
        return None
    if eqn.primitive.name == compat.DOT:
        (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
        fits = same and tuple(contracted) == (3,) and not batch
        return (Step((eqn,), reads), layout) if fits else None
    geometry = _geometry(eqn)
    return None if geometry is None else _spaced((eqn,), reads[0], geometry, layout)


def _spaced(
    eqns: tuple[compat.Eqn, ...], v: Var, geometry: Geometry, layout: Layout
) -> tuple[Step, Layout]:
    """An operation with a geometry, and the layout of what it makes."""
    along = zip(layout.scale, geometry.stride, geometry.up, strict=True)
    scale = tuple(Fraction(a * s, u) for a, s, u in along)
    step = Step(eqns, (v,), geometry)
    return step, Layout(step.out.aval.shape[1:3], (scale[0], scale[1]))


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
        if numbers.lhs_spec != nhwc or numbers.out_spec != nhwc:
            return None
        kernel = [eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
        stride, dilation, padding = p["window_strides"], p["rhs_dilation"], p["padding"]
        outside, up = 0.0, p["lhs_dilation"]
    elif name in POOLS and set(p["base_dilation"]) == {1}:
        keys = ("window_dimensions", "window_strides", "window_dilation", "padding")
        kernel, stride, dilation, padding = (p[key][1:3] for key in keys)
        still = [(p[keys[0]][a], p[keys[1]][a], *p["padding"][a]) for a in (0, 3)]
        if still != [(1, 1, 0, 0)] * 2 or not jnp.issubdtype(
            eqn.invars[0].aval.dtype, jnp.floating
        ):
            return None
        outside, up = POOLS[name], (1, 1)
    else:
        return None
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    looks = any(side for pair in padding for side in pair)
    before = tuple(low for low, _ in padding)
    return Geometry(tuple(stride), before, extent, outside if looks else None, tuple(up))


def widen(geometry: Geometry | None, halo: Halo) -> Halo:
    """The halo of an operand from the halo of the result.

    Example:
      >>> widen(Geometry((2, 1), (0, 1), (3, 3), 0.0), Halo((1, 1), (1, 1)))
      Halo(low=(2, 2), high=(3, 2))
      >>> widen(Geometry((1, 1), (1, 1), (2, 2), None, up=(2, 2)), Halo((1, 1), (1, 2)))
      Halo(low=(1, 1), high=(1, 1))
    """
    if geometry is None:
        return halo
    along = list(zip(*geometry[:3], geometry.up, *halo, strict=True))
    return Halo(
        tuple((s * low + a) // u for s, a, _, u, low, _ in along),
        tuple(-((s + a - k - s * high) // u) for s, a, k, u, _, high in along),
    )
