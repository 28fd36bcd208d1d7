"""The step at which rounding up and down at random has a given error, found by bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.numerics.quantize import abs_max, bounded_step, symmetric_scale

__all__ = ["GradientStep", "expected_error", "solved_step"]

Array = jax.Array
# (g, error, count) -> step float32 scalar; count as in bounded_step
GradientStep = Callable[[Array, float, Array | None], Array]

_ROUNDS = 12  # of bisection: they divide the factor to a 2,000th
_FACTOR = 8.0  # how far above the closed form is searched
_MARGIN = 2.0**-10  # of the squared error, for what float sums round


def expected_error(g: Array, step: Array) -> Array:
    """What :func:`tinyjax.numerics.stochastic` codes of step ``step`` err by: squared, expected.

    The expectation is over the random bits of the rounding, for this very ``g``; no distribution
    of gradients is assumed. With ``f`` the fractional part of an element in steps it is ``step**2
    sum f (1 - f)``.

    Args:
      g: float array.
      step: float32 scalar, at least ``max |g| / 127``.

    Returns:
      float32 scalar, in units of ``step**2``.

    Example:
      >>> import jax.numpy as jnp
      >>> float(expected_error(jnp.array([0.0, 0.5, 3.25]), jnp.float32(1.0)))
      0.4375
    """
    # As the rounding has it: in 16.16 fixed point, of which the lower half is what is lost.
    fixed = jnp.rint(g.astype(jnp.float32) * (jnp.float32(1) / step) * jnp.float32(1 << 16))
    f = (fixed.astype(jnp.int32) & jnp.int32(0xFFFF)).astype(jnp.float32) * jnp.float32(2.0**-16)
    return _sum(f * (jnp.float32(1) - f))


def solved_step(g: Array, error: float, count: Array | None = None) -> Array:
    """The step at which int8 codes of a tensor, rounded stochastically, err by just ``error``.

    :func:`tinyjax.numerics.bounded_step` assumes the worst fractional parts; of real gradients,
    many of which are small, most are far from it. This one evaluates the expected squared error
    (:func:`expected_error`) and bisects between that closed form and eight times it, keeping a
    step only if its error is at most ``error**2 |g|**2``. The error need not grow with the step
    everywhere, so the step found is one that holds the bound, not always the largest.

    Where int8 has too few codes for the closed form, ``max |g| / 127`` is the smallest step there
    is: if no larger one holds the bound, that is the step, and the error is
    ``sqrt(expected_error) * step``, at most ``step sqrt(n) / 2``, instead.

    Args:
      g: float array.
      error: relative to the norm of ``g``, above 0.
      count: int32 scalar, how many elements may be other than 0, where it is known; else all.

    Returns:
      float32 scalar; NaN or Inf if ``g`` has one. It comes from float sums, so its last bits
      depend on the order in which a machine adds; a 1000th of the error is kept back for that.

    Example:
      >>> import jax.numpy as jnp
      >>> g = jnp.array([9.0, 0.1, 0.1, 0.1])
      >>> float(solved_step(g, 0.3)) > float(bounded_step(g, 0.3))
      True

    References:
      Alistarh et al., `QSGD <https://arxiv.org/abs/1610.02132>`_, 2017, for unbiased rounding; the
      search is ours.
    """
    finest = symmetric_scale(abs_max(g)).reshape(())
    # In units of the finest step, in which no square overflows or vanishes.
    squares = _sum(jnp.square(g.astype(jnp.float32) * (jnp.float32(1) / finest)))
    budget = squares * jnp.float32(error**2 * (1 - _MARGIN))

    def halve(turn: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        del turn
        low, high = ends
        middle = jnp.sqrt(low * high)
        step = finest * middle
        held = expected_error(g, step) * jnp.square(middle) <= budget
        held = held & (step < jnp.float32(2.0**126))  # beyond, there is no reciprocal
        return jnp.where(held, middle, low), jnp.where(held, high, middle)

    first = bounded_step(g, error, count) / finest
    ends = first, jnp.float32(_FACTOR) * first
    low, _ = lax.fori_loop(jnp.int32(0), jnp.int32(_ROUNDS), halve, ends)
    return finest * jnp.maximum(low, jnp.float32(1))


def _sum(x: Array) -> Array:
    """Along all but the last axis first, which is several times faster than all at once."""
    return jnp.sum(jnp.sum(x, axis=tuple(range(x.ndim - 1))))
