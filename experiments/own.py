"""Your own models and data: a flax module by its import path, images from a folder."""

import importlib
from pathlib import Path
from typing import Any

import flax.linen as nn

from experiments import data
from experiments.data import folders
from experiments.errors import UserError
from experiments.models import MODELS

__all__ = ["check", "dataset", "model"]


def check(*, model: str = "", dataset: str = "") -> None:
    """Refuses names that cannot be meant, before anything is read or imported.

    Raises:
      UserError: if a model is none of ours and no import path, or a data set none of ours and no
        folder.
    """
    if model and model not in MODELS and ":" not in model:
        raise UserError(
            f"model={model!r} is unknown: choose one of {', '.join(MODELS)}, or write "
            "package.module:Name"
        )
    if dataset and dataset not in data.NAMES and not Path(dataset).is_dir():
        raise UserError(
            f"dataset={dataset!r} is unknown: choose one of {', '.join(data.NAMES)}, or give a "
            "folder with train/<class>/<image> and test/<class>/<image>"
        )


def model(name: str, **fields: Any) -> nn.Module:
    """The model of a name.

    Args:
      name: a key of `models.MODELS`, or ``package.module:Name`` of a flax.linen module: a class,
        all of whose fields have defaults, or an instance.
      **fields: given to a class where it has such a field.

    Raises:
      UserError: if there is none of this name, or it is no module.
    """
    found = MODELS[name] if name in MODELS else _imported(name)
    if isinstance(found, nn.Module):
        return found
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"model={name!r} is no flax.linen module: name a class or an instance")
    known = {key: value for key, value in fields.items() if key in found.__dataclass_fields__}
    try:
        return found(**known)
    except TypeError as error:
        raise UserError(
            f"model={name!r} cannot be made ({error}): give its fields defaults, or name an "
            "instance"
        ) from error


def _imported(name: str) -> Any:
    home, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(home), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"model={name!r} cannot be imported ({error}): write package.module:Name of a module "
            "that Python finds from here"
        ) from error


def dataset(name: str) -> data.Dataset:
    """One of `data.NAMES`, or the images of a folder: `data.folders`.

    Raises:
      UserError: if it cannot be read.
    """
    return data.load(name) if name in data.NAMES else folders.read(Path(name))
