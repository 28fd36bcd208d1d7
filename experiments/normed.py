"""A stock flax step for networks with or without BatchNorm, and its evaluation.

Like `experiments.train`, this knows nothing of tinyjax: both functions call ``state.apply_fn`` and
can be lifted. Running averages travel in the state and are used in tests.
"""

import inspect
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from experiments.data import Split, pixels
from experiments.train import cross_entropy

__all__ = ["NormedState", "create_state", "evaluate", "normed_step", "scoring_step"]

Array = jax.Array
Metrics = dict[str, Array]


class NormedState(TrainState):
    """A train state with running averages, none for a network without BatchNorm."""

    batch_stats: Any


def create_state(
    model: nn.Module, images: np.ndarray, optimizer: optax.GradientTransformation, seed: int
) -> NormedState:
    """A fresh state.

    Args:
      model: maps images to logits float32 [n, classes]; takes ``train`` if that matters to it.
      images: float32 [n, h, w, c], for their shape.
      optimizer: of the parameters.
      seed: of the initialization.
    """
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    takes_train = "train" in inspect.signature(type(model).__call__).parameters
    state = NormedState.create(
        apply_fn=partial(_apply, model.apply, takes_train),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=optimizer,
    )
    return state.replace(step=jnp.zeros((), jnp.int32))  # flax's is a Python int before step 1


def _apply(
    apply: Callable[..., Any], takes_train: bool, variables: Any, images: Array, *, train: bool
) -> tuple[Array, Any]:
    """Logits, and the running averages after them."""
    kwargs = {"train": train} if takes_train else {}
    logits, updated = apply(variables, images, mutable=["batch_stats"], **kwargs)
    return logits, updated.get("batch_stats", {})


def _scores(logits: Array, labels: Array) -> Metrics:
    accuracy = (logits.argmax(-1) == labels).mean()
    return {"loss": cross_entropy(logits, labels), "accuracy": accuracy}


@jax.jit
def normed_step(state: NormedState, images: Array, labels: Array) -> tuple[NormedState, Metrics]:
    """One update; the arguments and results of `train.train_step`."""

    def loss(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, averages = state.apply_fn(variables, images, train=True)
        scores = _scores(logits, labels)
        return scores["loss"], (averages, scores)

    (_, (averages, scores)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads).replace(batch_stats=averages), scores


@jax.jit
def scoring_step(state: NormedState, images: Array, labels: Array) -> Metrics:
    """Loss and accuracy on a batch, by running averages."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return _scores(state.apply_fn(variables, images, train=False)[0], labels)


def evaluate(
    step: Callable[..., Metrics], state: Any, split: Split, batch: int
) -> tuple[float, float]:
    """Mean loss and accuracy (0..1) over the whole batches of a split.

    Args:
      step: `scoring_step`, lifted or not.
      state: that it takes.
      split: at least a batch of images.
      batch: images at once; a scheme with variables per slot knows only one size.
    """
    whole = len(split.labels) // batch * batch
    pieces = [slice(start, start + batch) for start in range(0, whole, batch)]
    scores = [step(state, pixels(split.images[at]), split.labels[at]) for at in pieces]
    loss, accuracy = (mean(float(score[key]) for score in scores) for key in ("loss", "accuracy"))
    return loss, accuracy
