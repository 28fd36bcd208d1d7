"""Codecs that are not uniform codes: floats, the largest values, cosine transforms, codebooks.

Where a part of a rate is an ideal one (an entropy that no coder was run for), it is so in favour of
the rival.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rate.codecs import AMORTISED, Codec, Coded, framed

__all__ = ["dct", "floats", "largest", "product_quantized"]

Array = jax.Array

_ROUNDS = 10  # of Lloyd's algorithm
_LEARNED = 8192  # vectors that a codebook is learned from


def floats(dtype: str) -> Codec:
    """Floats as they are."""

    def codec(x: np.ndarray) -> Coded:
        return Coded(framed(x.size * np.dtype(dtype).itemsize), x.astype(dtype).astype(np.float32))

    return codec


def largest(share: float, random: float = 0.0) -> Codec:
    """Top-k: the share of largest magnitude in float16, where they are at its ideal entropy.

    Args:
      share: that is sent.
      random: how much of it is drawn from the others instead: RandTopK.

    References:
      Zheng et al., `Reducing communication for split learning by randomized top-k sparsification
      <https://arxiv.org/abs/2305.18469>`_, IJCAI 2023.
    """

    def codec(x: np.ndarray) -> Coded:
        flat, rng = x.ravel(), np.random.default_rng(0)
        count = round(share * x.size)
        order = np.argpartition(-np.abs(flat), count)
        drawn = round(random * count)
        kept = np.concatenate(
            [order[: count - drawn], rng.choice(order[count:], drawn, replace=False)]
        )
        sent = np.zeros_like(flat)
        sent[kept] = flat[kept].astype(np.float16)
        positions = x.size * _entropy(np.array([count, x.size - count])) / 8
        return Coded(framed(2 * count + positions), sent.reshape(x.shape))

    return codec


def dct(step: float) -> Codec:
    """A cosine transform of blocks in each plane, one step, ideal entropy of each band.

    Blocks are 8x8, or 7x7 where 8 does not divide the map: less would have to be padded.

    Args:
      step: in root mean squares.
    """

    def codec(x: np.ndarray) -> Coded:
        n, h, w, c = x.shape
        size = next(size for size in (8, 7, 4, 2, 1) if h % size == 0 and w % size == 0)
        basis = _cosines(size)
        blocks = x.reshape(n, h // size, size, w // size, size, c)
        bands = np.einsum("ui,vj,nyixjc->uvnyxc", basis, basis, blocks, optimize=True)
        width = step * float(np.sqrt(np.mean(np.square(x))))
        q = np.rint(bands / width).astype(np.int64)
        bits = sum(band.size * _entropy(_counts(band)) for band in q.reshape(size * size, -1))
        back = np.einsum("ui,vj,uvnyxc->nyixjc", basis, basis, q * width, optimize=True)
        return Coded(framed(4 + bits / 8), back.reshape(x.shape).astype(np.float32))

    return codec


def product_quantized(size: int, words: int, calibration: np.ndarray) -> Codec:
    """Product quantization: a codebook for every few neighbouring channels, learned by k-means.

    Args:
      size: channels that share a code.
      words: of a codebook.
      calibration: what codebooks are learned from; they count as a state in float16.

    References:
      Wang et al., `FedLite <https://arxiv.org/abs/2201.11865>`_, 2022.
    """
    books = _books(_vectors(calibration, size), words)
    state = 2 * np.size(books) / AMORTISED

    def codec(x: np.ndarray) -> Coded:
        vectors = _vectors(x, size)
        nearest = np.asarray(_nearest(books, vectors))
        decoded = np.take_along_axis(np.asarray(books), nearest[..., None], axis=1)
        back = np.moveaxis(decoded, 0, -2).reshape(x.shape)
        return Coded(framed(nearest.size * math.log2(words) / 8) + state, back)

    return codec


def _vectors(x: np.ndarray, size: int) -> Array:
    """Float32 ``[groups, places, size]``."""
    return jnp.moveaxis(jnp.asarray(x).reshape(-1, x.shape[-1] // size, size), 1, 0)


@functools.partial(jax.jit, static_argnums=1)
def _books(vectors: Array, words: int) -> Array:
    """Codebooks ``[groups, words, size]``."""
    groups = len(vectors)
    keys = jax.random.split(jax.random.key(0), groups)

    def one(args: tuple[Array, Array]) -> Array:
        key, some = args
        some = jax.random.permutation(key, some)[:_LEARNED]

        def turn(_: int, book: Array) -> Array:
            mine = jax.nn.one_hot(_closest(book, some), words)
            count = mine.sum(axis=0)[:, None]
            return jnp.where(count > 0, mine.T @ some / jnp.maximum(count, 1.0), book)

        return jax.lax.fori_loop(0, _ROUNDS, turn, some[:words])

    return jax.lax.map(one, (keys, vectors))


@jax.jit
def _nearest(books: Array, vectors: Array) -> Array:
    """The nearest word of every vector, int32 ``[groups, places]``."""
    return jax.lax.map(lambda args: _closest(*args), (books, vectors))


def _closest(book: Array, vectors: Array) -> Array:
    return jnp.argmin(jnp.sum(book**2, axis=1) - 2 * vectors @ book.T, axis=1)


def _cosines(size: int) -> np.ndarray:
    """The orthonormal cosine transform ``[size, size]``, a row for each frequency."""
    frequency, place = np.mgrid[:size, :size]
    basis = np.cos(np.pi * frequency * (2 * place + 1) / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def _counts(q: np.ndarray) -> np.ndarray:
    return np.unique(q, return_counts=True)[1]


def _entropy(counts: np.ndarray) -> float:
    """Bits of a symbol with these counts."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())
