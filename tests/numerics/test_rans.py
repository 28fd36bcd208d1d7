"""Tables and the coder with lanes against the oracle, to the bit, and against another package."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import rans as oracle
from tinyjax.numerics import rans, tables

BOTH = (jax.jit, lambda f: f)
frequencies = jax.jit(tables.frequencies, static_argnames="unseen")


@functools.partial(jax.jit, static_argnums=3)
def encode(table, q, context, capacity):
    writer = rans.rans_begun(q.shape[1], capacity)
    writer = rans.rans_encode(writer, tables.encode_table(table), context, q)
    return rans.rans_written(writer, capacity)


@jax.jit
def decode(table, words, states, count, context):
    reader = rans.Reader(states, words)
    reader, q = rans.rans_decode(reader, tables.decode_table(table), context)
    return q, rans.rans_ended(reader, count)


@functools.cache
def case(seed, steps, lanes, symbols=16, contexts=5, flat=1.0):
    """Tables, among them one that leaves no choice, and symbols that they make likely or not."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(symbols, flat), contexts)
    shares[0] = np.eye(symbols)[0]
    table = np.stack([oracle.frequencies(1000 * s, True) for s in shares])
    table[1] = np.eye(symbols)[symbols - 1] * 4096
    context = rng.integers(0, contexts, (steps, lanes))
    q = (rng.random((steps, lanes, 1)) > shares.cumsum(1)[context]).sum(2).clip(0, symbols - 1)
    q[:: 1 + steps // 3] = rng.integers(0, symbols, lanes)
    q = np.where(context == 1, symbols - 1, q)
    return table, q, context


def arrays(table, q, context):
    return jnp.asarray(table, jnp.uint32), jnp.asarray(q), jnp.asarray(context, jnp.int32)


@given(hnp.arrays(np.int32, 7, elements=st.integers(0, 2**31 // 7 - 1)), st.booleans())
def test_frequencies_equal_the_oracle(counts, unseen):
    counts = counts >> (counts % 31)  # of all sizes
    found = frequencies(jnp.asarray(counts), unseen=unseen)
    assert found.tolist() == oracle.frequencies(counts, unseen)
    assert found.sum() == 4096
    assert (found[counts > 0] >= 1).all()
    assert int(found.min()) >= unseen


@pytest.mark.parametrize("counts", [[0, 0], [2**31 - 1, 0], [1, 2**30], [0] * 255 + [7], [5] * 256])
def test_frequencies_at_the_ends(counts):
    for unseen in (True, False):
        found = frequencies(jnp.asarray(counts, jnp.int32), unseen=unseen)
        assert found.tolist() == oracle.frequencies(counts, unseen)


@pytest.mark.parametrize("symbols", [1, 257])
def test_a_table_has_2_to_256_symbols(symbols):
    with pytest.raises(ValueError, match=r"2 to 256"):
        tables.frequencies(jnp.zeros(symbols, jnp.int32))


def test_quotients_are_exact():
    f = np.arange(1, 4097, dtype=np.uint64)[:, None]
    quotient = np.array([0, 1, 2, 255, 2**16, 2**19 + 3, 2**20 - 2, 2**20 - 1], np.uint64)
    quotient = np.concatenate([quotient, np.random.default_rng(0).integers(0, 2**20, 56)])
    quotient = quotient.astype(np.uint64)
    for rest in (0 * f, f // 2, f - 1):
        x = quotient * f + rest
        wide = (jnp.asarray(a, jnp.uint32) for a in np.broadcast_arrays(x, f))
        found = jax.jit(rans._divided)(*wide)
        np.testing.assert_array_equal(found[0], np.broadcast_to(quotient, x.shape))
        np.testing.assert_array_equal(found[1], np.broadcast_to(rest, x.shape))


SEVERAL_BLOCKS = [(17001, 1), (2100, 8), (3, 8192)]


@pytest.mark.parametrize(("steps", "lanes"), [(1, 1), (37, 8), (5, 64), *SEVERAL_BLOCKS])
def test_words_equal_the_oracle(steps, lanes):
    table, q, context = case(steps, steps, lanes)
    words, states = oracle.encode(table.tolist(), q.tolist(), context.tolist())
    for wrap in BOTH if lanes == 8 else (jax.jit,):
        run = wrap(lambda *given: encode.__wrapped__(*given, q.size))
        found, count, ends = run(*arrays(table, q, context))
        assert int(count) == len(words)
        assert found.tolist() == words + [0] * (q.size - len(words))
        assert ends.tolist() == states
    assert oracle.decode(table.tolist(), words, states, context.tolist()) == q.tolist()
    decoded, valid = decode(jnp.asarray(table, jnp.uint32), found, ends, count, context)
    np.testing.assert_array_equal(decoded, q)
    assert bool(valid)


@pytest.mark.parametrize("size", [0, 1, 1000, 40001])
@pytest.mark.parametrize(("contexts", "symbols"), [(1, 2), (128, 16), (2, 256)])
def test_symbols_are_counted_in_their_contexts(rng, size, contexts, symbols):
    context = rng.integers(0, contexts, size).astype(np.uint8)
    code = rng.integers(0, symbols, size).astype(np.uint8)
    found = tables.joint_histogram(jnp.asarray(context), jnp.asarray(code), contexts, symbols)
    want = np.zeros((contexts, symbols), int)
    np.add.at(want, (context, code), 1)
    np.testing.assert_array_equal(found, want)


def test_a_word_too_many_is_counted():
    table, q, context = arrays(*case(3, 37, 8))
    words, count, states = encode(table, q, context, 300)
    few, same, _ = encode(table, q, context, int(count) - 1)
    assert int(same) == int(count)
    np.testing.assert_array_equal(few, words[: int(count) - 1])
    assert not decode(table, few, states, count, context)[1]


@given(st.data())
def test_damaged_streams_are_judged_as_by_the_oracle(data):
    table, q, context = case(3, 37, 8)
    words, count, states = (np.array(a) for a in encode(*arrays(table, q, context), 300))
    kind = data.draw(st.sampled_from(["word", "state", "shorter", "longer", "noise"]))
    at = data.draw(st.integers(0, int(count) - 1))
    if kind == "word":
        words[at] ^= data.draw(st.integers(1, 2**16 - 1))
    elif kind == "state":
        states[at % 8] ^= data.draw(st.integers(1, 2**32 - 1))
    elif kind == "shorter":
        count = np.int32(at)
    elif kind == "longer":
        count = np.int32(int(count) + 1 + at)
    else:
        words[:] = np.random.default_rng(at).integers(0, 2**16, 300)
    found, valid = decode(
        *(jnp.asarray(a) for a in (table.astype(np.uint32), words, states)),
        jnp.asarray(count),
        jnp.asarray(context, jnp.int32),
    )
    limit = min(max(int(count), 0), 300)
    want = oracle.decode(table.tolist(), words[:limit].tolist(), states.tolist(), context.tolist())
    assert bool(valid) == (want is not None and int(count) <= 300)
    if valid:
        assert found.tolist() == want
    assert found.max() < 16


@pytest.mark.parametrize("fill", [0, 2**16 - 1])
@pytest.mark.parametrize("count", [-(2**31), -1, 0, 4, 2**31 - 1])
def test_nothing_outside_is_read(fill, count):
    table, _, context = arrays(*case(3, 37, 8))
    for words in (jnp.full(1, fill, jnp.uint16), jnp.full(300, fill, jnp.uint16)):
        for state in (0, 2**16, 2**32 - 1):
            found, valid = decode(
                table, words, jnp.full(8, state, jnp.uint32), jnp.int32(count), context
            )
            assert not valid
            assert found.max() < 16


def test_another_package_needs_as_many_bits():
    constriction = pytest.importorskip("constriction")
    table, q, context = case(9, 2048, 8, contexts=4, flat=0.3)
    _, count, _ = encode(*arrays(table, q, context), q.size)
    coder = constriction.stream.stack.AnsCoder()
    family = constriction.stream.model.Categorical(perfect=False)
    inside = context.ravel() != 1  # of that table every symbol is certain, and it can have no model
    shares = table[context.ravel()[inside]] / 4096
    coder.encode_reverse(q.ravel()[inside].astype(np.int32), family, shares.astype(np.float32))
    theirs, ideal = coder.num_bits(), oracle.bits(table, q.tolist(), context.tolist())
    # A lane has 32 bits of state, of which it has used 16 at the start; rounding takes 0.5 %.
    assert abs(16 * int(count) + 24 * 8 - theirs) < 0.005 * theirs + 8 * 8
    assert abs(16 * int(count) + 24 * 8 - ideal - 16 * 8) < 0.005 * ideal + 8 * 8
