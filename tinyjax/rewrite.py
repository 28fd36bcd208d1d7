"""Carries a transform to the sites of a forward function.

``rewrite(tx, apply)`` traces ``apply``, finds where parameters meet activations, and evaluates the
same equations again with the transform in those places. It happens before differentiation, under
whatever ``jit``/``grad``/``vmap`` the caller is in, so a transform may bring its own derivative.

The walk is narrow on purpose. Calls that only group equations are entered; ``jax.checkpoint``
regions are kept as regions, so the user's memory policy stays; custom derivatives are kept
untouched; loops whose bodies hold a selected site are refused.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax import blocks, compat, graph
from tinyjax.base import Array, BlockTransform, Epilogue, Op, Rewritten, Site, Transform, Vars
from tinyjax.numerics.rounding import fold_key
from tinyjax.rules import RULES

__all__ = ["apply_with", "reached", "rewrite", "sites"]


@functools.lru_cache(maxsize=256)
def rewrite(tx: Transform | BlockTransform, apply: Callable[..., Any]) -> Rewritten:
    """Puts a transform into a forward function ``apply(params, *args, **kwargs)``.

    Memoised on ``(tx, apply)``, so that ``jax.jit`` does not trace what it returns twice.

    Args:
      tx: the transform, of sites or of blocks.
      apply: a pure function whose first argument is a pytree that holds the weights. Arrays among
        its arguments are traced; everything else (``train=True``, ``mutable=[...]``) is static.

    Raises:
      ValueError: when called, if no weight meets an activation, if a pattern matches nothing, if a
        selected site lies in the body of a loop, or if variables are missing.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> tx = tinyjax.int8_qat(gradient_rounding=tinyjax.numerics.nearest)
      >>> int8 = tinyjax.rewrite(tx, lambda params, x: x @ params["w"])
      >>> params, x = {"w": jnp.eye(4)}, jnp.arange(8.0).reshape(2, 4)
      >>> out, _ = int8.apply({}, params, x)
      >>> bool(jnp.abs(out - x).max() < 7 / 127)
      True
    """
    if isinstance(tx, BlockTransform):
        return blocks.over_blocks(tx, apply)
    of_sites: Transform = tx

    def init(params: Any, *args: Any, **kwargs: Any) -> dict[str, Vars]:
        return {
            site.path: of_sites.init(site)
            for site in reached(of_sites, apply, params, args, kwargs)
        }

    def transformed(
        vars: dict[str, Vars], params: Any, /, *args: Any, key: Array | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Vars]]:
        if key is not None and "key" in inspect.signature(apply).parameters:
            raise ValueError(
                "key=... is the transform's, but the function has a key too: pass that by position"
            )
        return apply_with(of_sites, apply, vars, key, params, args, kwargs)

    return Rewritten(init, transformed)


def sites(apply: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> list[Site]:
    """Lists what a transform would reach in ``apply(params, *args, **kwargs)``; runs nothing.

    Args:
      apply: the forward function.
      params: pytree that holds the weights (arrays or ``jax.ShapeDtypeStruct``).
      *args: its other arguments.
      **kwargs: its keywords.

    Returns:
      The sites in program order, without those out of reach in loops or custom derivatives.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
      >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
      >>> [site.path for site in tinyjax.sites(apply, params, jnp.ones((8, 3)))]
      ['a', 'b']
    """
    return graph.find(graph.flatten(apply, params, args, kwargs)).sites


def reached(
    tx: Transform,
    apply: Callable[..., Any],
    params: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Site]:
    """The sites of ``apply(params, *args, **kwargs)`` that a transform selects."""
    found = graph.find(graph.flatten(apply, params, args, kwargs))
    selected = _select(tx, found)
    return [site for site in found.sites if site.path in selected]


def apply_with(
    tx: Transform,
    apply: Callable[..., Any],
    vars: dict[str, Vars],
    key: Array | None,
    params: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, dict[str, Vars]]:
    """``rewrite(tx, apply).apply``, with the user's arguments kept apart from ours."""
    flat = graph.flatten(apply, params, args, kwargs)
    found = graph.find(flat)
    selected = _select(tx, found)
    meetings = {i: m for i, m in found.meetings.items() if m.site.path in selected}
    outs, changed = _Run(tx, meetings, key).region(flat.jaxpr, flat.values, vars)
    return jax.tree.unflatten(flat.out_tree, outs), {**vars, **changed}


def _select(tx: Transform, found: graph.Found) -> frozenset[str]:
    """The paths the transform is for; whatever would be silently left out is an error."""
    candidates = [*found.sites, *(site for site, _ in found.looped.values())]
    if not candidates:
        raise ValueError(
            "no parameter meets an activation in a convolution or dot product of this function: "
            "pass the function that holds the weights as its first argument, and see what is "
            "found with tinyjax.sites(apply, params, *args)"
        )
    for pattern in tx.patterns:
        if not any(map(pattern.holds, candidates)):
            raise ValueError(
                f"{pattern.name} matched none of the sites {[s.path for s in candidates]}: "
                "name at least one of them"
            )
    selected = frozenset(site.path for site in candidates if tx.selects(site))
    for path in sorted(selected & set(found.looped)):
        raise ValueError(
            f"site {path!r} is in the body of a {found.looped[path][1]}, which a rewrite does not "
            "enter: rewrite the body function instead, or leave the site out with where(...)"
        )
    return selected


class _Run(NamedTuple):
    """One evaluation of a traced function under a transform."""

    tx: Transform
    meetings: dict[int, graph.Meeting]  # of the selected sites only
    key: Array | None

    def is_site(self, eqn: compat.Eqn) -> bool:
        return id(eqn) in self.meetings

    def region(
        self, jaxpr: compat.Jaxpr, values: Sequence[Any], vars: dict[str, Vars]
    ) -> tuple[list[Any], dict[str, Vars]]:
        """Evaluates one jaxpr; returns its outputs and the variables of the sites in it."""
        early, order, epilogues = graph.plan(jaxpr, self.is_site)
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], values, strict=True))
        readers = graph.readers(jaxpr, jaxpr.eqns)
        changed: dict[str, Vars] = {}
        for eqn in [*early, *order]:
            if self.is_site(eqn):
                changed |= self.site(eqn, epilogues[id(eqn)], readers, env, vars)
            elif graph.holds(eqn, self.is_site):
                changed |= self.remat(eqn, env, vars)
            else:
                _evaluate(eqn, env)
        return [compat.read(env, v) for v in jaxpr.outvars], changed

    def site(
        self,
        eqn: compat.Eqn,
        tail: list[compat.Eqn],
        readers: dict[Any, set[int]],
        env: dict[Any, Any],
        vars: dict[str, Vars],
    ) -> dict[str, Vars]:
        """Evaluates one site and its epilogue ``tail`` through the transform, into ``env``."""
        site, swapped = self.meetings[id(eqn)]
        w, x = (compat.read(env, v) for v in (eqn.invars if swapped else eqn.invars[::-1]))
        own_eqns = {id(e) for e in (eqn, *tail)}
        made = [v for e in (eqn, *tail) for v in e.outvars]
        exits = [v for v in made if readers.get(v, set()) - own_eqns]
        restore = functools.partial(_swap_back, site) if swapped else lambda z: z
        epilogue = _epilogue(eqn, tail, exits, env, restore)
        own = vars[site.path] if site.path in vars else _no_variables(self.tx, site)
        with jax.named_scope(site.path):
            y, own = self.tx.call(Op(site), site, own, self.fold(site), x, w, epilogue)
            outs = y if isinstance(y, tuple) else epilogue.fn(y, *epilogue.captured)
        if len(outs) != len(exits):
            raise ValueError(
                f"the transform returned {len(outs)} values at {site.path!r}, whose epilogue has "
                f"{len(exits)} exits: return op's output, or exactly what epilogue.fn returns"
            )
        env.update(zip(exits, map(_settled, outs), strict=True))
        return {site.path: own}

    def fold(self, site: Site) -> Array | None:
        """The key of one site: the same in every run, different from every other site's."""
        if self.key is None:
            return None
        return fold_key(self.key, zlib.crc32(site.path.encode()))

    def remat(self, eqn: compat.Eqn, env: dict[Any, Any], vars: dict[str, Vars]) -> dict[str, Vars]:
        """Evaluates a checkpointed region that holds sites as a checkpointed region."""
        jaxpr, consts = compat.body(eqn)

        def region(vars: dict[str, Vars], *values: Any) -> Any:
            return self.region(jaxpr, [*consts, *values], vars)

        ins = [compat.read(env, v) for v in eqn.invars]
        outs, changed = compat.checkpointed(eqn, region)(vars, *ins)
        env.update(zip(eqn.outvars, outs, strict=True))
        return changed


def _settled(value: Any) -> Any:
    """An exit that others may read: an integer of a custom derivative is not to be differentiated.

    Such an integer has an array of zeros for a tangent, which ``cond`` refuses as its index.
    """
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else lax.stop_gradient(value)


def _no_variables(tx: Transform, site: Site) -> Vars:
    """The variables of a site for which none were given, which is right if there are none."""
    own = tx.init(site)
    if jax.tree.leaves(own):
        raise ValueError(
            f"the transform has variables at {site.path!r}, and none were given: make them with "
            "state = attach(tx, step, state, *batch), or with rewrite(tx, apply).init(params, ...)"
        )
    return own


def _epilogue(
    eqn: compat.Eqn,
    tail: list[compat.Eqn],
    exits: list[Any],
    env: dict[Any, Any],
    restore: Callable[[Array], Array],
) -> Epilogue:
    """The equations after a site as a function of its output and of what they capture."""
    made = {v for e in (eqn, *tail) for v in e.outvars}
    reads = dict.fromkeys(v for e in tail for v in e.invars if not compat.is_literal(v))
    captured = [v for v in reads if v not in made]

    def fn(z: Array, *values: Any) -> tuple[Array, ...]:
        local = dict(zip(captured, values, strict=True))
        local[eqn.outvars[0]] = restore(z)
        for e in tail:
            _evaluate(e, local)
        return tuple(local[v] for v in exits)

    return Epilogue(fn, tuple(env[v] for v in captured), tuple(e.primitive.name for e in tail))


def _swap_back(site: Site, z: Array) -> Array:
    """``dot_general(x, w)`` in the axis order of ``dot_general(w, x)``."""
    (contracted, _), (batch, _) = dict(site.params)["dimension_numbers"]
    axes, split = [*range(z.ndim)], site.x.ndim - len(contracted)
    return lax.transpose(z, axes[: len(batch)] + axes[split:] + axes[len(batch) : split])


def _evaluate(eqn: compat.Eqn, env: dict[Any, Any]) -> None:
    """Evaluates one equation into ``env``, by an exact cheaper rule where there is one."""
    ins = [compat.read(env, v) for v in eqn.invars]
    rule = RULES.get(eqn.primitive.name)
    outs = rule(eqn.params, ins) if rule else None
    env.update(zip(eqn.outvars, compat.bind(eqn, ins) if outs is None else outs, strict=True))
