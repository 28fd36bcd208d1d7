"""Loss-aware compensation (LAC): what quantization gets wrong is added back, learned from the loss.

With ``*`` for the op as the transforms behind compute it, a compensated site is ::

    z = x * w + alpha mu + omega

before bias, norm and activation, with ``alpha, mu, omega`` trained, per feature or per position
and feature. No variable has a batch axis. Right before a BatchNorm, which subtracts what a batch
shares, a term per feature has no effect and a gradient of zero. Another kind of compensation is in
``zero_point.py``.

References:
  Zhou et al., `Octo: INT8 Training with Loss-aware Compensation and Backward Quantization for
  Tiny On-device Learning <https://www.usenix.org/conference/atc21/presentation/zhou-qihua>`_,
  USENIX ATC 2021: as in its released code, without its slot per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinyjax.base import Array, Epilogue, Op, Site, Transform, Vars
from tinyjax.numerics import Axes, conv_axes, dot_axes

__all__ = ["Additive", "Kind", "axes_of", "bias", "compensate", "penalty", "spatial"]


class Kind(NamedTuple):
    """What is compensated: the activation that the op shall see, and what its output lacks then."""

    init: Callable[[Site], Vars]  # float32
    terms: Callable[[Site, Vars, Array, Array], tuple[Array, Array]]  # (site, vars, x, w)


class Additive(NamedTuple):
    """Variables of ``bias`` and ``spatial``: float32, broadcast against the op's output."""

    alpha: Array  # starts at 1
    mu: Array  # starts at 0
    omega: Array  # starts at 0


def compensate(kind: Kind) -> Transform:
    """Adds a learned term to the output of a site, before its bias, norm and activation.

    Args:
      kind: :func:`bias`, :func:`spatial`, :func:`tinyjax.zero_point` or :func:`tinyjax.shifted`.

    Returns:
      A transform that stands before the one that computes the op. Its variables are trained by
      your optimizer, beside the parameters (:func:`tinyjax.attach`).

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> tx = tinyjax.chain(tinyjax.compensate(tinyjax.bias()), tinyjax.int8_qat())
      >>> int8 = tinyjax.rewrite(tx, lambda params, x: x @ params["w"])
      >>> params, x = {"w": jnp.ones((4, 3))}, jnp.arange(8.0).reshape(2, 4)
      >>> out, _ = int8.apply(int8.init(params, x), params, x, key=jax.random.key(0))
      >>> bool(jnp.abs(out - x @ params["w"]).max() < 0.1)
      True

    References:
      Zhou et al., Octo, USENIX ATC 2021 (see the module).
    """

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
        x, term = kind.terms(site, vars, x, w)
        after = epilogue or Epilogue(lambda z: (z,), (), ())

        def fn(z: Array, term: Array, *captured: Array) -> tuple[Array, ...]:
            return after.fn(z + term.astype(z.dtype), *captured)

        # Captured, not closed over, so that an op which takes the epilogue can differentiate it.
        added = Epilogue(fn, (term, *after.captured), ("add", *after.prims))
        y = op(x, w, added, **overrides)
        exits = y if isinstance(y, tuple) else added.fn(y, *added.captured)
        return exits if epilogue else exits[0], vars

    return Transform(kind.init, call)


def bias() -> Kind:
    """``alpha mu + omega`` per feature.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> lac = tinyjax.rewrite(tinyjax.compensate(tinyjax.bias()), lambda p, x: x @ p["w"])
      >>> lac.init({"w": jnp.ones((2, 3))}, jnp.ones((4, 5, 2)))["w"].omega.shape
      (1, 1, 3)

    References:
      Zhou et al., Octo, USENIX ATC 2021, released code, with one value for all samples.
    """
    return _additive(lambda site: axes_of(site).per_feature(site.out.shape))


def spatial() -> Kind:
    """``alpha mu + omega`` per position and feature.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> lac = tinyjax.rewrite(tinyjax.compensate(tinyjax.spatial()), lambda p, x: x @ p["w"])
      >>> lac.init({"w": jnp.ones((2, 3))}, jnp.ones((4, 5, 2)))["w"].omega.shape
      (1, 5, 3)

    References:
      Zhou et al., Octo, USENIX ATC 2021, released code, with one value for all samples.
    """
    return _additive(lambda site: axes_of(site).one_sample(site.out.shape))


def _additive(shape: Callable[[Site], tuple[int, ...]]) -> Kind:
    def init(site: Site) -> Additive:
        zeros = jnp.zeros(shape(site), jnp.float32)
        return Additive(jnp.ones_like(zeros), zeros, zeros)

    return Kind(init, lambda site, own, x, w: (x, own.alpha * own.mu + own.omega))


def axes_of(site: Site) -> Axes:
    """Which axes of a site are samples and features."""
    numbers = dict(site.params)["dimension_numbers"]
    if site.kind == "conv":
        return conv_axes(numbers)
    return dot_axes(len(site.x.shape), len(site.w.shape), numbers)


def penalty(params: Any, *, weight: float = 0.1) -> Array:
    """``weight / 2`` times the mean squares of ``mu`` and ``omega``, summed over sites.

    A loss can add it, or the optimizer, with no edit of the step: ``optax.stateless(lambda grads,
    params: jax.tree.map(jnp.add, grads, jax.grad(penalty)(params)))``, chained before the rest.

    Args:
      params: any tree with variables of :func:`bias` or :func:`spatial`.
      weight: the method's lambda; of a mean, so that it means the same at every size.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> lac = tinyjax.rewrite(tinyjax.compensate(tinyjax.bias()), lambda p, x: x @ p["w"])
      >>> vars = lac.init({"w": jnp.ones((2, 3))}, jnp.ones((4, 2)))
      >>> float(tinyjax.penalty(vars))
      0.0

    References:
      Zhou et al., Octo, USENIX ATC 2021, released code, where it is a sum.
    """
    ours = lambda node: isinstance(node, Additive)
    found = [node for node in jax.tree.leaves(params, is_leaf=ours) if ours(node)]
    squares = [jnp.mean(jnp.square(t)) for node in found for t in (node.mu, node.omega)]
    return jnp.float32(weight / 2) * sum(squares, jnp.float32(0))
