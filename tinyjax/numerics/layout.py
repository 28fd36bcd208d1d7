"""Keeps small-integer arrays where XLA's fast CPU kernels can take them, and when."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

__all__ = [
    "channels_to_front",
    "cpu_kernels",
    "flattened",
    "keep",
    "late",
    "materialized",
    "row_major",
]


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
        # A concrete array is row-major as it is, and other compilers choose for themselves.
        return x
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


def materialized(encode: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """``encode(x)`` written to memory: by halves, and put together.

    Else XLA fuses it into what reads it, keeps what codes are made from (four bytes a value), and
    makes them again in the backward pass; a concatenation it does not fuse. The first axis, along
    which arrays may be sharded, is not cut.

    Args:
      encode: works on any part of ``x`` as on the whole.
      x: array.

    Example:
      >>> import jax.numpy as jnp
      >>> materialized(lambda x: x.astype(jnp.int8), jnp.array([[1.0, 2.0, 3.0]])).tolist()
      [[1, 2, 3]]
    """
    axis = next((a for a in range(1, x.ndim) if x.shape[a] > 1), None)
    if axis is None:
        return encode(x)
    half, n = x.shape[axis] // 2, x.shape[axis]
    parts = [lax.slice_in_dim(x, a, b, axis=axis) for a, b in ((0, half), (half, n))]
    return lax.concatenate([encode(part) for part in parts], axis)


def late(q: jax.Array, g: jax.Array) -> jax.Array:
    """``q`` (int8 codes, never -128), computed no earlier than the gradient ``g`` is known.

    Otherwise XLA schedules what the backward pass does to kept values alone (transposes) in the
    forward pass, where the results have to live on beside them.

    Example:
      >>> import jax.numpy as jnp
      >>> late(jnp.int8([-127, 5]), jnp.ones(3)).tolist()
      [-127, 5]
    """
    any_g = lax.slice(g, (0,) * g.ndim, (1,) * g.ndim).reshape(())
    # Always -127, which the compiler does not find out.
    lowest = jnp.where((any_g > 0) & (any_g < 0), jnp.int8(-126), jnp.int8(-127))
    return lax.max(q, lowest)
