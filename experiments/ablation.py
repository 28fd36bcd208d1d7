"""The ablation: what BatchNorm, LAC and PRC do to int8 training, next to rivals and the release.

A grid of arms, one JSON per run. Everything but the policy is the same in all arms of a seed:
initialization, batches, Adam (1e-3, falling to 0 along a cosine, which the release has not), the
step of `experiments.normed`. The int8 arms lift that step. Every arm is tested in its own
arithmetic, for LAC's terms are part of the trained model::

    python -m experiments ablation                        # all grids
    python -m experiments ablation --config mnist         # the one with three seeds

A policy names what computes the sites: `float32`, `int8` (the default of `tinyjax.int8_qat`),
`+lac` (`bias`, before the norm, with its penalty), `+prc` (ranges shrunk to 0.95), `zero_point`,
the `released` scheme as a simulation (`experiments.compat`), and the rivals (`experiments.rivals`).

Sizes are small, so that all grids fit two hours of two cores: `mnist` has 5,000 images for five
epochs and 2,000 to test with; `gap`, which asks how far int8 is from float32, has 20,000 for three
and all 10,000 to test SimpleCnn on MNIST, and for Fashion-MNIST and the CIFAR-10 subset three
epochs of 8,000 (VGG6 at half its width) or two of 5,000 (ResNet-20), and 5,000 to test. Such
figures compare arms, they are nobody's accuracy on a full set. `exploratory` has one seed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments import compat, data, measure, models, normed, probe, train
from experiments.errors import UserError
from experiments.progress import Follow, unfollowed
from experiments.rivals import RIVALS
from tinyjax import (
    Transform,
    attach,
    bias,
    chain,
    compensate,
    int8_qat,
    numerics,
    penalty,
    zero_point,
)

__all__ = ["CONFIGS", "POLICIES", "Config", "Results", "run", "smoke"]

MODELS = ("simple_cnn", "vgg6", "vgg6_half", "resnet20")
_SHRUNK = numerics.shrunk(0.95)

POLICIES: dict[str, Callable[[], Transform | None]] = {
    "float32": lambda: None,
    "int8": int8_qat,
    "int8+lac": lambda: chain(compensate(bias()), int8_qat()),
    "int8+prc": lambda: int8_qat(gradient_range=_SHRUNK),
    "int8+lac+prc": lambda: chain(compensate(bias()), int8_qat(gradient_range=_SHRUNK)),
    "zero_point": lambda: chain(compensate(zero_point()), int8_qat()),
    "released": compat.released,
    **RIVALS,
}


_HALF = (32, 64, 128)  # a quarter of the work of Vgg6


def _networks() -> dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]]:
    """Each network without and with BatchNorm."""
    from experiments import networks

    resnet20 = partial(networks.ResNet, (16, 32, 64), 3)
    return {
        "simple_cnn": (models.SimpleCnn, partial(models.SimpleCnn, normed=(-1,))),
        "vgg6": (models.Vgg6, networks.Vgg6Bn),
        "vgg6_half": (partial(models.Vgg6, _HALF), partial(networks.Vgg6Bn, _HALF)),
        "resnet20": (resnet20, resnet20),  # it has norms, and is not trained without
    }


@dataclass(frozen=True)
class Config:
    """One run. Everything that its result depends on is here."""

    policy: str = "int8"  # a key of POLICIES
    norm: int = 1  # whether the network has BatchNorm
    model: str = "simple_cnn"  # one of MODELS
    dataset: str = "mnist"  # one of data.NAMES
    epochs: int = 5
    batch: int = 50
    learning_rate: float = 1e-3  # of the first step
    limit: int = 5000  # train on so many first images
    tests: int = 2000  # and test on so many
    seed: int = 0

    def __post_init__(self) -> None:
        for key, names in (
            ("policy", POLICIES),
            ("model", MODELS),
            ("dataset", data.NAMES),
        ):
            if (given := getattr(self, key)) not in names:
                raise UserError(f"{key}={given!r} is unknown: choose one of {', '.join(names)}")
        for key, least in (("epochs", 1), ("batch", 2), ("seed", 0), ("limit", 1), ("tests", 1)):
            if (given := getattr(self, key)) < least:
                raise UserError(f"{key}={given} is too small: choose {least} or more")
        if min(self.limit, self.tests) < self.batch:
            raise UserError(f"batch={self.batch} is more than limit or tests: choose a smaller one")
        if self.policy == "released" and (self.model, self.norm) != ("simple_cnn", 1):
            raise UserError("the released scheme is here for simple_cnn with norm=1: choose those")

    @property
    def arm(self) -> str:
        """How an arm is called: its policy, and whether there is a norm."""
        return f"{self.policy} bn" if self.norm else self.policy


_FACTORS = ("int8", "int8+lac", "int8+prc", "int8+lac+prc")
_BOTH = ("float32", *_FACTORS, "zero_point")


def _mnist() -> Iterator[Config]:
    for seed in range(3):
        for norm in (0, 1):
            yield from (Config(policy, norm, seed=seed) for policy in _BOTH)
        yield from (Config(policy, 1, seed=seed) for policy in ("released", *RIVALS))


def _gap() -> Iterator[Config]:
    tasks = [("simple_cnn", "mnist", dict(epochs=3, limit=20000, tests=10000))]
    for model, epochs, limit in (("vgg6_half", 3, 8000), ("resnet20", 2, 5000)):
        sizes = dict(epochs=epochs, limit=limit, tests=5000)
        tasks += [(model, dataset, sizes) for dataset in ("fashion_mnist", "cifar10")]
    for model, dataset, sizes in tasks:
        for seed in range(3):
            for policy in ("float32", "int8"):
                yield Config(policy, 1, model, dataset, seed=seed, **sizes)


_LARGER = dict(epochs=2, limit=4000, tests=1000)  # for a network with more work per image


def _exploratory() -> Iterator[Config]:
    for policy in ("float32", *_FACTORS, "zero_point", "released", *RIVALS):
        yield Config(policy, 1, dataset="fashion_mnist")
    for policy in ("int8+lac", "int8+prc", *RIVALS):
        yield Config(policy, 1, "vgg6_half", "cifar10", **_LARGER)


def smoke(configs: Sequence[Config]) -> list[Config]:
    """A few of a grid's arms, each on so little of the bundled sample that it takes seconds."""
    little = dict(dataset="fashion_mnist_sample", epochs=1, batch=10, limit=40, tests=40)
    seeds = {"float32": 2, "int8": 2, "int8+lac+prc": 1, "released": 1}
    return [
        replace(config, **little)
        for config in configs
        if config.norm
        and config.model == "simple_cnn"
        and config.seed < seeds.get(config.policy, 0)
    ]


GRIDS: dict[str, Callable[[], Iterator[Config]]] = {
    "mnist": _mnist,
    "gap": _gap,
    "exploratory": _exploratory,
}
CONFIGS: dict[str, tuple[Config, ...]] = {
    "all": tuple(config for grid in GRIDS.values() for config in grid()),
    **{name: tuple(grid()) for name, grid in GRIDS.items()},
}


class Results(NamedTuple):
    """What a run came to."""

    history: tuple[train.Epoch, ...]
    test_accuracy: float  # 0..1, in the arm's own arithmetic
    step_ms: float  # median over the epochs of the median step
    compile_seconds: float
    parameters: int  # of the model
    compensation: int  # variables beside them
    layers: dict[str, probe.Layer]  # by site, at the end; of seed 0 only


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Trains and measures one arm; an interrupted run continues after its last whole epoch.

    Args:
      config: of the run.
      out: folder for the checkpoints of this run alone; None keeps none.
      follow: shows the progress.

    Raises:
      UserError: if data are missing or damaged.
    """
    splits = data.load(config.dataset)
    training, test = data.first(splits.train, config.limit), data.first(splits.test, config.tests)
    batch = next(data.epoch_batches(training, config.batch, seed=config.seed, epoch=0))
    steps = config.epochs * (len(training.labels) // config.batch)
    state = normed.create_state(_model(config), batch[0], _adam(config, steps), config.seed)
    tx, step, scores = POLICIES[config.policy](), normed.normed_step, normed.scoring_step
    apply = state.apply_fn
    if tx is not None:
        state = attach(tx, step, state, *batch)
        step, scores = tx(step), tx(scores)
    compiled, seconds = measure.compiled(step, state, *batch)
    with follow(config.arm, steps) as watch:
        state, history = train.fit(
            compiled,
            state,
            training,
            lambda state: normed.evaluate(scores, state, test, config.batch),
            epochs=config.epochs,
            batch=config.batch,
            seed=config.seed,
            folder=out,
            watch=watch,
        )
    own = {} if tx is None else state.params.sites
    params = state.params if tx is None else state.params.model
    trained = {"params": params, "batch_stats": state.batch_stats}
    forward = lambda variables, images: apply(variables, images, train=True)[0]
    layers = {}
    if config.seed == 0:  # one of them says enough, and it takes as long as the training
        layers = probe.layers(tx or int8_qat(), own, forward, trained, *batch)
    return Results(
        history=history,
        test_accuracy=history[-1].test_accuracy,
        step_ms=median(epoch.step_ms for epoch in history),
        compile_seconds=seconds,
        parameters=_size(params),
        compensation=_size(own),
        layers=layers,
    )


def _model(config: Config) -> nn.Module:
    if config.policy == "released":
        return models.SimpleCnn(normed=(1, 2, 3), running=False)
    if config.model == "simple_cnn":
        return models.SimpleCnn(normed=(-1,) if config.norm else ())
    return _networks()[config.model][config.norm]()


def _adam(config: Config, steps: int) -> optax.GradientTransformation:
    """Adam, after LAC's penalty has joined the gradients: 0 for arms without LAC."""

    def shrink(grads: Any, params: Any) -> Any:
        own = jax.grad(lambda params: penalty(params) + compat.penalty(params))(params)
        return jax.tree.map(jnp.add, grads, own)

    cosine = optax.cosine_decay_schedule(config.learning_rate, steps)
    adam = optax.adam(lambda count: cosine(jnp.asarray(count, jnp.float32)))
    return optax.chain(optax.stateless(shrink), adam)


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
