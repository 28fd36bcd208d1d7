"""SGQ: a network cut in two that learns across the cut in few bits, against the same in float32.

The device has the layers up to a pooled post-ReLU map, the server those after it. Features go up
in 4-bit codes with one step for all of them, or with a scale per sample and group of channels;
gradients come down in unbiased int8 codes. Both arms run the *same* stock train step of
`experiments.train`; the SGQ arm lifts it with ``at(cut, send(sgq(...)))`` and edits neither the
step nor the model::

    python -m experiments sgq

This *is* the split, in one process: everything that either side computes with is what it would
have decoded. What would have crossed a network is counted in bytes of ``tinyjax.wire`` frames of
real batches; no network is there, and no speed of one is claimed. The codec is SGQ-style,
reconstructed from the paper's abstract, and no published figure is reproduced.

References:
  Zhou et al., *Hierarchical Channel-spatial Encoding for Communication-efficient Collaborative
  Learning*, NeurIPS 2022 (abstract only).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax

from experiments import data, octo, train
from experiments.carriers import Crossing, at_cut, carriers, crossings, snr_db, uniform
from experiments.errors import UserError
from experiments.progress import Follow, unfollowed
from experiments.results import once
from tinyjax import (
    Transform,
    at,
    attach,
    detach,
    global_step,
    numerics,
    rewrite,
    send,
    sgq,
    sgq_decode,
    stripe_groups,
)

__all__ = [
    "CONFIGS",
    "CUTS",
    "PUBLISHED",
    "QUANTIZERS",
    "Arm",
    "Config",
    "Results",
    "run",
    "smoke",
]

# What the paper's abstract claims. No table of the paper was at hand.
PUBLISHED = {"traffic_ratio": 15.97, "images_per_second_ratio": 9.22}

CUTS = {"small_cnn": "Conv_3", "vgg6": "Conv_2"}  # the first site after the cut: a pooled map

QUANTIZERS = ("step", "groups")

_MEASURED = 8  # batches whose crossing is measured
_GROUPINGS = {
    "by range": numerics.by_range,
    "by cosine": numerics.by_cosine,
    "in order": numerics.in_order,
    "at random": numerics.at_random(0),
}


def _float32(config: "Config") -> octo.Config:
    """The float32 arm, which other experiments may have trained already."""
    return octo.Config(
        model=config.model,
        dataset=config.dataset,
        bits=octo.FLOAT,
        epochs=config.epochs,
        batch=config.batch,
        learning_rate=config.learning_rate,
        seed=config.seed,
        limit=config.limit,
    )


def _codec(config: "Config") -> Any:
    return sgq(quantizer=_quantizer(config), error=config.error)


def _quantizer(config: "Config") -> Any:
    bits, exact = config.bits, config.exact
    return {
        "step": global_step(bits=bits, exact=exact),
        "groups": stripe_groups(group_size=config.group_size, bits=bits, exact=exact),
    }[config.quantizer]


@dataclass(frozen=True)
class Config:
    """The SGQ arm; the float32 arm is that of `octo` with the same settings."""

    model: str = "small_cnn"  # a key of CUTS
    dataset: str = "fashion_mnist_sample"  # one of data.NAMES, or a folder
    quantizer: str = "step"  # one of QUANTIZERS: one step for all, or scales of groups
    group_size: int = 16  # channels that share a scale in groups
    bits: int = 4  # of a feature: 2, 4 or 8
    exact: bool = False  # code 0 is 0.0 only, and gradients come down only for the others
    error: float = 0.3  # of a gradient, relative, at most: above 0, up to 1
    epochs: int = 8
    batch: int = 50
    learning_rate: float = 0.03
    seed: int = 0
    limit: int = 0

    def __post_init__(self) -> None:
        if self.model not in CUTS:
            raise UserError(f"model={self.model!r} has no cut: choose one of {', '.join(CUTS)}")
        if self.quantizer not in QUANTIZERS:
            raise UserError(f"quantizer={self.quantizer!r}: choose one of {', '.join(QUANTIZERS)}")
        _float32(self)
        try:
            _codec(self)
        except ValueError as error:
            raise UserError(str(error)) from error


CONFIGS: dict[str, Config] = {
    "sample": Config(),
    "full": Config(dataset="fashion_mnist", epochs=3, batch=100),
    "groups": Config(quantizer="groups"),
    "masked": Config(exact=True),
}


def smoke(config: Config) -> Config:
    """The same on so little that it takes seconds."""
    return replace(config, epochs=1, batch=10, limit=40)


class Arm(NamedTuple):
    """How an arm learned."""

    history: tuple[train.Epoch, ...]  # one entry per epoch
    test_accuracy: float  # 0..1, of the trained parameters in the plain float32 model
    test_accuracy_as_trained: float  # 0..1, with features across the cut as in training
    step_ms: float  # median over the epochs of the median step of an epoch


class Results(NamedTuple):
    """Both arms, and what crosses the cut."""

    float32: Arm
    sgq: Arm
    crossings: dict[str, Crossing]  # of the trained SGQ arm, by way of carrying
    crossings_at_start: dict[str, Crossing]  # of its first parameters
    features_db: dict[str, float]  # signal to noise of the features, by quantizer and grouping
    features: int  # elements that cross per step, each way
    parameters: int
    train_images: int
    test_images: int


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Trains both arms and measures what crosses the cut.

    An interrupted run, called again with the same `config` and `out`, keeps the arm that is done
    and continues the other after its last whole epoch. A float32 arm of the same settings that
    another experiment has left in `out` by `results.once` is not trained again.

    Args:
      config: of the SGQ arm.
      out: folder for unfinished work; None keeps none.
      follow: shows the progress.
    """
    arm = octo.prepare(_float32(config))
    tx = at(CUTS[config.model], send(_codec(config)))
    split = _split(tx, arm)  # first, since the settings may not fit the features
    single = _learned_float32(arm, out, follow)
    state, history = _learned_across(split, arm, out, follow)
    trained = detach(state)
    forward = trained.replace(apply_fn=_across(tx, trained.apply_fn))
    _, as_trained = train.evaluate(forward, arm.dataset.test)
    step_ms = median(epoch.step_ms for epoch in history)
    tensors = jax.jit(partial(at_cut, CUTS[config.model], _codec(config), arm.state.apply_fn))
    measured = _measure(config, arm, tensors)
    features, _ = tensors(trained.params, *arm.batch)
    return Results(
        float32=Arm(*(getattr(single, name) for name in Arm._fields)),
        sgq=Arm(history, history[-1].test_accuracy, as_trained, step_ms),
        crossings=measured(trained.params),
        crossings_at_start=measured(arm.state.params),
        features_db=_by_quantizer(config, features),
        features=features.size,
        parameters=single.parameters,
        train_images=single.train_images,
        test_images=single.test_images,
    )


class _Split(NamedTuple):
    """The SGQ arm before its first step."""

    state: Any
    step: jax.stages.Compiled


def _split(tx: Transform, arm: octo.Prepared) -> _Split:
    """The stock step of the float32 arm, lifted, and its state.

    Raises:
      UserError: if the codec refuses the features.
    """
    state = attach(tx, train.train_step, arm.state, *arm.batch)
    try:
        return _Split(state, jax.jit(tx(train.train_step)).lower(state, *arm.batch).compile())
    except ValueError as error:
        raise UserError(str(error)) from error


def _learned_across(
    split: _Split, arm: octo.Prepared, out: Path | None, follow: Follow
) -> train.Fitted:
    config, (learned, test) = arm.config, arm.dataset
    with follow("sgq", config.epochs * (len(learned.labels) // config.batch)) as watch:
        return train.fit(
            split.step,
            split.state,
            learned,
            lambda state: train.evaluate(detach(state), test),
            epochs=config.epochs,
            batch=config.batch,
            seed=config.seed,
            folder=out and out / "sgq",
            watch=watch,
        )


def _learned_float32(arm: octo.Prepared, out: Path | None, follow: Follow) -> octo.Results:
    if out is None:
        return octo.learn(arm, None, follow)
    learn = partial(octo.learn, arm, follow=follow)
    return octo.results(once("float32", arm.config, out, learn).record["metrics"])


def _across(tx: Transform, apply: Callable[..., Any]) -> Callable[[Any, Any], jax.Array]:
    """The forward pass under a transform that carries no variables."""
    key = jax.random.key(0)
    return lambda variables, images: rewrite(tx, apply).apply({}, variables, images, key=key)[0]


def _measure(
    config: Config, arm: octo.Prepared, tensors: Callable[..., tuple[jax.Array, jax.Array]]
) -> Callable[[Any], dict[str, Crossing]]:
    """From parameters to what the first batches of the last epoch send, in every way."""
    codecs = {"sgq": _codec(config), "int8": uniform(8), "int4": uniform(4)}
    ways = {name: carriers(codec) for name, codec in codecs.items()}

    def measured(params: Any) -> dict[str, Crossing]:
        batches = data.epoch_batches(
            arm.dataset.train, config.batch, seed=config.seed, epoch=config.epochs - 1
        )
        return crossings(ways, (tensors(params, *b) for b in islice(batches, _MEASURED)))

    return measured


def _by_quantizer(config: Config, features: jax.Array) -> dict[str, float]:
    """Signal to noise of SGQ's features: with one step, and with groups however they are made."""
    quantizers = {"one step": global_step(bits=config.bits)}
    if features.shape[-1] % config.group_size == 0:
        quantizers |= {
            f"groups {name}": stripe_groups(
                group_size=config.group_size, bits=config.bits, grouping=how
            )
            for name, how in _GROUPINGS.items()
        }
    return {
        name: snr_db(sgq_decode(jax.jit(quantizer)(features)), features)
        for name, quantizer in quantizers.items()
    }
