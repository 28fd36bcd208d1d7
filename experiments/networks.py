"""The networks with batch normalization: plain flax.linen, unaware of tinyjax.

Every network maps images float32 [n, h, w, c] to logits float32 [n, classes]. With ``train=True``
(the default) it normalizes by the statistics of its batch and updates the running averages in the
collection ``batch_stats``, which the caller makes mutable; with ``train=False`` it normalizes by
the averages. `train.statistics_step` is the step to it. Convolutions before a norm have no bias,
and kernels are He-normal. Multiply-accumulates are those of the forward pass of one 32x32x3 image.

References:
  Ioffe, Szegedy, *Batch Normalization*, ICML 2015.
  He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016 (`ResNet`).
  Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018 (`MobileNet`).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from experiments.models import Pool, max_pool

__all__ = ["Depthwise", "MobileNet", "ResNet", "Vgg6Bn", "shifted_depthwise"]

Array = jax.Array
Depthwise = Callable[..., Array]  # takes the arguments of lax.conv_general_dilated

_he = nn.initializers.he_normal()


def shifted_depthwise(x: Array, kernel: Array, strides: Any, padding: Any, **kwargs: Any) -> Array:
    """A depthwise convolution as one multiply-add per tap, over an input that is padded once.

    The values of ``lax.conv_general_dilated`` up to the order of the sums, and many times faster
    than its grouped form on CPUs, so it makes a stronger float32 baseline.

    Args:
      x: float32 [n, h, w, c].
      kernel: float32 [kh, kw, 1, c].
      strides: of the height and the width.
      padding: ``"SAME"``, ``"VALID"`` or (before, after) of the height and the width.
      **kwargs: what `nn.Conv` hands over besides; ignored, since it follows from the shapes.

    Returns:
      float32 [n, h', w', c].
    """
    del kwargs
    kh, kw = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (kh, kw), strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    h, w = ((size - k) // s + 1 for size, k, s in zip(x.shape[1:3], (kh, kw), strides, strict=True))
    down, right = strides
    return functools.reduce(
        jnp.add,
        (
            x[:, i : i + down * h : down, j : j + right * w : right] * kernel[i, j]
            for i in range(kh)
            for j in range(kw)
        ),
    )


def _norm(x: Array, train: bool) -> Array:
    """Batch normalization over all but the last axis; for use inside a compact module."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


def _conv(x: Array, features: int, size: int = 3, stride: int = 1) -> Array:
    """Convolution without bias and with same padding; for use inside a compact module."""
    return nn.Conv(features, (size, size), (stride, stride), use_bias=False, kernel_init=_he)(x)


class Vgg6Bn(nn.Module):
    """`models.Vgg6` with batch normalization between convolution and relu.

    1.15 million parameters, 153 million multiply-accumulates.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    classes: int = 10
    pool: Pool = max_pool

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        for features in self.widths:
            for _ in range(2):
                x = nn.relu(_norm(_conv(x, features), train))
            x = self.pool(x)
        return nn.Dense(self.classes, kernel_init=_he)(x.mean((1, 2)))


class ResNet(nn.Module):
    """A stem and stages of basic blocks (two 3x3 convolutions and a shortcut), mean, dense.

    Every stage but the first halves the map, and where the shape changes the shortcut is a 1x1
    convolution with a norm. As it stands: stem 64, one block each at 64, 128 and 256. ResNet-20 is
    ``ResNet((16, 32, 64), blocks=3)``, with 41 million multiply-accumulates.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    blocks: int = 1
    classes: int = 10

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        x = nn.relu(_norm(_conv(x, self.widths[0]), train))
        for stage, features in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                y = nn.relu(_norm(_conv(x, features, stride=stride), train))
                y = _norm(_conv(y, features), train)
                if x.shape != y.shape:
                    x = _norm(_conv(x, features, size=1, stride=stride), train)
                x = nn.relu(x + y)
        return nn.Dense(self.classes, kernel_init=_he)(x.mean((1, 2)))


class MobileNet(nn.Module):
    """A stem of 32 and inverted residuals: 1x1 to `expand` times the width, depthwise 3x3, 1x1.

    A norm follows every convolution and relu6 all but the last of a block, which adds its input
    where the shapes allow. Strides are those usual for 32x32 images, whose last map is 8x8.
    """

    widths: tuple[int, ...] = (16, 24, 32, 64, 96)
    strides: tuple[int, ...] = (1, 1, 2, 2, 1)
    expand: int = 6
    classes: int = 10
    depthwise: Depthwise = lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        x = nn.relu6(_norm(_conv(x, 32), train))
        for features, stride in zip(self.widths, self.strides, strict=True):
            wide = self.expand * x.shape[-1]
            y = nn.relu6(_norm(_conv(x, wide, size=1), train))
            y = nn.Conv(
                wide,
                (3, 3),
                (stride, stride),
                feature_group_count=wide,
                use_bias=False,
                kernel_init=_he,
                conv_general_dilated=self.depthwise,
            )(y)
            y = _norm(_conv(nn.relu6(_norm(y, train)), features, size=1), train)
            x = x + y if x.shape == y.shape else y
        return nn.Dense(self.classes, kernel_init=_he)(x.mean((1, 2)))
