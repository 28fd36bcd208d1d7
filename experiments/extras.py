"""Packages that only the experiments need, imported where they are used."""

import importlib
from types import ModuleType

__all__ = ["imported"]


def imported(name: str) -> ModuleType:
    """The module of this name.

    Raises:
      ImportError: if it, or something it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the experiments need the package {error.name!r}, which is missing: "
            "install tinyjax[experiments]"
        ) from error
