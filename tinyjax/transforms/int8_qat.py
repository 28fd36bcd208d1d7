"""INT8 training: forward, input gradient and weight gradient of a site as int8 products.

With ``Q`` for rounding to codes, ``*`` for the op, and scales ``s`` per tensor (``x``), per
output feature (``w``, and ``g`` for the weight gradient) and per row (``g`` for the input
gradient; a row is a sample of a convolution or a row of a matrix)::

    y  = (Q(x / s_x) * Q(w / s_w)) s_x s_w
    dx = (Q(g s_w / s_r) *' Q(w / s_w)) s_r
    dw = (Q(x / s_x) *" Q(g / s_g)) s_x s_g

A scale varies only along axes that its product does not contract; in ``dx``, which contracts
features, ``s_w`` is folded into ``g`` first, so that the codes of ``w`` serve both. Of ``x`` only
the int8 codes are kept for the backward pass. Rounding is differentiated as the identity. Master
weights, and all between sites, stay as the user has them.

References:
  Zhou et al., `Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for
  Tiny On-device Learning <https://www.usenix.org/conference/atc21/presentation/zhou-qihua>`_,
  USENIX ATC 2021. Its compensation and range clipping are not here yet. Stochastic gradients:
  Chen et al., `A Statistical Framework for Low-bitwidth Training
  <https://arxiv.org/abs/2010.14298>`_, 2020.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tinyjax.base import Array, Op, Site, Transform, Vars
from tinyjax.numerics import (
    Form,
    abs_max,
    conv_form,
    dot_form,
    finite_or_nan,
    gradient_scales,
    qmax,
    quantize,
    seed_of,
    stochastic,
    symmetric_scale,
    total,
)
from tinyjax.numerics.rounding import Rounding

__all__ = ["int8_qat"]

_FORMS = {"conv": conv_form, "dot": dot_form}


def int8_qat(*, bits: int = 8, gradient_rounding: Rounding = stochastic) -> Transform:
    """Computes sites in int8, forward and backward, with int32 accumulation.

    Scales are taken from the tensors at hand in every step. Under ``vmap`` "the tensor" is one
    example's; under a sharded ``jit`` it is the global one. NaN or Inf in an activation gives NaN
    in the whole output of its site; in a gradient, in all of the input's gradient and in its
    features of the weight's.

    Args:
      bits: 2 to 8; narrower codes are still computed in int8.
      gradient_rounding: ``(t, seed) -> int32``. :func:`tinyjax.numerics.stochastic` is unbiased
        and needs a key, so a train state needs :func:`tinyjax.attach`;
        :func:`tinyjax.numerics.nearest` needs none.

    Returns:
      A transform without variables. In ``chain`` it goes last, since it computes the op itself.

    Raises:
      ValueError: if ``bits`` is out of range; on use, if a key is missing, if a site has an empty
        axis, if another transform stands behind this one, or if it is differentiated twice.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> apply = lambda params, x: jnp.tanh(x @ params["w"])
      >>> params, x = {"w": jnp.eye(8)}, jnp.linspace(-1.0, 1.0, 32).reshape(4, 8)
      >>> int8 = tinyjax.rewrite(tinyjax.int8_qat(), apply)
      >>> def loss(params):
      ...   return int8.apply({}, params, x, key=jax.random.key(0))[0].sum()
      >>> exact = jax.grad(lambda params: apply(params, x).sum())(params)["w"]
      >>> bool(jnp.abs(jax.grad(loss)(params)["w"] - exact).max() < 0.05)
      True

    References:
      Zhou et al., Octo, USENIX ATC 2021 (see the module).
    """
    qmax(bits)

    def call(
        op: Op,
        site: Site,
        vars: Vars,
        key: Any,
        x: Array,
        w: Array,
        epilogue: Any,
        **overrides: Any,
    ) -> tuple[Array, Vars]:
        del epilogue
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
        seed = None if key is None else seed_of(key)
        product = _product(form, site.path)
        if form.batched:
            product = jax.vmap(product, (0, 0, None))
        z = product(form.enter_x(x.astype(jnp.float32)), form.enter_w(w.astype(jnp.float32)), seed)
        return form.leave(z).astype(site.out.dtype), vars

    def _product(form: Form, path: str) -> Any:
        @jax.custom_vjp
        def product(x: Array, w: Array, seed: Array | None) -> Array:
            return forward(x, w, seed)[0]

        def codes(t: Array, axis: Any) -> tuple[Array, Array]:
            scale = symmetric_scale(abs_max(t, axis), bits)
            return quantize(t, scale, bits=bits), scale.reshape(-1)

        def forward(x: Array, w: Array, seed: Array | None) -> tuple[Array, Any]:
            x_q, s_x = codes(x, None)
            w_q, s_w = codes(w, range(w.ndim - 1))
            y = total(form.y(x_q, w_q)) * finite_or_nan(s_x * s_w)
            return y, (x_q, s_x, w, seed)

        @jax.custom_jvp
        def gradients(kept: Any, g: Array) -> tuple[Array, Array]:
            x_q, s_x, w, seed = kept
            w_q, s_w = codes(w, range(w.ndim - 1))  # the forward pass's, or made anew from w
            rounded = dict(bits=bits, rounding=gradient_rounding, seed=seed)
            s_r, s_g = gradient_scales(g, s_w, bits)
            dx = total(form.dx(quantize(g * s_w, s_r, **rounded), w_q)) * finite_or_nan(s_r)
            dw = total(form.dw(x_q, quantize(g, s_g, **rounded))) * finite_or_nan(s_x * s_g)
            return dx, dw

        @gradients.defjvp
        def second(*ignored: Any) -> Any:
            del ignored
            raise ValueError(
                f"int8_qat at {path!r} was differentiated twice, and rounding has no second "
                "derivative: leave the site out with where(...) in what you differentiate again"
            )

        def backward(kept: Any, g: Array) -> tuple[Array, Array, None]:
            return *gradients(kept, g), None

        product.defvjp(forward, backward)
        return product

    return Transform(lambda site: (), call)
