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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.choice import by_tables, smallest, steps_of
from tinyjax.contexts import CONTEXTS, State, rounds_of
from tinyjax.numerics import contexts, lattice, rans
from tinyjax.numerics.lattice import Parts
from tinyjax.streams import Stream, check_mask, check_stream, checked_lanes

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


def encode(
    state: State, q: Array, mask: Array | None = None, *, lanes: int | None = None
) -> Stream:
    """Encodes the codes of features.

    Args:
      state: for this many channels.
      q: uint8 ``[n, *space, c]``, below ``symbols``.
      mask: bool, of the same shape: where codes are sent. The others cost nothing: the decoder has
        to know them, and others are predicted from them. None for all.
      lanes: a power of two; :func:`tinyjax.streams.lanes_for` by default. More are faster, and
        take 2 to 4 bytes each.

    Returns:
      A stream for :func:`decode`: by context, or order 0 or raw if that is smaller.

    Raises:
      ValueError: if ``q`` or ``mask`` is not of such shape and dtype, or ``lanes`` is no power of
        two.

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
    check_mask(mask, q.shape)
    return _encoded(state, q, mask, checked_lanes(lanes, q.size, state.frequencies.shape[1]))


def decode(
    state: State,
    stream: Stream,
    shape: tuple[int, ...],
    mask: Array | None = None,
    known: Array | None = None,
) -> tuple[Array, Array]:
    """The codes of a stream.

    Whatever the stream, nothing outside it is read and nothing fails.

    Args:
      state: that the stream was encoded with.
      stream: from :func:`encode`, or of the same shapes from anywhere.
      shape: of the codes.
      mask: that the stream was encoded with.
      known: with a mask: uint8 of that shape, the codes where it is not set.

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
    check_mask(mask, shape)
    if (mask is None) != (known is None) or (
        known is not None and (known.dtype, known.shape) != (jnp.uint8, tuple(shape))
    ):
        raise ValueError(
            f"codes {list(shape)} were to be decoded with a mask or known codes that do not fit: "
            "give both or none, bool and uint8, of that shape"
        )
    return _decoded(state, stream, tuple(shape), mask, known)


@functools.partial(jax.jit, static_argnums=3)
def _encoded(state: State, q: Array, mask: Array | None, lanes: int) -> Stream:
    model = _model(state)
    pixels = _kept(_phases(model, q))
    sent = None if mask is None else _kept(_phases(model, mask))
    shape = (len(model.real), *lattice.plane_shape(q.shape)[1:])
    parts = lattice.parts_of(pixels, shape)  # of those, not of the planes: they are there once
    sums = _kept(lattice.phases(lattice.neighbour_sums(parts)))
    diagonal = lattice.own_sums(parts.ee, None, *shape[2:])[0]
    owns = (None, _kept(lattice.flat(diagonal)), sums[2])
    channels = _Channels(model.sources, model.weights, model.real)

    def by_round(x: Array, fill: int) -> Array:
        return steps_of(x.reshape(model.rounds, model.size * x.shape[1]), lanes, fill)

    chosen = [_context(model, p, channels, x, sums[p], owns[p]) for p, x in enumerate(pixels)]
    if sent is not None:
        none, zero = jnp.uint8(_NO_CODE), jnp.uint8(0)
        chosen = [jnp.where(here, x, none) for here, x in zip(sent, chosen, strict=True)]
        pixels = [jnp.where(here, x, zero) for here, x in zip(sent, pixels, strict=True)]
    turns = [
        (by_round(context, _NO_CODE), by_round(x, 0))
        for context, x in zip(chosen, pixels, strict=True)
    ]

    def raw() -> Array:
        whole = lattice.joined(lattice.parts_of(pixels, shape))
        return lattice.from_planes(whole[: q.shape[-1]], q.shape)

    return smallest(raw, turns, q.size, model.frequencies, model.tag)


@functools.partial(jax.jit, static_argnums=2)
def _decoded(
    state: State, stream: Stream, shape: tuple[int, ...], mask: Array | None, known: Array | None
) -> tuple[Array, Array]:
    model = _model(state)
    given = None
    if mask is not None and known is not None:
        given = list(zip(_phases(model, mask), _phases(model, known), strict=True))

    def run(reader: rans.Reader, table: Array) -> tuple[rans.Reader, Array]:
        reader, planes = _planes(model, reader, table, lattice.plane_shape(shape), given)
        return reader, lattice.from_planes(planes[: shape[-1]], shape)

    q, valid = by_tables(stream, shape, model.frequencies, run, model.tag)
    return q if mask is None or known is None else jnp.where(mask, q, known), valid


def _phases(model: _Model, x: Array) -> tuple[Array, ...]:
    """The pixels of each phase ``[c, pixels]``, of channels that fill the last round."""
    planes = lattice.to_planes(x)
    missing = len(model.real) - len(planes)
    return lattice.phases(lattice.split(jnp.pad(planes, ((0, missing), *[(0, 0)] * 3))))


def _planes(
    model: _Model,
    reader: rans.Reader,
    table: Array,
    shape: tuple[int, ...],
    given: list[tuple[Array, Array]] | None,
) -> tuple[rans.Reader, Array]:
    """Planes, round by round; those of later rounds count as 0 until they are there.

    What is sent and what is known are ``given`` for each phase, or else all is sent.
    """
    _, n, h, w = shape
    sizes = lattice.part_sizes(h, w)
    pixels = [n * sizes[0][0] * sizes[0][1], n * sizes[1][0] * sizes[1][1]]
    pixels.append(n * h * w - sum(pixels))
    known = [jnp.zeros((2, len(model.real), p), jnp.uint8) for p in pixels]

    def code_of(
        phase: int, reader: rans.Reader, known: list[Array], turn: tuple, own: Array | None
    ) -> tuple[rans.Reader, Array]:
        if not pixels[phase]:
            return reader, jnp.zeros((model.size, 0), jnp.uint8)
        _, channels, given = turn
        context = _context(model, phase, channels, known[phase][0], known[phase][1], own)
        if given is not None:
            context = jnp.where(given[phase][0], context, jnp.uint8(_NO_CODE))
        lanes = len(reader.states)
        context = steps_of(context.reshape(1, -1), lanes, _NO_CODE)[0]
        reader, code = rans.rans_decode(reader, table, context)
        size = model.size * pixels[phase]
        code = code.reshape(-1)[:size].reshape(model.size, -1)
        return reader, code if given is None else jnp.where(given[phase][0], code, given[phase][1])

    def one(carry: tuple, turn: tuple) -> tuple[tuple, None]:
        (reader, known), (first, *_) = carry, turn
        reader, code = code_of(0, reader, known, turn, None)
        ee = code.reshape(model.size, n, *sizes[0])
        own = _kept(lattice.flat(lattice.own_sums(ee, None, h, w)[0]))
        reader, code = code_of(1, reader, known, turn, own)
        oo = code.reshape(model.size, n, *sizes[1])
        own = [lattice.flat(sums) for sums in lattice.own_sums(ee, oo, h, w)]
        reader, code = code_of(2, reader, known, turn, _kept(jnp.concatenate(own, axis=1)))
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
    turns = (first, channels, jax.tree.map(in_rounds, given))
    (reader, known), _ = lax.scan(one, (reader, known), turns)
    parts = lattice.parts_of([pixels for pixels, _ in known], (len(model.real), *shape[1:]))
    return reader, lattice.joined(parts)


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
