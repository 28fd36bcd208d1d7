"""What each part of the coder of features is worth: the coder with parts of it left out.

A state without some contexts is fitted anew, so that what is left makes the best of it. Nothing
else changes: the bytes are those of the library's coder with such a state.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rate import codecs
from benchmarks.rate.codecs import AMORTISED, Codec, Coded
from tinyjax import contexts, global_step, lossless, numerics, wire
from tinyjax.contexts import State
from tinyjax.numerics import tables
from tinyjax.numerics.contexts import BINS, CLASSES
from tinyjax.numerics.grouping import Grouping
from tinyjax.streams import coded_bits

__all__ = ["GROUPINGS", "VARIANTS", "fitted"]


_GROUP = 16  # channels
_NEVER = 2**31 - 1


def fitted(
    q: np.ndarray, *, channels: bool = True, own: bool = True, activity: bool = True
) -> State:
    """`contexts.fit_contexts` without some of what it uses.

    Args:
      q: uint8 ``[n, h, w, c]``, below 16.
      channels: whether other channels predict.
      own: whether a channel's own neighbours predict.
      activity: whether there are classes of the expected error.
    """
    # The steps of the library's fit, which has no such switches.
    pixels, sums, diagonal = jax.tree.map(np.asarray, contexts._seen(jnp.asarray(q)))
    owns = [None, diagonal, sums[2]] if own else [None] * 3
    sources, known = contexts._sources(np.concatenate(pixels, axis=1))
    found = [
        contexts._phase(x, s, o, sources, known & channels, 16)
        for x, s, o in zip(pixels, sums, owns, strict=True)
    ]
    weights, edges, splits, counts = (np.stack(arrays) for arrays in zip(*found, strict=True))
    if not activity:
        splits = np.full_like(splits, _NEVER)
        joint = counts.reshape(3, BINS, CLASSES, 16).sum(axis=2, keepdims=True)
        counts = np.broadcast_to(joint, (3, BINS, CLASSES, 16))
    shares = tables.frequencies(jnp.asarray(counts.reshape(-1, 16), jnp.int32))
    return contexts.tagged(sources, np.moveaxis(weights, 0, 1), edges, splits, np.asarray(shares))


def _with(step: float, calibration: np.ndarray, **left_out: bool) -> Codec:
    """The library's codec, but for what is left out of its state."""
    q = codecs.codes_of(global_step(step=step)(jnp.asarray(calibration)))
    return codecs.stepped(codecs.by_context(fitted(q, **left_out)), step=step)


def _to_nearest(step: float, calibration: np.ndarray) -> Codec:
    state = codecs.state_for(global_step(step=step, offset=0.5), calibration)
    return codecs.plain(codecs.by_context(state), step=step)


def _reordered(
    order: Callable[[np.ndarray], np.ndarray], step: float, calibration: np.ndarray
) -> Codec:
    """Channels in another order, which decides who is in an earlier round."""
    there = order(calibration)
    codec = _with(step, np.ascontiguousarray(calibration[..., there]))

    def reordered(x: np.ndarray) -> Coded:
        coded = codec(np.ascontiguousarray(x[..., there]))
        return coded._replace(decoded=coded.decoded[..., np.argsort(there)])

    return reordered


def _by_cosine(x: np.ndarray) -> np.ndarray:
    ids = numerics.by_cosine(jnp.asarray(x), _GROUP)
    return np.argsort(np.asarray(ids), kind="stable")


def _at_random(x: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(x.shape[-1])


# Named by what differs from the default; each takes a step and calibration features.
VARIANTS: dict[str, Callable[[float, np.ndarray], Codec]] = {
    "default": _with,
    "no activity": functools.partial(_with, activity=False),
    "own plane only": functools.partial(_with, channels=False),
    "other channels only": functools.partial(_with, own=False),
    "to nearest, no centroids": _to_nearest,
    "channels by cosine": functools.partial(_reordered, _by_cosine),
    "channels at random": functools.partial(_reordered, _at_random),
}


def _grouped(grouping: Grouping, levels: float, calibration: np.ndarray) -> Codec:
    """A scale for each sample and group of channels, so many levels, to nearest; after a relu."""
    ids = np.asarray(grouping(jnp.asarray(calibration), _GROUP)).astype(int)
    same = ids[:, None] == np.arange(ids.max() + 1)

    def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        largest = x.max(axis=(1, 2))[:, :, None] * same
        scale = np.maximum(largest.max(axis=1) / levels, 1e-30).astype(np.float32)
        scale = scale[:, ids][:, None, None]
        return np.rint(x / scale).astype(np.uint8), scale

    state = contexts.fit_contexts(quantized(calibration)[0])
    share = len(wire.pack(state)) / AMORTISED

    def codec(x: np.ndarray) -> Coded:
        q, scale = quantized(x)
        payload = int(coded_bits(lossless.encode(state, jnp.asarray(q)))) / 8
        side = 2 * len(x) * same.shape[1] + len(ids)  # a scale in 16 bits, and the groups
        return Coded(codecs.framed(payload + side) + share, q * scale)

    return codec


# Likewise, with scales of groups in place of the one step; each takes levels.
GROUPINGS: dict[str, Callable[[float, np.ndarray], Codec]] = {
    "group scales, by cosine": functools.partial(_grouped, numerics.by_cosine),
    "group scales, in order": functools.partial(_grouped, numerics.in_order),
    "group scales, at random": functools.partial(_grouped, numerics.at_random(0)),
}
