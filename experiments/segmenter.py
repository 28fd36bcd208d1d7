"""Foreground of a fixed camera, pixel by pixel: a network, its training step and its score.

The network is plain flax.linen, a ResNet's first stages with two light heads; nothing here knows
tinyjax. What it sees of a frame is the frame and the background beside it: uint8 [n, h, w, 6],
red, green and blue of both, 0..255.

References:
  He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016 (the blocks).
  Long, Shelhamer, Darrell, *Fully Convolutional Networks for Semantic Segmentation*, CVPR 2015
  (scores of several strides are added).
  Lin, Goyal, Girshick, He, Dollár, *Focal Loss for Dense Object Detection*, ICCV 2017 (how a head
  begins whose positives are few).
  Shi et al., *Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
  Convolutional Neural Network*, CVPR 2016 (channels become pixels).
"""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.scenes import MOVING, STATIC
from experiments.train import StatisticsState

__all__ = [
    "Counts",
    "Losses",
    "Segmenter",
    "beside",
    "counts",
    "crop_step",
    "f1",
    "halves",
    "losses",
    "median",
    "scoring",
]

Array = jax.Array
Losses = Callable[[Array, Array], dict[str, Array]]  # (logits, labels) -> {"loss", "accuracy"}

_he = nn.initializers.he_normal()
_small = nn.initializers.normal(0.01)  # of a head whose positives are few: RetinaNet, section 4.1


class Segmenter(nn.Module):
    """A stem, two stages of basic blocks, and a 1x1 head on each stage.

    Frames [n, h, w, 6] in 0..255, h and w multiples of 8, to logits float32
    [n, h / stride, w / stride]; of foreground they are above 0. The stages have strides 4 and 8, as
    the first two of a ResNet-10, with two blocks of a ResNet-18, and a BatchNorm follows every
    convolution; with ``train`` it normalizes by the batch. As it stands 298,960 parameters and 598
    million multiply-accumulates for 320x240.
    """

    width: int = 64  # of the first stage: half of it in the stem, twice in the second stage
    blocks: int = 1  # of a stage
    stride: int = 1  # pixels of a logit: 1, 2 or 4
    prior: float | None = None  # logits are about this before training; None: of any size
    part: str = "whole"  # or "lower", up to the first stage's features, or "upper", from there on

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        conv = partial(nn.Conv, use_bias=False, kernel_init=_he)
        if self.part != "upper":
            x = (x.astype(jnp.float32) - 128.0) / 64.0
            x = nn.relu(norm()(conv(self.width // 2, (3, 3), (2, 2))(x)))
        step, logits = 2, jnp.float32(0)
        head = partial(nn.Conv, kernel_init=_he)
        if self.prior is not None:
            bias = nn.initializers.constant(self.prior / 2)  # there are two heads
            head = partial(nn.Conv, kernel_init=_small, bias_init=bias)
        for features in (self.width, 2 * self.width):
            step *= 2
            there = self.part == "upper" and features == self.width
            for block in range(0 if there else self.blocks):
                steps = (1, 1) if block else (2, 2)
                y = nn.relu(norm()(conv(features, (3, 3), steps)(x)))
                y = norm()(conv(features, (3, 3))(y))
                if x.shape != y.shape:
                    x = norm()(conv(features, (1, 1), steps)(x))
                x = nn.relu(x + y)
            if self.part == "lower":
                return x
            side = step // self.stride
            logits += _pixels(head(side**2, (1, 1))(x), side)
        return logits


def halves(variables: Any, blocks: int = 1) -> tuple[Any, Any]:
    """What the two parts of a `Segmenter` have of its variables.

    Args:
      variables: of the whole, ``{"params": {"Conv_0": ...}, ...}``.
      blocks: of a stage.

    Returns:
      Of ``part="lower"`` and of ``part="upper"``, whose modules are numbered from 0 again.
    """
    first = 2 * blocks + 2  # a stem, two convolutions a block, a projection; as many norms
    parts: tuple[Any, Any] = ({}, {})
    for kind, modules in variables.items():
        for part in parts:
            part[kind] = {}
        for name, values in modules.items():
            module, _, number = name.rpartition("_")
            above = int(number) >= first
            parts[above][kind][f"{module}_{int(number) - first * above}"] = values
    return parts


def _pixels(x: Array, side: int) -> Array:
    """Channels become pixels: [n, h, w, side * side] -> [n, side * h, side * w]."""
    n, h, w, _ = x.shape
    cells = x.reshape(n, h, w, side, side).transpose(0, 1, 3, 2, 4)
    return cells.reshape(n, h * side, w * side)


def median(frames: np.ndarray, most: int = 100) -> np.ndarray:
    """The background of a fixed camera: the median of at most so many frames, spread evenly.

    Args:
      frames: uint8 [n, h, w, 3].
      most: frames that are looked at.

    Returns:
      uint8 [h, w, 3].
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, most).round().astype(int))
    return np.median(frames[chosen], 0).astype(np.uint8)


def beside(frames: Any, background: Any) -> Any:
    """Frames uint8 [..., h, w, 3] with the background [h, w, 3] behind them: [..., h, w, 6]."""
    numpy = np if isinstance(frames, np.ndarray) else jnp
    return numpy.concatenate([frames, numpy.broadcast_to(background, frames.shape)], -1)


def _among(labels: Any, values: tuple[int, ...]) -> Any:
    """Whether a label is one of these: bool [..., h, w]."""
    return reduce(operator.or_, (labels == value for value in values))


class Counts(NamedTuple):
    """Pixels whose label is known, summed over frames."""

    hits: Any  # foreground in both
    false: Any  # foreground that is none
    missed: Any  # foreground that was not found


def counts(found: Any, labels: Any) -> Counts:
    """Compares foreground bool [..., h, w] with labels uint8 [..., h, w]."""
    moving, static = _among(labels, MOVING), _among(labels, STATIC)
    return Counts((found & moving).sum(), (found & static).sum(), (~found & moving).sum())


def f1(found: Counts) -> Any:
    """The harmonic mean of precision and recall, 0..1; 1 where there is nothing to find."""
    hits, false, missed = (getattr(found, name) for name in Counts._fields)
    return (2 * hits + 1e-9) / (2 * hits + false + missed + 1e-9)


def losses(logits: Array, labels: Array) -> dict[str, Array]:
    """Cross entropy per known pixel, and F1, which the loop of a training calls accuracy."""
    known, targets = _among(labels, STATIC + MOVING), _among(labels, MOVING).astype(jnp.float32)
    each = optax.sigmoid_binary_cross_entropy(logits, targets)
    loss = jnp.where(known, each, 0.0).sum() / jnp.maximum(known.sum().astype(jnp.float32), 1.0)
    tally = Counts(*(n.astype(jnp.float32) for n in counts(logits > 0, labels)))
    return {"loss": loss, "accuracy": jnp.asarray(f1(tally), jnp.float32)}


def crop_step(crop: tuple[int, int], seed: int, losses: Losses = losses) -> Any:
    """A jitted step on a random part of each image, one half of them mirrored.

    Args:
      crop: (h, w) of a part, multiples of 8.
      seed: of the parts; which ones they are follows from it and the state's step.
      losses: of the logits of a part and its labels.

    Returns:
      ``(state, images, labels) -> (state, {"loss", "accuracy"})`` with images float32
      [n, h, w, 6] in 0..1 and labels uint8 [n, h / stride, w / stride]; the accuracy is F1.
    """

    def part(key: Array, image: Array, label: Array) -> tuple[Array, Array]:
        stride = image.shape[0] // label.shape[0]
        cells = (crop[0] // stride, crop[1] // stride)
        sides = jnp.asarray(label.shape) - jnp.asarray(cells) + 1
        at = jax.random.randint(key, (2,), 0, sides)
        corner = (stride * at[0], stride * at[1], 0)
        image = jax.lax.dynamic_slice(image, corner, (*crop, image.shape[-1]))
        label = jax.lax.dynamic_slice(label, (at[0], at[1]), cells)
        mirrored = jax.random.bernoulli(jax.random.fold_in(key, 1))
        turn = lambda a: jnp.where(mirrored, a[:, ::-1], a)
        return turn(image), turn(label)

    @jax.jit
    def step(state: StatisticsState, images: Array, labels: Array) -> tuple[Any, Any]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        images, labels = jax.vmap(part)(jax.random.split(key, len(labels)), images, labels)

        def loss(params: Any) -> tuple[Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = state.apply_fn(variables, 255 * images, mutable=["batch_stats"])
            scores = losses(logits, labels)
            return scores["loss"], (scores, updated["batch_stats"])

        (_, (scores, averages)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=averages), scores

    return step


def scoring(losses: Losses = losses) -> Any:
    """``(state, images, labels) -> (loss, F1)``, float32 [], jitted.

    Images are uint8 [n, h, w, 6], labels uint8 [n, h / stride, w / stride].
    """

    @jax.jit
    def score(state: StatisticsState, images: Array, labels: Array) -> tuple[Array, Array]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        found = losses(state.apply_fn(variables, images, train=False), labels)
        return found["loss"], found["accuracy"]

    return score
