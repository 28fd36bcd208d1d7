"""Transforms of transforms: in a row, at some sites, or nothing at all."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable
from typing import Any

from tinyjax.base import (
    EVERYWHERE,
    Array,
    BlockTransform,
    Op,
    Pattern,
    Site,
    Transform,
    Vars,
    unchanged,
)
from tinyjax.numerics.rounding import fold_key

__all__ = ["at", "chain", "identity", "where"]


def identity() -> Transform:
    """Leaves every site as it is; what remains is the rewrite with its exact rules.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> same = tinyjax.rewrite(tinyjax.identity(), lambda p, x: x @ p["w"])
      >>> same.apply({}, {"w": jnp.eye(2)}, jnp.ones((1, 2)))[0].tolist()
      [[1.0, 1.0]]
    """

    def call(
        op: Op,
        site: Site,
        vars: Vars,
        key: Any,
        x: Array,
        w: Array,
        epilogue: Any,
        **overrides: Any,
    ) -> tuple[Any, Vars]:
        del site, key
        return op(x, w, epilogue, **overrides), vars

    return Transform(lambda site: (), call)


def chain(*txs: Transform) -> Transform:
    """Nests transforms: the first is outermost and sees the activation first.

    At each site the members that select it are nested. Variables are the tuple of the members'
    variables. Only the outermost may change its own, since an inner op may run inside another
    transform's derivative, where state cannot leave.

    Args:
      *txs: transforms; one that computes the op itself, such as ``int8_qat``, goes last.

    Returns:
      The composed transform, which reaches every site that a member selects.

    Raises:
      ValueError: if there are no transforms, or if one but the first returns changed variables.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> tx = tinyjax.chain(tinyjax.identity(), tinyjax.at("a", tinyjax.identity()))
      >>> chained = tinyjax.rewrite(tx, lambda p, x: x @ p["a"])
      >>> chained.apply({}, {"a": 2 * jnp.eye(2)}, jnp.ones((1, 2)))[0].tolist()
      [[2.0, 2.0]]
    """
    if not txs:
        raise ValueError("chain() was given no transforms: give it at least one, or use identity()")
    for tx in txs:
        _of_sites(tx)

    def init(site: Site) -> Vars:
        return tuple(tx.init(site) if tx.selects(site) else () for tx in txs)

    def call(
        op: Op,
        site: Site,
        vars: Vars,
        key: Any,
        x: Array,
        w: Array,
        epilogue: Any,
        **overrides: Any,
    ) -> tuple[Any, Vars]:
        # Members that are not for this site are left out, so that the last one sees the bare op.
        first, *others = (i for i, tx in enumerate(txs) if tx.selects(site))

        def around(op: Any, i: int) -> Callable[..., tuple[Any, Vars]]:
            subkey = None if key is None else fold_key(key, i)
            return functools.partial(txs[i].call, op, site, vars[i], subkey)

        def stateless(op: Any, i: int) -> Callable[..., Any]:
            def inner(x: Array, w: Array, epilogue: Any = None, **overrides: Any) -> Any:
                y, new = around(op, i)(x, w, epilogue, **overrides)
                if not unchanged(new, vars[i]):
                    raise ValueError(
                        f"member {i} of chain() changed its variables at {site.path!r}, which "
                        "only the first member may do: put it first"
                    )
                return y

            return inner

        nested: Any = op
        for i in reversed(others):
            nested = stateless(nested, i)
        y, new = around(nested, first)(x, w, epilogue, **overrides)
        return y, (*vars[:first], new, *vars[first + 1 :])

    return Transform(init, call, tuple(pattern for tx in txs for pattern in tx.patterns))


def where(pred: Callable[[Site], bool], tx: Transform) -> Transform:
    """Applies a transform at the sites for which ``pred(site)`` holds.

    Args:
      pred: a static predicate of a :class:`tinyjax.Site` (its path, kind, shapes, parameters).
      tx: the transform.

    Returns:
      The restricted transform.

    Raises:
      ValueError: on use, if ``pred`` holds for no site.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> wide = tinyjax.where(lambda site: site.w.shape[-1] > 16, tinyjax.identity())
      >>> narrow = tinyjax.rewrite(wide, lambda p, x: x @ p["w"])
      >>> narrow.apply({}, {"w": jnp.ones((2, 4))}, jnp.ones((1, 2)))
      Traceback (most recent call last):
      ...
      ValueError: where(<lambda>) matched none of the sites ['w']: name at least one of them
    """
    return _where(pred, tx, f"where({getattr(pred, '__name__', pred)})")


def at(pattern: str, tx: Transform) -> Transform:
    """Applies a transform at the sites whose path holds ``pattern``.

    Args:
      pattern: names as they stand in the path, joined by ``/``, with shell wildcards:
        ``"Conv_0"`` matches ``params/Conv_0/kernel`` but not ``params/Conv_01/kernel``;
        ``"block_*/Dense_1"`` matches two names in a row.
      tx: the transform.

    Returns:
      The restricted transform.

    Raises:
      ValueError: on use, if the pattern matches no site.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda p, x: x @ p["a"] @ p["b"]
      >>> params = {"a": jnp.eye(2), "b": jnp.eye(2)}
      >>> only_b = tinyjax.rewrite(tinyjax.at("b", tinyjax.identity()), apply)
      >>> list(only_b.init(params, jnp.ones((1, 2))))
      ['b']
    """
    wanted = pattern.split("/")

    def pred(site: Site) -> bool:
        names = site.path.split("/")
        runs = (names[i : i + len(wanted)] for i in range(len(names) - len(wanted) + 1))
        return any(all(map(_matches, run, wanted)) for run in runs)

    return _where(pred, tx, f"at({pattern!r})")


def _matches(name: str, wanted: str) -> bool:
    """Whether a name in a path is meant; every use of a weight answers to its bare name."""
    return any(fnmatch.fnmatchcase(n, wanted) for n in (name, name.partition("#")[0]))


def _of_sites(tx: Any) -> None:
    """Refuses what works on blocks, which no site knows of."""
    if isinstance(tx, BlockTransform):
        raise ValueError(
            "this transform works on blocks, not on sites: rewrite with the others first, then "
            "rewrite what comes out with this one"
        )


def _where(pred: Callable[[Site], bool], tx: Transform, name: str) -> Transform:
    _of_sites(tx)

    def narrowed(pattern: Pattern) -> Pattern:
        return Pattern(
            name if pattern is EVERYWHERE else f"{name} of {pattern.name}",
            lambda site: pred(site) and pattern.holds(site),
        )

    return tx._replace(patterns=tuple(map(narrowed, tx.patterns)))
