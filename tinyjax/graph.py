"""What a forward function looks like to a transform: its sites, and what belongs to each.

A function is traced once to a flat list of equations. The names of the parameters are followed to
the convolutions and dot products they feed (:func:`find`), and every other equation is given to
the prelude, to the epilogue of one site, or to neither (:func:`plan`). Nothing is evaluated here.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinyjax import compat
from tinyjax.base import Op, Site

__all__ = [
    "Flat",
    "Found",
    "Meeting",
    "Plan",
    "find",
    "firsts",
    "flatten",
    "holds",
    "plan",
    "readers",
]

IsSite = Callable[[compat.Eqn], bool]


class Flat(NamedTuple):
    """A traced function: one jaxpr over its array arguments, the calls in it entered."""

    jaxpr: compat.Jaxpr
    values: list[Any]  # of its constants and inputs
    names: dict[Any, str]  # input variable -> key path of the parameter
    out_tree: Any


def flatten(
    apply: Callable[..., Any],
    params: Any,
    args: Any,
    kwargs: Any,
    enter: frozenset[str] = compat.CALLS,
) -> Flat:
    """Traces ``apply(params, *args, **kwargs)``, entering what is named; non-arrays are static."""
    named, tree = jax.tree_util.tree_flatten_with_path((params, args, kwargs))
    leaves = [leaf for _, leaf in named]
    dynamic = [i for i, leaf in enumerate(leaves) if compat.is_array(leaf)]
    out_trees = []

    def fun(*values: Any) -> list[Any]:
        full = list(leaves)
        for i, value in zip(dynamic, values, strict=True):
            full[i] = value
        params, args, kwargs = jax.tree.unflatten(tree, full)
        outs, out_tree = jax.tree.flatten(apply(params, *args, **kwargs))
        out_trees.append(out_tree)
        return outs

    values = [leaves[i] for i in dynamic]
    jaxpr, consts = compat.trace(fun, *values)
    jaxpr, consts = compat.trace(functools.partial(_enter, enter, jaxpr, consts), *values)
    paths = [named[i][0] for i in dynamic]
    names = {
        var: _path(path[1:])
        for var, path in zip(jaxpr.invars, paths, strict=True)
        if path[0].idx == 0  # of (params, args, kwargs)
    }
    return Flat(jaxpr, [*consts, *values], names, out_trees[0])


def _path(keys: Sequence[Any]) -> str:
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in keys)
    return "/".join(str(part) for part in parts)


def _enter(
    names: frozenset[str], jaxpr: compat.Jaxpr, consts: Sequence[Any], *args: Any
) -> list[Any]:
    """Evaluates a jaxpr, entering the equations of these names."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        ins = [compat.read(env, v) for v in eqn.invars]
        if eqn.primitive.name in names:
            with compat.entering(eqn):
                outs = _enter(names, *compat.body(eqn), *ins)
        elif eqn.primitive.name in compat.REMAT:
            region = functools.partial(_enter, names, *compat.body(eqn))
            outs = compat.checkpointed(eqn, region)(*ins)
        else:
            outs = compat.bind(eqn, ins)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [compat.read(env, v) for v in jaxpr.outvars]


class Meeting(NamedTuple):
    """What meets in an equation; ``swapped`` if the weight is its first operand."""

    site: Site
    swapped: bool


class Found(NamedTuple):
    """The sites of a function, in program order, and those that a loop puts out of reach."""

    sites: list[Site]
    looped: dict[str, tuple[Site, str]]  # path -> site, primitive of the loop
    meetings: dict[int, Meeting]  # id of an equation -> what meets in it


def find(flat: Flat) -> Found:
    """Finds every place in which exactly one operand is a parameter, followed by name."""
    found = Found([], {}, {})
    _search(flat.jaxpr, dict(flat.names), found, loop=None)
    return found


def _search(jaxpr: compat.Jaxpr, names: dict[Any, str], found: Found, loop: str | None) -> None:
    for eqn in jaxpr.eqns:
        kind = eqn.primitive.name
        weights = [i for i, v in enumerate(eqn.invars) if not compat.is_literal(v) and v in names]
        if kind in compat.LAYOUT and weights:
            names[eqn.outvars[0]] = names[eqn.invars[0]]
        elif kind in (compat.CONV, compat.DOT) and len(weights) == 1:
            _meet(eqn, weights[0], names[eqn.invars[weights[0]]], found, loop)
        elif kind in compat.CALLS | compat.REMAT | compat.LOOPS:
            for inner, _ in compat.bodies(eqn):
                # Bodies take the equation's last operands; what comes first (predicates,
                # conditions' constants) is no weight of theirs. So align from the right.
                pairs = zip(reversed(inner.invars), reversed(eqn.invars), strict=False)
                passed = {v: names[u] for v, u in pairs if not compat.is_literal(u) and u in names}
                _search(inner, passed, found, kind if kind in compat.LOOPS else loop)
                if kind not in compat.LOOPS:
                    outs = zip(eqn.outvars, inner.outvars, strict=True)
                    named = (pair for pair in outs if not compat.is_literal(pair[1]))
                    names.update({v: passed[u] for v, u in named if u in passed})


def _meet(eqn: compat.Eqn, index: int, path: str, found: Found, loop: str | None) -> None:
    """Records one meeting of activation and weight, described in the order (x, w)."""
    kind, swapped, params = compat.KINDS[eqn.primitive.name], index == 0, dict(eqn.params)
    w, x = (eqn.invars[i].aval for i in (index, 1 - index))
    if not jnp.issubdtype(w.dtype, jnp.floating):
        return
    if kind == "conv" and (swapped or params["batch_group_count"] != 1):
        return  # only derivatives of convolutions look like this
    if swapped:
        contracted, batch = params["dimension_numbers"]
        params["dimension_numbers"] = (contracted[::-1], batch[::-1])
    taken = {*(s.path for s in found.sites), *found.looped}
    again = (f"{path}#{use}" for use in itertools.count(2))
    unique = next(name for name in itertools.chain((path,), again) if name not in taken)
    x, w, out = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, w, eqn.outvars[0].aval))
    pairs = tuple(sorted((k, v) for k, v in params.items() if v is not None))
    site = Site(unique, kind, x, w, out, pairs)
    if swapped:
        site = site._replace(out=jax.eval_shape(Op(site), x, w))
    if loop is None:
        found.sites.append(site)
        found.meetings[id(eqn)] = Meeting(site, swapped)
    else:
        found.looped[site.path] = (site, loop)


def firsts(flat: Flat, found: Found) -> frozenset[str]:
    """Paths of the sites whose activation depends on no parameter: none trains through its dx."""
    return frozenset(_firsts(flat.jaxpr, set(filter(_differentiable, flat.names)), found))


def _firsts(jaxpr: compat.Jaxpr, trained: set[Any], found: Found) -> Iterator[str]:
    depends = lambda atom: not compat.is_literal(atom) and atom in trained
    for eqn in jaxpr.eqns:
        if id(eqn) in found.meetings:
            site, swapped = found.meetings[id(eqn)]
            if not depends(eqn.invars[swapped]):
                yield site.path
        elif eqn.primitive.name in compat.REMAT:
            inner, _ = compat.body(eqn)
            pairs = zip(inner.invars, eqn.invars, strict=True)
            yield from _firsts(inner, {v for v, u in pairs if depends(u)}, found)
        if any(map(depends, eqn.invars)):
            trained.update(filter(_differentiable, eqn.outvars))


def _differentiable(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


class Plan(NamedTuple):
    """An order of evaluation in which each epilogue can run right after its site."""

    early: list[compat.Eqn]  # depend on no site: run first, so every captured value exists
    order: list[compat.Eqn]  # sites and what is outside epilogues, in program order
    epilogues: dict[int, list[compat.Eqn]]  # id of a site's equation -> its epilogue


def plan(jaxpr: compat.Jaxpr, is_site: IsSite) -> Plan:
    """Gives each equation its place.

    An equation belongs to a site's epilogue if it reads that site's values and otherwise only
    what exists before the site runs. Where two sites meet (a residual add) it stays outside; so do
    loops and products of other kinds (of attention, say), since an epilogue may be computed twice.
    """
    early, order, epilogues = [], [], {}
    inside: dict[Any, int] = {}  # variable -> index of the site whose epilogue makes it
    outside: dict[Any, int] = {}  # variable -> index of the equation that makes it, after a site
    for i, eqn in enumerate(jaxpr.eqns):
        ins = [v for v in eqn.invars if not compat.is_literal(v)]
        owners = {inside[v] for v in ins if v in inside}
        latest = max((outside[v] for v in ins if v in outside), default=-1)
        free = not owners and latest < 0
        if is_site(eqn):
            order.append(eqn)
            epilogues[id(eqn)] = []
            inside[eqn.outvars[0]] = i
        elif (
            holds(eqn, is_site)
            or (owners and _heavy(eqn))
            or eqn.effects
            or not (free or (len(owners) == 1 and latest < min(owners)))
        ):
            order.append(eqn)
            outside.update(dict.fromkeys(eqn.outvars, i))
        elif free:
            early.append(eqn)
        else:
            (owner,) = owners
            epilogues[id(jaxpr.eqns[owner])].append(eqn)
            inside.update(dict.fromkeys(eqn.outvars, owner))
    return Plan(early, order, epilogues)


def holds(eqn: compat.Eqn, is_site: IsSite) -> bool:
    """Whether an equation is a checkpointed region with a site in it."""
    regions = compat.inner_jaxprs(eqn) if eqn.primitive.name in compat.REMAT else []
    return any(is_site(inner) for region in regions for inner, _ in compat.equations(region))


def _heavy(eqn: compat.Eqn) -> bool:
    heavy = {*compat.KINDS, *compat.LOOPS}
    return any(e.primitive.name in heavy for e in (eqn, *compat.inside(eqn)))


def readers(jaxpr: compat.Jaxpr, eqns: Sequence[compat.Eqn]) -> dict[Any, set[int]]:
    """Variable -> ids of what reads it: of these equations, and the jaxpr's for its outputs."""
    found: dict[Any, set[int]] = {}
    for reader, reads in [*((e, e.invars) for e in eqns), (jaxpr, jaxpr.outvars)]:
        for v in reads:
            if not compat.is_literal(v):
                found.setdefault(v, set()).add(id(reader))
    return found
