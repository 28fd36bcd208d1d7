"""Results as JSON: one file per run, reused while it is there.

A finished run is one JSON file; an unfinished one is a folder of checkpoints beside it, removed
once the file is written. Both names carry a digest of the configuration, so runs that differ in
anything that matters never share a file.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import UserError
from experiments.measure import environment

__all__ = ["Outcome", "Record", "digest", "once", "plain", "read", "record", "write"]

Record = dict[str, Any]  # what a JSON file holds: config, metrics, environment, ...


class Outcome(NamedTuple):
    """A finished run."""

    record: Record
    path: Path  # of its file
    reused: bool  # whether it had finished before


def digest(config: Any) -> str:
    """Eight hexadecimal digits that tell one frozen dataclass of plain values from another."""
    content = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def once(name: str, config: Any, out: Path, run: Callable[[Path], Any], **details: Any) -> Outcome:
    """The record of a run: the one in `out` if it has finished before, else of a new run.

    Args:
      name: of the configuration.
      config: frozen dataclass of plain values.
      out: folder of the records, made where it is missing.
      run: ``run(folder)`` gives a NamedTuple of metrics; it may keep unfinished work in `folder`.
      **details: further JSON-able entries of a new record.

    Raises:
      UserError: if a file is in the way that is no record of this configuration.
    """
    path = out / f"{name}-{digest(config)}.json"
    unfinished = path.with_suffix(".unfinished")
    reused = path.exists()
    if reused:
        found = read(path)
        if found.get("config") != dataclasses.asdict(config):
            raise UserError(f"{path} is not a record of this configuration: remove it to run again")
    else:
        found = record(config, run(unfinished), name=name, **details)
        write(path, found)
    shutil.rmtree(unfinished, ignore_errors=True)
    return Outcome(found, path, reused)


def record(config: Any, metrics: Any, **details: Any) -> Record:
    """A record: configuration, metrics, where they were measured and when (UTC)."""
    return {
        **details,
        "config": dataclasses.asdict(config),
        "metrics": plain(metrics),
        "environment": environment(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
      UserError: if it is not a JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it to run again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: remove it to run again")
    return found


def write(path: Path, content: Record) -> None:
    """Writes a record whole or not at all; makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json.partial")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(beside, path)


def plain(value: Any) -> Any:
    """NamedTuples as dicts, other tuples as lists, all the way down."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value
