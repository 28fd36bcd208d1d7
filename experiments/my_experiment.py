"""A template: copy this file, say in a sentence what is asked, and change what is below.

As it stands: int8 with one layer left in float32. Interrupted it continues, finished it is kept::

    python -m experiments.my_experiment model=my_package.models:MyNet dataset=my_images
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from experiments import data, own, results, settings, train
from experiments.progress import Follow, bars, unfollowed
from tinyjax import attach, count_macs, detach, int8_qat, where

__all__ = ["CONFIGS", "PUBLISHED", "Config", "Results", "main", "run", "smoke"]

PUBLISHED: dict[str, float] = {}  # what a paper says, and in which table


@dataclass(frozen=True)
class Config:
    """Everything that a result depends on."""

    model: str = "small_cnn"  # a key of models.MODELS, or package.module:Name
    dataset: str = "fashion_mnist_sample"  # one of data.NAMES, or a folder of images
    apart: str = "Conv_0"  # a name in the path of what stays in float32; empty: nothing does
    epochs: int = 8
    batch: int = 50
    learning_rate: float = 0.03
    limit: int = 0  # train and test on so many images only; 0: on all
    seed: int = 0


CONFIGS = {"default": Config(), "all int8": Config(apart="")}


def smoke(config: Config) -> Config:
    """The same on so little that it takes seconds."""
    return replace(config, epochs=1, batch=10, limit=20)


class Results(NamedTuple):
    """What is reported, and written as JSON."""

    history: tuple[train.Epoch, ...]
    test_accuracy: float  # 0..1, of the trained parameters in float32
    macs: dict[str, int]  # of a step, by dtype of the operands


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Trains and measures; checkpoints go to `out`, from which a second call continues."""
    whole = own.dataset(config.dataset)
    learn, test = (data.first(split, config.limit or None) for split in whole)
    batch = next(data.epoch_batches(learn, config.batch, seed=config.seed, epoch=0))
    steps = config.epochs * (len(learn.labels) // config.batch)
    model = own.model(config.model, classes=1 + int(whole.train.labels.max()))
    start = dict(learning_rate=config.learning_rate, steps=steps, seed=config.seed)
    state = train.create_state(model, batch[0], **start)
    tx = where(lambda site: config.apart not in site.path.split("/"), int8_qat())
    state, step = attach(tx, train.train_step, state, *batch), tx(train.train_step)
    macs, score = count_macs(step, state, *batch), lambda s: train.evaluate(detach(s), test)
    loop = dict(epochs=config.epochs, batch=config.batch, seed=config.seed, folder=out)
    with follow("mine", steps) as watch:
        _, history = train.fit(step, state, learn, score, watch=watch, **loop)
    return Results(history, history[-1].test_accuracy, macs)


def main(argv: Sequence[str]) -> None:
    """``[--smoke] [key=value ...]``; JSON goes to out/my_experiment."""
    config = settings.change(Config(), [word for word in argv if word != "--smoke"])
    config = smoke(config) if "--smoke" in argv else config
    go = lambda folder: run(config, folder, bars)
    print(results.once("run", config, Path("out/my_experiment"), go).path)


if __name__ == "__main__":
    main(sys.argv[1:])
