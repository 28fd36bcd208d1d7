"""Which axes of a convolution or dot product are samples, features and sums, in any layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Axes", "column_sums", "conv_axes", "dot_axes"]

Array = jax.Array


class Axes(NamedTuple):
    """Roles of axes.

    Attributes:
      x_sample: the activation's axis of samples (of a dot product: its first free axis), or none.
      sample: the same, in the output.
      features: axes of the output that come from the weight.
      w_features: the same, in the weight, in the output's order.
      w_summed: axes of the weight that the op sums over.

    Example:
      >>> axes = dot_axes(3, 2, (((2,), (0,)), ((), ())))
      >>> axes.per_feature((8, 4, 5)), axes.one_sample((8, 4, 5)), axes.w_summed
      ((1, 1, 5), (1, 4, 5), (0,))
    """

    x_sample: tuple[int, ...]
    sample: tuple[int, ...]
    features: tuple[int, ...]
    w_features: tuple[int, ...]
    w_summed: tuple[int, ...]

    def per_feature(self, out: Sequence[int]) -> tuple[int, ...]:
        """An output's shape with 1 for every axis but the features."""
        return tuple(size if a in self.features else 1 for a, size in enumerate(out))

    def one_sample(self, out: Sequence[int]) -> tuple[int, ...]:
        """An output's shape with 1 for the axis of samples."""
        return tuple(1 if a in self.sample else size for a, size in enumerate(out))

    def one_x_sample(self, x: Sequence[int]) -> tuple[int, ...]:
        """An activation's shape with 1 for the axis of samples."""
        return tuple(1 if a in self.x_sample else size for a, size in enumerate(x))


def conv_axes(dimension_numbers: Any) -> Axes:
    """Of ``lax.conv_general_dilated``.

    Args:
      dimension_numbers: a ``lax.ConvDimensionNumbers``.

    Example:
      >>> from jax import lax
      >>> numbers = lax.conv_dimension_numbers((2, 3, 8), (4, 3, 5), ("NCW", "OIW", "NCW"))
      >>> conv_axes(numbers).per_feature((2, 4, 4))
      (1, 4, 1)
    """
    (x_sample, *_), (w_features, *summed), (sample, features, *_) = dimension_numbers
    return Axes((x_sample,), (sample,), (features,), (w_features,), tuple(summed))


def dot_axes(x_rank: int, w_rank: int, dimension_numbers: Any) -> Axes:
    """Of ``lax.dot_general(x, w, dimension_numbers)``.

    Args:
      x_rank: number of axes of the activation.
      w_rank: of the weight.
      dimension_numbers: as ``lax.dot_general`` has them.

    Example:
      >>> dot_axes(3, 3, (((2,), (1,)), ((0,), (0,)))).per_feature((6, 8, 5))
      (6, 1, 5)
    """
    (x_summed, w_summed), (x_batch, w_batch) = dimension_numbers
    rows = [a for a in range(x_rank) if a not in (*x_summed, *x_batch)]
    free = [a for a in range(w_rank) if a not in (*w_summed, *w_batch)]
    batch = len(w_batch)
    first_free = batch + len(rows)  # the output: batch axes, rows, features
    return Axes(
        tuple(rows[:1]),
        (batch,) if rows else (),
        (*range(batch), *range(first_free, first_free + len(free))),
        (*w_batch, *free),
        tuple(w_summed),
    )


def column_sums(w: Array, axes: Axes, out: Sequence[int]) -> Array:
    """Sums of a weight over what the op sums: its answer to ones wherever no padding reaches.

    Args:
      w: float array.
      axes: of the op.
      out: shape of the op's output.

    Returns:
      float32, broadcasts against the output.

    Example:
      >>> import jax.numpy as jnp
      >>> column_sums(jnp.ones((3, 5)), dot_axes(2, 2, (((1,), (0,)), ((), ()))), (8, 5)).shape
      (1, 5)
    """
    sums = jnp.sum(w.astype(jnp.float32), axis=axes.w_summed)
    places = sorted(axes.w_features)
    order = [places.index(a) for a in axes.w_features]
    return sums.transpose(order).reshape(axes.per_feature(out))
