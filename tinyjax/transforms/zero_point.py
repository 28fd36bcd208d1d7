"""Compensation of a dropped zero point: activations are shifted, and the loss learns the rest.

With ``c`` the middle of the range of ``x``, a compensated site is ::

    zero_point       z = (x - c) * w + c (colsum(w') + beta)
    shifted          z = (x - c) * w + c (1 * w')

so that activations after a relu use all codes. ``w'`` is the weight as the op sees it, rounded; the
op is linear, so ``1 * w'`` corrects it exactly. (With ``w`` itself the rounding of the weight would
meet ``x - c``, which is larger than ``x``.) What is known of the paper drops that term and lets
``beta`` learn it, at hundreds of times the usual rate. Here ``beta`` is the *deviation* from the
column sums: exact at the start, except at padded borders, for a pass over the weight. Their
gradient flows, as without it that of ``w`` would lack the term too.

References:
  Zhou et al., `Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for
  Tiny On-device Learning <https://www.usenix.org/conference/atc21/presentation/zhou-qihua>`_,
  USENIX ATC 2021, as a third party read the paper, which we could not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tinyjax.base import Array, Op, Site, Vars
from tinyjax.numerics import column_sums, middle, qmax, through_codes
from tinyjax.transforms.compensate import Kind, axes_of

__all__ = ["shifted", "zero_point"]

Rounded = Callable[..., Array]  # (w, axes that are summed, bits) -> w as the op behind sees it


def zero_point(*, bits: int = 8, anchored: bool = True, rounded: Rounded = through_codes) -> Kind:
    """``c (colsum(w) + beta)`` for an activation shifted by ``c``; ``beta`` per feature, from 0.

    Args:
      bits: of the codes of the op behind, so that 0.0 stays exact.
      anchored: whether the column sums are there. If not, ``beta`` has to learn them, at a rate
        near 0.05 times their root mean square.
      rounded: ``(w, axes, bits) -> w``, the weight as the op behind sees it: by default with a
        scale per feature. In front of a float op, ``lambda w, axes, bits: w``.

    Raises:
      ValueError: if ``bits`` is out of range; on use, where the op dilates its input.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> lac = tinyjax.rewrite(tinyjax.compensate(tinyjax.zero_point()), lambda p, x: x @ p["w"])
      >>> params, x = {"w": jnp.ones((2, 3))}, jnp.array([[0.0, 254.0]])
      >>> lac.apply(lac.init(params, x), params, x)[0].tolist()
      [[254.0, 254.0, 254.0]]

    References:
      Zhou et al., Octo, USENIX ATC 2021, as re-implemented by others (see the module).
    """

    def init(site: Site) -> Array:
        return jnp.zeros(axes_of(site).per_feature(site.out.shape), jnp.float32)

    def answer(site: Site, beta: Array, w: Array) -> Array:
        if any(d != 1 for d in dict(site.params).get("lhs_dilation", ())):
            raise ValueError(
                f"site {site.path!r} dilates its input, where column sums do not answer for ones: "
                "use compensate(shifted()) there"
            )
        if not anchored:
            return beta
        axes = axes_of(site)
        return beta + column_sums(rounded(w, axes.w_summed, bits), axes, site.out.shape)

    return _moved(bits, init, answer)


def shifted(*, bits: int = 8, rounded: Rounded = through_codes) -> Kind:
    """Exact affine quantization: ``c`` times the float op of one sample of ones; no variables.

    Args:
      bits: of the codes of the op behind, so that 0.0 stays exact.
      rounded: as in :func:`zero_point`.

    Raises:
      ValueError: if ``bits`` is out of range.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> affine = tinyjax.rewrite(tinyjax.compensate(tinyjax.shifted()), lambda p, x: x @ p["w"])
      >>> params, x = {"w": jnp.ones((2, 3))}, jnp.array([[0.0, 254.0]])
      >>> affine.apply({}, params, x)[0].tolist()
      [[254.0, 254.0, 254.0]]

    References:
      Jacob et al., `Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference <https://arxiv.org/abs/1712.05877>`_, 2018, eq. 7.
    """

    def answer(site: Site, vars: Vars, w: Array) -> Array:
        del vars
        axes = axes_of(site)
        ones = jnp.ones(axes.one_x_sample(site.x.shape), site.x.dtype)
        seen = rounded(w, axes.w_summed, bits).astype(w.dtype)
        return Op(site)(ones, seen).astype(jnp.float32)

    return _moved(bits, lambda site: (), answer)


def _moved(bits: int, init: Callable[[Site], Vars], answer: Callable[..., Array]) -> Kind:
    qmax(bits)

    def terms(site: Site, vars: Any, x: Array, w: Array) -> tuple[Array, Array]:
        c = jax.lax.stop_gradient(middle(x, bits))
        return x - c.astype(x.dtype), c * answer(site, vars, w)

    return Kind(init, terms)
