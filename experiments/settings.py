"""Settings from the command line: ``key=value`` onto a frozen dataclass."""

import dataclasses
from collections.abc import Iterable
from typing import Any, get_type_hints

from experiments.errors import UserError

__all__ = ["change"]


def change(config: Any, settings: Iterable[str]) -> Any:
    """A copy of a frozen dataclass with some fields changed.

    Args:
      config: its fields are int, float or str.
      settings: ``"key=value"``; the last of several for one key counts.

    Raises:
      UserError: if a setting is not of this form, its key not a field, or its value of another
        type than the field.
    """
    changes: dict[str, Any] = {}
    types = get_type_hints(type(config))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting!r} is not of the form key=value: add the value")
        if key not in types:
            raise UserError(f"there is no setting {key!r}: choose one of {', '.join(types)}")
        try:
            changes[key] = types[key](value)
        except ValueError as error:
            kind = {int: "a whole number", float: "a number"}[types[key]]
            raise UserError(f"{key}={value!r} is not {kind}: write one") from error
    return dataclasses.replace(config, **changes)
