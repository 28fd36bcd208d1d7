"""``python -m experiments <name>``: runs one, writes JSON, prints a table."""

import importlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from experiments.errors import UserError
from experiments.extras import imported

__all__ = ["Arguments", "main"]

# Experiment: (its module, its default configuration). It also needs its entry in `tables.TABLES`.
_ONE = {
    "octo": ("octo", "int8"),
    "sgq": ("sgq", "sample"),
    "pass": ("skip", "sample"),
    "uplink": ("uplink", "resnet"),
    "gate": ("learned_gate", "sample"),
    "outcomes": ("outcomes", "sample"),
    "audit": ("audit", "vgg6"),
    "fidelity": ("fidelity", "vgg6"),
}
# Grid: (its module, its default configuration), which is a row of runs.
_SPLIT = ("serve", "device", "score", "certs", "accuracy", "link")  # of `sgq`: over a socket
_GRIDS = {
    "ablation": ("ablation", "all"),
    "adapt": ("adapt", "mnist"),
    "tasks": ("tasks", "cdnet"),
    "thesis": ("thesis", "highway"),
}
_KEPT = ("tasks", "thesis")  # whose trainings can be kept in a folder of their own


@dataclass(frozen=True)
class Arguments:
    """Experiments with tinyjax: the methods on real data, measured.

    An interrupted run continues with the same command. A finished run is not repeated while its
    JSON is there; the demo is there to be watched, so it runs anew every time.
    """

    experiment: Literal[
        "octo",
        "sgq",
        "pass",
        "gate",
        "uplink",
        "outcomes",
        "tasks",
        "audit",
        "fidelity",
        "ablation",
        "adapt",
        "thesis",
        "demo",
    ]
    """octo: train one arm. sgq: train across a cut and without one. pass: skip patches of a video.
    gate: learn when to. outcomes: the same as light, noise and scene change. uplink: send what
    changed. tasks: skip on a task with labels. audit: where int8 is faster on this machine.
    fidelity: int8 gradients next to float32's. ablation: what each part of Octo does, next to
    rivals. adapt: learn another domain on a device. thesis: all methods at once, a device and a
    cloud, each switched off in turn. demo: the methods, with a report. Each writes JSON; ablation,
    adapt, tasks and thesis one per run. report [--check] is a command of its own: it writes the
    claims and their verdicts from committed results."""
    config: str | None = None
    """Name of the configuration, by default int8 (octo), vgg6 (audit, fidelity), all (ablation),
    resnet (uplink), mnist (adapt), cdnet (tasks), highway (thesis) or sample (others); "?" lists
    them."""
    set: tuple[tuple[str, ...], ...] = ()
    """Changes to the configuration, key=value; "?=" lists the keys. Of the demo: part.key=value. A
    model of yours is package.module:Name (octo, audit, pass), data of yours a folder of
    train/<class>/<image> and test/<class>/<image> (octo, sgq) or a video file (pass)."""
    smoke: bool = False
    """Run on so little that it takes seconds, to see that it works."""
    seed: int | None = None
    """The same as --set seed=N, in every part of the demo."""
    out: Path | None = None
    """Folder for the results. Default: out/ and its name."""
    checkpoints: Path | None = None
    """Of tasks and thesis: folder in which trainings stay, to be measured again without another."""


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code: 0, 2 for what the user can put right, 130."""
    try:
        if list(argv[:1]) == ["sgq"] and (command := argv[1:2]) and command[0] in _SPLIT:
            importlib.import_module("experiments.split_commands").main(argv[1:])
            return 0
        if list(argv[:1]) == ["report"]:
            return importlib.import_module("experiments.claims.written").main(argv[1:])
        tyro = imported("tyro")
        marks = (
            tyro.conf.PositionalRequiredArgs,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.UseAppendAction,
        )
        given = tyro.cli(Arguments, prog="python -m experiments", args=list(argv), config=marks)
        if given.checkpoints is not None and given.experiment not in _KEPT:
            kept = " and ".join(_KEPT)
            raise UserError(
                f"--checkpoints is for {kept}, not for {given.experiment}: leave it out"
            )
        packages = ["rich.progress", "orbax.checkpoint", "matplotlib", "zstandard", "av"]
        for package in packages + ["motmetrics"] * (given.experiment == "tasks"):
            imported(package)  # told now rather than after minutes of training
        command = shlex.join(["python", "-m", "experiments", *map(_nearby, argv)])
        run = _demo if given.experiment == "demo" else _one
        (_grid if given.experiment in _GRIDS else run)(given, command)
    except (UserError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: the same command continues, after the last whole epoch of a training",
            file=sys.stderr,
        )
        return 130
    return 0


def _nearby(word: str) -> str:
    """A path below the current folder from there on: a record names no folder of a machine."""
    path = Path(word)
    below = path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if below else word


def _one(given: Arguments, command: str) -> None:
    """Runs one experiment, unless it has finished before."""
    from experiments import settings, shading, tables
    from experiments.progress import bars
    from experiments.results import once

    module, default = _ONE[given.experiment]
    experiment = importlib.import_module(f"experiments.{module}")
    name, config = _chosen(given, experiment, default)
    config = settings.change(config, _settings(given))
    config = config if given.seed is None else settings.change(config, [f"seed={given.seed}"])
    out = given.out or Path("out") / given.experiment
    run = lambda folder: experiment.run(config, folder, bars)
    outcome = once(name, config, out, run, experiment=given.experiment, command=command)
    if given.experiment == "pass":
        shading.movie(outcome.record, outcome.path.with_suffix(".mp4"), bars)
    shown = tables.finished(tables.TABLES[given.experiment], outcome)
    imported("rich").get_console().print(shown, soft_wrap=True)


def _grid(given: Arguments, command: str) -> None:
    """Runs what is left of a grid, and sums up all of it."""
    from experiments import grids, settings, tables
    from experiments.progress import bars

    module, default = _GRIDS[given.experiment]
    experiment = importlib.import_module(f"experiments.{module}")
    name = given.config or default
    if name not in experiment.CONFIGS:
        names = ", ".join(experiment.CONFIGS)
        raise UserError(f"{given.experiment} has no configuration {name!r}: choose one of {names}")
    configs = experiment.CONFIGS[name]
    configs = experiment.smoke(configs) if given.smoke else configs
    seed = [] if given.seed is None else [f"seed={given.seed}"]
    configs = [settings.change(config, [*_settings(given), *seed]) for config in configs]
    out = given.out or Path("out") / given.experiment
    details = {"experiment": given.experiment, "command": command}
    one = experiment.run
    if given.checkpoints is not None:
        one = partial(one, kept=given.checkpoints)
    records = grids.run(one, list(dict.fromkeys(configs)), out, bars, **details)
    if given.experiment == "tasks":
        from experiments import task_report

        task_report.written(records, out)
        shown = task_report.table(records, out)
    elif given.experiment == "thesis":
        from experiments import thesis_report

        shown = thesis_report.table(thesis_report.written(out), out)
    else:
        shown = tables.grid(grids.written(records, out), out)
    imported("rich").print(shown)


def _demo(given: Arguments, command: str) -> None:
    from experiments import demo, report, shading, tables
    from experiments.progress import bars
    from experiments.results import write

    name, configs = _chosen(given, demo, "sample")
    configs = demo.change(configs, _settings(given), given.seed)
    out = given.out or Path("out/demo")
    unfinished = demo.unfinished(configs, out)
    details = {"experiment": "demo", "demo": name, "command": command}
    records = demo.run(configs, unfinished, bars, **details)
    write(out / "results.json", records)
    shading.movie(records["pass"], out / "pass.mp4", bars)
    (out / "report.html").write_text(report.page(records), encoding="utf-8")
    shutil.rmtree(unfinished)
    imported("rich").print(tables.demo(records, out / "report.html"))


def _chosen(given: Arguments, experiment: Any, default: str) -> tuple[str, Any]:
    """The name of the configuration, and the configuration, smaller for a smoke run."""
    name = given.config or default
    if name not in experiment.CONFIGS:
        names = ", ".join(experiment.CONFIGS)
        raise UserError(f"{given.experiment} has no configuration {name!r}: choose one of {names}")
    config = experiment.CONFIGS[name]
    return name, experiment.smoke(config) if given.smoke else config


def _settings(given: Arguments) -> list[str]:
    return [setting for settings in given.set for setting in settings]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
