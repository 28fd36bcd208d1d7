"""Codes through streams and back: every mode, every kind of shape, and streams nobody sent."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import features as oracle
from tests.oracles import rans as coder
from tinyjax import lossless, states, streams
from tinyjax.contexts import CONTEXTS, State, fit_contexts
from tinyjax.lossless import decode, encode
from tinyjax.order0 import decode_order0, encode_order0

SHAPE = (3, 5, 6, 12)  # of most tests, so that they compile once
BIG = (16, 8, 8, 16)  # long enough to gain


def features(seed, shape, symbols=16):
    """Sparse codes of channels that fire together and change slowly over space."""
    rng = np.random.default_rng(seed)
    *outer, c = shape
    hidden = rng.normal(size=(*outer, max(c // 4, 1)))
    for axis in range(1, len(outer)):
        hidden = hidden + np.roll(hidden, 1, axis) + np.roll(hidden, -1, axis)
    mix = np.random.default_rng(7).normal(size=(hidden.shape[-1], c))
    x = hidden @ mix + 0.3 * rng.normal(size=shape)
    x *= symbols / 6 / max(x.std(), 1e-3)
    return np.clip(np.rint(x), 0, symbols - 1).astype(np.uint8)


@functools.cache
def fitted(shape, symbols=16):
    return fit_contexts(features(0, shape, symbols), symbols=symbols)


@functools.cache
def sent():
    """A stream by context, and its codes."""
    q = features(1, BIG)
    stream = encode(fitted(BIG), jnp.asarray(q), lanes=8)
    assert int(stream.mode) == streams.BY_CONTEXT
    return q, jax.tree.map(np.asarray, stream)


def words_of(state, q, lanes, mask=None):
    """Words and states of the oracle."""
    arrays = (np.asarray(a).tolist() for a in (state.weights, state.edges, state.splits))
    symbols, contexts = oracle.steps(q, np.asarray(state.sources), *arrays, lanes, mask)
    whole = [4096] + [0] * (state.frequencies.shape[1] - 1)
    return coder.encode([*state.frequencies.tolist(), None, whole], symbols, contexts)


def check(state, q, lanes=None):
    stream = encode(state, jnp.asarray(q), lanes=lanes)
    decoded, valid = decode(state, stream, q.shape)
    np.testing.assert_array_equal(decoded, q)
    assert decoded.dtype == jnp.uint8
    assert bool(valid)
    return stream


@pytest.mark.parametrize(
    ("shape", "symbols", "lanes"),
    [
        (SHAPE, 16, 1),  # rounds of two channels
        pytest.param((2, 7, 7, 3), 5, 2, marks=pytest.mark.slow),  # fewer channels than rounds
        ((9, 11), 16, 4),  # no space; the last round is short
        pytest.param((2, 9, 10), 16, 1, marks=pytest.mark.slow),  # one axis of space
    ],
)
def test_words_equal_the_oracle(shape, symbols, lanes):
    state = fitted(shape, symbols)
    q = np.minimum(features(1, shape, symbols) + features(2, shape, symbols), symbols - 1)
    stream = check(state, q, lanes)
    words, ends = words_of(state, q, lanes)
    if int(stream.mode) == streams.BY_CONTEXT:
        assert stream.words[: int(stream.count)].tolist() == words
        assert stream.states.tolist() == ends
        assert not stream.words[int(stream.count) :].any()
    else:
        assert len(words) + 2 * lanes >= streams.coded_bits(stream) // 16


@pytest.mark.parametrize("lanes", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_not_sent_is_known_and_predicts_the_rest(rng, lanes):
    state, q = fitted(SHAPE), features(0, SHAPE)
    for mask in (
        np.broadcast_to(rng.random(SHAPE[:-1])[..., None] < 0.3, SHAPE),
        rng.random(SHAPE) < 0.5,
        np.ones(SHAPE, bool),
    ):
        stream = encode(state, jnp.asarray(q), jnp.asarray(mask), lanes=lanes)
        assert int(stream.mode) == streams.BY_CONTEXT
        words, ends = words_of(state, q, lanes, mask)
        assert stream.words[: int(stream.count)].tolist() == words
        assert stream.states.tolist() == ends
        known = jnp.asarray(np.where(mask, 15 - q, q))  # it is not looked at where codes are sent
        decoded, valid = decode(state, stream, SHAPE, jnp.asarray(mask), known)
        np.testing.assert_array_equal(decoded, q)
        assert bool(valid)
        if not mask.all():
            _, valid = decode(state, stream, SHAPE, jnp.asarray(~mask), known)
            assert not bool(valid)


def test_what_is_not_sent_is_known_in_other_modes_too(rng):
    state, q = fitted(SHAPE), rng.integers(0, 16, SHAPE).astype(np.uint8)
    few = rng.random(SHAPE) < 0.6
    for codes, mask, mode in (
        (q, np.ones(SHAPE, bool), streams.RAW),
        (np.where(few, 15, q).astype(np.uint8), few, streams.ORDER0),
    ):
        stream = encode(state, jnp.asarray(codes), jnp.asarray(mask), lanes=1)
        assert int(stream.mode) == mode
        decoded, valid = decode(state, stream, SHAPE, jnp.asarray(mask), jnp.asarray(codes))
        np.testing.assert_array_equal(decoded, codes)
        assert bool(valid)


@pytest.mark.slow
def test_contexts_inside_vmap():
    q = jnp.asarray(features(1, SHAPE))
    state = fitted(SHAPE)
    both = jax.vmap(lambda q: encode(state, q))(jnp.stack([q, 15 - q]))
    decoded, valid = jax.vmap(lambda s: decode(state, s, SHAPE))(both)
    np.testing.assert_array_equal(decoded, [q, 15 - q])
    assert valid.all()
    np.testing.assert_array_equal(both.words[0], encode(state, q).words)


def test_a_single_code():
    shape = (1, 1, 1, 1)
    check(fitted(shape), features(1, shape))


@pytest.mark.slow
@pytest.mark.parametrize("c", [1, 8, 17])
@pytest.mark.parametrize("space", [(), (1,), (8,), (1, 5), (6, 1), (9, 8), (2, 3, 3)])
def test_all_sorts_of_shapes(space, c):
    shape = (3, *space, c)
    for lanes in (None, 16):
        check(fitted(shape), features(1, shape), lanes)


def test_contexts_gain():
    q, stream = sent()
    bits, order0 = int(streams.coded_bits(stream)), float(streams.order0_bits(jnp.asarray(q)))
    assert bits < 0.9 * order0
    assert check(fitted(BIG), np.zeros_like(q), 8).count < stream.count // 4


def test_modes():
    q, stream = sent()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 16, q.shape).astype(np.uint8)
    raw = check(fitted(BIG), noise, 8)
    assert int(raw.mode) == streams.RAW
    assert int(streams.coded_bits(raw)) == 4 * q.size
    odd = np.where(noise == 3, 0, 15).astype(np.uint8)  # nothing like the calibration
    order0 = check(fitted(BIG), odd, 8)
    assert int(order0.mode) == streams.ORDER0
    about = float(streams.order0_bits(jnp.asarray(odd), lanes=8))
    assert abs(int(streams.coded_bits(order0)) - about) < 16 * 8
    for other in (0, 1, 2, 3, 255):  # a mode that is another's
        if other != int(stream.mode):
            changed = dataclasses.replace(stream, mode=np.uint8(other))
            assert not decode(fitted(BIG), changed, BIG)[1]


def test_a_code_that_is_no_symbol_is_not_sent():
    q = sent()[0].copy()
    q[-1, -1, -1, -1] = 16
    stream = encode(fitted(BIG), jnp.asarray(q), lanes=8)
    assert int(stream.count) == -1
    assert not decode(fitted(BIG), stream, BIG)[1]


@given(st.data())
def test_damage_is_noticed(data):
    q, stream = sent()
    name = data.draw(st.sampled_from(["words", "states", "count", "table", "mode"]))
    values = np.array(getattr(stream, name))
    place = data.draw(st.integers(0, max(values.size - 1, 0)))
    if name == "words":
        place %= int(stream.count)
    flip = data.draw(st.integers(1, 2 ** (8 * values.itemsize) - 1))
    flat = values.reshape(-1).view(f"u{values.itemsize}")
    flat[place] ^= flip
    changed = dataclasses.replace(stream, **{name: values})
    found, valid = decode(fitted(BIG), changed, BIG)
    assert found.shape == BIG
    # Valid by chance it may be, but then the codes are others, which a checksum finds.
    assert not (bool(valid) and (np.asarray(found) == q).all())


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 7]))
def test_streams_from_anywhere_do_no_harm(seed, mode):
    rng = np.random.default_rng(seed)
    _, stream = sent()

    def noise(x):
        return (
            rng.integers(0, 2 ** (8 * x.itemsize), x.shape).astype(f"u{x.itemsize}").view(x.dtype)
        )

    hostile = dataclasses.replace(jax.tree.map(noise, stream), mode=np.uint8(mode))
    found, valid = decode(fitted(BIG), hostile, BIG)
    assert found.shape == BIG
    assert not valid


def test_a_new_state_compiles_nothing():
    q, _ = sent()
    before = lossless._encoded._cache_size()
    check(fit_contexts(features(5, BIG)), q, 8)
    assert lossless._encoded._cache_size() == before


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_bytes_with_one_table(kind):
    shape = (7, 300)
    rng = np.random.default_rng(0)
    cases = [np.zeros(shape), rng.integers(0, 256, shape), rng.geometric(0.4, shape) - 1]
    cases += [np.full(shape, 255), rng.normal(size=shape) * 3]
    modes = []
    for values in cases:
        q = values.astype(np.int64).astype(kind)
        stream = encode_order0(jnp.asarray(q), lanes=4)
        decoded, valid = decode_order0(stream, shape, kind)
        np.testing.assert_array_equal(decoded, q)
        assert decoded.dtype == kind
        assert bool(valid)
        modes.append(int(stream.mode))
    assert modes == [1, 2, 1, 1, 1]
    for change in ({"table": jnp.zeros(256, jnp.uint16)}, {"mode": jnp.uint8(0)}):
        assert not decode_order0(dataclasses.replace(stream, **change), shape, kind)[1]


def test_inside_vmap():
    q = jnp.asarray(np.random.default_rng(0).geometric(0.5, (3, 400)) - 1, jnp.uint8)
    stream = jax.vmap(lambda q: encode_order0(q, lanes=2))(q)
    decoded, valid = jax.vmap(lambda s: decode_order0(s, (400,)))(stream)
    np.testing.assert_array_equal(decoded, q)
    assert valid.all()
    alone = encode_order0(q[1], lanes=2)
    np.testing.assert_array_equal(stream.words[1], alone.words)


def test_states_as_bytes():
    for shape, symbols in ((SHAPE, 16), ((9, 11), 5)):
        state = fitted(shape, symbols)
        data = states.state_to_bytes(state)
        again = states.state_from_bytes(data)
        jax.tree.map(np.testing.assert_array_equal, again, state)
        assert [a.dtype for a in jax.tree.leaves(again)] == [
            a.dtype for a in jax.tree.leaves(state)
        ]
        assert states.state_to_bytes(again) == data
        for cut in (0, 3, 8, 100, len(data) - 1):
            with pytest.raises(ValueError, match="no state"):
                states.state_from_bytes(data[:cut])
        with pytest.raises(ValueError, match="no state"):
            states.state_from_bytes(data + b"0")
        for size in (0, 2**32 - 1, 4097):
            with pytest.raises(ValueError, match="size"):
                states.state_from_bytes(size.to_bytes(4, "little") + data[4:])


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("sources", (0, 0), 1, "no earlier"),
        ("sources", (11, 0), 10, "no earlier"),
        ("sources", (5, 2), 2**16 - 1, "no earlier"),
        ("weights", (0, 1, 1, 3), 1, "not there yet"),
        ("weights", (1, 0, 9, 16), 1, "not there yet"),
        ("weights", (0, 0, 9, 0), 4096, "out of range"),
        ("weights", (0, 0, 9, 0), -(2**15), "out of range"),
        ("frequencies", (3, 3), 4000, "together"),
        ("frequencies", (3, 3), 0, "together"),
    ],
)
def test_states_that_no_decoder_could_follow(name, place, value, said):
    state = fitted(SHAPE)
    changed = np.array(getattr(state, name))
    changed[place] = value
    changed = dataclasses.replace(state, **{name: changed})
    with pytest.raises(ValueError, match=said):
        states.state_to_bytes(changed)
    wide = states.state_to_bytes(state)
    fields = states._fields(12, 16)
    body = b"".join(np.asarray(getattr(changed, f)).tobytes() for f in fields)
    with pytest.raises(ValueError, match=said):
        states.state_from_bytes(wide[:8] + body)


def test_what_is_refused():
    state, q = fitted(SHAPE), jnp.zeros(SHAPE, jnp.uint8)
    stream = encode(state, q, lanes=1)
    for wrong in (q[..., :11], q[0, 0, 0], q[:0]):
        with pytest.raises(ValueError, match="12 channels"):
            encode(state, wrong)
    with pytest.raises(ValueError, match="uint8"):
        encode(state, q.astype(jnp.int8))
    for lanes in (0, 3, -1, 2**14):
        with pytest.raises(ValueError, match="power of two"):
            encode(state, q, lanes=lanes)
    mask = jnp.ones(SHAPE, bool)
    with pytest.raises(ValueError, match="mask is int8"):
        encode(state, q, mask.astype(jnp.int8))
    for both in ((mask,), (None, q), (mask, q[:1]), (mask, q.astype(jnp.int8))):
        with pytest.raises(ValueError, match="give both or none"):
            decode(state, stream, SHAPE, *both)
    with pytest.raises(ValueError, match="words of this stream"):
        decode(state, stream, (4, *SHAPE[1:]))
    with pytest.raises(ValueError, match="words of this stream"):
        decode_order0(stream, (SHAPE[0] * 180,))
    with pytest.raises(ValueError, match="table of this stream"):
        decode(fitted(SHAPE, 5), stream, SHAPE)
    with pytest.raises(ValueError, match="states of this stream"):
        decode(state, dataclasses.replace(stream, states=stream.states.astype(jnp.int32)), SHAPE)
    with pytest.raises(ValueError, match="int16"):
        encode_order0(jnp.zeros(3, jnp.int16))
    with pytest.raises(ValueError, match="int16"):
        decode_order0(encode_order0(jnp.zeros(3, jnp.uint8)), (3,), "int16")
    for codes in (np.zeros((2, 3)), np.zeros(3, np.uint8), np.zeros((0, 3), np.uint8)):
        with pytest.raises(ValueError, match="give them codes"):
            fit_contexts(codes)
    with pytest.raises(ValueError, match="4096 channels"):
        fit_contexts(np.zeros((1, 4097), np.uint8))
    with pytest.raises(ValueError, match="code 16"):
        fit_contexts(np.full((1, 3), 16, np.uint8))
    for symbols in (1, 17, True):
        with pytest.raises(ValueError, match="from 2 to 16"):
            fit_contexts(np.zeros((1, 3), np.uint8), symbols=symbols)
    arrays = [getattr(state, f.name)[:1] for f in dataclasses.fields(State)[:-1]]
    broken = State(*arrays, state.tag)
    with pytest.raises(ValueError, match="weights of this state"):
        states.state_to_bytes(broken)
    assert len(state.frequencies) == CONTEXTS
