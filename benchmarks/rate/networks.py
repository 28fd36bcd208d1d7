"""The networks whose features and gradients are measured, and where they are cut.

Five 3x3 convolutions, each with batch normalization and relu, the mean over the map, dense::

    pooled    32 pool 64 | pool 128 N | pool 256
    strided   32/2 64 | 128/2 N | 256/2

"|" are the cuts A and B, "/2" a stride. In the pooled network a 2x2 max-pool follows either cut,
which leaves three quarters of a gradient 0; in the strided one none does. N is 128 for
Fashion-MNIST and 256 for CIFAR-10. Batch normalization runs on its averages wherever something is
measured.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.int8 import FUSION_OFF
from experiments import checkpoints, data, train
from experiments.errors import UserError
from experiments.models import Pool, max_pool, slice_max_pool

__all__ = ["CUTS", "Config", "Cut", "Net", "Trained", "at_cut", "trained"]

Array = jax.Array

CUTS = {"A": 2, "B": 4}  # layers before the cut
_POOLED = (1, 2, 4)  # layers with a pool before them
_STRIDES = (2, 1, 2, 1, 2)
_EARLY = 0.4  # epochs
_SCORED = 2000  # test images after an epoch; at the end it is all


@dataclasses.dataclass(frozen=True)
class Config:
    """A network and what it is trained on."""

    dataset: str
    fourth: int  # width of the fourth convolution
    pooled: bool = True
    images: int = 20_000
    epochs: int = 3
    batch: int = 64
    learning_rate: float = 0.05
    seed: int = 0
    narrower: int = 1  # divides all widths

    @property
    def widths(self) -> tuple[int, ...]:
        """Of all convolutions."""
        return tuple(width // self.narrower for width in (32, 64, 128, self.fourth, 256))


class Net(nn.Module):
    """The network, which also runs up to a cut or from it: see the module."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 256)
    pooled: bool = True
    classes: int = 10
    pool: Pool = max_pool

    def setup(self) -> None:
        he = nn.initializers.he_normal()
        strides = (1,) * len(self.widths) if self.pooled else _STRIDES
        self.convs = [
            nn.Conv(features, (3, 3), (stride, stride), use_bias=False, kernel_init=he)
            for features, stride in zip(self.widths, strides, strict=True)
        ]
        self.norms = [nn.BatchNorm(momentum=0.9) for _ in self.widths]
        self.head = nn.Dense(self.classes, kernel_init=he)

    def __call__(self, x: Array, train: bool = True) -> Array:
        return self.upper(x, 0, train)

    def lower(self, x: Array, cut: int) -> Array:
        """Images to the features after `cut` layers."""
        return self._layers(x, range(cut), train=False)

    def upper(self, x: Array, cut: int, train: bool = False) -> Array:
        """Features after `cut` layers to logits."""
        x = self._layers(x, range(cut, len(self.widths)), train)
        return self.head(x.mean((1, 2)))

    def _layers(self, x: Array, layers: range, train: bool) -> Array:
        for i in layers:
            x = self.pool(x) if self.pooled and i in _POOLED else x
            x = nn.relu(self.norms[i](self.convs[i](x), use_running_average=not train))
        return x


class Trained(NamedTuple):
    """A network early in its training and at its end, and the data."""

    config: Config
    early: Any  # variables, after 0.4 epochs
    late: Any
    accuracy: dict[str, float]  # of "early" and "late", 0..1, on the test split
    learned: data.Split
    test: data.Split


class Cut(NamedTuple):
    """What both sides of a cut compute with the same variables, compiled."""

    features: Callable[..., Array]  # of images
    logits: Callable[..., Array]  # of features
    gradient: Callable[..., Array]  # of the loss by features, given those and labels
    device: Callable[..., Array]  # by the device's parameters, flat; given images and `gradient`


@functools.cache
def trained(config: Config, folder: Path | None) -> Trained:
    """Trains a network; continues, or only loads, what is in a folder.

    Args:
      config: which and how.
      folder: for checkpoints; None keeps none.

    Raises:
      UserError: if the data are not there.
    """
    if not data.available(config.dataset):
        raise UserError(
            f"{config.dataset} is not in {data.folder(config.dataset)}: set TINYJAX_DATA to the "
            "folder that has it, or run with --quick, which takes the bundled sample"
        )
    learned, test = data.load(config.dataset)
    learned = data.first(learned, config.images)
    # The function is the same, and slices are cheaper to differentiate.
    net = Net(config.widths, config.pooled, pool=slice_max_pool)
    steps = len(learned.labels) // config.batch
    state = train.create_state(
        net,
        data.pixels(learned.images[:1]),
        learning_rate=config.learning_rate,
        steps=steps * config.epochs,
        seed=config.seed,
    )
    step = _compiled_step(state, learned, config.batch)
    early = _early(step, state, learned, config, folder and folder / "early")
    late = train.fit(
        step,
        state,
        learned,
        lambda state: train.evaluate(state, data.first(test, _SCORED)),
        epochs=config.epochs,
        batch=config.batch,
        seed=config.seed,
        folder=folder and folder / "late",
    ).state
    accuracy = {"early": train.evaluate(early, test)[1], "late": train.evaluate(late, test)[1]}
    return Trained(config, _variables(early), _variables(late), accuracy, learned, test)


def _early(
    step: train.Step, state: Any, learned: data.Split, config: Config, folder: Path | None
) -> Any:
    """The state after `_EARLY` epochs, as on the way to the late one."""
    if folder and (saved := checkpoints.restore(folder, state)):
        return saved.state
    batches = data.epoch_batches(learned, config.batch, seed=config.seed, epoch=0)
    count = max(1, round(_EARLY * len(learned.labels) / config.batch))
    for images, labels in itertools.islice(batches, count):
        state, _ = step(state, images, labels)
    if folder:
        checkpoints.save(folder, state, [])
    return state


def _compiled_step(state: Any, learned: data.Split, batch: int) -> jax.stages.Compiled:
    """The stock step, with the compiler's setting that is faster here."""
    options: Any = FUSION_OFF if jax.default_backend() == "cpu" else None
    images, labels = data.first(learned, batch)
    lowered = train.statistics_step.lower(state, data.pixels(images), labels)
    return lowered.compile(compiler_options=options)


def at_cut(config: Config, variables: Any, cut: str) -> Cut:
    """Both sides of a cut of a network with these variables."""
    return Cut(*(functools.partial(f, variables) for f in _compiled(config, cut)))


@functools.cache
def _compiled(config: Config, cut: str) -> tuple[Callable[..., Array], ...]:
    """The functions of a `Cut`, of the variables too."""
    net, layers = Net(config.widths, config.pooled), CUTS[cut]

    def features(variables: Any, images: Array) -> Any:
        return net.apply(variables, images, layers, method="lower")

    def logits(variables: Any, x: Array) -> Any:
        return net.apply(variables, x, layers, method="upper")

    def gradient(variables: Any, x: Array, labels: Array) -> Array:
        return jax.grad(lambda x: train.cross_entropy(logits(variables, x), labels))(x)

    def device(variables: Any, images: Array, g: Array) -> Array:
        params = variables["params"]
        run = lambda params: features({**variables, "params": params}, images)
        (pulled,) = jax.vjp(run, params)[1](g)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(pulled)])

    return tuple(jax.jit(f) for f in (features, logits, gradient, device))


def _variables(state: Any) -> Any:
    return jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})
