"""Keeps small-integer operands where XLA's fast CPU kernels can take them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

__all__ = ["channels_to_front", "cpu_kernels", "flattened", "keep", "row_major"]


def cpu_kernels() -> bool:
    """Whether programs are written for XLA's CPU kernels: where jax runs by default, when tracing.

    Everything that depends on the backend asks here. The integers do not depend on it.

    Example:
      >>> import jax
      >>> cpu_kernels() == (jax.default_backend() == "cpu")
      True
    """
    return jax.default_backend() == "cpu"


def row_major(x: jax.Array) -> jax.Array:
    """``x``, laid out row-major in memory here.

    Without it XLA folds transposes and flips of an int8 operand into the layout or the dimension
    numbers of the product that follows, which then misses the library kernel and runs 30 to 300
    times slower. ``jax.export`` refuses the constraint; :func:`flattened` is the portable form.

    Example:
      >>> import jax.numpy as jnp
      >>> row_major(jnp.ones((2, 3)).T).shape
      (3, 2)
    """
    if not isinstance(x, jax.core.Tracer) or not cpu_kernels():
        return (
            x  # a concrete array is row-major as it is, and other compilers choose for themselves
        )
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def flattened(x: jax.Array) -> jax.Array:
    """``x``, through one axis and back, and so row-major there: what a compiler cannot fold away.

    :func:`row_major` in operations that every backend and ``jax.export`` know. It costs a pass
    over memory that :func:`row_major` often saves.

    Example:
      >>> import jax.numpy as jnp
      >>> flattened(jnp.ones((2, 3)).T).shape
      (3, 2)
    """
    return lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def keep(q: jax.Array) -> jax.Array:
    """``q`` (int8 codes, never -128) through an elementwise no-op that fuses with a transpose.

    Example:
      >>> import jax.numpy as jnp
      >>> keep(jnp.int8([-127, 5])).tolist()
      [-127, 5]
    """
    return lax.max(q, jnp.int8(-127))


def channels_to_front(q: jax.Array) -> jax.Array:
    """int8 ``[n, *space, c]`` as ``[c, *space, n]``, in the two steps that are cheapest.

    One step, or a first step that moves channels, strides through memory by powers of two and
    takes two to three times as long.

    Example:
      >>> import jax.numpy as jnp
      >>> channels_to_front(jnp.ones((2, 4, 5, 3), jnp.int8)).shape
      (3, 4, 5, 2)
    """
    n, *space, c = q.shape
    turned = row_major(keep(q.reshape(n, -1).T)).reshape(-1, c, n)
    return row_major(keep(turned.swapaxes(0, 1))).reshape(c, *space, n)
