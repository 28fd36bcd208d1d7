"""The networks of the experiments: plain flax.linen, unaware of tinyjax.

Every network maps images float32 [n, h, w, c] to logits float32 [n, classes], but for `Backbone`,
which maps them to features. Biases start at 0
and kernels He-normal (std sqrt(2 / fan_in)), since every hidden layer ends in a relu. `pool` is a
field, so that a benchmark can swap one pooling for another without touching the network.

References:
  He, Zhang, Ren, Sun, *Delving Deep into Rectifiers*, ICCV 2015 (the initialization).
  Simonyan, Zisserman, *Very Deep Convolutional Networks*, ICLR 2015 (the shape of `Vgg6`).
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = [
    "MODELS",
    "Backbone",
    "Mlp",
    "Pool",
    "SimpleCnn",
    "SmallCnn",
    "Vgg6",
    "max_pool",
    "slice_max_pool",
]

Array = jax.Array
Pool = Callable[[Array], Array]  # [n, h, w, c] -> [n, h // 2, w // 2, c]

_he = nn.initializers.he_normal()


def max_pool(x: Array) -> Array:
    """Stock 2x2 max-pooling with stride 2: [n, h, w, c] -> [n, h // 2, w // 2, c]."""
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def slice_max_pool(x: Array) -> Array:
    """The same values as `max_pool`, as the maximum of four strided slices.

    Its gradient is cheaper on CPUs than that of a window reduction, so it makes a stronger float32
    baseline. Among equal maxima it splits the gradient, where `max_pool` picks the first.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:h:2, :w], x[:, 1:h:2, :w])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def _conv_relu(x: Array, features: int, stride: int = 1) -> Array:
    """3x3 convolution with bias and same padding, then relu; for use inside a compact module."""
    return nn.relu(nn.Conv(features, (3, 3), (stride, stride), kernel_init=_he)(x))


class SmallCnn(nn.Module):
    """The demo's network: 3x3 convolutions 32-pool-64-64-pool-128-pool, dense.

    For 28x28x1 images 141,000 parameters and 15 million multiply-accumulates per image; wide enough
    that int8 arithmetic pays on a CPU.
    """

    blocks: tuple[tuple[int, ...], ...] = ((32,), (64, 64), (128,))
    classes: int = 10
    pool: Pool = max_pool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for widths in self.blocks:
            for features in widths:
                x = _conv_relu(x, features)
            x = self.pool(x)
        return nn.Dense(self.classes, kernel_init=_he)(x.reshape(x.shape[0], -1))


class Vgg6(nn.Module):
    """Six 3x3 convolutions 64-64-pool-128-128-pool-256-256-pool, mean over the map, dense.

    1.15 million parameters; for 32x32x3 images 153 million multiply-accumulates per image.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    classes: int = 10
    pool: Pool = max_pool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for features in self.widths:
            x = self.pool(_conv_relu(_conv_relu(x, features), features))
        return nn.Dense(self.classes, kernel_init=_he)(x.mean((1, 2)))


class Mlp(nn.Module):
    """Dense layers with relu between them on flattened images: 3072-1024-1024-10 for 32x32x3."""

    hidden: tuple[int, ...] = (1024, 1024)
    classes: int = 10

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for features in self.hidden:
            x = nn.relu(nn.Dense(features, kernel_init=_he)(x))
        return nn.Dense(self.classes, kernel_init=_he)(x)


class SimpleCnn(nn.Module):
    """One convolution and two dense layers: conv 30@5x5 valid, relu, pool, dense 100, relu, dense.

    The smallest network of Octo's released code, which starts it at std 0.01 instead of He's. With
    `normed` a BatchNorm stands between the convolution and its relu: axes (-1,) have one statistic
    per channel, axes (1, 2, 3) one per pixel and channel, as in that code. There it uses a batch's
    own statistics in tests too: `running` False.
    """

    classes: int = 10
    pool: Pool = max_pool
    normed: tuple[int, ...] = ()
    running: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        x = nn.Conv(30, (5, 5), padding="VALID", kernel_init=_he)(x)
        if self.normed:
            own = self.running and not train
            axes: Any = self.normed  # declared as one axis there, and documented as several
            x = nn.BatchNorm(own, axis=axes, momentum=0.9, epsilon=1e-6)(x)
        x = self.pool(nn.relu(x))
        x = nn.relu(nn.Dense(100, kernel_init=_he)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes, kernel_init=_he)(x)


class Backbone(nn.Module):
    """Five 3x3 convolutions 3-16-32-32-64-64, a quarter of the size at the end: a video's features.

    Images [n, h, w, 3] to features [n, h / 4, w / 4, 64], h and w multiples of 4. Output i sees
    pixels 4i - 10 to 4i + 16. 4.68 GFLOP for 768x576.
    """

    widths: tuple[int, ...] = (16, 32, 32, 64, 64)
    strides: tuple[int, ...] = (2, 1, 2, 1, 1)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for features, stride in zip(self.widths, self.strides, strict=True):
            x = _conv_relu(x, features, stride)
        return x


MODELS: dict[str, type[nn.Module]] = {
    "small_cnn": SmallCnn,
    "vgg6": Vgg6,
    "mlp": Mlp,
    "simple_cnn": SimpleCnn,
}
