"""How far codes reach: the largest magnitudes of weights and gradients, or less, clipped.

A weight's are one per feature, or one for all. Of a gradient ``g`` two products are made. The input
gradient contracts features, so it takes a range per row, of ``g`` with the weight's per-feature
scale folded in; the weight gradient contracts everything but features, so it takes a range per
feature. A *gradient range* is a function ``(g, s_w) -> (rows, features)`` of magnitudes; values
beyond them are clipped as they are quantized, which costs nothing.

References:
  Zhou et al., `Octo <https://www.usenix.org/conference/atc21/presentation/zhou-qihua>`_, USENIX
  ATC 2021: parameterized range clipping. Its released code shrinks the range to 0.95
  (:func:`shrunk`); an unused argument there, z = 2.576, suggests mean and deviation of a Gaussian
  (:func:`gaussian`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tinyjax.numerics.quantize import abs_max, dequantize, quantize, symmetric_scale

__all__ = [
    "GradientRange",
    "coarse",
    "fine",
    "gaussian",
    "least_angle",
    "per_feature",
    "per_tensor",
    "shrunk",
]

Array = jax.Array
GradientRange = Callable[[Array, Array], tuple[Array, Array]]


def per_feature(w: Array) -> Array:
    """The largest magnitude of each feature of ``[..., features]``: float32 ``[features]``.

    Example:
      >>> import jax.numpy as jnp
      >>> per_feature(jnp.array([[1.0, -2.0], [-3.0, 1.0]])).tolist()
      [3.0, 2.0]
    """
    return abs_max(w, range(w.ndim - 1)).reshape(-1)


def per_tensor(w: Array) -> Array:
    """The largest magnitude of a whole weight: float32 ``[1]``.

    Example:
      >>> import jax.numpy as jnp
      >>> per_tensor(jnp.array([[1.0, -2.0], [-3.0, 1.0]])).tolist()
      [3.0]
    """
    return abs_max(w).reshape(1)


def fine(g: Array, s_w: Array) -> tuple[Array, Array]:
    """The largest magnitude of each row and of each feature, from one pass over the gradient.

    Args:
      g: float32 ``[rows, ..., features]``.
      s_w: float32 ``[features]`` or ``[1]``, the weight's scales.

    Returns:
      ``(rows, features)``: of ``g * s_w``, float32 ``[rows, 1.., 1]``, and of ``g``, float32
      ``[features]``. NaN or Inf in ``g`` makes its feature's and every row's NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> g, s_w = jnp.array([[1.0, 2.0], [3.0, 1.0]]), jnp.array([1.0, 4.0])
      >>> rows, features = fine(g, s_w)
      >>> rows.tolist(), features.tolist()
      ([[8.0], [4.0]], [3.0, 2.0])
    """
    space = tuple(range(1, g.ndim - 1))
    # Over inner axes two plain reductions take half the time of one of magnitudes.
    largest = jnp.maximum(jnp.max(g, axis=space, initial=0.0), -jnp.min(g, axis=space, initial=0.0))
    # As in abs_max, for NaN. A bias gradient is this very sum, so it is often free.
    unknown = jnp.float32(0) * jnp.sum(g, axis=tuple(range(g.ndim - 1)))
    rows = jnp.max(largest * s_w, axis=1, initial=0.0) + jnp.sum(unknown)
    features = jnp.max(largest, axis=0, initial=0.0) + unknown
    return jnp.expand_dims(rows, tuple(range(1, g.ndim))), features


def coarse(g: Array, s_w: Array) -> tuple[Array, Array]:
    """One magnitude for the whole tensor in each product, as int8 training often has it.

    Args:
      g: as for :func:`fine`.
      s_w: likewise.

    Returns:
      ``(rows, features)``, float32 ``[1, 1.., 1]`` and ``[1]``.

    Example:
      >>> import jax.numpy as jnp
      >>> rows, features = coarse(jnp.array([[1.0, 2.0], [3.0, 1.0]]), jnp.array([1.0, 4.0]))
      >>> rows.tolist(), features.tolist()
      ([[8.0]], [3.0])
    """
    rows, features = fine(g, s_w)
    return jnp.max(rows, axis=0, keepdims=True), jnp.max(features, keepdims=True)


def shrunk(ratio: float, of: GradientRange = fine) -> GradientRange:
    """Range clipping by a fixed ratio: ``ratio`` times the magnitudes of another range.

    Args:
      ratio: above 0 and at most 1; 0.95 in Octo's released code.
      of: the range that is shrunk.

    Raises:
      ValueError: if the ratio is not in ``(0, 1]``.

    Example:
      >>> import jax.numpy as jnp
      >>> shrunk(0.5)(jnp.array([[4.0, -8.0]]), jnp.ones(2))[1].tolist()
      [2.0, 4.0]
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio!r}: use one above 0 and at most 1")

    def reach(g: Array, s_w: Array) -> tuple[Array, Array]:
        rows, features = of(g, s_w)
        return rows * jnp.float32(ratio), features * jnp.float32(ratio)

    return reach


def gaussian(z: float, of: GradientRange = fine) -> GradientRange:
    """Range clipping by a Gaussian: never beyond ``|mean| + z * sigma`` of the whole gradient.

    Args:
      z: in standard deviations, above 0; 1.96 holds 95 % of a Gaussian and 2.576 holds 99 %.
      of: the range that is clipped.

    Raises:
      ValueError: if ``z`` is not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> g = jnp.array([[1.0, -1.0, 1.0, -1.0, 9.0, -9.0, 1.0, -1.0]])
      >>> round(float(gaussian(1.96)(g, jnp.ones(8))[0][0, 0]), 2)
      8.98
    """
    if not z > 0:
        raise ValueError(f"z is {z!r}: use a number of standard deviations above 0")

    def bound(g: Array) -> Array:
        unit = symmetric_scale(abs_max(g)).reshape(())  # in which no square vanishes or overflows
        g = g * (jnp.float32(1) / unit)
        return unit * (jnp.abs(jnp.mean(g)) + jnp.float32(z) * jnp.std(g))

    def reach(g: Array, s_w: Array) -> tuple[Array, Array]:
        rows, features = of(g, s_w)
        return jnp.minimum(rows, bound(g * s_w)), jnp.minimum(features, bound(g))

    return reach


def least_angle(
    ratios: tuple[float, ...] = (1.0, 0.9, 0.8, 0.65, 0.5), of: GradientRange = fine
) -> GradientRange:
    """Range clipping chosen by the data: the ratio whose codes point the most like the gradient.

    Each ratio is tried on the gradient, rounded to nearest, and the one with the least ``1 - cos(g,
    codes)`` is taken, for each of the two products by itself. Costs a pass per ratio and product.

    Args:
      ratios: what is tried, each above 0 and at most 1.
      of: the range that is shrunk.

    Raises:
      ValueError: if there are no ratios or one is not in ``(0, 1]``.

    Example:
      >>> import jax.numpy as jnp
      >>> g = jnp.ones((1, 1000)).at[0, 0].set(0.5)
      >>> round(float(least_angle()(g, jnp.ones(1000))[0][0, 0]), 3)
      1.0

    References:
      Zhu et al., `Towards Unified INT8 Training for Convolutional Neural Network
      <https://arxiv.org/abs/1912.12607>`_, 2020: direction sensitive gradient clipping, which
      searches for the same minimum by steps.
    """
    if not ratios:
        raise ValueError("ratios is empty: name at least one")
    candidates = [shrunk(ratio, of) for ratio in ratios]

    def best(g: Array, ranges: list[Array]) -> Array:
        angles = jnp.stack([1 - _cosine(g, symmetric_scale(r)) for r in ranges])
        return jnp.stack(ranges)[jnp.argmin(angles)]

    def reach(g: Array, s_w: Array) -> tuple[Array, Array]:
        rows, features = zip(*(candidate(g, s_w) for candidate in candidates), strict=True)
        return best(g * s_w, list(rows)), best(g, list(features))

    return reach


def _cosine(g: Array, scale: Array) -> Array:
    """Between a gradient and its codes' values; the norms are of what float32 holds."""
    unit = g * (jnp.float32(1) / symmetric_scale(abs_max(g)))
    coded = dequantize(quantize(g, scale), scale / symmetric_scale(abs_max(g)))
    norms = jnp.sqrt(jnp.sum(unit * unit) * jnp.sum(coded * coded))
    return jnp.sum(unit * coded) / jnp.maximum(norms, jnp.float32(1e-30))
