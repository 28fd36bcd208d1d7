"""Small codes as few words, and back, inside XLA.

Features are coded by the tables of a :class:`tinyjax.contexts.State`, which both sides have from
calibration. The steps of the coder are the rounds of channels, in each the three phases of pixels,
in each the codes ``[channel, n, row, column]`` in order, as many at a time as there are lanes: all
of a step is predicted from the phases before it. Anything else is coded with one table of its own.
See :mod:`tinyjax.streams` for what a stream
is, and :mod:`tinyjax.order0` for anything else than features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.choice import by_tables, smallest, steps_of
from tinyjax.contexts import CONTEXTS, State, rounds_of
from tinyjax.numerics import contexts, lattice, rans
from tinyjax.numerics.lattice import Parts
from tinyjax.streams import Stream, check_stream, checked_lanes

__all__ = ["decode", "encode"]

Array = jax.Array

_NO_CODE = CONTEXTS + 1  # where lanes or channels are missing


class _Model(NamedTuple):
    """A state for computing, with channels that fill the last round."""

    sources: Array  # int32 [c, 8]
    weights: Array  # int32 [c, 2, 3, 18]
    real: Array  # bool [c]: which channels there are
    edges: Array
    splits: Array
    frequencies: Array  # uint32 [126, symbols]
    tag: Array
    rounds: int
    size: int  # of a round


class _Channels(NamedTuple):
    """What is to be known of some channels in order to code them."""

    sources: Array  # int32 [m, 8]
    weights: Array  # int32 [m, 2, 3, 18]
    real: Array  # bool [m]


def encode(state: State, q: Array, *, lanes: int | None = None) -> Stream:
    """Encodes the codes of features.

    Args:
      state: for this many channels.
      q: uint8 ``[n, *space, c]``, below ``symbols``.
      lanes: a power of two; :func:`tinyjax.streams.lanes_for` by default. More are faster, and
        take 2 to 4 bytes each.

    Returns:
      A stream for :func:`decode`: by context, or order 0 or raw if that is smaller.

    Raises:
      ValueError: if ``q`` is not of such shape and dtype, or ``lanes`` is no power of two.

    Example:
      >>> import numpy as np, tinyjax.contexts
      >>> q = np.tile(np.arange(8, dtype=np.uint8), (4, 6, 6, 2))
      >>> stream = encode(tinyjax.contexts.fit_contexts(q), jnp.asarray(q))
      >>> int(stream.mode), 2 * int(stream.count) < q.size // 4
      (0, True)
    """
    _check(state, q.shape)
    if q.dtype != jnp.uint8:
        raise ValueError(f"codes of {q.dtype.name} were to be encoded: give them as uint8")
    return _encoded(state, q, checked_lanes(lanes, q.size, state.frequencies.shape[1]))


def decode(state: State, stream: Stream, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The codes of a stream.

    Whatever the stream, nothing outside it is read and nothing fails.

    Args:
      state: that the stream was encoded with.
      stream: from :func:`encode`, or of the same shapes from anywhere.
      shape: of the codes.

    Returns:
      ``(q, valid)``: uint8 of that shape, and whether the stream ends as an encoded one does,
      bool. Damage is hardly ever missed, but a checksum is surer.

    Raises:
      ValueError: if the shapes do not fit each other.

    Example:
      >>> import numpy as np, tinyjax.contexts
      >>> q = np.tile(np.arange(8, dtype=np.uint8), (4, 6, 6, 2))
      >>> state = tinyjax.contexts.fit_contexts(q)
      >>> decoded, valid = decode(state, encode(state, jnp.asarray(q)), q.shape)
      >>> bool(valid), bool((decoded == q).all())
      (True, True)
    """
    _check(state, shape)
    check_stream(stream, math.prod(shape), state.frequencies.shape[1])
    return _decoded(state, stream, tuple(shape))


@functools.partial(jax.jit, static_argnums=2)
def _encoded(state: State, q: Array, lanes: int) -> Stream:
    model = _model(state)
    planes = lattice.to_planes(q)
    planes = jnp.pad(planes, ((0, len(model.real) - len(planes)), *[(0, 0)] * 3))
    pixels = _kept(lattice.phases(lattice.split(planes)))
    parts = _parts(pixels, planes.shape)  # of those, not of the planes: they are there once
    sums = _kept(lattice.phases(lattice.neighbour_sums(parts)))
    diagonal = lattice.own_sums(parts.ee, None, *planes.shape[2:])[0]
    owns = (None, _kept(lattice.flat(diagonal)), sums[2])
    channels = _Channels(model.sources, model.weights, model.real)

    def by_round(x: Array, fill: int) -> Array:
        return steps_of(x.reshape(model.rounds, model.size * x.shape[1]), lanes, fill)

    turns = [
        (by_round(_context(model, p, channels, x, sums[p], owns[p]), _NO_CODE), by_round(x, 0))
        for p, x in enumerate(pixels)
    ]

    def raw() -> Array:
        whole = lattice.joined(_parts(pixels, planes.shape))
        return lattice.from_planes(whole[: q.shape[-1]], q.shape)

    return smallest(raw, turns, q.size, model.frequencies, model.tag)


@functools.partial(jax.jit, static_argnums=2)
def _decoded(state: State, stream: Stream, shape: tuple[int, ...]) -> tuple[Array, Array]:
    model = _model(state)

    def run(reader: rans.Reader, table: Array) -> tuple[rans.Reader, Array]:
        reader, planes = _planes(model, reader, table, lattice.plane_shape(shape))
        return reader, lattice.from_planes(planes[: shape[-1]], shape)

    return by_tables(stream, shape, model.frequencies, run, model.tag)


def _planes(
    model: _Model, reader: rans.Reader, table: Array, shape: tuple[int, ...]
) -> tuple[rans.Reader, Array]:
    """Planes, round by round; those of later rounds count as 0 until they are there."""
    _, n, h, w = shape
    sizes = _sizes(h, w)
    pixels = [n * sizes[0][0] * sizes[0][1], n * sizes[1][0] * sizes[1][1]]
    pixels.append(n * h * w - sum(pixels))
    known = [jnp.zeros((2, len(model.real), p), jnp.uint8) for p in pixels]

    def code_of(
        phase: int, reader: rans.Reader, known: list[Array], channels: _Channels, own: Array | None
    ) -> tuple[rans.Reader, Array]:
        if not pixels[phase]:
            return reader, jnp.zeros((model.size, 0), jnp.uint8)
        context = _context(model, phase, channels, known[phase][0], known[phase][1], own)
        lanes = len(reader.states)
        context = steps_of(context.reshape(1, -1), lanes, _NO_CODE)[0]
        reader, code = rans.rans_decode(reader, table, context)
        size = model.size * pixels[phase]
        return reader, code.reshape(-1)[:size].reshape(model.size, -1)

    def one(carry: tuple, turn: tuple[Array, _Channels]) -> tuple[tuple, None]:
        (reader, known), (first, channels) = carry, turn
        reader, code = code_of(0, reader, known, channels, None)
        ee = code.reshape(model.size, n, *sizes[0])
        own = _kept(lattice.flat(lattice.own_sums(ee, None, h, w)[0]))
        reader, code = code_of(1, reader, known, channels, own)
        oo = code.reshape(model.size, n, *sizes[1])
        own = [lattice.flat(sums) for sums in lattice.own_sums(ee, oo, h, w)]
        reader, code = code_of(2, reader, known, channels, _kept(jnp.concatenate(own, axis=1)))
        eo, oe = code[:, : own[0].shape[1]], code[:, own[0].shape[1] :]
        eo, oe = (x.reshape(model.size, n, *s) for x, s in zip((eo, oe), sizes[2:], strict=True))
        parts = Parts(ee, oo, eo, oe)
        sums = _kept(lattice.neighbour_sums(parts))
        both = zip(lattice.phases(parts), lattice.phases(sums), strict=True)
        known = [
            lax.dynamic_update_slice(old, jnp.stack(new), (0, first, 0))
            for old, new in zip(known, both, strict=True)
        ]
        return (reader, known), None

    def in_rounds(x: Array) -> Array:
        return x.reshape(model.rounds, model.size, *x.shape[1:])

    channels = _Channels(*(in_rounds(x) for x in (model.sources, model.weights, model.real)))
    first = jnp.arange(model.rounds, dtype=jnp.int32) * model.size
    reader = reader._replace(position=jnp.int32(0))
    (reader, known), _ = lax.scan(one, (reader, known), (first, channels))
    parts = _parts([pixels for pixels, _ in known], (len(model.real), *shape[1:]))
    return reader, lattice.joined(parts)


def _sizes(h: int, w: int) -> list[tuple[int, int]]:
    """Rows and columns of each of the parts of planes."""
    rows, columns = h // 2, w // 2
    return [(h - rows, w - columns), (rows, columns), (h - rows, columns), (rows, w - columns)]


def _parts(pixels: Sequence[Array], shape: tuple[int, ...]) -> Parts:
    """The parts of planes of this shape, from the pixels of each phase."""
    c, n, h, w = shape
    ee, oo, rest = pixels
    sizes = _sizes(h, w)
    cut = n * sizes[2][0] * sizes[2][1]
    flat = (ee, oo, rest[:, :cut], rest[:, cut:])
    return Parts(*(x.reshape(c, n, *size) for x, size in zip(flat, sizes, strict=True)))


def _context(
    model: _Model, phase: int, channels: _Channels, planes: Array, sums: Array, own: Array | None
) -> Array:
    """The context of every pixel of some channels in a phase, uint8 ``[m, pixels]``."""
    weights = _kept(jnp.moveaxis(channels.weights[:, :, phase], 0, 1))
    forms = contexts.linear_forms(weights, channels.sources, planes, sums, own)
    chosen = contexts.choose_context(forms, model.edges[phase], model.splits[phase])
    chosen = chosen + phase * contexts.BINS * contexts.CLASSES
    return _kept(jnp.where(channels.real[:, None], chosen, _NO_CODE).astype(jnp.uint8))


def _model(state: State) -> _Model:
    c = state.sources.shape[0]
    rounds, size = rounds_of(c)
    missing = rounds * size - c
    weights = jnp.moveaxis(jnp.asarray(state.weights, jnp.int32), 2, 0)
    return _Model(
        jnp.pad(jnp.asarray(state.sources, jnp.int32), ((0, missing), (0, 0))),
        jnp.pad(weights, ((0, missing), *[(0, 0)] * 3)),
        jnp.arange(rounds * size) < c,
        jnp.asarray(state.edges),
        jnp.asarray(state.splits),
        jnp.asarray(state.frequencies, jnp.uint32),
        jnp.asarray(state.tag),
        rounds,
        size,
    )


def _check(state: State, shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or 0 in shape or shape[-1] != state.sources.shape[0]:
        raise ValueError(
            f"codes {list(shape)} do not fit a state for {state.sources.shape[0]} channels: use "
            "[n, *space, c] with at least one sample, and a state fitted to codes like them"
        )


def _kept(x: Any) -> Any:
    """``x`` written to memory; else XLA makes it again for each of the many that read it."""
    return lax.optimization_barrier(x)
