"""INT8 training: forward, input gradient and weight gradient of a site as int8 products.

With ``Q`` for rounding to codes, ``*`` for the op, ``E`` for its epilogue (bias, norm, activation,
pooling) and scales ``s`` per tensor (``x``), per output feature (``w``, ``g`` in ``dw``), per row
(``g`` in ``dx``; a sample of a convolution, a row of a matrix, a matrix of a batch)::

    z  = (Q(x / s_x) * Q(w / s_w)) s_x s_w          y = E(z)
    dx = (Q(g s_w / s_r) *' Q(w / s_w)) s_r         g = E'(z) dy
    dw = (Q(x / s_x) *" Q(g / s_g)) s_x s_g

A scale varies only along axes that its product does not contract. In ``dx``, which contracts
features, ``s_w`` is folded into ``g`` first, so that the codes of ``w`` serve both; in ``dw``,
which contracts rows, so is an ``s_x`` per row. Kept for the backward pass are the int8 codes of
``x`` and what ``E'`` needs (:func:`tinyjax.residuals.lean_vjp`). Rounding is differentiated as the
identity. Master weights, and what is between sites, stay as they are.

References:
  Zhou et al., `Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for
  Tiny On-device Learning <https://www.usenix.org/conference/atc21/presentation/zhou-qihua>`_,
  2021; its range clipping is a ``gradient_range``. Stochastic gradients: Chen et al., `A
  Statistical Framework for Low-bitwidth Training <https://arxiv.org/abs/2010.14298>`_, 2020.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from tinyjax.base import Array, Epilogue, Op, Site, Transform, Vars
from tinyjax.numerics import (
    Form,
    conv_form,
    dequantize,
    dot_form,
    fine,
    finite_or_nan,
    late,
    materialized,
    per_feature,
    qmax,
    quantize,
    seed_of,
    stochastic,
    symmetric_scale,
    total,
)
from tinyjax.numerics.ranges import GradientRange
from tinyjax.numerics.rounding import Rounding
from tinyjax.residuals import differentiable_once, lean_vjp
from tinyjax.scaling import Scaling, per_tensor

__all__ = ["int8_qat"]

_FORMS = {"conv": conv_form, "dot": dot_form}
_PRODUCTS = ("y", "dx", "dw")


def int8_qat(
    *,
    bits: int = 8,
    products: Collection[str] = _PRODUCTS,
    scaling: Scaling = per_tensor,
    weight_range: Callable[[Array], Array] = per_feature,
    gradient_range: GradientRange = fine,
    gradient_rounding: Rounding = stochastic,
) -> Transform:
    """Computes sites in int8, forward and backward, with int32 accumulation.

    Scales are of one example under ``vmap``, of one shard in ``shard_map``, of everything under a
    sharded ``jit``. NaN or Inf in an activation makes the output of its site NaN; in a gradient,
    the input's gradient, and its features of the weight's.

    Args:
      bits: 2 to 8; narrower codes are still computed in int8.
      products: which of ``"y"``, ``"dx"`` and ``"dw"`` are computed in int8; the others in float,
        ``"dw"`` from the codes of ``x``.
      scaling: of ``x``: ``tinyjax.per_tensor``, ``per_row``, ``frozen(...)``, ``delayed(...)``.
      weight_range: ``w -> magnitudes``: ``tinyjax.numerics.per_feature`` or ``per_tensor``.
      gradient_range: ``(g, s_w) -> (rows, features)``: :func:`tinyjax.numerics.fine`, ``coarse``,
        or clipped by ``shrunk``, ``gaussian``, ``least_angle``.
      gradient_rounding: ``(t, seed) -> int32``: ``tinyjax.numerics.stochastic`` is unbiased and
        needs a key, so a train state needs :func:`tinyjax.attach`; ``nearest`` needs none.

    Returns:
      A transform with the variables of ``scaling``. In ``chain`` it goes last.

    Raises:
      ValueError: if ``bits`` or ``products`` is not among these; on use, if a key is missing, if a
        site has an empty axis, if another transform stands behind, or if differentiated twice.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> apply = lambda params, x: jnp.tanh(x @ params["w"])
      >>> params, x = {"w": jnp.eye(8)}, jnp.linspace(-1.0, 1.0, 32).reshape(4, 8)
      >>> int8 = tinyjax.rewrite(tinyjax.int8_qat(), apply)
      >>> loss = lambda params: int8.apply({}, params, x, key=jax.random.key(0))[0].sum()
      >>> exact = jax.grad(lambda params: apply(params, x).sum())(params)["w"]
      >>> bool(jnp.abs(jax.grad(loss)(params)["w"] - exact).max() < 0.05)
      True

    References:
      Zhou et al., Octo, USENIX ATC 2021 (see the module).
    """
    qmax(bits)
    if isinstance(products, str) or not set(products) <= set(_PRODUCTS):
        raise ValueError(f"products is {products!r}: use some of {_PRODUCTS}")

    def call(
        op: Op,
        site: Site,
        vars: Vars,
        key: Any,
        x: Array,
        w: Array,
        epilogue: Epilogue | None,
        **overrides: Any,
    ) -> tuple[Any, Vars]:
        if overrides or not isinstance(op, Op):
            raise ValueError(
                f"at {site.path!r} int8_qat would bypass another transform, since it computes "
                "the op itself: put it last in chain(...)"
            )
        if 0 in (*site.x.shape, *site.w.shape, *site.out.shape):
            raise ValueError(
                f"site {site.path!r} has an empty axis (x {site.x.shape}, w {site.w.shape}, out "
                f"{site.out.shape}), so there is no scale: drop empty batches before the step"
            )
        form = _FORMS[site.kind](site.x.shape, site.w.shape, **dict(site.params))
        x, w = form.enter_x(x.astype(jnp.float32)), form.enter_w(w.astype(jnp.float32))
        largest, vars = scaling.largest(vars, jax.lax.stop_gradient(x), site)
        seed = None if key is None else seed_of(key)
        fun, captured = epilogue[:2] if epilogue else (lambda z: (z,), ())
        outs = block(form, site, fun)(x, w, seed, largest, *captured)
        return outs if epilogue else outs[0], vars

    def codes(w: Array) -> tuple[Array, Array]:
        s_w = symmetric_scale(weight_range(w), bits)
        return quantize(w, s_w, bits=bits), s_w

    def input_gradient(form: Form, w: Array, g: Array, seed: Any) -> Array:
        w_q, s_w = codes(w)  # the forward pass's, or made anew
        s_r = symmetric_scale(gradient_range(g, s_w)[0], bits)
        g_q = quantize(g * s_w, s_r, bits=bits, rounding=gradient_rounding, seed=seed)
        return total(form.dx(g_q, w_q)) * finite_or_nan(s_r)

    def weight_gradient(form: Form, x_q: Array, s_x: Array, w: Array, g: Array, seed: Any) -> Array:
        if s_x.size > 1:
            g, s_x = g * s_x, jnp.ones((), jnp.float32)
        s_g = symmetric_scale(gradient_range(g, codes(w)[1])[1], bits)
        g_q = quantize(g, s_g, bits=bits, rounding=gradient_rounding, seed=seed)
        return total(form.dw(late(x_q, s_g), g_q)) * finite_or_nan(s_x * s_g)

    def block(form: Form, site: Site, fun: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
        """``fun(op(x, w), *captured)`` as one function with a derivative of its own."""

        @jax.custom_vjp
        def run(*args: Any) -> Any:
            return forward(*args)[0]

        def forward(x: Array, w: Array, seed: Any, largest: Array, *captured: Any) -> Any:
            kept = w  # unguarded, so that a weight that is alive anyway is not kept twice
            x, w = differentiable_once(lambda x, w: (x, w), site.path)(x, w)
            s_x = symmetric_scale(largest, bits)
            x_q = materialized(lambda part: quantize(part, s_x, bits=bits), x)
            if "y" in products:
                w_q, s_w = codes(w)
                z = total(form.y(x_q, w_q)) * finite_or_nan(s_x * s_w)
            else:
                z = form.exact(x, w)
            epilogue = lambda z, *captured: fun(form.leave(z).astype(site.out.dtype), *captured)
            each = range(1, z.ndim) if s_x.size > 1 else range(z.ndim - 1)  # row, or feature
            outs, pull = lean_vjp(epilogue, z, captured, each)
            return outs, (x_q, s_x, kept, seed, captured, pull)

        @functools.partial(differentiable_once, path=site.path)
        def gradients(x_q: Array, s_x: Array, w: Array, g: Array, seed: Any) -> tuple[Array, Array]:
            x = dequantize(x_q, s_x)
            if "dx" in products:
                dx = input_gradient(form, w, g, seed)
            else:
                (dx,) = jax.linear_transpose(lambda x: form.exact(x, w), x)(g)
            if "dw" in products:
                return dx, weight_gradient(form, x_q, s_x, w, g, seed)
            return dx, *jax.linear_transpose(lambda w: form.exact(x, w), w)(g)

        def backward(kept: Any, gs: Any) -> tuple[Any, ...]:
            x_q, s_x, w, seed, captured, pull = kept
            g, *of_captured = pull(captured, gs)
            dx, dw = gradients(x_q, s_x, w, g, seed)
            return dx, dw, None, None, *of_captured

        run.defvjp(forward, backward)
        return run

    return Transform(scaling.init, call)
