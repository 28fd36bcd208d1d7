"""Stock flax train steps, evaluation, and a loop that survives interruption.

Nothing here knows tinyjax: `train_step` is what any flax user has, already jitted, and so is
`statistics_step` for a model with batch normalization. `fit` works with every step ``(state,
images, labels) -> (state, {"loss", "accuracy"})`` and any state pytree.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from experiments import checkpoints
from experiments.data import Split, epoch_batches, pixels
from experiments.progress import Watch, unwatched

__all__ = [
    "MOMENTUM",
    "Epoch",
    "Fitted",
    "StatisticsState",
    "Step",
    "create_state",
    "cross_entropy",
    "evaluate",
    "fit",
    "statistics_step",
    "train_step",
]

Array = jax.Array
Metrics = dict[str, Array]
Step = Callable[..., tuple[Any, Metrics]]  # (state, images, labels) -> (state, metrics)

MOMENTUM = partial(optax.sgd, momentum=0.9)

_KEYS = ("loss", "accuracy")

# Optimizing the compiled random numbers takes seconds, running them once takes none.
_RUN_ONCE = {"xla_backend_optimization_level": 0}


class Epoch(NamedTuple):
    """What one epoch of training came to."""

    train_loss: float  # mean over the epoch's steps, before each step's update
    train_accuracy: float  # 0..1, likewise
    test_loss: float  # after the epoch
    test_accuracy: float  # 0..1, after the epoch
    step_ms: float  # median over the steps; every step is waited for


class StatisticsState(TrainState):
    """The train state of a model with batch normalization, and its running averages."""

    batch_stats: Any


class Fitted(NamedTuple):
    """A trained state and how it came about."""

    state: Any
    history: tuple[Epoch, ...]


def create_state(
    model: nn.Module,
    images: np.ndarray,
    *,
    learning_rate: float,
    steps: int,
    seed: int,
    optimizer: Callable[..., optax.GradientTransformation] = MOMENTUM,
) -> TrainState:
    """A fresh flax train state: SGD with momentum 0.9 and a rate that falls to 0 along a cosine.

    The decay takes the noise out of the last epochs, so that final accuracies can be compared.

    Args:
      model: maps images to logits float32 [n, classes].
      images: float32 [n, h, w, c], for their shape.
      learning_rate: at the first step.
      steps: after which the rate is 0.
      seed: of the initialization.
      optimizer: another one, given the schedule of its rate.

    Returns:
      The state; a `StatisticsState` where the model keeps running averages.
    """
    init = jax.jit(model.init, compiler_options=_RUN_ONCE)
    variables = init(jax.random.key(seed), images)
    cosine = optax.cosine_decay_schedule(learning_rate, steps)
    tx = optimizer(lambda count: cosine(jnp.asarray(count, jnp.float32)))
    kind = StatisticsState if "batch_stats" in variables else TrainState
    state = kind.create(apply_fn=model.apply, tx=tx, **variables)
    return state.replace(step=jnp.zeros((), jnp.int32))  # flax's is a Python int before step 1


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean softmax cross entropy, float32 [], of logits [n, classes] and labels int32 [n]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _scores(logits: Array, labels: Array) -> Metrics:
    """Loss and accuracy, float32 [], of logits [n, classes] and labels int32 [n]."""
    accuracy = (logits.argmax(-1) == labels).mean()
    return {"loss": cross_entropy(logits, labels), "accuracy": accuracy}


@jax.jit
def train_step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Metrics]:
    """The stock step: softmax cross entropy, its gradient, one update of the optimizer.

    Args:
      state: flax train state.
      images: float32 [n, h, w, c].
      labels: int32 [n].

    Returns:
      The next state, and loss and accuracy (float32 []) before the update.
    """

    def loss(params: Any) -> tuple[Array, Metrics]:
        scores = _scores(state.apply_fn({"params": params}, images), labels)
        return scores["loss"], scores

    (_, scores), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), scores


@jax.jit
def statistics_step(
    state: StatisticsState, images: Array, labels: Array
) -> tuple[StatisticsState, Metrics]:
    """`train_step` for a model with batch normalization: it updates the running averages too."""

    def loss(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = state.apply_fn(variables, images, mutable=["batch_stats"])
        scores = _scores(logits, labels)
        return scores["loss"], (scores, updated["batch_stats"])

    (_, (scores, averages)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=averages), scores


@jax.jit
def _eval_step(state: TrainState, images: Array, labels: Array) -> Metrics:
    if isinstance(state, StatisticsState):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return _scores(state.apply_fn(variables, images, train=False), labels)
    return _scores(state.apply_fn({"params": state.params}, images), labels)


def evaluate(state: TrainState, split: Split, batch: int = 500) -> tuple[float, float]:
    """Mean loss and accuracy (0..1) over all of a split, in pieces of `batch` images.

    Raises:
      ValueError: if the split is empty.
    """
    count = len(split.labels)
    if count == 0:
        raise ValueError("there are no images to evaluate on: pass at least one")
    pieces = [slice(start, start + batch) for start in range(0, count, batch)]
    scores = [_eval_step(state, pixels(split.images[at]), split.labels[at]) for at in pieces]
    shares = [len(split.labels[at]) / count for at in pieces]
    loss, accuracy = (
        sum(share * float(score[key]) for share, score in zip(shares, scores, strict=True))
        for key in _KEYS
    )
    return loss, accuracy


def fit(
    step: Step,
    state: Any,
    train: Split,
    test: Callable[[Any], tuple[float, float]],
    *,
    epochs: int,
    batch: int,
    seed: int,
    folder: Path | None = None,
    watch: Watch = unwatched,
) -> Fitted:
    """Trains for some epochs, with a checkpoint after each.

    Called again with the same arguments after an interruption, it continues after the last whole
    epoch, with the same batches and to the same result as an uninterrupted run.

    Args:
      step: ``(state, images, labels) -> (state, {"loss", "accuracy"})``.
      state: before the first epoch; ignored but for its structure where a checkpoint is found.
      train: what to train on.
      test: loss and accuracy of a state, called after every epoch.
      epochs: in all.
      batch: images per step.
      seed: of the order of the images.
      folder: for the checkpoints, of this run alone; None keeps none.
      watch: told of every step.
    """
    fitted = _resumed(folder, state)
    steps = len(train.labels) // batch
    for epoch in range(len(fitted.history), epochs):
        standing = _standing(epochs, fitted.history)
        state, scores, seconds = fitted.state, [], []
        batches = epoch_batches(train, batch, seed=seed, epoch=epoch)
        for done, (images, labels) in enumerate(batches, epoch * steps + 1):
            start = time.perf_counter()
            state, score = jax.block_until_ready(step(state, images, labels))
            seconds.append(time.perf_counter() - start)
            scores.append(score)
            watch(done, standing)
        loss, accuracy = (mean(float(score[key]) for score in scores) for key in _KEYS)
        record = Epoch(loss, accuracy, *test(state), 1e3 * median(seconds))
        fitted = Fitted(state, (*fitted.history, record))
        if folder:
            checkpoints.save(folder, state, [each._asdict() for each in fitted.history])
    watch(epochs * steps, _standing(epochs, fitted.history))
    return fitted


def _resumed(folder: Path | None, state: Any) -> Fitted:
    """The state and history of the newest checkpoint, or the given state and no history."""
    saved = checkpoints.restore(folder, state) if folder else None
    if saved is None:
        return Fitted(state, ())
    return Fitted(saved.state, tuple(Epoch(**record) for record in saved.history))


def _standing(epochs: int, history: tuple[Epoch, ...]) -> str:
    """How a run stands, in half a line."""
    if not history:
        return f"epoch 1/{epochs}"
    last = history[-1]
    return (
        f"epoch {min(len(history) + 1, epochs)}/{epochs}  loss {last.train_loss:.3f}  "
        f"test {last.test_accuracy:.1%}"
    )
