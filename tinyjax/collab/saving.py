"""Checkpoints of either side: written whole or not at all, the newest kept.

Kept by orbax, which writes beside the final name and renames, so that a process killed while
saving leaves the checkpoint before it in place. Saving waits until it is done: what is called
durable is on disk. Orbax does not sync the disk, so a machine that loses power may lose it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["Saved", "Store", "extra"]


def extra(name: str) -> Any:
    """The module of this name, which the extra ``collab`` brings.

    Raises:
      ImportError: naming what to install, if it is not there.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"split training needs the package {error.name!r}, which is missing: "
            "install tinyjax[collab]"
        ) from error


class Saved(NamedTuple):
    """The content of a checkpoint: arrays, numbers and byte strings."""

    state: Any  # pytree of arrays, of the structure that was asked for
    ledger: dict[str, Any]  # JSON
    blobs: list[bytes]


class Store:
    """A folder of one side's checkpoints.

    Args:
      folder: None keeps nothing.
      owner: JSON that says whose they are; those of another are refused.
    """

    def __init__(self, folder: Path | None, owner: dict[str, Any]) -> None:
        self.folder, self._owner = folder, owner
        self._manager: Any = None
        if folder is not None:
            self._ocp = extra("orbax.checkpoint")
            options = self._ocp.CheckpointManagerOptions(
                max_to_keep=1, enable_async_checkpointing=False
            )
            self._manager = self._ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, number: int, state: Any, ledger: dict[str, Any], blobs: Sequence[bytes]) -> None:
        """Writes checkpoint ``number``, unless it is there already; returns when it is there."""
        if self._manager is None or self._manager.latest_step() == number:
            return
        args = self._ocp.args
        flat = np.frombuffer(b"".join(blobs) + b"\0", np.uint8)  # orbax takes no empty array
        content = args.Composite(
            state=args.StandardSave({"state": jax.tree.map(np.asarray, state), "blobs": flat}),
            ledger=args.JsonSave({"owner": self._owner, "sizes": list(map(len, blobs)), **ledger}),
        )
        self._manager.save(number, args=content)

    def restore(self, like: Any) -> Saved | None:
        """The newest checkpoint, None where there is none.

        Args:
          like: a state of the structure, shapes and dtypes that were saved.

        Raises:
          ValueError: if the checkpoint is another's, damaged, or of another structure.
        """
        newest = None if self._manager is None else self._manager.latest_step()
        if self._manager is None or newest is None:
            return None
        args = self._ocp.args
        ledger = self._read(newest, ledger=args.JsonRestore()).ledger
        if ledger.get("owner") != self._owner:
            raise ValueError(
                f"{self.folder} holds another side or training: use the same settings, or another "
                "folder"
            )
        template = {
            "state": jax.tree.map(np.asarray, like),
            "blobs": np.zeros(sum(ledger["sizes"]) + 1, np.uint8),
        }
        found = self._read(newest, state=args.StandardRestore(template)).state
        data, ends = np.asarray(found["blobs"]).tobytes(), np.cumsum([0, *ledger["sizes"]]).tolist()
        blobs = [data[a:b] for a, b in pairwise(ends)]
        return Saved(found["state"], ledger, blobs)

    def _read(self, number: int, **items: Any) -> Any:
        try:
            return self._manager.restore(number, args=self._ocp.args.Composite(**items))
        except Exception as error:  # orbax lets through whatever its parts raise
            raise ValueError(
                f"checkpoint {number} in {self.folder} cannot be read ({type(error).__name__}): "
                "remove the folder, and those of all others in this training, to start over"
            ) from error

    def close(self) -> None:
        """Lets go of the folder."""
        if self._manager is not None:
            self._manager.close()
