"""Octo as released, defects included: a *simulation* in float32, for comparison only.

What the released demo computes in a convolution under its LAC scheme, and what is kept of it here:

* affine codes in [-255, 255], which take 9 bits, with a zero point that is not a whole number;
  stochastic rounding of activation and weight;
* the product of the codes without any zero-point term, padded with code 0, which stands for the
  middle of the range and not for 0;
* a compensation ``alpha mu + omega`` per *slot of the batch*, so that only one batch size works;
* in the backward pass the ranges cut to 0.95 of their ends, symmetric codes by ``(max - min) /
  254``, which leave int8 where a tensor is one-sided, rounded to nearest;
* dense layers in float32, and a BatchNorm only together with LAC (`models.SimpleCnn` has it, with
  a statistic per pixel and of the test batch itself).

No integer is multiplied here, so that no time or memory may be read off this arm. Left out are the
rounding of the bias gradient and Adam's epsilon outside the root. It starts ``mu`` and ``omega`` at
1e-3 N(0, 1) in the release, here at 0: what a step of Adam makes of them is of that size.

References:
  github.com/kimihe/Octo, commit 9436e66, of Zhou et al., *Octo*, USENIX ATC 2021.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinyjax import Epilogue, Op, Site, Transform

__all__ = ["CODES", "Slots", "penalty", "released"]

Array = jax.Array

CODES = 255  # of the forward pass, on either side of 0
_KEPT = 0.95  # of either end of a range, in the backward pass
_STEPS = 254  # of the backward pass


class Slots(NamedTuple):
    """Variables of a site: float32, of the shape of its output."""

    alpha: Array
    mu: Array
    omega: Array


def released() -> Transform:
    """The released LAC scheme for the convolutions of a network. Needs keys."""
    return Transform(_init, _call)


def penalty(params: Any) -> Array:
    """What the release adds to the loss: 0.05 times the *sums* of squares of ``mu``, ``omega``."""
    ours = lambda node: isinstance(node, Slots)
    found = [node for node in jax.tree.leaves(params, is_leaf=ours) if ours(node)]
    squares = [jnp.sum(jnp.square(t)) for node in found for t in (node.mu, node.omega)]
    return jnp.float32(0.05) * sum(squares, jnp.float32(0))


def _init(site: Site) -> Any:
    if site.kind != "conv":
        return ()
    zeros = jnp.zeros(site.out.shape, jnp.float32)
    return Slots(jnp.ones_like(zeros), zeros, zeros)


def _call(
    op: Op,
    site: Site,
    vars: Any,
    key: Any,
    x: Array,
    w: Array,
    epilogue: Epilogue,
    **overrides: Any,
) -> tuple[Any, Any]:
    if site.kind != "conv":
        return op(x, w, epilogue, **overrides), vars
    x_key, w_key = jax.random.split(jax.random.key(0) if key is None else key)
    bits = jax.random.uniform(x_key, x.shape), jax.random.uniform(w_key, w.shape)
    z = _product(Op(site), x, w, *bits) + vars.alpha * vars.mu + vars.omega
    return epilogue.fn(z, *epilogue.captured), vars


def _product(op: Op, x: Array, w: Array, x_random: Array, w_random: Array) -> Array:
    @jax.custom_vjp
    def product(x: Array, w: Array, x_random: Array, w_random: Array) -> Array:
        (x_q, s_x), (w_q, s_w) = affine(x, x_random), affine(w, w_random)
        return op(x_q, w_q) * (s_x * s_w)  # floats that hold whole numbers

    def forward(x: Array, w: Array, *random: Array) -> tuple[Array, tuple[Array, Array]]:
        return product(x, w, *random), (x, w)

    def backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array, None, None]:
        (x_q, s_x), (w_q, s_w), (g_q, s_g) = (symmetric(cut(t)) for t in (*kept, g))
        dx, dw = jax.vjp(op, x_q, w_q)[1](g_q)
        return dx * (s_g * s_w), dw * (s_g * s_x), None, None

    product.defvjp(forward, backward)
    return product(x, w, x_random, w_random)


def affine(t: Array, random: Array) -> tuple[Array, Array]:
    """Codes and scale of the forward pass; the zero point is in the codes, and then forgotten."""
    step = _positive((t.max() - t.min()) / (2 * CODES))
    zero_point = jnp.clip(CODES - t.max() / step, -CODES, CODES)
    return jnp.floor(t / step + zero_point + random), step


def cut(t: Array) -> Array:
    """Range clipping: the ends of the range, times 0.95."""
    return jnp.clip(t, _KEPT * t.min(), _KEPT * t.max())


def symmetric(t: Array) -> tuple[Array, Array]:
    """Codes and scale of the backward pass."""
    step = _positive((t.max() - t.min()) / _STEPS)
    return jnp.rint(t / step), step


def _positive(step: Array) -> Array:
    return jnp.maximum(step, jnp.finfo(jnp.float32).tiny)
