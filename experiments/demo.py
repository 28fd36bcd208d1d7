"""The demo: every method once on bundled data, with one report to look at.

The parts run one after the other. Each is an experiment of its own with `CONFIGS`, `smoke` and
``run(config, out, follow)``; their records make ``results.json`` and ``report.html``::

    python -m experiments demo --out out/demo --set octo.epochs=4
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments import compare, data, settings, sgq, skip
from experiments.errors import UserError
from experiments.progress import Follow, unfollowed
from experiments.results import Record, digest, once

__all__ = ["CONFIGS", "PARTS", "Configs", "change", "run", "smoke", "unfinished"]

Configs = Mapping[str, Any]  # {part: its configuration}

# In the order of the thesis. A new part also needs its entry in `report.SECTIONS`.
PARTS: dict[str, Any] = {"octo": compare, "sgq": sgq, "pass": skip}

CONFIGS: dict[str, Configs] = {
    "sample": {name: part.CONFIGS["sample"] for name, part in PARTS.items()},
    "full": {
        name: part.CONFIGS.get("full", part.CONFIGS["sample"]) for name, part in PARTS.items()
    },
}


def smoke(configs: Configs) -> Configs:
    """The same demo on so little that it takes seconds."""
    return {name: PARTS[name].smoke(config) for name, config in configs.items()}


def change(configs: Configs, changes: Iterable[str], seed: int | None = None) -> Configs:
    """The configurations with some settings changed.

    Args:
      configs: one per part.
      changes: ``"part.key=value"``.
      seed: of every part; None leaves them.

    Raises:
      UserError: if a setting does not begin with a part, or does not fit the part.
    """
    of_parts: dict[str, list[str]] = {name: [] for name in configs}
    for setting in changes:
        name, _, rest = setting.partition(".")
        if name not in configs or not rest:
            ways = " or ".join(f"{name}.{setting}" for name in configs)
            raise UserError(f"--set {setting!r} does not say which part of the demo: write {ways}")
        of_parts[name].append(rest)
    changed = {name: settings.change(configs[name], found) for name, found in of_parts.items()}
    for name, config in changed.items():
        if getattr(config, "dataset", data.NAMES[0]) not in data.NAMES:
            raise UserError(
                f"the demo's report knows the data sets {', '.join(data.NAMES)} alone: run "
                f"python -m experiments {name} --set dataset={config.dataset}"
            )
    if seed is None:
        return changed
    return {name: replace(config, seed=seed) for name, config in changed.items()}


def unfinished(configs: Configs, out: Path) -> Path:
    """The folder in `out` for what is not finished, another one for other configurations."""
    return out / f"unfinished-{'-'.join(digest(config) for config in configs.values())}"


def run(
    configs: Configs, out: Path, follow: Follow = unfollowed, **details: Any
) -> dict[str, Record]:
    """Runs the parts in order; ``{part: record}``.

    An interrupted run, called again with the same `configs` and `out`, keeps the parts that are
    done and continues the other.

    Args:
      configs: one per part.
      out: folder for unfinished work, see `unfinished`.
      follow: shows the progress.
      **details: further JSON-able entries of every record.
    """
    records = {}
    for name, config in configs.items():
        # All parts work in one folder, where SGQ finds the float32 arm that Octo has trained.
        part = lambda _, name=name, config=config: PARTS[name].run(config, out, follow)
        records[name] = once(name, config, out, part, **details).record
    return records
