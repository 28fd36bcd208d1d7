"""Octo: training in int8, forward and backward, against the same training in float32.

The method: in every convolution and dense layer the activation, the weight and the incoming
gradient are rounded to integers in [-127, 127], and all three products (forward, input gradient,
weight gradient) multiply int8 numbers and add them up in int32. Weights, optimizer and everything
between the layers stay float32. Both arms run the *same* stock train step of `experiments.train`;
the int8 arm lifts it with ``tinyjax.int8_qat`` and edits neither the step nor the model::

    python -m experiments octo --config int8
    python -m experiments octo --config float32 --set epochs=20 batch=100
    python -m experiments octo --set model=my_package.models:MyNet dataset=my_images

What is reproduced is the method, not a table: Octo's loss-aware compensation and its range
clipping are not part of these arms, the optimizer is SGD with momentum (its released code uses
Adam), and no published figure is compared with.

References:
  Zhou, Guo, Qu, Guo, Xu, Zhang, Guo, Luo, Zhou, *Octo: INT8 Training with Loss-aware Compensation
  and Backward Quantization for Tiny On-device Learning*, USENIX ATC 2021.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from experiments import data, measure, own, train
from experiments.errors import UserError
from experiments.progress import Follow, unfollowed
from tinyjax import attach, count_macs, detach, int8_qat, rewrite

__all__ = [
    "CONFIGS",
    "Config",
    "Prepared",
    "Results",
    "learn",
    "prepare",
    "results",
    "run",
    "smoke",
]

FLOAT = 32  # bits of the float32 arm

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """One arm. Everything that a result depends on is here."""

    model: str = "small_cnn"  # a key of models.MODELS, or package.module:Name
    dataset: str = "fashion_mnist_sample"  # one of data.NAMES, or a folder
    bits: int = 8  # of activations, weights and gradients: 2..8, or 32 for float32
    epochs: int = 8
    batch: int = 50
    learning_rate: float = 0.03  # of the first step; falls to 0 along a cosine
    seed: int = 0  # of the initialization and of the order of the images
    limit: int = 0  # train and test on so many first images only; 0: on all

    def __post_init__(self) -> None:
        own.check(model=self.model, dataset=self.dataset)
        if self.bits not in (*range(2, 9), FLOAT):
            raise UserError(f"bits={self.bits} is not supported: choose 2 to 8, or 32 for float32")
        for key, least in (("epochs", 1), ("batch", 1), ("seed", 0), ("limit", 0)):
            if (given := getattr(self, key)) < least:
                raise UserError(f"{key}={given} is too small: choose {least} or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"learning_rate={self.learning_rate} cannot train: choose one above 0")


def _both(name: str, config: Config) -> dict[str, Config]:
    """The float32 and the int8 arm of a configuration."""
    return {f"float32{name}": replace(config, bits=FLOAT), f"int8{name}": replace(config, bits=8)}


CONFIGS: dict[str, Config] = {
    **_both("", Config()),
    **_both("_full", Config(dataset="fashion_mnist", epochs=5, batch=100)),
    **_both("_mnist", Config(model="simple_cnn", dataset="mnist", epochs=5, batch=100)),
}


def smoke(config: C) -> C:
    """The same arm on so little that it takes seconds."""
    return replace(config, epochs=1, batch=10, limit=40)


class Results(NamedTuple):
    """What an arm came to."""

    history: tuple[train.Epoch, ...]  # one entry per epoch
    test_accuracy: float  # 0..1, of the trained parameters in the plain float32 model
    test_accuracy_as_trained: float  # 0..1, with the forward pass in the arm's own arithmetic
    step_ms: float  # median over the epochs of the median step of an epoch
    compile_seconds: float  # to trace and compile the train step
    saved_bytes: int  # kept from forward to backward in one step: measure.saved_bytes
    temp_bytes: int  # the compiled step's scratch memory: measure.temp_bytes
    macs: dict[str, int]  # multiply-accumulates of one step by operand dtype: tinyjax.count_macs
    parameters: int  # of the model
    train_images: int
    test_images: int


class Prepared(NamedTuple):
    """An arm before its first step."""

    config: Config
    dataset: data.Dataset
    batch: tuple[np.ndarray, np.ndarray]  # the first images and labels of the first epoch
    state: Any
    step: jax.stages.Compiled  # (state, images, labels) -> (state, metrics)
    compile_seconds: float
    macs: dict[str, int]
    plain: Callable[[Any], Any]  # the state as the ordinary float32 TrainState
    forward: Callable[[Any, Any], jax.Array]  # (variables, images) -> logits, as in training


def prepare(config: Config) -> Prepared:
    """Loads the data, makes the arm's state and compiles its step.

    Raises:
      UserError: if data are missing or damaged, or fewer than a batch.
    """
    whole = own.dataset(config.dataset)
    dataset = data.Dataset(*(data.first(s, config.limit or None) for s in whole))
    batch = next(data.epoch_batches(dataset.train, config.batch, seed=config.seed, epoch=0))
    state = train.create_state(
        own.model(config.model, classes=1 + int(whole.train.labels.max())),
        batch[0],
        learning_rate=config.learning_rate,
        steps=config.epochs * (len(dataset.train.labels) // config.batch),
        seed=config.seed,
    )
    if isinstance(state, train.StatisticsState):
        raise UserError(
            f"model={config.model!r} keeps running averages, which these arms do not: leave out "
            "BatchNorm, or train it with a step like `train.statistics_step` (my_experiment.py)"
        )
    step, plain, forward = train.train_step, _as_it_is, state.apply_fn
    if config.bits != FLOAT:
        tx = int8_qat(bits=config.bits)
        forward = _in_integers(tx, state.apply_fn)
        state = attach(tx, step, state, *batch)
        step, plain = tx(step), detach
    compiled, seconds = measure.compiled(step, state, *batch)
    macs = count_macs(step, state, *batch)
    return Prepared(config, dataset, batch, state, compiled, seconds, macs, plain, forward)


def _as_it_is(state: Any) -> Any:
    return state


def _in_integers(tx: Any, apply: Callable[..., Any]) -> Callable[[Any, Any], jax.Array]:
    """The forward pass under a transform that carries no variables."""

    def forward(variables: Any, images: Any) -> jax.Array:
        rewritten = rewrite(tx, apply)
        return rewritten.apply({}, variables, images, key=jax.random.key(0))[0]

    return forward


def learn(arm: Prepared, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Trains an arm and measures it.

    Args:
      arm: from `prepare`.
      out: folder for the checkpoints of this arm alone; None keeps none.
      follow: shows the progress.
    """
    config, (_, test) = arm.config, arm.dataset
    steps = len(arm.dataset.train.labels) // config.batch
    name = "float32" if config.bits == FLOAT else f"int{config.bits}"
    with follow(name, config.epochs * steps) as watch:
        state, history = train.fit(
            arm.step,
            arm.state,
            arm.dataset.train,
            lambda state: train.evaluate(arm.plain(state), test),
            epochs=config.epochs,
            batch=config.batch,
            seed=config.seed,
            folder=out,
            watch=watch,
        )
    trained = arm.plain(state)
    _, as_trained = train.evaluate(trained.replace(apply_fn=arm.forward), test)
    return Results(
        history=history,
        test_accuracy=history[-1].test_accuracy,
        test_accuracy_as_trained=as_trained,
        step_ms=median(epoch.step_ms for epoch in history),
        compile_seconds=arm.compile_seconds,
        saved_bytes=measure.saved_bytes(_loss(arm.forward), trained.params, *arm.batch),
        temp_bytes=measure.temp_bytes(arm.step),
        macs=arm.macs,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        train_images=len(arm.dataset.train.labels),
        test_images=len(test.labels),
    )


def _loss(forward: Callable[[Any, Any], jax.Array]) -> Callable[..., jax.Array]:
    """The train step's loss as a function of parameters, images and labels."""
    return lambda params, images, labels: train.cross_entropy(
        forward({"params": params}, images), labels
    )


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Trains and measures one arm: the same configuration gives the same accuracies and bytes.

    An interrupted run, called again with the same `config` and `out`, continues after its last
    whole epoch. See `learn` for the arguments.
    """
    return learn(prepare(config), out, follow)


def results(metrics: dict[str, Any]) -> Results:
    """`Results` again, from the metrics of a record."""
    history: Any = tuple(train.Epoch(**epoch) for epoch in metrics["history"])
    return Results(**{**metrics, "history": history})
