"""A site by itself: what training runs there, what it keeps, and whether its sums fit in int32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinyjax import compat, graph
from tinyjax.base import Array, Op, Site, Transform
from tinyjax.numerics import conv_form, dot_form

__all__ = ["Products", "in_int8", "kept_bytes", "operands", "step", "sums", "traced"]

_FORMS = {"conv": conv_form, "dot": dot_form}


class Products(NamedTuple):
    """One value for each of the three products of training: the output, and both gradients.

    Example:
      >>> Products(y=30, dx=0, dw=30).dw
      30
    """

    y: Any
    dx: Any
    dw: Any


def operands(site: Site) -> tuple[Any, ...]:
    """Shapes and dtypes of what :func:`step` takes: weight, activation, cotangent, key."""
    return site.w, site.x, site.out, jax.eval_shape(lambda: jax.random.key(0))


def step(tx: Transform | None, site: Site, first: bool) -> Callable[..., tuple[Any, ...]]:
    """What training runs at a site: ``step(w, x, g, key) -> (y, dw, dx)``.

    Args:
      tx: the transform; ``None`` leaves the op as it is.
      site: where.
      first: whether nobody needs ``dx``, which is then neither computed nor returned.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> w, x = jnp.ones((3, 5)), jnp.ones((2, 3))
      >>> site, = tinyjax.sites(lambda w, x: x @ w, w, x)
      >>> [t.shape for t in step(None, site, True)(w, x, jnp.ones((2, 5)), None)]
      [(2, 5), (3, 5)]
    """

    def run(w: Array, x: Array, g: Array, key: Any) -> tuple[Any, ...]:
        y, pull = _pulled(tx, site, first, w, x, key)
        return y, *pull(g)

    return run


def _pulled(
    tx: Transform | None, site: Site, first: bool, w: Array, x: Array, key: Any
) -> tuple[Array, Callable[..., Any]]:
    """The output of a site, and the function from its cotangent to ``(dw,)`` or ``(dw, dx)``."""
    op = Op(site)

    def call(w: Array, x: Array) -> Any:
        return op(x, w) if tx is None else tx.call(op, site, tx.init(site), key, x, w, None)[0]

    return jax.vjp(lambda w: call(w, x), w) if first else jax.vjp(call, w, x)


def traced(tx: Transform | None, site: Site, first: bool) -> compat.Jaxpr:
    """The jaxpr of :func:`step`, with every call in it entered."""
    w, *others = operands(site)
    enter = compat.CALLS | compat.CUSTOM
    return graph.flatten(step(tx, site, first), w, tuple(others), {}, enter).jaxpr


def in_int8(tx: Transform | None, site: Site, first: bool) -> Products:
    """Which products are made of int8 codes: no float in any convolution or dot product of it."""
    jaxpr = traced(tx, site, first)
    y, *gradients = (compat.needed(jaxpr, out) for out in jaxpr.outvars)
    forward = {id(eqn) for eqn in y}
    dw, *dx = ([eqn for eqn in eqns if id(eqn) not in forward] for eqns in gradients)
    return Products(_int8(y), bool(dx) and _int8(dx[0]), _int8(dw))


def _int8(eqns: Iterable[compat.Eqn]) -> bool:
    """Whether int8 goes in and no float is multiplied; depthwise ones are no dot products."""
    within = [e for eqn in eqns for e in (eqn, *compat.inside(eqn))]
    reads = lambda eqn: [v.aval.dtype for v in eqn.invars]
    multiplied = [d for e in within if e.primitive.name in compat.KINDS for d in reads(e)]
    return any(jnp.int8 in reads(e) for e in within) and not any(
        jnp.issubdtype(dtype, jnp.inexact) for dtype in multiplied
    )


def kept_bytes(tx: Transform | None, site: Site, first: bool) -> int:
    """Bytes of what is kept for the gradients, apart from what is alive anyway.

    That is the weight, and the activation if it is the model's own input.
    """
    w, x, _, key = operands(site)

    def kept(*values: Any) -> list[Any]:
        return jax.tree.leaves(_pulled(tx, site, first, *values)[1])

    jaxpr, _ = compat.trace(kept, w, x, key)
    w_var, x_var, key_var = jaxpr.invars
    alive = {w_var, key_var, *([x_var] if first else [])}
    saved = {v for v in jaxpr.outvars if not compat.is_literal(v)} - alive
    return sum(v.aval.size * v.aval.dtype.itemsize for v in saved)


def sums(site: Site) -> tuple[Products, Products]:
    """How long the int32 sums of the int8 products are, and in how many parts each is split.

    Returns:
      The number of products of codes that each element adds up, and the parts it comes in, so
      that none is longer than ``MAX_CONTRACTION``, whatever the codes are.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
      >>> site, = tinyjax.sites(lambda w, x: x @ w, shape(8, 3), shape(300_000, 8))
      >>> sums(site)
      (Products(y=8, dx=3, dw=300000), Products(y=1, dx=1, dw=3))
    """
    params = dict(site.params)
    form = _FORMS[site.kind](site.x.shape, site.w.shape, **params)
    x, w = (
        jax.eval_shape(enter, t) for enter, t in ((form.enter_x, site.x), (form.enter_w, site.w))
    )
    x, w = (jax.ShapeDtypeStruct(t.shape, jnp.int8) for t in (x, w))
    y = jax.eval_shape(form.y, x, w)
    g = jax.ShapeDtypeStruct(y[0].shape, jnp.int8)
    # A batch of matrices is as many products, each as long as one of them.
    batched = site.kind == "dot" and w.ndim > 2
    *taps, depth, features = w.shape[1:] if batched else w.shape
    lengths = Products(
        math.prod(taps) * depth,
        math.prod(taps) * features // params.get("feature_group_count", 1),
        math.prod(g.shape[1:-1] if batched else g.shape[:-1]),
    )
    gradients = jax.eval_shape(form.dx, g, w), jax.eval_shape(form.dw, x, g)
    return lengths, Products(*map(len, (y, *gradients)))
