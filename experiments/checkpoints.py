"""Checkpoints of an unfinished run: the newest state and its history, written whole or not at all.

Kept by orbax, which writes beside the final name and renames, so a run killed while saving leaves
the checkpoint before it in place.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.errors import UserError
from experiments.extras import imported

__all__ = ["Saved", "restore", "save"]

Record = dict[str, float]


class Saved(NamedTuple):
    """The content of a checkpoint."""

    state: Any  # pytree of arrays, of the structure that was asked for
    history: list[Record]  # one record per finished epoch


def save(folder: Path, state: Any, history: list[Record]) -> None:
    """Writes the checkpoint after ``len(history)`` epochs; removes the one before it.

    Args:
      folder: of one run alone; made where it is missing.
      state: pytree of arrays.
      history: one JSON-able record per finished epoch.
    """
    ocp = imported("orbax.checkpoint")
    with _manager(folder) as manager:
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), history=ocp.args.JsonSave(history)
        )
        manager.save(len(history), args=content)


def restore(folder: Path, like: Any) -> Saved | None:
    """Reads the newest checkpoint, None where there is none.

    Args:
      folder: of one run alone.
      like: a state of the structure, shapes and dtypes that were saved; its values are not used.

    Raises:
      UserError: if the checkpoint is damaged or of another structure.
    """
    if not folder.exists():
        return None
    ocp = imported("orbax.checkpoint")
    with _manager(folder) as manager:
        newest = manager.latest_step()
        if newest is None:
            return None
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        content = ocp.args.Composite(
            state=ocp.args.StandardRestore(template), history=ocp.args.JsonRestore()
        )
        try:
            found = manager.restore(newest, args=content)
        except Exception as error:  # orbax lets through whatever its parts raise
            raise UserError(
                f"checkpoint {folder / str(newest)} cannot be read "
                f"({type(error).__name__}): remove {folder} to start over"
            ) from error
    return Saved(found.state, found.history)


def _manager(folder: Path) -> Any:
    ocp = imported("orbax.checkpoint")
    # Saving in the background would let a kill lose more than the epoch under way.
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute(), options=options)
