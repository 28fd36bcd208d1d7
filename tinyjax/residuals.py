"""What the derivative of an epilogue keeps from the forward pass, in as few bytes as it needs.

``jax.vjp`` keeps whatever its rules name: constants, booleans of a byte each, floats that follow
from other floats. Here constants are made anew and booleans are packed, eight to a byte; where
that still keeps more than a byte and a half per value of the op's output, the output is kept in
int8 instead and the epilogue is computed once more from it.

What a custom derivative "saves" is a wish: XLA moves work between the two passes as it sees fit.
``numerics.materialized`` and ``numerics.late`` make its CPU backend keep to the wish, and
``tests/test_residuals.py`` reads the memory of compiled programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from tinyjax import compat
from tinyjax.numerics import (
    abs_max,
    dequantize,
    late,
    materialized,
    pack_inner,
    quantize,
    symmetric_scale,
    unpack_inner,
)

__all__ = ["differentiable_once", "lean_vjp"]

Array = jax.Array
Values = Sequence[Any]
Fun = Callable[..., tuple[Any, ...]]  # (z, *captured) -> exits


def lean_vjp(
    fun: Fun, z: Array, captured: Values, axes: Sequence[int]
) -> tuple[tuple[Any, ...], Partial]:
    """``jax.vjp`` of an epilogue, whose pull function keeps a byte and a half per value at most.

    What it would keep is counted, without constants and what is at hand anyway, and with booleans
    packed. If that is no more than one and a half times the int8 codes of ``z`` (signs of a relu,
    winners of a plain pool), the derivative is exactly ``jax.vjp``'s. Otherwise (a batch norm, a
    gelu, an overlapping pool) the codes are kept, and the derivative is that of ``fun`` at their
    values: where ``fun`` branches or picks, at times another branch than the forward pass took.

    Args:
      fun: ``fun(z, *captured) -> exits``, a tuple of arrays.
      z: float32 ``[n, ..., features]``.
      captured: the other values it reads.
      axes: over which codes share a scale.

    Returns:
      ``(exits, pull)``. ``pull`` is a pytree whose leaves are what is kept; ``pull(captured,
      cotangents)`` gives the cotangents of ``(z, *captured)``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, relu = jnp.linspace(-1.0, 1.0, 64).reshape(8, 8), lambda z: (jax.nn.relu(z),)
      >>> _, pull = jax.jit(lambda z: lean_vjp(relu, z, (), (0,)))(z)
      >>> [(leaf.dtype.name, leaf.shape) for leaf in jax.tree.leaves(pull)]
      [('uint8', (8, 1))]
      >>> int(pull((), (jnp.ones((8, 8)),))[0].sum())
      32
    """
    exits, exact = _exact(fun, z, captured)
    if sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(exact)) <= 1.5 * z.size:
        return exits, exact
    scale = symmetric_scale(abs_max(z, axes))
    steps = z * (jnp.float32(1) / scale)
    codes = materialized(lambda part: quantize(part, jnp.float32(1)), steps)
    return exits, Partial(functools.partial(_pull_codes, fun), codes, scale)


def _exact(fun: Fun, z: Array, captured: Values) -> tuple[tuple[Any, ...], Partial]:
    """The derivative as ``jax.vjp`` has it; kept is what follows from nothing else at hand."""
    trees = []

    def both(*args: Any) -> list[Any]:
        outs, pull = jax.vjp(fun, *args)
        leaves, tree = jax.tree.flatten(pull)
        trees.append(tree)
        return [*leaves, *outs]

    jaxpr, consts = compat.trace(both, z, *captured)
    tree, remade = trees[-1], _remade(jaxpr, consts, captured)
    env = {**remade, jaxpr.invars[0]: z}
    for eqn in jaxpr.eqns:
        if not all(v in env for v in eqn.outvars):
            _evaluate(eqn, env)
    leaves, outs = jaxpr.outvars[: tree.num_leaves], jaxpr.outvars[tree.num_leaves :]
    kept = {v: env[v] for v in leaves if not compat.is_literal(v) and v not in remade}
    again = functools.partial(_pull_exact, jaxpr, tree, tuple(kept))
    packed = [pack_inner(v, 1) if v.dtype == bool else v for v in kept.values()]
    return tuple(compat.read(env, v) for v in outs), Partial(again, list(consts), packed)


def _pull_exact(
    jaxpr: compat.Jaxpr,
    tree: Any,
    kept: Values,
    consts: Values,
    packed: Values,
    captured: Values,
    gs: Values,
) -> Values:
    """The cotangents of ``(z, *captured)`` from what :func:`_exact` kept."""
    env = _remade(jaxpr, consts, captured)
    for v, value in zip(kept, packed, strict=True):
        env[v] = _flags(value, v.aval.shape) if v.aval.dtype == bool else value
    leaves = [compat.read(env, v) for v in jaxpr.outvars[: tree.num_leaves]]
    return jax.tree.unflatten(tree, leaves)(tuple(gs))


def _flags(packed: Array, shape: tuple[int, ...]) -> Array:
    return unpack_inner(packed, 1, shape).astype(bool)


def _remade(jaxpr: compat.Jaxpr, consts: Values, captured: Values) -> dict[Any, Any]:
    """The values that are at hand in the backward pass too: captured ones, and constants."""
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    for eqn in jaxpr.eqns:
        if all(compat.is_literal(v) or v in env for v in eqn.invars) and not eqn.effects:
            _evaluate(eqn, env)
    return env | dict(zip(jaxpr.invars[1:], captured, strict=True))


def _evaluate(eqn: compat.Eqn, env: dict[Any, Any]) -> None:
    ins = [compat.read(env, v) for v in eqn.invars]
    env.update(zip(eqn.outvars, compat.bind(eqn, ins), strict=True))


def _pull_codes(fun: Fun, codes: Array, scale: Array, captured: Values, gs: Values) -> Values:
    """The cotangents of ``(z, *captured)``, the epilogue computed once more from the codes."""
    floats: list[Array] = [g for g in gs if g.dtype != jax.dtypes.float0 and g.size]
    # The largest: an average's may be a constant, on which nothing depends.
    main: Array = max(floats, key=jnp.size, default=scale)
    z = dequantize(late(codes, main), scale)
    return jax.vjp(fun, z, *captured)[1](tuple(gs))


def differentiable_once(gradients: Callable[..., Any], path: str) -> Callable[..., Any]:
    """The gradients of a site, an error where somebody differentiates them again.

    Rounding counts as the identity in the first derivative; it has no second.

    Args:
      gradients: arrays to arrays.
      path: of the site, for the message.

    Raises:
      ValueError: on use, under a second differentiation.

    Example:
      >>> import jax
      >>> twice = jax.grad(differentiable_once(lambda g: 2 * g, "w"))
      >>> try:
      ...     twice(1.0)
      ... except ValueError as error:
      ...     print(str(error).split(",")[0])
      site 'w' was differentiated twice
    """
    once = jax.custom_jvp(gradients)

    @once.defjvp
    def twice(*ignored: Any) -> Any:
        del ignored
        raise ValueError(
            f"site {path!r} was differentiated twice, and rounding has no second derivative: leave "
            "the site out with where(...) in what you differentiate again"
        )

    return once
