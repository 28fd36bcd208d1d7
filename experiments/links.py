"""Split training in two processes over a socket, codec by codec: what it learns and how fast it is.

Accuracy: the same network, seeds, batches and steps through every codec, a whole training each, and
the bytes of its socket in both directions, state of the entropy coder, labels and headers included.

Speed: with ``rho`` the time that float32 takes on the link over the time of a step without one,
``r`` how many times fewer bytes a codec sends, and ``kappa`` its time over that of a step::

    S = (1 + rho) / (1 + rho / r + kappa)

is how many times faster than float32 it should be, since a step sends features, waits, and gets
gradients back: nothing overlaps. Links are so slow that ``rho`` is what it is to be. ``rho`` and
``r`` are of the bytes that went through the socket, ``kappa`` of the seconds that the codec took in
both processes, above those in which float32 becomes bytes. On a machine with other work to do the
seconds of a step vary from run to run, so what the formula is given is measured in the very runs
that it is compared with; what runs without a link would have predicted stands beside it::

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
from statistics import mean, median
from typing import Any, NamedTuple

import flax.serialization

from experiments import split, split_scores
from experiments.errors import UserError
from experiments.measure import environment
from experiments.results import once, plain, write
from experiments.summary import Difference, difference
from tinyjax.collab import parse_link

__all__ = [
    "ACCURACY",
    "LINK",
    "PUBLISHED",
    "Config",
    "Learned",
    "Results",
    "Speed",
    "accuracy",
    "learned",
    "link",
    "run",
    "smoke",
    "speed",
]

# What the paper's abstract claims, against a baseline that it does not say.
PUBLISHED = {"traffic_ratio": 15.97, "images_per_second_ratio": 9.22}

_CODECS = ("float32", "int8", "int4", "int4_zstd", "sgq_gains", "sgq_entropy", "sgq_masked")
_LEARNED = tuple(codec for codec in _CODECS if codec != "int4")  # which learns as int4_zstd does
_OTHERS = ("float32", "int8", "int4", "int4_zstd")  # that claims are made against
_WARM = 3  # steps that are not counted: they compile, and fit the first state
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
LINK = Config(epochs=1, limit=(_WARM + 30) * Config.batch)


def smoke(config: Config) -> Config:
    """The same on so little that it takes seconds."""
    return replace(config, dataset=Config.dataset, epochs=1, batch=10, limit=10 * (_WARM + 2))


class Results(NamedTuple):
    """A training in two processes."""

    seconds: float  # of a step after the first ones, mean
    codec_seconds: float  # of these, on both sides
    link_seconds: float  # of these, between the sides: waiting, less what the cloud was busy
    up: float  # bytes of the socket in such a step
    down: float
    whole_up: int  # of the whole training
    whole_down: int
    steps: int
    counted: int  # steps of which the means are


class Learned(NamedTuple):
    """What a training in two processes came to."""

    test_accuracy: float  # 0..1, with nothing between the halves
    cosine: float  # of the lower half's gradients with exact ones, mean over batches, at the end
    cosine_at_start: float  # the same, with the first parameters


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
    return _results(folder)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _results(folder: Path) -> Results:
    device, cloud = (json.loads((folder / f"{side}.json").read_text()) for side in _SIDES)
    seconds, codec, waited, up, down = zip(*device["each"], strict=True)
    steps = len(seconds)
    warm = min(_WARM, steps - 1)
    both = [sum(pair) for pair in zip(codec, cloud["codec_seconds"], strict=True)]
    counted = steps - warm
    return Results(
        seconds=mean(seconds[warm:]),
        codec_seconds=mean(both[warm:]),
        link_seconds=mean(waited[warm:]) - mean(cloud["busy_seconds"][warm:]),
        up=(up[-1] - up[warm - 1]) / counted,
        down=(down[-1] - down[warm - 1]) / counted,
        whole_up=device["socket_bytes"]["up"],
        whole_down=device["socket_bytes"]["down"],
        steps=steps,
        counted=counted,
    )


_SIDES = ("device-0", "cloud")


def learned(config: split.Config, folder: Path) -> Learned:
    """What a training in two processes has left in a folder, tested in this one."""
    parts, _ = split.prepared(config)
    lower, upper = (
        flax.serialization.from_bytes(half.params, (folder / f"{side}.msgpack").read_bytes())
        for half, side in zip((parts.lower, parts.upper), _SIDES, strict=True)
    )
    return Learned(
        split_scores.accuracy(config, lower, upper),
        mean(split_scores.cosines(config, lower, upper, _COSINES)),
        mean(split_scores.cosines(config, parts.lower.params, parts.upper.params, _COSINES)),
    )


def _record(config: Config, out: Path, command: str, score: bool = False) -> Any:
    """The metrics of a run, which is done if its record is not there."""

    def both(folder: Path) -> dict[str, Any]:
        found = run(config, folder)._asdict()
        return found | (learned(config.training, folder)._asdict() if score else {})

    name = f"{config.codec}-{config.seed}"
    return once(name, config, out, both, command=command).record["metrics"]


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
        (codec, seed): _record(replace(config, codec=codec, seed=seed), out, command, score=True)
        for seed in range(seeds)
        for codec in _LEARNED
    }
    arms = [_arm(codec, runs, range(seeds)) for codec in _LEARNED]
    write(out / "summary.json", {**_about(command, config), "arms": plain(arms)})
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


def _about(command: str, config: Config) -> dict[str, Any]:
    """What a summary says of all its runs."""
    return {"command": command, "config": _shared(config), "environment": environment()}


def _shared(config: Config) -> dict[str, Any]:
    """The settings that all runs have."""
    return {k: v for k, v in config.__dict__.items() if k not in ("codec", "seed", "link")}


# --- speed ---------------------------------------------------------------------------------------


class Speed(NamedTuple):
    """A codec on a link, next to the formula.

    ``C`` is what both sides compute in a step besides the codec, in seconds: the time of a step
    less that on the link and that of the codec, the median of all runs on this link.
    """

    codec: str
    link: str
    rho: float  # seconds that float32's bytes take at the link's rate, over C
    r: float  # bytes of float32 over bytes of the codec, both ways
    kappa: float  # seconds of the codec, above those of float32, over C
    images_per_second: float
    speedup: float  # over float32 on the same link
    predicted: float  # by the formula
    deviation: float  # of the speedup from the predicted one, relative
    beforehand: float  # predicted speedup, by C and kappa of runs without a link
    over: dict[str, float]  # speedup over others on the same link
    less: dict[str, float]  # bytes of others over the codec's, both ways


def link(
    config: Config,
    out: Path,
    command: str = "",
    rhos: Sequence[float] = _RHO,
    codecs: Sequence[str] = _CODECS,
) -> list[Speed]:
    """Measures every codec without a link, then on links as slow as give float32 each ``rho``.

    Args:
      config: of all runs, but for codec and link.
      out: folder of a record for each, and of ``summary.json``.
      command: that is doing this.
      rhos: transfer time of float32 over its time without a link.
      codecs: of them float32 has to be one.
    """
    get = lambda codec, link="": _record(replace(config, codec=codec, link=link), out, command)
    free = {codec: get(codec) for codec in codecs}
    found = []
    for rho in rhos:
        exact = free["float32"]
        rate = _size(exact) / (rho * _computing(exact))  # bytes per second
        text = f"{8e-6 * rate:.4f}Mbit/s"
        runs = {codec: get(codec, text) for codec in codecs}
        found += [speed(codec, text, free, runs, config.batch) for codec in codecs]
    write(out / "summary.json", {**_about(command, config), "free": free, "links": plain(found)})
    return found


def speed(codec: str, link: str, free: dict[str, Any], runs: dict[str, Any], batch: int) -> Speed:
    """A codec on a link, next to the formula.

    Args:
      codec: one of `split_codecs.CODECS`.
      link: its text.
      free: metrics of every codec without a link.
      runs: metrics of every codec on the link.
      batch: images in a step.
    """
    found, exact, rate = runs[codec], runs["float32"], parse_link(link).rate
    r = _size(exact) / _size(found)

    def formula(of: dict[str, Any], computing: float) -> tuple[float, float, float]:
        kappa = (of[codec]["codec_seconds"] - of["float32"]["codec_seconds"]) / computing
        rho = _size(exact) / rate / computing
        return rho, kappa, (1 + rho) / (1 + rho / r + kappa)

    rho, kappa, predicted = formula(runs, median(map(_computing, runs.values())))
    _, _, beforehand = formula(free, _computing(free["float32"]))
    speedup = exact["seconds"] / found["seconds"]
    others = [other for other in _OTHERS if other in runs]
    over = {other: runs[other]["seconds"] / found["seconds"] for other in others}
    less = {other: _size(runs[other]) / _size(found) for other in others}
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
        beforehand,
        over,
        less,
    )


def _size(metrics: dict[str, Any]) -> float:
    """Bytes of a step, both ways."""
    return metrics["up"] + metrics["down"]


def _computing(metrics: dict[str, Any]) -> float:
    """Seconds of a step that are neither the link's nor the codec's."""
    return metrics["seconds"] - metrics["link_seconds"] - metrics["codec_seconds"]
