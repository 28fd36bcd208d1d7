"""What a function really computes, read from its jaxpr."""

from __future__ import annotations

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
      fun: any traceable function, jitted or not; it is traced, not run. What is not an array
        among its arguments is static.
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
    for eqn, times in compat.equations(compat.abstractly(fun, *args, **kwargs)):
        if kind := compat.KINDS.get(eqn.primitive.name):
            x, w, out = (v.aval for v in (*eqn.invars, *eqn.outvars))
            counts[x.dtype.name] += times * compat.macs(kind, eqn.params, x, w, out)
    return dict(counts)
