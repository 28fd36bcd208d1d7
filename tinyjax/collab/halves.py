"""The two halves of a network, as what each side computes with.

With ``f`` the lower half on a device and ``h`` the upper half in the cloud, ``C`` and ``C'`` what a
link does to features and gradients, a step is::

    a = C(f(p, x))      loss = l(h(q, a), labels)      g = C'(d loss / d a)
    q <- optimizer(q, d loss / d q)                    p <- optimizer(p, g . d f / d p)

References:
  Vepakomma et al., `Split learning for health <https://arxiv.org/abs/1812.00564>`_, 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tinyjax.base import Array

__all__ = ["Lower", "Upper", "backward", "forward", "upper_step"]


class Lower(NamedTuple):
    """A device's half.

    Attributes:
      apply: ``apply(params, x) -> features``.
      params: pytree of arrays.
      optimizer: of ``params``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from tinyjax import collab
      >>> half = collab.Lower(lambda w, x: x @ w, jnp.ones((2, 3)), optax.sgd(0.1))
      >>> half.apply(half.params, jnp.ones((1, 2))).shape
      (1, 3)
    """

    apply: Callable[..., Array]
    params: Any
    optimizer: optax.GradientTransformation


class Upper(NamedTuple):
    """The cloud's half.

    Attributes:
      apply: ``apply(params, features) -> output``.
      params: pytree of arrays.
      optimizer: of ``params``.
      loss: ``loss(output, labels) -> float32 []``, labels int32 ``[n]``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from tinyjax import collab
      >>> loss = lambda y, labels: ((y[:, 0] - labels.astype(y.dtype)) ** 2).mean()
      >>> half = collab.Upper(lambda w, x: x @ w, jnp.ones((2, 1)), optax.sgd(0.1), loss)
      >>> float(half.loss(half.apply(half.params, jnp.ones((1, 2))), jnp.array([2])))
      0.0
    """

    apply: Callable[..., Any]
    params: Any
    optimizer: optax.GradientTransformation
    loss: Callable[[Any, Array], Array]


def forward(half: Lower) -> Callable[[Any, Any], tuple[Array, Any]]:
    """``(params, x) -> (features, back)``, compiled; ``back`` is for :func:`backward`."""
    return jax.jit(lambda params, x: jax.vjp(lambda p: half.apply(p, x), params))


def backward(half: Lower) -> Callable[[Any, Any, Any, Array], tuple[Any, Any]]:
    """``(params, moments, back, g) -> (params, moments)``, compiled: a device's update."""

    def update(params: Any, moments: Any, back: Any, g: Array) -> tuple[Any, Any]:
        (grads,) = back(g)
        changes, moments = half.optimizer.update(grads, moments, params)
        return optax.apply_updates(params, changes), moments

    return jax.jit(update)


def upper_step(half: Upper) -> Callable[..., tuple[Any, Any, Array, Array, Array]]:
    """``(params, moments, features, labels) -> (params, moments, g, loss, sound)``, compiled.

    ``sound`` is False where the loss or a gradient has NaN or Inf; such a step is to be dropped.
    """

    def step(params: Any, moments: Any, x: Array, labels: Array) -> Any:
        objective = lambda params, x: half.loss(half.apply(params, x), labels)
        loss, (grads, g) = jax.value_and_grad(objective, argnums=(0, 1))(params, x)
        changes, moments = half.optimizer.update(grads, moments, params)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, g, grads))]
        return optax.apply_updates(params, changes), moments, g, loss, jnp.stack(finite).all()

    return jax.jit(step)
