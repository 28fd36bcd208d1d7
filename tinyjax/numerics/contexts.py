"""Which of several tables a small code is coded with: integer predictions, cut into bins.

Two linear forms in what is known already (sources: a few other planes; and a plane's own pixels)
predict the code and how far off that is. All of it is integers well inside int32, so that two
machines choose the same table.

References:
  Wu and Memon, `Context-based, adaptive, lossless image coding
  <https://doi.org/10.1109/26.585919>`_, 1997, for bins of an error's expected size as contexts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["BINS", "CLASSES", "MAX_WEIGHT", "SOURCES", "choose_context", "linear_forms"]

Array = jax.Array

SOURCES = 8  # planes a plane is predicted from
BINS = 14  # of the prediction
CLASSES = 3  # of the expected error, in each bin
MAX_WEIGHT = 4095  # 16 codes below 256 and their sums times this stay inside int32


def linear_forms(
    weights: Array, sources: Array, planes: Array, sums: Array, own: Array | None
) -> tuple[Array, Array]:
    """Two linear forms for every pixel of some planes.

    Args:
      weights: int32 ``[2, m, 18]`` within ``MAX_WEIGHT``: of 8 sources at the pixel, of the sums
        over their neighbours, of the sum over the plane's own known neighbours, and a constant.
      sources: int32 ``[m, 8]``, below ``c``.
      planes: uint8 ``[c, pixels]``.
      sums: uint8 ``[c, pixels]``: over the four neighbours of each pixel of ``planes``.
      own: uint8 ``[m, pixels]``, or None if nothing of these planes is known.

    Returns:
      Both forms, int32 ``[m, pixels]``.

    Example:
      >>> import jax.numpy as jnp
      >>> weights = jnp.zeros((2, 1, 18), jnp.int32).at[0, 0].set(jnp.arange(18))
      >>> sources = jnp.array([[0, 0, 0, 0, 0, 0, 0, 1]])
      >>> planes, own = jnp.uint8([[0], [3]]), jnp.uint8([[2]])
      >>> [form.item() for form in linear_forms(weights, sources, planes, 4 * planes, own)]
      [250, 0]
    """
    shape = (sources.shape[0], planes.shape[1])
    forms = [jnp.broadcast_to(w[:, -1:], shape) for w in weights]

    def add(position: int, values: Array) -> None:
        values = values.astype(jnp.int32)
        for i, w in enumerate(weights):
            forms[i] = forms[i] + w[:, position, None] * values

    for k in range(SOURCES):
        add(k, planes.at[sources[:, k]].get(mode="clip"))
        add(SOURCES + k, sums.at[sources[:, k]].get(mode="clip"))
    if own is not None:
        add(2 * SOURCES, own)
    return forms[0], forms[1]


def choose_context(forms: tuple[Array, Array], edges: Array, splits: Array) -> Array:
    """A bin of the first form and, within it, a class of the second.

    Args:
      forms: int32, both of the same shape.
      edges: int32 ``[BINS - 1]``, ascending: where the next bin starts.
      splits: int32 ``[BINS, CLASSES - 1]``: where the next class starts.

    Returns:
      int32 of that shape, below ``BINS * CLASSES``.

    Example:
      >>> import jax.numpy as jnp
      >>> edges, splits = jnp.arange(13) * 10, jnp.tile(jnp.array([5, 7]), (14, 1))
      >>> forms = jnp.array([-1, 0, 9, 10, 500]), jnp.array([4, 5, 6, 7, 4])
      >>> choose_context(forms, edges, splits).tolist()
      [0, 4, 4, 8, 39]
    """
    first, second = forms
    place = jnp.zeros_like(first)
    start = [jnp.broadcast_to(split, first.shape) for split in splits[0]]
    for edge, split in zip(edges, splits[1:], strict=True):
        past = first >= edge
        place = place + past.astype(jnp.int32)
        start = [jnp.where(past, s, old) for s, old in zip(split, start, strict=True)]
    return place * CLASSES + sum((second >= s).astype(jnp.int32) for s in start)
