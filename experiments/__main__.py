"""``python -m experiments <octo|demo|sgq>``: runs an experiment, writes JSON, prints a table."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.errors import UserError
from experiments.extras import imported

__all__ = ["Arguments", "main"]


@dataclass(frozen=True)
class Arguments:
    """Experiments with tinyjax: training in float32 and in true int8, measured.

    An interrupted run continues with the same command. A finished octo or sgq run is not repeated
    while its JSON is there; the demo is there to be watched, so it trains anew every time.
    """

    experiment: Literal["octo", "demo", "sgq"]
    """octo: train one arm, write its JSON. demo: train both arms, write JSON and a report.
    sgq: train across a cut and without one, write JSON."""
    config: str | None = None
    """Name of the configuration, by default int8 (octo) or sample (others); "?" lists them."""
    set: tuple[tuple[str, ...], ...] = ()
    """Changes to the configuration, key=value; "?=" lists the keys."""
    smoke: bool = False
    """Train on so little that it takes seconds, to see that it runs."""
    seed: int | None = None
    """The same as --set seed=N."""
    out: Path | None = None
    """Folder for the results. Default: out/octo, out/demo or out/sgq."""


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code: 0, 2 for what the user can put right, 130."""
    try:
        tyro = imported("tyro")
        marks = (
            tyro.conf.PositionalRequiredArgs,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.UseAppendAction,
        )
        given = tyro.cli(Arguments, prog="python -m experiments", args=list(argv), config=marks)
        for package in ("rich.progress", "orbax.checkpoint", "matplotlib"):
            imported(package)  # told now rather than after minutes of training
        command = shlex.join(["python", "-m", "experiments", *argv])
        {"octo": _octo, "demo": _demo, "sgq": _sgq}[given.experiment](given, command)
    except (UserError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues after the last whole epoch", file=sys.stderr)
        return 130
    return 0


def _octo(given: Arguments, command: str) -> None:
    from experiments import octo, tables
    from experiments.progress import bars
    from experiments.results import once

    name, config = _chosen(given, octo, "int8")
    out = given.out or Path("out/octo")
    run = lambda folder: octo.run(config, folder, bars)
    outcome = once(name, config, out, run, experiment="octo", command=command)
    imported("rich").print(tables.octo(outcome))


def _demo(given: Arguments, command: str) -> None:
    from experiments import demo, report, tables
    from experiments.progress import bars
    from experiments.results import digest, record, write

    name, config = _chosen(given, demo, "sample")
    out = given.out or Path("out/demo")
    unfinished = out / f"unfinished-{digest(config)}"
    results = demo.run(config, unfinished, bars)
    found = record(config, results, name=name, experiment="demo", command=command)
    found["summary"] = demo.summary(results)._asdict()
    write(out / "results.json", found)
    (out / "report.html").write_text(report.page(found), encoding="utf-8")
    shutil.rmtree(unfinished)
    imported("rich").print(tables.demo(found, out / "report.html"))


def _sgq(given: Arguments, command: str) -> None:
    from experiments import sgq, tables
    from experiments.progress import bars
    from experiments.results import once

    name, config = _chosen(given, sgq, "sample")
    imported("zstandard")
    run = lambda folder: sgq.run(config, folder, bars)
    out = given.out or Path("out/sgq")
    outcome = once(name, config, out, run, experiment="sgq", command=command)
    imported("rich").print(tables.sgq(outcome))


def _chosen(given: Arguments, experiment: Any, default: str) -> tuple[str, Any]:
    """The name of the configuration, and the configuration with the given changes."""
    from experiments.settings import change

    name = given.config or default
    if name not in experiment.CONFIGS:
        names = ", ".join(experiment.CONFIGS)
        raise UserError(f"{given.experiment} has no configuration {name!r}: choose one of {names}")
    config = experiment.CONFIGS[name]
    if given.smoke:
        config = experiment.smoke(config)
    config = change(config, [setting for settings in given.set for setting in settings])
    return name, config if given.seed is None else replace(config, seed=given.seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
