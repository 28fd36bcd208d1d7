"""Pixels in three phases, so that all of a phase can be coded at once from the phases before it.

Of every 2 x 2 pixels the first phase has the one at (even row, even column), the second the one at
(odd, odd), and the third the other two. A pixel of the second phase has its four diagonal
neighbours in the first, one of the third its four direct neighbours in the first and second.
Beyond the edge everything is 0; nothing is padded, so odd sizes take no more room than they have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "Parts",
    "flat",
    "from_planes",
    "joined",
    "neighbour_sums",
    "own_sums",
    "part_sizes",
    "parts_of",
    "phases",
    "plane_shape",
    "split",
    "to_planes",
]

Array = jax.Array

_ROWS, _COLUMNS = 2, 3  # axes of [c, n, h, w]


class Parts(NamedTuple):
    """Planes ``[c, n, h, w]`` cut by the parity of row and column, each part ``[c, n, h', w']``.

    Attributes:
      ee: even rows, even columns.
      oo: odd rows, odd columns.
      eo: even rows, odd columns.
      oe: odd rows, even columns.

    Example:
      >>> import jax.numpy as jnp
      >>> [part.shape[2:] for part in split(jnp.zeros((1, 1, 3, 5)))]
      [(2, 3), (1, 2), (2, 2), (1, 3)]
    """

    ee: Array
    oo: Array
    eo: Array
    oe: Array


def plane_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Shape ``[c, n, h, w]`` of the planes of features ``[n, *space, c]``.

    The last two axes of space are rows and columns; whatever is before them counts as samples,
    and what there is too little of has size 1.

    Args:
      shape: two or more sizes.

    Returns:
      The shape.

    Raises:
      ValueError: if the shape has less than two axes.

    Example:
      >>> plane_shape((8, 5, 7, 3)), plane_shape((8, 3)), plane_shape((8, 2, 5, 7, 3))
      ((3, 8, 5, 7), (3, 8, 1, 1), (3, 16, 5, 7))
    """
    if len(shape) < 2:
        raise ValueError(f"features {list(shape)} have no channels: use [n, *space, c]")
    n, *space, c = shape
    h, w = ([1, 1, *space])[-2:]
    return c, n * math.prod(space[:-2]), h, w


def to_planes(x: Array) -> Array:
    """Features ``[n, *space, c]`` as planes ``[c, n, h, w]``; see :func:`plane_shape`.

    Example:
      >>> import jax.numpy as jnp
      >>> to_planes(jnp.arange(6).reshape(2, 3)).ravel().tolist()
      [0, 3, 1, 4, 2, 5]
    """
    shape = plane_shape(x.shape)
    return x.reshape(-1, x.shape[-1]).T.reshape(shape)


def from_planes(planes: Array, shape: tuple[int, ...]) -> Array:
    """The features of this shape that :func:`to_planes` was given.

    Example:
      >>> import jax.numpy as jnp
      >>> from_planes(to_planes(jnp.arange(6).reshape(2, 3)), (2, 3)).tolist()
      [[0, 1, 2], [3, 4, 5]]
    """
    return planes.reshape(shape[-1], -1).T.reshape(shape)


def split(planes: Array) -> Parts:
    """Planes ``[c, n, h, w]`` cut by parity.

    Example:
      >>> import jax.numpy as jnp
      >>> [part.tolist() for part in split(jnp.array([[[[1, 2], [3, 4]]]]))]
      [[[[[1]]]], [[[[4]]]], [[[[2]]]], [[[[3]]]]]
    """
    return Parts(
        planes[:, :, 0::2, 0::2],
        planes[:, :, 1::2, 1::2],
        planes[:, :, 0::2, 1::2],
        planes[:, :, 1::2, 0::2],
    )


def joined(parts: Parts) -> Array:
    """The planes of which these are the parts.

    Example:
      >>> import jax.numpy as jnp
      >>> joined(split(jnp.arange(15).reshape(1, 1, 3, 5))).ravel().tolist() == list(range(15))
      True
    """
    even = _interleaved(parts.ee, parts.eo, _COLUMNS)
    return _interleaved(even, _interleaved(parts.oe, parts.oo, _COLUMNS), _ROWS)


def phases(parts: Parts) -> tuple[Array, Array, Array]:
    """The pixels of each phase, ``[c, pixels]``; a phase may have none.

    Example:
      >>> import jax.numpy as jnp
      >>> [phase.tolist() for phase in phases(split(jnp.array([[[[1, 2], [3, 4]]]])))]
      [[[1]], [[4]], [[2, 3]]]
    """
    ee, oo, eo, oe = (flat(part) for part in parts)
    return ee, oo, jnp.concatenate([eo, oe], axis=1)


def part_sizes(h: int, w: int) -> list[tuple[int, int]]:
    """Rows and columns of each of the parts of planes.

    Example:
      >>> part_sizes(3, 5)
      [(2, 3), (1, 2), (2, 2), (1, 3)]
    """
    rows, columns = h // 2, w // 2
    return [(h - rows, w - columns), (rows, columns), (h - rows, columns), (rows, w - columns)]


def parts_of(pixels: Sequence[Array], shape: tuple[int, ...]) -> Parts:
    """The parts of planes of this shape ``[c, n, h, w]``, from the pixels of each phase.

    Example:
      >>> import jax.numpy as jnp
      >>> planes = jnp.arange(15).reshape(1, 1, 3, 5)
      >>> bool((joined(parts_of(phases(split(planes)), planes.shape)) == planes).all())
      True
    """
    c, n, h, w = shape
    ee, oo, rest = pixels
    sizes = part_sizes(h, w)
    cut = n * sizes[2][0] * sizes[2][1]
    each = (ee, oo, rest[:, :cut], rest[:, cut:])
    return Parts(*(x.reshape(c, n, *size) for x, size in zip(each, sizes, strict=True)))


def flat(part: Array) -> Array:
    """``[c, ...]`` as ``[c, pixels]``, of which there may be none.

    Example:
      >>> import jax.numpy as jnp
      >>> flat(jnp.zeros((2, 3, 0, 4))).shape
      (2, 0)
    """
    return part.reshape(len(part), math.prod(part.shape[1:]))


def own_sums(ee: Array, oo: Array | None, h: int, w: int) -> tuple[Array, ...]:
    """Sums over the four neighbours that are known before a phase.

    Args:
      ee: the first phase ``[c, n, h', w']``, whose dtype holds a sum of four.
      oo: the second phase, or None if it is not known yet.
      h: rows of the planes.
      w: columns of the planes.

    Returns:
      Without ``oo`` the sums for it, over diagonal neighbours; with it those for ``eo`` and
      ``oe``.

    Example:
      >>> import jax.numpy as jnp
      >>> parts = split(jnp.array([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]]))
      >>> own_sums(parts.ee, None, 3, 3)[0].tolist()
      [[[[20]]]]
      >>> [sums.ravel().tolist() for sums in own_sums(parts.ee, parts.oo, 3, 3)]
      [[9, 21], [13, 17]]
    """
    rows, columns = h // 2, w // 2
    if oo is None:
        return (_at_and_after(_at_and_after(ee, _ROWS, rows), _COLUMNS, columns),)
    eo = _at_and_after(ee, _COLUMNS, columns) + _before_and_at(oo, _ROWS, h - rows)
    oe = _at_and_after(ee, _ROWS, rows) + _before_and_at(oo, _COLUMNS, w - columns)
    return eo, oe


def neighbour_sums(parts: Parts) -> Parts:
    """Sums over the four direct neighbours of every pixel.

    Args:
      parts: of planes whose dtype holds a sum of four.

    Returns:
      The parts of the sums.

    Example:
      >>> import jax.numpy as jnp
      >>> planes = jnp.array([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]])
      >>> joined(neighbour_sums(split(planes)))[0, 0].tolist()
      [[6, 9, 8], [13, 20, 17], [12, 21, 14]]
    """
    ee, oo, eo, oe = parts
    h, w = ee.shape[_ROWS] + oe.shape[_ROWS], ee.shape[_COLUMNS] + eo.shape[_COLUMNS]
    rows, columns = h // 2, w // 2
    even = _before_and_at(eo, _COLUMNS, w - columns) + _before_and_at(oe, _ROWS, h - rows)
    odd = _at_and_after(oe, _COLUMNS, columns) + _at_and_after(eo, _ROWS, rows)
    return Parts(even, odd, *own_sums(ee, oo, h, w))


def _before_and_at(x: Array, axis: int, size: int) -> Array:
    """``x[i - 1] + x[i]`` for the first ``size`` places, 0 beyond the ends."""
    return _pairs(x, axis, (1, size - x.shape[axis]), size)


def _at_and_after(x: Array, axis: int, size: int) -> Array:
    """``x[i] + x[i + 1]`` for the first ``size`` places, 0 beyond the end."""
    return _pairs(x, axis, (0, size + 1 - x.shape[axis]), size)


def _pairs(x: Array, axis: int, padding: tuple[int, int], size: int) -> Array:
    x = jnp.pad(x, [padding if a == axis else (0, 0) for a in range(x.ndim)])
    index = [slice(None)] * axis
    return x[(*index, slice(size))] + x[(*index, slice(1, size + 1))]


def _interleaved(even: Array, odd: Array, axis: int) -> Array:
    """``even`` at the even places of an axis and ``odd`` at the odd ones."""
    size, both = even.shape[axis] + odd.shape[axis], 2 * even.shape[axis]
    odd = jnp.pad(
        odd,
        [(0, even.shape[a] - odd.shape[a] if a == axis else 0) for a in range(odd.ndim)],
    )
    shape = (*even.shape[:axis], both, *even.shape[axis + 1 :])
    whole = jnp.stack([even, odd], axis=axis + 1).reshape(shape)
    return whole[(*[slice(None)] * axis, slice(size))]
