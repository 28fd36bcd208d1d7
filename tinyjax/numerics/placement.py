"""Products over a mesh whose axes are explicit: what jax's type of a sharded array leaves open.

With ``jax.sharding.AxisType.Auto`` the compiler partitions everything that is written for one
device, and nothing here is needed. With ``Explicit``, the default of ``jax.make_mesh``, the type
of every array says how it is sharded, and operations that leave it open are errors. Inside, the
integer products are reshapes and transposes without end, so they run as ``Auto`` and say only
where their result is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["Spec", "placed"]

Array = jax.Array
Spec = tuple[Any, ...]


def placed(
    product: Callable[[Array, Array], Any], spec: Callable[[Spec, Spec], Spec]
) -> Callable[[Array, Array], Any]:
    """``product`` with its results sharded as ``spec`` says, where mesh axes are explicit.

    Args:
      product: ``(a, b) -> arrays``, all of one shape.
      spec: from the mesh axis of every dimension of ``a`` and of ``b`` to that of the results.
        Where it names an axis twice, the first place has it.

    Returns:
      A function like ``product``; the very same one where no axis is explicit.

    Example:
      >>> import jax.numpy as jnp
      >>> matmul = placed(jnp.matmul, lambda a, b: (a[0], b[1]))
      >>> matmul(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
      (2, 4)
    """

    def run(a: Array, b: Array) -> Any:
        axes = jax.sharding.get_abstract_mesh().explicit_axes
        if not axes:
            return product(a, b)
        out = jax.sharding.PartitionSpec(*_once(spec(_spec(a), _spec(b))))
        automatic: Any = jax.sharding.auto_axes(product, axes=axes, out_sharding=out)
        return automatic(a, b)

    return run


def _spec(x: Array) -> Spec:
    return tuple(jax.typeof(x).sharding.spec)


def _once(spec: Spec) -> Spec:
    return tuple(None if axis in spec[:i] else axis for i, axis in enumerate(spec))
