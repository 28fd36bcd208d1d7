"""From floats to integers: to nearest, or up and down at random so that the mean is right."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Rounding", "fold_key", "hash_bits", "nearest", "seed_of", "stochastic"]

Array = jax.Array
Rounding = Callable[[Array, Array | None], Array]  # (t, seed) -> int32 of t's shape

_FIXED = 1 << 16  # stochastic rounding works on 16.16 fixed-point numbers


def nearest(t: Array, seed: Array | None = None) -> Array:
    """Rounds to the nearest integer, halves to even; int32.

    Example:
      >>> import jax.numpy as jnp
      >>> nearest(jnp.array([0.5, 1.5, -1.6])).tolist()
      [0, 2, -2]
    """
    del seed
    return jnp.rint(t).astype(jnp.int32)


@jax.jit  # traced once for each shape, of which a network has few
def stochastic(t: Array, seed: Array | None = None) -> Array:
    """Rounds up with the probability of the fractional part, so that the mean is ``t``; int32.

    The random bits are a hash of each element's index and ``seed``: one pass, no memory, the same
    on every machine. ``t`` is taken to 16.16 fixed point first, and the expectation over the 16
    random bits is exactly that number.

    Args:
      t: float32, ``|t| < 2**15``.
      seed: uint32 scalar; another seed, other bits.

    Returns:
      int32 of the same shape.

    Raises:
      ValueError: if there is no seed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rounded = jax.vmap(lambda seed: stochastic(jnp.full(64, 0.25), seed))
      >>> bool(jnp.abs(rounded(jnp.arange(64, dtype=jnp.uint32)).mean() - 0.25) < 0.03)
      True

    References:
      Chen et al., `A Statistical Framework for Low-bitwidth Training
      <https://arxiv.org/abs/2010.14298>`_, 2020: unbiased gradients. The mixing function is
      Chris Wellons' ``lowbias32`` (public domain).
    """
    if seed is None:
        raise ValueError(
            "stochastic rounding was given no seed: pass key=... (attach(tx, step, state, *batch) "
            "for a train step), or round with tinyjax.numerics.nearest"
        )
    fixed = jnp.rint(t * jnp.float32(_FIXED)).astype(jnp.int32)
    noise = (hash_bits(t.shape, seed) >> jnp.uint32(16)).astype(jnp.int32)
    return (fixed + noise) >> jnp.int32(16)


def hash_bits(shape: tuple[int, ...], seed: Array) -> Array:
    """32 pseudo-random bits for each element: a hash of its index (row-major) and ``seed``.

    Args:
      shape: of the result; fewer than ``2**32`` elements.
      seed: uint32 scalar.

    Returns:
      uint32 of that shape.

    Example:
      >>> import jax.numpy as jnp
      >>> hash_bits((2, 2), jnp.uint32(7)).dtype.name
      'uint32'
    """
    h = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        h = h + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return _mix(h * jnp.uint32(0x9E3779B9) + seed)


def fold_key(key: Array, number: Array | int) -> Array:
    """Another PRNG key for each number: ``jax.random.fold_in`` in a handful of instructions.

    Threefry on scalars compiles to loops that cost a small train step a twentieth of its time.
    Rounding and the like need keys that differ, not keys that keep secrets.

    Args:
      key: PRNG key, scalar.
      number: integer below ``2**32``, Python's or a traced uint32.

    Returns:
      A typed key of the same implementation.

    Example:
      >>> import jax
      >>> a, b = (fold_key(jax.random.key(0), i) for i in range(2))
      >>> bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
      False
    """
    words = jax.random.key_data(key)
    places = lax.iota(jnp.uint32, words.size).reshape(words.shape)
    noise = _mix(jnp.asarray(number, jnp.uint32) * jnp.uint32(0x9E3779B9) + places)
    return jax.random.wrap_key_data(_mix(words ^ noise), impl=jax.random.key_impl(key))


def seed_of(key: Array) -> Array:
    """A uint32 seed for :func:`stochastic` from a PRNG key.

    Example:
      >>> import jax
      >>> seed_of(jax.random.key(0)).dtype.name
      'uint32'
    """
    first, *rest = jax.random.key_data(key).reshape(-1)
    for word in rest:
        first = _mix(first) ^ word
    return _mix(first)


def _mix(h: Array) -> Array:
    """Mixes the bits of each uint32; a bijection."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    return h ^ (h >> jnp.uint32(15))
