"""Encoders over video frames as a user would bring them: plain flax.linen, unaware of tinyjax.

Every network maps images float32 [n, h, w, 3] to a map of features and is in inference: where it
has batch normalization, that uses the running averages. Kernels are He-normal.

References:
  He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016 (`ResNetEncoder`).
  Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018
  (`MobileNetEncoder`).
  Ronneberger, Fischer, Brox, *U-Net*, MICCAI 2015 (`UNet`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["MobileNetEncoder", "ResNetEncoder", "UNet"]

Array = jax.Array

_he = nn.initializers.he_normal()


def _normed(x: Array, features: int, size: int = 3, stride: int = 1, groups: int = 1) -> Array:
    """Convolution and batch normalization; for use inside a compact module."""
    strides = (stride, stride)
    x = nn.Conv(
        features,
        (size, size),
        strides,
        use_bias=False,
        feature_group_count=groups,
        kernel_init=_he,
    )(x)
    return nn.BatchNorm(use_running_average=True)(x)


class ResNetEncoder(nn.Module):
    """The first stages of ResNet-18 at half its width, an eighth of the size at the end.

    A 7x7 stem with stride 2, a 3x3 pool with stride 2, and two basic blocks a stage. With widths
    (64, 128) it is ResNet-18's own.
    """

    widths: tuple[int, ...] = (32, 64)
    blocks: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(_normed(x, self.widths[0], size=7, stride=2))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, features in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                y = nn.relu(_normed(x, features, stride=stride))
                y = _normed(y, features)
                if x.shape != y.shape:
                    x = _normed(x, features, size=1, stride=stride)
                x = nn.relu(x + y)
        return x


class MobileNetEncoder(nn.Module):
    """MobileNetV2 up to an eighth of the size: a stem and inverted residuals.

    Each residual is a 1x1 convolution to `expand` times the width, a depthwise 3x3, and a 1x1; the
    first does not expand.
    """

    stem: int = 32
    widths: tuple[int, ...] = (16, 24, 24, 32, 32, 32)
    strides: tuple[int, ...] = (1, 2, 1, 2, 1, 1)
    expand: int = 6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu6(_normed(x, self.stem, stride=2))
        for place, (features, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            wide, y = x.shape[-1], x
            if place:
                wide = self.expand * wide
                y = nn.relu6(_normed(y, wide, size=1))
            y = nn.relu6(_normed(y, wide, stride=stride, groups=wide))
            y = _normed(y, features, size=1)
            x = x + y if x.shape == y.shape else y
        return x


class UNet(nn.Module):
    """A small U-Net: two levels down by pools, dilated at the bottom, two up by nearest repeats.

    Two 3x3 convolutions a level, channels concatenated on the way up, one channel at the end.
    Height and width are multiples of four.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    dilation: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        *levels, bottom = self.widths
        kept = []
        for features in levels:
            x = self._double(x, features)
            kept.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = self._double(x, bottom, self.dilation)
        for features, skipped in zip(reversed(levels), reversed(kept), strict=True):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = self._double(jnp.concatenate([skipped, x], axis=-1), features)
        return nn.Conv(1, (1, 1))(x)

    def _double(self, x: Array, features: int, dilation: int = 1) -> Array:
        for _ in range(2):
            dilated = (dilation, dilation)
            x = nn.relu(nn.Conv(features, (3, 3), kernel_dilation=dilated, kernel_init=_he)(x))
        return x
