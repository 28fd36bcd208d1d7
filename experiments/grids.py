"""Grids of runs: one JSON per run, then a summary of them all and figures to look at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from experiments import plots
from experiments.errors import UserError
from experiments.progress import Follow
from experiments.results import Record, once, plain, write
from experiments.summary import interval, summary, task

__all__ = ["run", "written"]

Shown = tuple[str, ...]
_CONVERGING: Shown = ("float32 bn", "int8 bn", "octo bn", "released bn", "float32", "int8")


def run(
    one: Callable[..., Any], configs: Sequence[Any], out: Path, follow: Follow, **details: Any
) -> list[Record]:
    """The records of all runs; those that have finished before are read.

    Args:
      one: ``one(config, folder, follow=...)`` gives the metrics of a run.
      configs: one per run, with an ``arm``; the order is that of running.
      out: folder of the records.
      follow: shows the progress of each.
      **details: further entries of new records.

    Raises:
      UserError: as `results.once`, or if there is nothing to run.
    """
    if not configs:
        raise UserError("this grid has no runs: choose another configuration")
    records = []
    for number, config in enumerate(configs, 1):
        numbered = partial(_numbered, follow, f"{number}/{len(configs)}")
        name = config.arm.replace(" ", "-").replace("+", "-")
        work = partial(one, config, follow=numbered)
        records.append(once(name, config, out, work, **details).record)
    return records


def _numbered(follow: Follow, number: str, name: str, steps: int) -> Any:
    return follow(f"{number} {name}", steps)


def written(records: Sequence[Record], out: Path) -> dict[str, Any]:
    """Writes ``summary.json`` and figures (svg) of a grid into a folder; returns the arms by task.

    The file also says which commands made the runs, and where.
    """
    found = plain(summary(records))
    commands = sorted({r["command"] for r in records if "command" in r})
    environments = [r["environment"] for r in records if "environment" in r]
    where = {key: environments[-1][key] for key in ("jax", "cpu", "cores")} if environments else {}
    write(out / "summary.json", {"commands": commands, "environment": where, "tasks": found})
    for name in found:
        ours = [r for r in records if task(r) == name]
        folder = out / "figures" / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for figure, svg in _figures(ours, [arm["arm"] for arm in found[name]]):
            (folder / f"{figure}.svg").write_text(svg, encoding="utf-8")
    return found


def _figures(records: Sequence[Record], order: Sequence[str]) -> Iterator[tuple[str, str]]:
    arms: dict[str, list[Record]] = {arm: [] for arm in order}
    for record in records:
        arms[_arm(record)].append(record)
    accuracy = lambda run: 100 * run["metrics"]["test_accuracy"]
    throughput = lambda run: 1e3 * run["config"]["batch"] / run["metrics"]["step_ms"]
    yield "accuracy", _spread(arms, accuracy, "test accuracy, %, with 90 % intervals")
    yield "throughput", _spread(arms, throughput, "images per second, with 90 % intervals")
    shown = [arm for arm in _CONVERGING if arm in arms] or list(arms)
    yield "convergence", plots.curves({arm: {"": _test(arms[arm])} for arm in shown}, percent=True)
    errors = {arm: _errors(arms[arm]) for arm in order if "float32" not in arm}
    errors = {arm: values for arm, values in errors.items() if values}
    groups: dict[tuple[str, ...], dict[str, Mapping[str, float]]] = {}
    for arm, values in errors.items():
        groups.setdefault(tuple(values), {})[arm] = values
    for number, group in enumerate(groups.values()):
        yield f"error_by_layer_{number}", plots.by_layer(group, "relative error of the output")
    yield from _distributions(records)


def _spread(
    arms: Mapping[str, Sequence[Record]], value: Callable[[Record], float], label: str
) -> str:
    """A value of each run, arm by arm."""
    values = {arm: [value(run) for run in runs] for arm, runs in arms.items()}
    return plots.intervals(values, {arm: interval(found) for arm, found in values.items()}, label)


def _arm(record: Record) -> str:
    config = record["config"]
    return f"{config['policy']} bn" if config.get("norm") else config["policy"]


def _test(runs: Sequence[Record]) -> list[float]:
    """Test accuracy after each epoch, mean over the runs."""
    histories = [[e["test_accuracy"] for e in r["metrics"]["history"]] for r in runs]
    return [mean(values) for values in zip(*histories, strict=True)]


def _errors(runs: Sequence[Record]) -> dict[str, float]:
    """Forward error by layer, mean over the runs."""
    probed = [layers for r in runs if (layers := r["metrics"].get("layers"))]
    return {
        _short(path): mean(layers[path]["forward_error"] for layers in probed)
        for path in (probed[0] if probed else {})
    }


def _short(path: str) -> str:
    return path.removeprefix("params/").removesuffix("/kernel")


def _distributions(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Activations and gradients of one run's layers before and after quantization."""
    ours = [r for r in records if r["config"]["policy"] == "int8" and r["config"]["seed"] == 0]
    for path, layer in (ours[-1]["metrics"].get("layers", {}) if ours else {}).items():
        for kind in ("activation", "gradient"):
            name = _short(path)
            drawn = plots.histogram(**layer[kind], label=f"{kind} at {name}")
            yield f"{kind}_{name.replace('/', '_')}", drawn
