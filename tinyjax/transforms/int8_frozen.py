"""INT8 inference of a site, position by position: what skipping of patches can keep.

With frozen scales ``s_x`` per tensor and scales ``s_w`` of the weight's output features::

    y = (Q(x / s_x) * Q(w / s_w)) s_x s_w

The integers are those of ``int8_qat(scaling=frozen(table))``. That transform looks at the whole
activation for NaN and writes its product in parts, for training; here every output depends on its
own window alone, so that a position is the same in a patch and in the frame.

References:
  Jacob et al., `Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
  Inference <https://arxiv.org/abs/1712.05877>`_, 2018. Zhou et al., Octo, USENIX ATC 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tinyjax.base import Array, Epilogue, Op, Site, Transform, Vars
from tinyjax.numerics import finite_or_nan, per_feature, qmax, quantize, symmetric_scale
from tinyjax.scaling import frozen

__all__ = ["int8_frozen"]

_CONV = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # [n, h, w, c] with [h, w, in, out]


def int8_frozen(*, table: Mapping[str, float], bits: int = 8) -> Transform:
    """Computes sites in int8 with scales that were measured before; for inference.

    For convolutions ``[n, h, w, c]`` with kernels ``[h, w, in, out]`` and products over the last
    axis. NaN or Inf in an activation makes the outputs NaN whose windows hold it, and no others.

    Args:
      table: site path -> largest magnitude, from :func:`tinyjax.calibrate`. Larger values are
        clipped.
      bits: 2 to 8; narrower codes are still computed in int8.

    Returns:
      A transform without variables. In ``chain`` it goes last.

    Raises:
      ValueError: if ``bits`` or a magnitude is out of range; on use, if a site is missing in the
        table, has another layout or more than 133,144 products per output, if another transform
        stands behind, or if it is differentiated.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda params, frame: jnp.tanh(frame @ params["w"])
      >>> params, frame = {"w": jnp.ones((3, 2))}, jnp.full((1, 32, 32, 3), 0.5)
      >>> int8 = tinyjax.rewrite(tinyjax.int8_frozen(table={"w": 1.0}), apply)
      >>> of_frame = lambda params, frame: int8.apply({}, params, frame)[0]
      >>> skipping = tinyjax.rewrite(tinyjax.pass_skip(patch=8), of_frame)
      >>> out, _ = skipping.apply(skipping.init(params, frame), params, frame)
      >>> bool((out == of_frame(params, frame)).all())
      True

    References:
      Jacob et al., 2018 (see the module).
    """
    qmax(bits)
    scaling = frozen(table)

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
        del key
        if overrides or not isinstance(op, Op):
            raise ValueError(
                f"at {site.path!r} int8_frozen would bypass another transform, since it computes "
                "the op itself: put it last in chain(...)"
            )
        _check(site)
        largest, vars = scaling.largest(vars, jnp.zeros(1), site)
        s_x = symmetric_scale(largest, bits)

        @jax.custom_jvp
        def product(x: Array, w: Array) -> Array:
            s_w = symmetric_scale(per_feature(w), bits)
            x_q, w_q = quantize(x, s_x, bits=bits), quantize(w, s_w, bits=bits)
            sums = op(x_q, w_q, preferred_element_type=jnp.int32).astype(jnp.float32)
            return sums * finite_or_nan(s_x * s_w) + _unknown(op, site, x)

        @product.defjvp
        def derivative(*ignored: Any) -> Any:
            del ignored
            raise ValueError(
                f"int8_frozen was differentiated at {site.path!r}, and it is for inference only: "
                "train with int8_qat(scaling=frozen(table)), which gives the same integers"
            )

        z = product(x.astype(jnp.float32), w.astype(jnp.float32)).astype(site.out.dtype)
        return (epilogue.fn(z, *epilogue.captured) if epilogue else z), vars

    return Transform(scaling.init, call)


def _check(site: Site) -> None:
    """Refuses what is not position by position, or too long for int32."""
    numbers = dict(site.params)["dimension_numbers"]
    if site.kind == "conv":
        plain = tuple(numbers) == _CONV
    else:
        given = tuple(tuple(map(tuple, pair)) for pair in numbers)
        plain = given == (((site.x.ndim - 1,), (0,)), ((), ()))
    terms = math.prod(site.w.shape[:-1])
    if not plain or terms * 127**2 >= 2**31:
        raise ValueError(
            f"site {site.path!r} has x {site.x.shape} and w {site.w.shape} in another layout, or "
            f"{terms} products per output: int8_frozen takes [n, h, w, c] with [h, w, in, out] or "
            "the last axis with the first, and up to 133,144"
        )


def _unknown(op: Op, site: Site, x: Array) -> Array:
    """NaN where a window holds NaN or Inf, 0 elsewhere: codes cannot say it."""
    found = x @ jnp.zeros((x.shape[-1], 1), jnp.float32)
    if site.kind == "dot":
        return found
    return op(found, jnp.ones((*site.w.shape[:2], 1, 1), jnp.float32), feature_group_count=1)
