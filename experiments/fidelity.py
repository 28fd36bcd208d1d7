"""Fidelity: how the gradients of int8 training point, layer by layer, next to those of float32.

A network is trained in float32 for some steps. Then the gradients of its loss on further batches
are taken in float32 and through each policy, end to end: what a layer's gradient shows is its own
rounding and that of all layers after it::

    python -m experiments fidelity --config vgg6
    python -m experiments fidelity --config resnet
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from experiments import data, train
from experiments.errors import UserError
from experiments.models import Vgg6
from experiments.networks import ResNet, Vgg6Bn
from experiments.progress import Follow, unfollowed
from tinyjax import Transform, int8_qat, numerics, rewrite

__all__ = ["CONFIGS", "POLICIES", "Config", "Results", "run", "smoke"]

_NETWORKS: dict[str, type[nn.Module]] = {"vgg6": Vgg6, "vgg6_bn": Vgg6Bn, "resnet": ResNet}
_NEAREST = dict(gradient_rounding=numerics.nearest)
POLICIES: dict[str, Transform] = {
    "default": int8_qat(),
    "default, nearest": int8_qat(**_NEAREST),
    "clipped to 0.95, nearest": int8_qat(gradient_range=numerics.shrunk(0.95), **_NEAREST),
    "one scale per gradient": int8_qat(gradient_range=numerics.coarse),
    "one scale per tensor, nearest": int8_qat(
        gradient_range=numerics.coarse, weight_range=numerics.per_tensor, **_NEAREST
    ),
}


@dataclass(frozen=True)
class Config:
    """A network, what it is trained on, and how long before it is looked at."""

    model: str = "vgg6"  # vgg6, vgg6_bn or resnet
    dataset: str = "cifar10"  # one of data.NAMES
    steps: int = 100
    batch: int = 64
    batches: int = 3  # that gradients are compared on
    learning_rate: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for key, names in (("model", tuple(_NETWORKS)), ("dataset", data.NAMES)):
            if (given := getattr(self, key)) not in names:
                raise UserError(f"{key}={given!r} is unknown: choose one of {', '.join(names)}")
        for key, least in (("steps", 1), ("batch", 2), ("batches", 1), ("seed", 0)):
            if (given := getattr(self, key)) < least:
                raise UserError(f"{key}={given} is too small: choose {least} or more")


CONFIGS = {name: Config(name) for name in _NETWORKS}


def smoke(config: Config) -> Config:
    """The same comparison on so little that it takes seconds."""
    return replace(config, dataset="fashion_mnist_sample", steps=2, batch=4, batches=1)


class Policy(NamedTuple):
    """The gradients of one policy against those of float32."""

    cosines: dict[str, float]  # by parameter, mean over the batches
    median: float  # over the kernels
    least: float  # over the kernels
    least_other: float  # over biases and the scales of norms


class Results(NamedTuple):
    """All policies, and how far training had come."""

    policies: dict[str, Policy]
    loss: float  # of the last step of training


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Trains a network and compares gradients.

    Args:
      config: what to do.
      out: not used; a run takes minutes.
      follow: shows the progress of training.
    """
    del out
    images = data.load(config.dataset).train
    first = _batch(config, images, 0)
    state = train.create_state(
        _NETWORKS[config.model](),
        first[0],
        learning_rate=config.learning_rate,
        steps=10 * config.steps,
        seed=config.seed,
    )
    step = train.statistics_step if hasattr(state, "batch_stats") else train.train_step
    score: dict[str, Any] = {}
    with follow("float32", config.steps) as watch:
        for i in range(config.steps):
            state, score = step(state, *_batch(config, images, i))
            watch(i + 1, f"loss {float(score['loss']):.3f}")
    later = [_batch(config, images, config.steps + i) for i in range(config.batches)]
    gradients = _gradients(None, state)
    exact = [gradients(*batch) for batch in later]
    found = {}
    for name, tx in POLICIES.items():
        gradients = _gradients(tx, state)
        pairs = [_cosines(gradients(*batch), g) for batch, g in zip(later, exact, strict=True)]
        found[name] = _policy({path: mean(pair[path] for pair in pairs) for path in pairs[0]})
    return Results(found, float(score["loss"]))


def _batch(config: Config, images: data.Split, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch of this number, epoch after epoch."""
    epoch, place = divmod(number, len(images.labels) // config.batch)
    batches = data.epoch_batches(images, config.batch, seed=config.seed, epoch=epoch)
    return next(batch for i, batch in enumerate(batches) if i == place)


def _gradients(tx: Transform | None, state: Any) -> Callable[[Any, Any], Any]:
    """``(images, labels) -> gradients`` in training mode, through a transform or without one."""
    kept = {"batch_stats": state.batch_stats} if hasattr(state, "batch_stats") else {}
    training: dict[str, Any] = {"mutable": list(kept)} if kept else {}

    def forward(params: Any, images: Any) -> Any:
        variables = {"params": params, **kept}
        if tx is None:
            return state.apply_fn(variables, images, **training)
        inner, key = rewrite(tx, state.apply_fn), jax.random.key(1)
        return inner.apply({}, variables, images, key=key, **training)[0]

    def loss(params: Any, images: Any, labels: Any) -> jax.Array:
        out = forward(params, images)
        return train.cross_entropy(out[0] if kept else out, labels)

    return functools.partial(jax.jit(jax.grad(loss)), state.params)


def _cosines(found: Any, exact: Any) -> dict[str, float]:
    """By the path of each parameter."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(exact), strict=True)
    return {"/".join(key.key for key in path): _cosine(a, b) for (path, a), b in pairs}


def _cosine(found: Any, exact: Any) -> float:
    a, b = (np.ravel(np.asarray(t, np.float64)) for t in (found, exact))
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


def _policy(cosines: dict[str, float]) -> Policy:
    kernels = [value for path, value in cosines.items() if path.endswith("kernel")]
    others = [value for path, value in cosines.items() if not path.endswith("kernel")]
    return Policy(cosines, median(kernels), min(kernels), min(others))
