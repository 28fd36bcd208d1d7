"""What quantizers refuse: what are no features, and groups that channels do not make."""

from __future__ import annotations

from tinyjax.base import Array
from tinyjax.codes import DTYPES, MAX_GROUPS

__all__ = ["check_features", "count_groups"]


def check_features(x: Array) -> None:
    """Refuses what are no features.

    Example:
      >>> import jax.numpy as jnp
      >>> check_features(jnp.ones((2, 4)))
    """
    if x.dtype.name not in DTYPES or x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"SGQ was given {x.dtype.name} {list(x.shape)}: give it features [n, ..., c] of at "
            f"least one sample in one of {', '.join(DTYPES)}"
        )


def count_groups(c: int, group_size: int) -> int:
    """How many groups channels make; refuses what makes none.

    Example:
      >>> count_groups(64, 16)
      4
    """
    groups, rest = divmod(c, group_size)
    if rest or groups > MAX_GROUPS:
        raise ValueError(
            f"group_size is {group_size}, which does not cut {c} channels into at most "
            f"{MAX_GROUPS} equal groups: choose a divisor of {c}"
        )
    return groups
