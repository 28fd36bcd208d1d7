"""Compressed codes: bit for bit through frames, golden ones, and all other bytes."""

import dataclasses
import functools
import json
import struct
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.measure import temp_bytes
from tests.codes import MUTATIONS, assert_same, made, made_gains, mask_of, sent, signed
from tests.oracles import wire as second_reader
from tinyjax import (
    GroupCode,
    SGQGradient,
    StepCode,
    entropy,
    global_step,
    sgq,
    sgq_decode,
    sgq_encode,
    stripe_groups,
    wire,
)
from tinyjax.contexts import fit_contexts

GOLDEN = Path(__file__).parent / "golden"
SHAPE = (6, 7, 5, 8)


def smooth(seed, shape=SHAPE, bits=4):
    """Codes of integers alone, sparse, with neighbours and channels that resemble each other."""
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 2**bits, (shape[0], 1, 1, 1)) + np.arange(shape[-1]) // 2
    q = q + np.arange(shape[1])[:, None, None] + rng.integers(0, 2, shape) - 2**bits
    return np.clip(q, 0, 2**bits - 1).astype(np.uint8)


@functools.cache
def fitted(bits=4):
    return fit_contexts(smooth(0, bits=bits), symbols=2**bits)


@functools.cache
def compressed():
    """By name: a plain code, with the state and the features that it is compressed with."""
    step = made(StepCode, SHAPE, 4, exact=True, q=smooth(1))
    coarse = made(GroupCode, SHAPE, 2, "bfloat16", q=smooth(2, bits=2))
    fine = made(StepCode, (9, 40), 8, q=smooth(3, (9, 1, 1, 40), 3))
    return {
        "by_context": (step, fitted(), None),
        "groups_by_context": (coarse, fitted(2), None),
        "order0": (made(StepCode, (40, 30), 4, q=smooth(4, (40, 1, 1, 30))), None, None),
        "order0_8bit": (fine, None, None),
        "raw": (made(GroupCode, (2, 3, 4), 4), None, None),
        "gradient_order0": (sent((40, 30), most=3), None, None),
        "gradient_raw": (sent((3, 5), "float16"), None, None),
        "gradient_masked_order0": (sent(SHAPE, mask=mask_of(step), most=2), None, step),
    }


def small(name):
    code, state, features = compressed()[name]
    return jax.device_get(entropy.compress(code, state, features))


def stream_of(code):
    return code.codes if isinstance(code, SGQGradient) else code.packed


@pytest.mark.parametrize("name", compressed())
def test_codes_come_back_bit_for_bit(name):
    code, state, features = compressed()[name]
    short = small(name)
    mode = {"by_context": 0, "order0": 1, "raw": 2}
    wanted = next(m for end, m in mode.items() if end in name)
    assert int(stream_of(short).mode) == wanted
    frame = wire.pack(short)
    assert wanted == 2 or len(frame) < len(wire.pack(code, features))
    arrived = wire.unpack(frame)
    assert_same(arrived, short)
    again, valid = entropy.expand(arrived, state, features)
    assert valid
    assert_same(jax.device_get(again), code)


def test_a_frame_is_as_long_as_its_format_says():
    short = small("by_context")
    stream = short.packed
    header, beside = 24 + 4 * 4 + 4, 2 + 32 + 1
    assert len(wire.pack(short)) == header + beside + 2 + 4 * len(stream.states) + 2 * stream.count
    short = small("gradient_masked_order0")
    stream = short.codes
    lanes, shares = len(stream.states), np.count_nonzero(stream.table)
    rest = 2 + 4 * lanes + 32 + 2 * shares + 2 * int(stream.count)
    assert len(wire.pack(short)) == header + 4 + rest
    state = fitted()
    assert wire.pack(state)[24:-4] == b"".join(
        [struct.pack("<II", 8, 16)]
        + [np.asarray(getattr(state, f.name)).tobytes() for f in dataclasses.fields(state)[:-1]]
    )


def test_states_go_through_frames():
    for bits in (2, 4):
        state = fitted(bits)
        arrived = wire.unpack(wire.pack(state))
        assert_same(jax.device_get(arrived), jax.device_get(state))
    changed = dataclasses.replace(state, tag=state.tag + np.uint32(1))
    with pytest.raises(ValueError, match="its tag is another's"):
        wire.pack(changed)


def test_another_state_or_mask_is_noticed():
    code, _, _ = compressed()["by_context"]
    other = fit_contexts(smooth(9))
    for state in (other, None):
        assert not entropy.expand(small("by_context"), state)[1]
    blind = dataclasses.replace(other, tag=fitted().tag)  # even if it said that it was the one
    assert not entropy.expand(small("by_context"), blind)[1]
    gradient = small("gradient_masked_order0")
    changed = dataclasses.replace(code, packed=code.packed[::-1])
    assert not entropy.expand(gradient, features=changed)[1]


def test_a_gradient_has_no_code_of_minus_128():
    code = sent((40, 30), most=3)
    spoilt = dataclasses.replace(code, codes=np.where(code.codes == 3, -128, code.codes))
    spoilt = dataclasses.replace(spoilt, codes=spoilt.codes.astype(np.int8))
    frame = wire.pack(jax.device_get(entropy.compress(spoilt)))
    assert not entropy.expand(wire.unpack(frame))[1]


@pytest.mark.parametrize(
    "quantizer",
    [
        global_step(exact=True),
        pytest.param(stripe_groups(group_size=4), marks=pytest.mark.slow),
    ],
)
def test_inside_jit_and_vmap(quantizer, rng):
    codec, state = sgq(quantizer=quantizer), fitted()
    x = jnp.asarray(np.maximum(rng.normal(size=(2, 3, 5, 4, 8)), 0), jnp.float32)

    def there_and_back(x, seed):
        code = codec.encode(x)
        gradient = codec.encode_gradient(x, seed, code)
        short = entropy.compress(code, state), entropy.compress(gradient, features=code)
        again, first = entropy.expand(short[0], state)
        back, second = entropy.expand(short[1], features=again)
        found = codec.decode(again), codec.decode_gradient(back)
        return found, (codec.decode(code), codec.decode_gradient(gradient)), first & second, short

    seeds = jnp.arange(2, dtype=jnp.uint32)
    found, wanted, valid, short = jax.jit(jax.vmap(there_and_back))(x, seeds)
    assert valid.all()
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    for i in range(2):
        for one in jax.tree.map(lambda a, i=i: np.asarray(a[i]), short):
            assert_same(wire.unpack(wire.pack(one)), one)


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((1, 1), [4]),
        pytest.param((1, 1), [8], marks=pytest.mark.slow),
        *(
            pytest.param(shape, [2, 4, 8], marks=pytest.mark.slow)
            for shape in [(3, 2), (2, 5, 3), (1, 2, 3, 5), (2, 1, 9, 2, 7)]
        ),
    ],
)
def test_odd_shapes(shape, widths, rng):
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    for bits in widths:
        code = jax.jit(global_step(bits=bits))(x)
        for state in (None, *([entropy.fit(code)] if bits < 8 else [])):
            short = wire.unpack(wire.pack(jax.device_get(entropy.compress(code, state))))
            again, valid = entropy.expand(short, state)
            assert valid
            assert_same(jax.device_get(again), jax.device_get(code))


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA fuses less before jax 0.12")
@pytest.mark.parametrize("contexts", [True, False])
def test_compressing_takes_three_bytes_of_scratch_for_each_feature(contexts):
    shape = (128, 16, 16, 64)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    few = np.zeros((1, *shape[1:]), np.float32)
    state = entropy.fit(sgq_encode(jnp.asarray(few))) if contexts else None
    compress = jax.jit(lambda x, state: entropy.compress(sgq_encode(x), state))
    assert temp_bytes(compress.lower(x, state).compile()) <= 3 * x.size


def test_what_is_refused():
    code, state, _ = compressed()["by_context"]
    short = small("by_context")
    with pytest.raises(ValueError, match=r"give it to tinyjax\.entropy\.expand first"):
        sgq_decode(short)
    with pytest.raises(ValueError, match=r"give it to tinyjax\.entropy\.expand first"):
        sgq().decode_gradient(small("gradient_order0"))
    with pytest.raises(ValueError, match=r"give it to tinyjax\.entropy\.expand first"):
        entropy.compress(short, state)
    with pytest.raises(ValueError, match="use it as it is"):
        entropy.expand(code)
    for refuse in (entropy.fit, entropy.compress):
        with pytest.raises(ValueError, match="with gains has one length whatever is in it: send"):
            refuse(made_gains((2, 4), 3))
    with pytest.raises(ValueError, match="codes of 8 bits have no contexts"):
        entropy.fit(compressed()["order0_8bit"][0])
    with pytest.raises(ValueError, match="is for 4 symbols where the code has 4 bits"):
        entropy.compress(code, fitted(2))
    gradient = compressed()["gradient_masked_order0"][0]
    for wrong in (None, dataclasses.replace(code, exact=False), gradient):
        with pytest.raises(ValueError, match="was given no exact features of that shape: give"):
            entropy.compress(gradient, features=wrong)
    both = jax.tree.map(lambda a: np.stack([a, a]), short)
    with pytest.raises(ValueError, match="words of this stream is"):
        wire.pack(both)
    unknown = dataclasses.replace(short.packed, count=np.asarray(np.int32(-1)))
    with pytest.raises(ValueError, match="this stream has no frame, since its words"):
        wire.pack(dataclasses.replace(short, packed=unknown))
    longer = dataclasses.replace(short.packed, count=short.packed.count - 1)
    with pytest.raises(ValueError, match="this stream has no frame, since it is longer"):
        wire.pack(dataclasses.replace(short, packed=longer))


# --- golden frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", compressed())
def test_golden_frames_are_written_and_read_exactly(name):
    want = json.loads((GOLDEN / "wire_v2_compressed.json").read_text())[name]
    code, state, features = compressed()[name]
    assert wire.pack(small(name)).hex() == want["frame"]
    again, valid = entropy.expand(wire.unpack(bytes.fromhex(want["frame"])), state, features)
    assert valid
    decode = sgq().decode_gradient if isinstance(code, SGQGradient) else sgq_decode
    assert np.asarray(decode(again)).astype("<f4").tobytes().hex() == want["float32"]
    if state is not None:
        assert wire.pack(state).hex() == want["state"]
    if features is not None:
        assert wire.pack(features).hex() == want["features"]


def test_a_second_reader_finds_the_same_values():
    for file in ("wire_v2.json", "wire_v2_compressed.json"):
        frames = json.loads((GOLDEN / file).read_text())
        for name, frame in frames.items():
            state, features = (frame.get(key) for key in ("state", "features"))
            if file == "wire_v2.json" and features is not None:
                features = frames[features]["frame"]
            needed = [text if text is None else bytes.fromhex(text) for text in (state, features)]
            found = second_reader.values(bytes.fromhex(frame["frame"]), *needed)
            wanted = np.frombuffer(bytes.fromhex(frame["float32"]), "<f4").reshape(found.shape)
            np.testing.assert_array_equal(found, wanted, err_msg=name)


# --- every other byte string ---------------------------------------------------------------------


def accepted(data):
    """Whether bytes are taken for a frame; any error but a ValueError is one of the test."""
    try:
        code = wire.unpack(data, most=4096)
    except ValueError:
        return False
    assert wire.pack(code) == data  # a frame of this very code, and so not wrong
    return True


def decoded(data, frames):
    """Whether bytes decode; what is valid is what those very bytes say."""
    try:
        code = wire.unpack(data, most=4096)
    except ValueError:
        return False
    for name in frames:
        _, state, features = compressed()[name]
        if jax.tree.map(np.shape, code) == jax.tree.map(np.shape, small(name)):
            again, valid = entropy.expand(code, state, features)
            if valid:
                once_more = jax.device_get(entropy.compress(again, state, features))
                assert wire.pack(once_more) == data
                return True
    return False


def test_no_mutated_frame_is_accepted_wrong(rng):
    frames = [wire.pack(small(name)) for name in compressed()] + [wire.pack(fitted(2))]
    found = 0
    for turn in range(10_000):
        frame = frames[turn % len(frames)]
        data = MUTATIONS[turn % len(MUTATIONS)](rng, frame, frames)
        if turn // 2 % 2:
            found += accepted(signed(data[:-4]))
        else:
            assert data in frames or not accepted(data)
    assert found > 0  # streams whose words are others, which decoding shows


def test_a_mutated_stream_decodes_to_what_it_says_or_not_at_all(rng):
    frames = {name: wire.pack(small(name)) for name in ("by_context", "gradient_masked_order0")}
    for turn in range(300):
        frame = list(frames.values())[turn % 2]
        data = MUTATIONS[turn // 2 % len(MUTATIONS)](rng, frame, list(frames.values()))
        decoded(signed(data[:-4]), frames)


def test_a_short_frame_takes_no_more_memory_than_its_reader_allows():
    frame = wire.pack(small("raw"))
    huge = signed(frame[:24] + struct.pack("<3I", 2**20, 2**20, 4) + frame[36:-4])
    with pytest.raises(ValueError, match="of 4398046511104 elements where 67108864 are allowed"):
        wire.unpack(huge)
    code = made(StepCode, (64, 64, 64), 4, q=np.zeros((64, 64, 64), np.uint8))
    frame = wire.pack(jax.device_get(entropy.compress(code)))
    assert len(frame) < 1000
    with pytest.raises(ValueError, match="of 262144 elements where 262143 are allowed"):
        wire.unpack(frame, most=2**18 - 1)
    tracemalloc.start()
    try:
        wire.unpack(frame, most=2**18)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 2**14 + 2**18
    finally:
        tracemalloc.stop()


def with_body(changes=(), mode=None, cut=0, extra=b"", state=None):
    """The frame by context, changed: bytes of the stream by place, or the header's state."""
    frame = bytearray(wire.pack(small("by_context"))[:-4])
    start = 24 + 16 + 35
    for place, value in dict(changes).items():
        frame[start + place] = value
    if state is not None:
        frame[12:16] = struct.pack("<I", state)
    frame = frame[: len(frame) - cut] + extra
    frame[20:24] = struct.pack("<I", len(frame) - 40)
    return signed(bytes(frame))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(changes={0: 3}), "the mode or lanes of its stream are none"),
        (dict(changes={1: 14}), "the mode or lanes of its stream are none"),
        (dict(changes={1: 13}), "its stream is too short"),
        (dict(changes={0: 1}), "since"),
        (dict(changes={4: 0, 5: 0}), "the state of a lane is out of range"),
        (dict(state=0), "it does not fit its state"),
        (dict(extra=b"\0"), "its stream is too long"),
        (dict(extra=bytes(2000)), "its stream is too long"),
        (dict(changes={0: 2}), "its words are not as many|its stream is too long"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said(changes, message):
    assert accepted(with_body())
    with pytest.raises(ValueError, match=message):
        wire.unpack(with_body(**changes))


@given(st.data())
def test_any_numbers_come_back(data):
    shape, bits = (3, 4, 5), data.draw(st.sampled_from([2, 8]))
    numbers = st.lists(st.integers(0, 2**bits - 1), min_size=60, max_size=60)
    q = np.array(data.draw(numbers), np.uint8)
    code = made(StepCode, shape, bits, q=q)
    again, valid = entropy.expand(wire.unpack(wire.pack(jax.device_get(entropy.compress(code)))))
    assert valid
    assert_same(jax.device_get(again), code)
