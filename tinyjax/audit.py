"""What a function really computes, read from its jaxpr."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from tinyjax import compat

__all__ = ["count_macs"]


def count_macs(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, int]:
    """Counts multiply-accumulates in convolutions and dot products, by the operands' dtype.

    Give it a whole train step to count forward and backward. What XLA later removes as unused
    (the first layer's input gradient) is counted.

    Args:
      fun: any traceable function, jitted or not; it is traced, not run.
      *args: its arguments, arrays or ``jax.ShapeDtypeStruct``.
      **kwargs: its keywords, likewise.

    Returns:
      dtype name -> multiply-accumulates.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> tinyjax.count_macs(lambda x, w: x @ w, jnp.ones((2, 3)), jnp.ones((3, 5)))
      {'float32': 30}
    """
    counts: Counter[str] = Counter()
    jaxpr, _ = compat.trace(lambda *a: fun(*a, **kwargs), *args)
    for eqn, times in compat.equations(jaxpr):
        if eqn.primitive.name in compat.KINDS:
            counts[eqn.invars[0].aval.dtype.name] += times * _macs(eqn)
    return dict(counts)


def _macs(eqn: compat.Eqn) -> int:
    x, w, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
    if eqn.primitive.name == compat.CONV:
        features = w.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        return out.size * (w.size // max(features, 1))
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return out.size * math.prod(x.shape[a] for a in contracted)
