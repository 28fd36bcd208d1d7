"""What split training has come to: accuracy of both halves, and gradients through its codec."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, split

__all__ = ["accuracy", "cosines"]


def accuracy(config: split.Config, lower: Any, upper: Any) -> float:
    """Top-1 on the test images, 0..1, of both halves' parameters, with nothing between them."""
    test = split.loaded(config.dataset).test

    @jax.jit
    def right(images: jax.Array, labels: jax.Array) -> jax.Array:
        features = split.Lower().apply({"params": lower}, images)
        logits = split.Upper().apply({"params": upper}, features)
        return (jnp.asarray(logits).argmax(-1) == labels).sum()

    pieces = range(0, len(test.labels), 500)
    pair = lambda i: (data.pixels(test.images[i : i + 500]), test.labels[i : i + 500])
    return float(sum(int(right(*pair(i))) for i in pieces) / len(test.labels))


def cosines(config: split.Config, lower: Any, upper: Any, count: int) -> list[float]:
    """How the lower half's gradient through the codec points, next to the one without.

    Args:
      config: of the training.
      lower: parameters of the lower half.
      upper: parameters of the upper half.
      count: of batches, the device's first ones, one value each.
    """
    parts, _ = split.prepared(config)
    ways, device, cloud = parts.ways, parts.ways.device, parts.ways.cloud
    forward = jax.jit(lambda x: jax.vjp(lambda p: parts.lower.apply(p, x), lower))
    loss = lambda x, labels: parts.upper.loss(parts.upper.apply(upper, x), labels)
    gradient, found = jax.jit(jax.grad(loss)), []
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    for seed, (images, labels) in zip(range(count), split.batches(config, 0, 0), strict=False):
        features, back = forward(images)
        frame, device = ways.up.encode(features, device, 0)
        arrived, cloud = ways.up.decode(frame, cloud)
        frame, cloud = ways.down.encode(gradient(arrived, labels), cloud, seed)
        g, device = ways.down.decode(frame, device)
        a, b = flat(back(g)), flat(back(gradient(features, labels)))
        found.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
    return found
