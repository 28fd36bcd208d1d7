"""What a coder of features knows beforehand: how channels predict each other, and tables.

Channels are taken in eight rounds. A channel is predicted from the eight channels of earlier rounds
that it is most correlated with, at the same pixel and around it, and, in the second and third phase
of its pixels, from its own neighbours; see :mod:`tinyjax.numerics.lattice`. The weights are a ridge
regression on calibration codes, rounded: the encoder and the decoder must have the same integers.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax.numerics import lattice, tables
from tinyjax.numerics.contexts import BINS, CLASSES, MAX_WEIGHT, SOURCES, linear_forms

__all__ = ["CONTEXTS", "DTYPES", "MAX_CHANNELS", "State", "fit_contexts", "rounds_of", "tagged"]

Array = jax.Array

CONTEXTS = 3 * BINS * CLASSES  # of three phases
MAX_CHANNELS = 4096
# Of the arrays of a state as bytes, in order.
DTYPES = {"sources": "<u2", "weights": "<i2", "edges": "<i4", "splits": "<i4", "frequencies": "<u2"}
_ROUNDS = 8
_PREDICTION, _ACTIVITY = 64, 512  # weights are multiples of 1 over these
_RIDGE = 1e-3  # per pixel
_FINE = 96  # bins that are joined to BINS
_NEVER = 2**31 - 1  # an edge that no form reaches
_forms = jax.jit(linear_forms)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What :func:`fit_contexts` found; a pytree of arrays.

    Attributes:
      sources: uint16 ``[c, 8]``: channels of earlier rounds.
      weights: int16 ``[2, 3, c, 18]``: of prediction and activity, in each phase.
      edges: int32 ``[3, 13]``: bins of the prediction.
      splits: int32 ``[3, 14, 2]``: classes of the activity in each bin.
      frequencies: uint16 ``[126, symbols]``: a table for each phase, bin and class.
      tag: uint32 scalar, not 0: CRC-32 of the others, which streams name the state by.

    Example:
      >>> import numpy as np
      >>> state = fit_contexts(np.zeros((1, 4, 4, 8), np.uint8))
      >>> state.frequencies.shape, state.sources.shape
      ((126, 16), (8, 8))
    """

    sources: Array
    weights: Array
    edges: Array
    splits: Array
    frequencies: Array
    tag: Array


def tagged(
    sources: np.ndarray,
    weights: np.ndarray,
    edges: np.ndarray,
    splits: np.ndarray,
    frequencies: np.ndarray,
) -> State:
    """A state of these arrays, with the tag that they have.

    Example:
      >>> import numpy as np
      >>> state = fit_contexts(np.zeros((1, 4, 4, 8), np.uint8))
      >>> again = tagged(
      ...     state.sources, state.weights, state.edges, state.splits, state.frequencies
      ... )
      >>> int(again.tag) == int(state.tag) != 0
      True
    """
    given = (sources, weights, edges, splits, frequencies)
    arrays = [np.asarray(a).astype(dtype) for a, dtype in zip(given, DTYPES.values(), strict=True)]
    tag = zlib.crc32(b"".join(a.tobytes() for a in arrays)) or 1
    native = (jnp.asarray(a.astype(a.dtype.newbyteorder("="), copy=False)) for a in arrays)
    return State(**dict(zip(DTYPES, native, strict=True)), tag=jnp.uint32(tag))


def rounds_of(channels: int) -> tuple[int, int]:
    """How many rounds the channels are taken in, and how many channels a round has.

    The last round may be short.

    Example:
      >>> rounds_of(64), rounds_of(9), rounds_of(3)
      ((8, 8), (5, 2), (3, 1))
    """
    size = -(-channels // _ROUNDS)
    return -(-channels // size), size


def fit_contexts(codes: Array | np.ndarray, *, symbols: int = 16) -> State:
    """Fits predictions and tables to codes, on the host.

    Args:
      codes: uint8 ``[n, *space, c]``, concrete, below ``symbols``; 128 samples are enough.
      symbols: 2 to 16.

    Returns:
      The state, for codes of any ``n`` and space, and this ``c``.

    Raises:
      ValueError: if these are no such codes.

    Example:
      >>> import numpy as np
      >>> codes = np.tile(np.arange(8, dtype=np.uint8), (4, 6, 6, 2))
      >>> bool(fit_contexts(codes).sources[15, 0] < 14)
      True
    """
    q = _checked(codes, symbols)
    pixels, sums, diagonal = jax.tree.map(np.asarray, _seen(jnp.asarray(q)))
    owns = [None, diagonal, sums[2]]
    sources, known = _sources(np.concatenate(pixels, axis=1))
    fitted = [
        _phase(x, s, own, sources, known, symbols)
        for x, s, own in zip(pixels, sums, owns, strict=True)
    ]
    weights, edges, splits, counts = (np.stack(arrays) for arrays in zip(*fitted, strict=True))
    frequencies = tables.frequencies(jnp.asarray(counts.reshape(CONTEXTS, symbols)))
    return tagged(sources, np.moveaxis(weights, 0, 1), edges, splits, np.asarray(frequencies))


def _checked(codes: Array | np.ndarray, symbols: int) -> np.ndarray:
    if isinstance(symbols, bool) or not isinstance(symbols, int) or not 2 <= symbols <= 16:
        raise ValueError(f"symbols is {symbols!r}: use an int from 2 to 16")
    q = np.asarray(codes)
    if q.dtype != np.uint8 or q.ndim < 2 or q.size == 0 or q.shape[-1] > MAX_CHANNELS:
        raise ValueError(
            f"contexts were to be fitted to {q.dtype} {list(q.shape)}: give them codes, uint8 "
            f"[n, *space, c] with at least one sample and at most {MAX_CHANNELS} channels"
        )
    if q.max() >= symbols:
        raise ValueError(
            f"there is a code {q.max()} among {symbols} symbols: say how many there are"
        )
    return q


@jax.jit
def _seen(q: Array) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
    """Pixels and sums over their neighbours in each phase, and over diagonals in the second."""
    parts = lattice.split(lattice.to_planes(q))
    sums = lattice.neighbour_sums(parts)
    h, w = lattice.plane_shape(q.shape)[2:]
    diagonal = lattice.own_sums(parts.ee, None, h, w)[0]
    return lattice.phases(parts), lattice.phases(sums), lattice.flat(diagonal)


def _sources(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most correlated channels of earlier rounds ``[c, 8]``, and which of them there are."""
    x = pixels.astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    norm = np.sqrt((x * x).sum(axis=1, keepdims=True))
    x /= np.where(norm > 0, norm, 1)
    closeness = np.abs(x @ x.T)
    place = np.arange(len(x)) // rounds_of(len(x))[1]
    closeness[place[:, None] <= place] = -1
    best = np.argsort(-closeness, axis=1, kind="stable")[:, :SOURCES]
    best = np.pad(best, ((0, 0), (0, SOURCES - best.shape[1])))
    known = np.arange(SOURCES) < (closeness >= 0).sum(axis=1, keepdims=True)
    return np.where(known, best, 0), known


def _phase(
    x: np.ndarray,
    sums: np.ndarray,
    own: np.ndarray | None,
    sources: np.ndarray,
    known: np.ndarray,
    symbols: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights ``[2, c, 18]``, edges, splits and counts ``[contexts, symbols]`` of one phase."""
    c = len(x)
    used = np.concatenate(
        [known, known, np.full((c, 1), own is not None), np.ones((c, 1), bool)], 1
    )
    solve = _regression(x, sums, own, sources, used)

    def forms(prediction: np.ndarray, activity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = jnp.asarray(np.stack([prediction, activity]), jnp.int32)
        arrays = (jnp.asarray(sources, jnp.int32), jnp.asarray(x), jnp.asarray(sums))
        first, second = _forms(weights, *arrays, None if own is None else jnp.asarray(own))
        return np.asarray(first), np.asarray(second)

    prediction = _rounded(solve(x), _PREDICTION)
    first, _ = forms(prediction, np.zeros_like(prediction))
    activity = _rounded(solve(np.abs(x - first / _PREDICTION)), _ACTIVITY)
    first, second = forms(prediction, activity)
    edges = _edges(first.ravel(), x.ravel(), symbols)
    bins = np.searchsorted(edges, first.ravel(), side="right")
    splits = np.full((BINS, CLASSES - 1), _NEVER)
    for i in np.unique(bins):
        inside = second.ravel()[bins == i]
        splits[i] = np.quantile(inside, np.arange(1, CLASSES) / CLASSES, method="higher")
    classes = (second.ravel()[:, None] >= splits[bins]).sum(axis=1)
    counts = _histogram(bins * CLASSES + classes, x.ravel(), BINS * CLASSES, symbols)
    return np.stack([prediction, activity]), edges, splits, counts


def _regression(
    x: np.ndarray,
    sums: np.ndarray,
    own: np.ndarray | None,
    sources: np.ndarray,
    used: np.ndarray,
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from targets ``[c, pixels]`` to the weights ``[c, 18]`` of a ridge regression."""
    c, pixels = x.shape
    # Products of everything with everything once; each channel's equations are cut out of them.
    z = np.concatenate([x, sums, np.ones((1, pixels))]).astype(np.float64)
    s = np.zeros((c, pixels)) if own is None else own.astype(np.float64)
    products, with_own = z @ z.T, z @ s.T
    rows = np.concatenate([sources, c + sources, np.full((c, 1), 2 * c)], axis=1)  # [c, 17]
    order = [*range(2 * SOURCES), 2 * SOURCES + 1, 2 * SOURCES]  # own before the constant
    matrix = np.empty((c, 18, 18))
    matrix[:, :17, :17] = products[rows[:, :, None], rows[:, None, :]]
    matrix[:, :17, 17] = matrix[:, 17, :17] = with_own[rows, np.arange(c)[:, None]]
    matrix[:, 17, 17] = (s * s).sum(axis=1)
    matrix = matrix[:, order][:, :, order]
    matrix *= used[:, :, None] & used[:, None, :]
    matrix += np.eye(18) * np.where(used, 1 + _RIDGE * pixels, 1)[:, None, :]

    def solve(target: np.ndarray) -> np.ndarray:
        target = target.astype(np.float64)
        right = (z @ target.T)[rows, np.arange(c)[:, None]]
        right = np.concatenate([right, (s * target).sum(axis=1, keepdims=True)], axis=1)
        return np.linalg.solve(matrix, (right[:, order] * used)[..., None])[..., 0]

    return solve


def _rounded(weights: np.ndarray, unit: int) -> np.ndarray:
    return np.clip(np.rint(weights * unit), -MAX_WEIGHT, MAX_WEIGHT).astype(np.int64)


def _histogram(rows: np.ndarray, q: np.ndarray, height: int, symbols: int) -> np.ndarray:
    counts = np.bincount(rows * symbols + q, minlength=height * symbols)
    return counts.reshape(height, symbols)


def _edges(form: np.ndarray, q: np.ndarray, symbols: int) -> np.ndarray:
    """Edges ``[BINS - 1]`` between bins of a form such that the codes take fewest bits."""
    edges = np.full(BINS - 1, _NEVER)
    if form.size == 0:
        return edges
    fine = np.unique(np.quantile(form, np.arange(1, _FINE) / _FINE, method="nearest"))
    fine = fine[fine > form.min()]  # each is where a bin starts, and none is empty
    counts = _histogram(np.searchsorted(fine, form, side="right"), q, len(fine) + 1, symbols)
    chosen = fine[_cuts(counts, BINS)]
    edges[: len(chosen)] = chosen
    return edges


def _cuts(counts: np.ndarray, bins: int) -> np.ndarray:
    """Where to cut rows of counts into at most ``bins`` runs of least entropy."""
    ends = np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])
    inside = np.maximum(ends[None] - ends[:, None], 0)  # [from, to, symbols]
    bits = _n_log_n(inside.sum(axis=-1)) - _n_log_n(inside).sum(axis=-1)
    bits[np.tril_indices(len(ends))] = np.inf
    least, came = bits[0], []
    for _ in range(min(bins, len(counts)) - 1):
        through = least[:, None] + bits
        came.append(through.argmin(axis=0))
        least = through.min(axis=0)
    cuts = [len(counts)]
    for origin in reversed(came):
        cuts.append(origin[cuts[-1]])
    return np.array(cuts[:0:-1], np.int64) - 1


def _n_log_n(n: np.ndarray) -> np.ndarray:
    return n * np.log2(np.maximum(n, 1))
