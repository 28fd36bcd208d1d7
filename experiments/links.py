"""Split training in two processes over a socket, codec by codec: what it learns and how fast it is.

Accuracy: the same network, seeds, batches and steps through every codec, a whole training each, and
the bytes of its socket in both directions, state of the entropy coder, labels and headers included.

Speed: with ``rho`` the time that float32 takes on the link over the time of a step without one,
``r`` how many times fewer bytes a codec sends, and ``kappa`` its time over that of a step::

    S = (1 + rho) / (1 + rho / r + kappa)

is how many times faster than float32 it should be, since a step sends features, waits, and gets
gradients back: nothing overlaps. Links are so fast that ``rho`` is what it is to be. ``rho`` and
``r`` are then those of the bytes that went through the socket, and ``kappa`` is of the seconds that
the codec took in both processes without a link, above those in which float32 becomes bytes::

    python -m experiments sgq accuracy
    python -m experiments sgq link

An interrupted command continues with the runs that are left. Both processes are on this machine and
mostly wait for each other, so the cores are not short; a step's time is that of the device's clock.
"""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import flax.serialization

from experiments import split
from experiments.errors import UserError
from experiments.results import Record, once, plain, write
from experiments.summary import Difference, difference

__all__ = [
    "ACCURACY",
    "LINK",
    "PUBLISHED",
    "Config",
    "Results",
    "Speed",
    "accuracy",
    "link",
    "run",
    "smoke",
    "speed",
]

# What the paper's abstract claims, against a baseline that it does not say.
PUBLISHED = {"traffic_ratio": 15.97, "images_per_second_ratio": 9.22}

_CODECS = ("float32", "int8", "int4", "int4_zstd", "sgq", "sgq_entropy", "sgq_masked")
_LEARNED = ("float32", "int8", "int4_zstd", "sgq_entropy", "sgq_masked")  # others learn as these do
_OTHERS = ("float32", "int8", "int4", "int4_zstd")  # that claims are made against
_WARM = 10  # steps that are not counted: they compile, and fit the first state
_SEEDS = 3
_RHO = (5.0, 10.0, 25.0)
_COSINES = 8  # batches
_LONG = 3600  # seconds


@dataclass(frozen=True)
class Config(split.Config):
    """A training in two processes, and the link between them."""

    link: str = ""  # as 20Mbit/s or 20Mbit/s,30ms; nothing for as fast as it goes

    @property
    def training(self) -> split.Config:
        """What both sides have to agree on."""
        return split.Config(
            **{each.name: getattr(self, each.name) for each in fields(split.Config)}
        )


ACCURACY = Config(dataset="fashion_mnist", epochs=2, limit=10_000)
LINK = Config(epochs=1, limit=40 * Config.batch)


def smoke(config: Config) -> Config:
    """The same on so little that it takes seconds."""
    return replace(config, dataset=Config.dataset, epochs=1, batch=10, limit=10 * (_WARM + 2))


class Results(NamedTuple):
    """A training in two processes."""

    test_accuracy: float  # 0..1, with nothing between the halves
    cosine: float  # of the lower half's gradients with exact ones, mean over batches, at the end
    cosine_at_start: float  # the same, with the first parameters
    seconds: float  # of a step after the first ones, mean
    codec_seconds: float  # of these, on both sides
    up: float  # bytes of the socket in such a step
    down: float
    whole_up: int  # of the whole training
    whole_down: int
    steps: int
    counted: int  # steps of which the means are


def run(config: Config, folder: Path) -> Results:
    """Trains in two processes, from the beginning.

    Args:
      config: of the training and the link.
      folder: for what both leave; emptied first.

    Raises:
      UserError: if a process fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    changes = [f"{f.name}={getattr(config, f.name)}" for f in fields(split.Config)]
    address = f"127.0.0.1:{_free_port()}"
    rest = ["--address", address, "--out", str(folder.absolute()), "--set", *changes]
    command = [sys.executable, "-m", "experiments", "sgq"]
    with subprocess.Popen([*command, "serve", "--linger", "1", *rest]) as cloud:
        try:
            on = ["--link", config.link] if config.link else []
            device = subprocess.run([*command, "device", *on, *rest], timeout=_LONG, check=False)
            code = device.returncode or cloud.wait(60)
        finally:
            cloud.kill()
    if code:
        raise UserError(f"a side of the {config.codec} training ended with {code}: see above")
    return _results(config.training, folder)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _results(config: split.Config, folder: Path) -> Results:
    parts, steps = split.prepared(config)
    device, cloud = (json.loads((folder / f"{side}.json").read_text()) for side in _SIDES)
    lower, upper = (
        flax.serialization.from_bytes(half.params, (folder / f"{side}.msgpack").read_bytes())
        for half, side in zip((parts.lower, parts.upper), _SIDES, strict=True)
    )
    seconds, codec, up, down = zip(*device["each"], strict=True)
    warm = min(_WARM, steps - 1)
    both = [sum(pair) for pair in zip(codec, cloud["codec_seconds"], strict=True)]
    counted = steps - warm
    first = (parts.lower.params, parts.upper.params)
    return Results(
        test_accuracy=split.accuracy(config, lower, upper),
        cosine=mean(split.cosines(config, lower, upper, _COSINES)),
        cosine_at_start=mean(split.cosines(config, *first, _COSINES)),
        seconds=mean(seconds[warm:]),
        codec_seconds=mean(both[warm:]),
        up=(up[-1] - up[warm - 1]) / counted,
        down=(down[-1] - down[warm - 1]) / counted,
        whole_up=device["socket_bytes"]["up"],
        whole_down=device["socket_bytes"]["down"],
        steps=steps,
        counted=counted,
    )


_SIDES = ("device-0", "cloud")


def _record(config: Config, out: Path, command: str) -> Record:
    name = f"{config.codec}-{config.seed}"
    return once(name, config, out, lambda folder: run(config, folder), command=command).record


# --- accuracy ------------------------------------------------------------------------------------


class Arm(NamedTuple):
    """A codec over its seeds."""

    codec: str
    accuracies: list[float]
    to_float32: Difference | None  # None for float32 itself
    ratios: dict[str, float]  # bytes of others over the codec's, whole trainings, both ways
    up_ratio: float  # of float32
    down_ratio: float
    cosine: float  # least of the seeds, at the end
    cosine_at_start: float


def accuracy(config: Config, out: Path, command: str = "", seeds: int = _SEEDS) -> list[Arm]:
    """Trains with every codec and seed, and compares with float32 seed by seed.

    Args:
      config: of all runs, but for codec and seed.
      out: folder of a record for each, and of ``summary.json``.
      command: that is doing this.
      seeds: how many.
    """
    runs = {
        (codec, seed): _record(replace(config, codec=codec, seed=seed), out, command)["metrics"]
        for seed in range(seeds)
        for codec in _LEARNED
    }
    arms = [_arm(codec, runs, range(seeds)) for codec in _LEARNED]
    write(
        out / "summary.json", {"command": command, "config": _shared(config), "arms": plain(arms)}
    )
    return arms


def _arm(codec: str, runs: dict[tuple[str, int], Any], seeds: Sequence[int]) -> Arm:
    found, exact = ([runs[name, seed] for seed in seeds] for name in (codec, "float32"))
    by_seed = lambda metrics: {i: each["test_accuracy"] for i, each in enumerate(metrics)}
    total = lambda name, *ways: sum(runs[name, seed][way] for seed in seeds for way in ways)
    ratio = lambda other, *ways: total(other, *ways) / total(codec, *ways)
    return Arm(
        codec,
        [each["test_accuracy"] for each in found],
        difference(by_seed(found), by_seed(exact)) if codec != "float32" else None,
        {other: ratio(other, "whole_up", "whole_down") for other in _LEARNED[:3]},
        ratio("float32", "whole_up"),
        ratio("float32", "whole_down"),
        min(each["cosine"] for each in found),
        min(each["cosine_at_start"] for each in found),
    )


def _shared(config: Config) -> dict[str, Any]:
    """The settings that all runs have."""
    return {k: v for k, v in config.__dict__.items() if k not in ("codec", "seed", "link")}


# --- speed ---------------------------------------------------------------------------------------


class Speed(NamedTuple):
    """A codec on a link."""

    codec: str
    link: str
    rho: float  # measured: time of float32's bytes on the link over a step without a link
    r: float  # bytes of float32 over bytes of the codec, both ways
    kappa: float  # codec's seconds over those of a step of float32, both without a link
    images_per_second: float
    speedup: float  # over float32 on the same link
    predicted: float  # by the formula
    deviation: float  # of the speedup from the predicted one, relative
    over: dict[str, float]  # speedup over others on the same link


def link(config: Config, out: Path, command: str = "", rhos: Sequence[float] = _RHO) -> list[Speed]:
    """Measures every codec without a link, then on links as slow as give float32 each ``rho``.

    Args:
      config: of all runs, but for codec and link.
      out: folder of a record for each, and of ``summary.json``.
      command: that is doing this.
      rhos: transfer time of float32 over its time without a link.
    """
    get = lambda codec, link="": _record(replace(config, codec=codec, link=link), out, command)
    free = {codec: get(codec)["metrics"] for codec in _CODECS}
    found = []
    for rho in rhos:
        exact = free["float32"]
        rate = (exact["up"] + exact["down"]) / (rho * exact["seconds"])  # bytes per second
        text = f"{8e-6 * rate:.4f}Mbit/s"
        runs = {codec: get(codec, text)["metrics"] for codec in _CODECS}
        found += [speed(codec, text, free, runs, config.batch) for codec in _CODECS]
    content = {"command": command, "config": _shared(config), "free": free, "links": plain(found)}
    write(out / "summary.json", content)
    return found


def speed(codec: str, link: str, free: dict[str, Any], runs: dict[str, Any], batch: int) -> Speed:
    """A codec on a link, next to the formula.

    Args:
      codec: one of `split.CODECS`.
      link: its text.
      free: metrics of every codec without a link.
      runs: metrics of every codec on the link.
      batch: images in a step.
    """
    size = lambda metrics: metrics["up"] + metrics["down"]
    exact, found, alone = runs["float32"], runs[codec], free["float32"]["seconds"]
    rho = size(exact) / split.collab.parse_link(link).rate / alone
    r = size(exact) / size(found)
    extra = free[codec]["codec_seconds"] - free["float32"]["codec_seconds"]
    kappa = extra / alone
    speedup = exact["seconds"] / found["seconds"]
    predicted = (1 + rho) / (1 + rho / r + kappa)
    return Speed(
        codec,
        link,
        rho,
        r,
        kappa,
        batch / found["seconds"],
        speedup,
        predicted,
        speedup / predicted - 1,
        {other: runs[other]["seconds"] / found["seconds"] for other in _OTHERS},
    )
