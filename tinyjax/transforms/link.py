"""A cut in the network: features cross it encoded, and gradients cross it back encoded.

With ``C`` for encoding and decoding features and ``C'`` for gradients, which may depend on what was
sent before::

    y = C(x)        dx = C'(dy, C(x))

so encoding is differentiated as the identity, and both ends compute from what would have come
over a wire. In one process this *is* training split between two machines.

References:
  Vepakomma et al., `Split learning for health <https://arxiv.org/abs/1812.00564>`_, 2018.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax import lax

from tinyjax.base import Array, Codec, Op, Site, Transform, Vars
from tinyjax.numerics import seed_of

__all__ = ["link", "send"]


def link(codec: Codec, x: Array, key: Array | None) -> Array:
    """``x`` after a codec; its gradient after the codec's other direction.

    Args:
      codec: :func:`tinyjax.sgq`, say.
      x: float ``[n, ..., c]``.
      key: PRNG key, for the rounding of the gradient.

    Returns:
      What the other side decodes; shape and dtype of ``x``.

    Raises:
      ValueError: without a key, where the codec refuses ``x``, or if it is differentiated twice.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> codec = tinyjax.sgq(quantizer=tinyjax.stripe_groups(group_size=2))
      >>> far = lambda x: tinyjax.link(codec, x, jax.random.key(0))
      >>> far(jnp.array([[0.0, 15.0]])).tolist()
      [[0.0, 15.0]]
      >>> jax.grad(lambda x: (3 * far(x)).sum())(jnp.ones((4, 2))).shape
      (4, 2)

    References:
      Vepakomma et al., `Split learning for health <https://arxiv.org/abs/1812.00564>`_, 2018.
    """
    if key is None:
        raise ValueError(
            "a link was given no key, which rounding its gradient needs: pass key=... to "
            "rewrite(...).apply, or attach(tx, step, state, *batch) for a train step"
        )

    @jax.custom_vjp
    def across(x: Array, seed: Array) -> Array:
        del seed
        return codec.decode(codec.encode(x))

    def forward(x: Array, seed: Array) -> tuple[Array, Any]:
        code = codec.encode(lax.stop_gradient(x))
        return arrived(x, code), (seed, code)

    @jax.custom_jvp
    def arrived(x: Array, code: Any) -> Array:
        del x  # which its second derivative would be by
        return codec.decode(code)

    @jax.custom_jvp
    def back(g: Array, seed: Array, code: Any) -> Array:
        return codec.decode_gradient(codec.encode_gradient(g, seed, code))

    @arrived.defjvp
    @back.defjvp
    def second(*ignored: Any) -> Any:
        del ignored
        raise ValueError(
            "a link was differentiated twice, and rounding has no second derivative: leave the "
            "link out of what you differentiate again"
        )

    across.defvjp(forward, lambda kept, g: (back(g, *kept), None))
    return across(x, seed_of(key))


def send(codec: Codec) -> Transform:
    """Puts a link in front of a site: its activation comes from the other side of a cut.

    ``at("Conv_3", send(codec))`` splits a model before ``Conv_3``. Samples and channels are found
    by the op's own layout: what it contracts are the channels.

    Args:
      codec: :func:`tinyjax.sgq`, say.

    Returns:
      A transform without variables that needs keys; a train state gets them from
      :func:`tinyjax.attach`. In ``chain`` it goes before one that computes the op itself:
      ``chain(at("Conv_3", send(codec)), int8_qat())``.

    Raises:
      ValueError: on use, without a key or where the codec refuses the activation.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> codec = tinyjax.sgq(quantizer=tinyjax.stripe_groups(group_size=2))
      >>> tx = tinyjax.at("b", tinyjax.send(codec))
      >>> split = tinyjax.rewrite(tx, lambda p, x: x @ p["a"] @ p["b"])
      >>> params, x = {"a": jnp.eye(2), "b": jnp.eye(2)}, jnp.array([[0.0, 15.0]])
      >>> split.apply({}, params, x, key=jax.random.key(0))[0].tolist()
      [[0.0, 15.0]]

    References:
      Vepakomma et al., `Split learning for health <https://arxiv.org/abs/1812.00564>`_, 2018.
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
        axes, channels = _layout(site)
        moved = x.transpose(axes)
        lead, depth = moved.shape[: x.ndim - channels], moved.shape[x.ndim - channels :]
        flat = moved.reshape(*(lead or (1,)), math.prod(depth))
        sent = link(codec, flat, key).reshape(moved.shape).transpose(np.argsort(axes))
        return op(sent, w, epilogue, **overrides), vars

    return Transform(lambda site: (), call)


def _layout(site: Site) -> tuple[tuple[int, ...], int]:
    """The axes of an activation with samples first and channels last, and how many are channels."""
    numbers = dict(site.params)["dimension_numbers"]
    if site.kind == "conv":
        sample, channel, *space = numbers.lhs_spec
        return (sample, *space, channel), 1
    (contracted, _), (batch, _) = numbers
    free = [a for a in range(len(site.x.shape)) if a not in (*contracted, *batch)]
    return (*batch, *free, *contracted), len(contracted)
