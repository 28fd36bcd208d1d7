"""The gate that was released with PASS, as it is, for the record: what it costs, what it decides.

With ``p`` the patch, ``N`` the patches of a frame, ``x`` a layer's input and ``r`` a reference::

    u = BN(GELU(conv_{p x p, stride p}([x ; r])))                       2 C -> 256
    four times:  u = BN(GELU(conv_{1 x 1}(u + BN(GELU(depthwise_{9 x 9}(u))))))
    l = W2 (W1 mean(u) + b1) + b2                                       256 -> 4096 -> N

    t = (l + Gumbel) / (2 / 3)    in training,    l / (2 / 3)    in tests
    n = (t - min t) / (max t - min t)                                   over the whole batch
    s ~ Bernoulli(n)              in training,    n >= 0.5       in tests; straight-through

``s`` is 1 where a patch is skipped: the layer's input is then the reference's, and the layer is
computed in full. What follows from that is in ``docs/pass.md``: the mean erases where anything was,
one patch at least is taken and one skipped whatever happens, and below some 85 channels the gate
makes more multiply-accumulates than the 3x3 convolution that it guards.

Nothing is copied from the release; this is written from a description of it. Its convolutions
begin at Xavier's scale with a bias of 0.6, dense layers at flax's own, which is not theirs.

References:
  github.com/kimihe/MaskGate, commit 90d495b, of Zhou et al., *PASS*, AAAI 2023.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyjax import VariableGate

__all__ = ["MaskGate", "blended", "draw", "normalized", "released"]

Array = jax.Array

TEMPERATURE = 2 / 3  # which the normalization takes out again

_conv = partial(
    nn.Conv,
    kernel_init=nn.initializers.xavier_uniform(),
    bias_init=nn.initializers.constant(0.6),
)


class MaskGate(nn.Module):
    """Inputs and references [n, h, w, c] to logits of skipping, float32 [n, h / p, w / p].

    Sides are multiples of the patch, and the last layer is made for one size of the frame.
    """

    patch: int = 4
    features: int = 256
    depth: int = 4
    kernel: int = 9
    hidden: int = 4096

    @nn.compact
    def __call__(self, x: Array, ref: Array, train: bool = False) -> Array:
        n, rows, cols = x.shape[0], x.shape[1] // self.patch, x.shape[2] // self.patch
        side, wide = (self.patch, self.patch), (self.kernel, self.kernel)
        normed = lambda u: nn.BatchNorm(not train)(nn.gelu(u, approximate=False))
        u = normed(_conv(self.features, side, side)(jnp.concatenate([x, ref], -1)))
        for _ in range(self.depth):
            u += normed(_conv(self.features, wide, feature_group_count=self.features)(u))
            u = normed(_conv(self.features, (1, 1))(u))
        hidden = nn.Dense(self.hidden)(u.mean((1, 2)))  # with no nonlinearity behind it
        return nn.Dense(rows * cols)(hidden).reshape(n, rows, cols)


def normalized(logits: Array, key: Array | None = None) -> Array:
    """Logits between 0 and 1 by their own range, over the whole batch; with noise given a key.

    Equal logits without noise are NaN.
    """
    noise = 0.0 if key is None else jax.random.gumbel(key, logits.shape)
    t = (logits + noise) / TEMPERATURE
    return (t - t.min()) / (t.max() - t.min())


def draw(logits: Array, key: Array | None = None) -> Array:
    """1 where a patch is skipped: at random given a key, else by a threshold.

    Returns:
      float32 of the logits' shape, 0 or 1, with the derivative of `normalized`.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    n = normalized(logits, keys[0])
    drawn = n >= 0.5 if keys[1] is None else jax.random.bernoulli(keys[1], jnp.clip(n, 0, 1))
    return drawn.astype(jnp.float32) + (n - jax.lax.stop_gradient(n))


def blended(x: Array, ref: Array, skips: Array) -> tuple[Array, Array]:
    """The input that takes skipped patches of the reference, and its complement: [n, h, w, c]."""
    patch = x.shape[1] // skips.shape[1]
    wide = jnp.repeat(jnp.repeat(skips, patch, 1), patch, 2)[..., None]
    return wide * ref + (1 - wide) * x, (1 - wide) * ref + wide * x


def released(model: MaskGate, variables: Any) -> VariableGate:
    """The released gate for `tinyjax.pass_skip`, in test mode, on the frame itself."""

    def call(variables: Any, x: Array, ref: Array, patch: int) -> Array:
        if patch != model.patch:
            raise ValueError(f"patch is {patch}, and the gate's {model.patch}: use one of them")
        logits: Any = model.apply(variables, x[None], ref[None])
        return ~(normalized(logits)[0] >= 0.5)

    return VariableGate(variables, call)
