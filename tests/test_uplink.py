"""An uplink: both ends hold the same codes, whatever is lost, in as few bytes as what changed."""

import dataclasses
import functools
import itertools
import json
import struct
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codes import MUTATIONS, assert_same, signed
from tests.moving import conv, one_sentence
from tests.oracles import uplink as oracle
from tinyjax import (
    delta_uplink,
    entropy,
    numerics,
    pass_skip,
    rewrite,
    sgq,
    sgq_decode,
    sgq_encode,
    streams,
    wire,
)

GOLDEN = Path(__file__).parent / "golden" / "wire_v2_uplink.json"
SHAPE = (1, 7, 9, 4)


def compiled(uplink):
    """The four functions of an uplink, three of them compiled."""
    return uplink.init, jax.jit(uplink.key), jax.jit(uplink.delta), jax.jit(uplink.receive)


@functools.cache
def ends(**settings):
    return compiled(delta_uplink(**settings))


def features(rng, shape=SHAPE, frames=6, dtype="float32"):
    """What stands still but for a square that moves, after a relu; the third is the second."""
    still = x = rng.normal(size=shape)
    for t in range(frames):
        if t != 2:
            row, col, x = rng.integers(0, shape[1]), rng.integers(0, shape[2]), still.copy()
            x[:, row : row + 3, col : col + 3] = 2 * rng.normal(size=(shape[0], 1, 1, shape[3]))
        yield jnp.maximum(jnp.asarray(x, jnp.float32), 0).astype(dtype)


def same_features(cloud, device):
    """Bit for bit, codes and values."""
    assert_same(jax.device_get(cloud.features), jax.device_get(device.features))
    here, there = (np.asarray(sgq_decode(end.features)) for end in (device, cloud))
    assert here.tobytes() == there.tobytes()


# --- what arrives --------------------------------------------------------------------------------

SETTINGS = [
    ({"cell": 2}, SHAPE, "float32"),
]
MORE = [
    ({"bits": 2, "cell": 3, "exact": True}, (1, 7, 5, 3), "bfloat16"),
    ({}, (1, 10, 13, 6), "float32"),
    ({"bits": 8, "cell": 1, "step": 0.1, "offset": 0.5}, (1, 4, 9, 2), "float16"),
    ({"cell": 64}, (1, 1, 1, 1), "float32"),
    ({"cell": 2, "contexts": True}, (1, 12, 8, 16), "float32"),
]
WIDE = [pytest.param(*case, marks=pytest.mark.slow) for case in MORE]


@pytest.mark.parametrize(("options", "shape", "dtype"), SETTINGS + WIDE)
def test_a_second_reader_finds_the_values_of_the_device(rng, options, shape, dtype):
    state, frames = None, list(features(rng, shape, 6, dtype))
    if options.get("contexts"):
        state = entropy.fit(sgq_encode(frames[0]))
        options = options | {"contexts": state}
    init, key, delta, receive = compiled(delta_uplink(**options))
    device = cloud = init(frames[0])
    reader, known = oracle.Cloud(), None if state is None else wire.pack(state)
    for t, x in enumerate(frames):
        device, code = (key if t % 5 == 0 else delta)(device, x)
        frame = wire.pack(code)
        assert_same(wire.unpack(frame), jax.device_get(code))
        cloud, valid = receive(cloud, wire.unpack(frame))
        assert bool(valid)
        assert reader.receive(frame, known)
        same_features(cloud, device)
        np.testing.assert_array_equal(
            np.asarray(sgq_decode(device.features), np.float32), reader.values()
        )
        if t == 2:  # nothing moved
            assert len(frame) == 24 + 4 * 4 + 10 + 4


@given(st.data())
@settings(max_examples=30)
def test_any_features_arrive(data):
    number = st.floats(-4, 4, width=32) | st.sampled_from([0.0, np.nan, np.inf, 2.0**113])
    places = st.integers(0, int(np.prod(SHAPE)) - 1)
    init, key, delta, receive = ends(cell=2)
    device = cloud = init(jnp.zeros(SHAPE))
    flat = np.random.default_rng(0).normal(size=np.prod(SHAPE)).astype(np.float32)
    unknown = False
    for t in range(4):
        for place, value in data.draw(st.lists(st.tuples(places, number), max_size=5)):
            flat[place] = value
        x = jnp.asarray(flat).reshape(SHAPE)
        device, code = (key if t == 0 else delta)(device, x)
        cloud, valid = receive(cloud, wire.unpack(wire.pack(code)))
        assert bool(valid)
        same_features(cloud, device)
        unknown |= not (np.abs(flat) < 2.0**112).all()
        assert np.isnan(sgq_decode(cloud.features)).all() == unknown


def test_codes_are_those_of_a_frozen_step(rng):
    init, key, delta, _ = ends(cell=2)
    x, y, *_ = features(rng)
    start, _ = key(init(x), x)
    again, code = delta(start, x)
    assert not np.asarray(code.cells).any()
    assert_same(jax.device_get(again.features), jax.device_get(start.features))
    moved, _ = delta(start, y)
    there, _ = delta(moved, x)  # and back: differences do not add up to anything
    assert_same(jax.device_get(there.features), jax.device_get(start.features))
    changed = np.asarray(sgq_decode(moved.features) != sgq_decode(start.features))
    assert changed.any()
    assert not changed[np.asarray(x == y)].any()


def test_a_gradient_comes_back_masked_by_what_both_ends_hold(rng):
    init, key, delta, receive = ends(cell=2, exact=True)
    x, y, *_ = features(rng)
    device = cloud = init(x)
    for make, frame in ((key, x), (delta, y)):
        device, code = make(device, frame)
        cloud, _ = receive(cloud, wire.unpack(wire.pack(code)))
    codec = sgq(gradient_step=numerics.bounded_step)
    g = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    sent = jax.jit(codec.encode_gradient)(g, jnp.uint32(1), cloud.features)
    back = wire.unpack(wire.pack(sent, cloud.features), jax.device_get(device.features))
    assert not np.asarray(codec.decode_gradient(back))[np.asarray(y == 0)].any()


# --- what is lost --------------------------------------------------------------------------------


def test_a_thousand_frames_with_losses_and_key_frames(rng):
    """Whatever is lost, doubled, late or damaged: the features of the frame, or a refusal."""
    init, key, delta, receive = ends(cell=2)
    device = cloud = init(jnp.zeros(SHAPE))
    x, last, synced, late, counts = np.zeros(SHAPE, np.float32), 0, False, [], [0, 0, 0]
    for t in range(1000):
        x = x.copy()
        if t % 3:
            row, col = rng.integers(7), rng.integers(9)
            x[0, row : row + 2, col : col + 2] = rng.normal(size=4)
        is_key = t % 25 == 0 or rng.random() < 0.01
        device, code = (key if is_key else delta)(device, x)
        frame = wire.pack(code)
        fate = rng.choice(["here", "lost", "twice", "damaged"], p=[0.94, 0.02, 0.02, 0.02])
        if fate == "damaged":
            place = rng.integers(len(frame))
            frame = frame[:place] + bytes([frame[place] ^ 1]) + frame[place + 1 :]
            with pytest.raises(ValueError, match="no SGQ frame"):
                wire.unpack(frame)
        if fate in ("lost", "damaged"):
            counts[0] += 1
            continue
        before = cloud
        cloud, valid = receive(cloud, wire.unpack(frame))
        synced = is_key or (synced and t + 1 == last + 1)
        assert bool(valid) == bool(cloud.synced) == synced
        counts[1 if synced else 2] += 1
        if synced:
            last = t + 1
            same_features(cloud, device)
            if not is_key:
                late.append(frame)
        else:
            assert_same(jax.device_get(cloud.features), jax.device_get(before.features))
        if fate == "twice" and late:  # and one that is older still
            for old in (frame, late[rng.integers(len(late))]):
                if old is frame and is_key:
                    continue
                again, valid = receive(cloud, wire.unpack(old))
                assert not bool(valid)
                assert_same(jax.device_get(again), jax.device_get(cloud))
    lost, taken, refused = counts
    assert lost > 20
    assert taken > 600
    assert refused > 100


def test_frames_of_another_device_are_noticed(rng):
    init, key, delta, receive = ends(cell=2)
    frames = list(features(rng))
    states = [key(init(frames[0]), x) for x in frames[:2]]  # the same numbers, other features
    cloud, _ = receive(init(frames[0]), states[0][1])
    _, foreign = delta(states[1][0], frames[2])
    refused, valid = receive(cloud, foreign)
    assert not bool(valid)
    assert not bool(refused.synced)
    assert_same(jax.device_get(refused.features), jax.device_get(cloud.features))
    again, valid = receive(refused, states[1][1])  # until the next key frame
    assert bool(valid)
    assert_same(jax.device_get(again.features), jax.device_get(states[1][0].features))


def test_nothing_is_taken_before_a_key_frame(rng):
    init, key, delta, receive = ends(cell=2)
    x, y, *_ = features(rng)
    for device in (init(x), key(init(x), x)[0]):
        _, code = delta(device, y)
        cloud, valid = receive(init(x), wire.unpack(wire.pack(code)))
        assert not bool(valid)
        assert np.isnan(sgq_decode(cloud.features)).all()


def test_numbers_go_around(rng):
    init, key, delta, receive = ends(cell=2)
    x, y, *_ = features(rng)
    device, _ = key(init(x), x)
    device = device._replace(sequence=jnp.uint32(2**32 - 1))
    after, code = delta(device, y)
    assert int(after.sequence) == 0
    cloud, valid = receive(device, wire.unpack(wire.pack(code)))
    assert bool(valid)
    assert bool(receive(cloud, wire.unpack(wire.pack(code)))[0].synced)


# --- what it costs -------------------------------------------------------------------------------


def encoder(params, x):
    """Two convolutions, at half the size, on uint8 frames."""
    x = x.astype(jnp.float32) / 255
    for w in params:
        x = jax.nn.relu(conv(x, w, stride=2 if w.shape[3] == 16 else 1))
    return x


@pytest.mark.parametrize("size", [24, *(pytest.param(n, marks=pytest.mark.slow) for n in (48, 96))])
def test_bytes_follow_what_pass_skip_recomputed(rng, size):
    """1.3 times the active share of a whole frame, coded with the same contexts, and a header."""
    widths = (3, 16, 24)
    params = [
        jnp.asarray(rng.normal(size=(3, 3, a, b)) / np.sqrt(9 * a / 2), jnp.float32)
        for a, b in itertools.pairwise(widths)
    ]
    rough = rng.integers(0, 256, (20, 30, 3))
    scene = np.kron(rough, np.ones((8, 8, 1))).astype(np.uint8)[None]
    object_ = np.kron(rng.integers(0, 256, (size // 8, size // 8, 3)), np.ones((8, 8, 1)))
    skipping = rewrite(pass_skip(patch=16), encoder)
    skip = jax.jit(lambda state, x: skipping.apply(state, params, x))
    state = skipping.init(params, jnp.asarray(scene))
    shapes = jax.eval_shape(encoder, params, jnp.asarray(scene))
    contexts = entropy.fit(sgq_encode(encoder(params, jnp.asarray(scene))))
    init, key, delta, receive = compiled(delta_uplink(contexts=contexts))
    device = cloud = init(shapes)
    sent, allowed = [], []
    for t in range(12):
        frame = scene.copy()
        row, col = (10 + 7 * t) % (161 - size), (15 + 13 * t) % (241 - size)
        frame[0, row : row + size, col : col + size] = object_
        out, state = skip(state, jnp.asarray(frame))
        device, code = (delta if t else key)(device, out)
        data = wire.pack(code)
        cloud, valid = receive(cloud, wire.unpack(data))
        assert bool(valid)
        same_features(cloud, device)
        if not t:
            full = len(data)
            assert int(code.features.packed.mode) == streams.BY_CONTEXT
            continue
        header = 24 + 4 * 4 + 10 + 4 + -(-np.size(code.cells) // 8)
        active = np.asarray(state.active[-1])
        assert active.any()
        assert size == 96 or not active.all()
        sent.append(len(data))
        allowed.append(1.3 * active.mean() * full + header)
    assert all(a <= b for a, b in zip(sent, allowed, strict=True)), (sent, allowed)


@pytest.mark.slow
def test_one_compilation_serves_all_frames_and_cameras_go_side_by_side(rng):
    uplink = delta_uplink(cell=2)
    chex.clear_trace_counter()
    delta = jax.jit(chex.assert_max_traces(uplink.delta, n=1))
    cameras = [list(features(rng, frames=4)) for _ in range(3)]
    init, key, *_ = ends(cell=2)
    begun = [key(init(frames[0]), frames[0])[0] for frames in cameras]
    alone = []
    for state, frames in zip(begun, cameras, strict=True):
        for x in frames[1:]:
            state, code = delta(state, x)
        alone.append((state, code))
    many = there = jax.tree.map(lambda *a: jnp.stack(a), *begun)
    side_by_side, receive = jax.jit(jax.vmap(uplink.delta)), jax.jit(jax.vmap(uplink.receive))
    for xs in list(zip(*cameras, strict=True))[1:]:
        many, codes = side_by_side(many, jnp.stack(xs))
        there, valid = receive(there, codes)
        assert np.asarray(valid).all()
    for i, one in enumerate(alone):
        got = jax.tree.map(lambda a, i=i: a[i], (many, codes))
        jax.tree.map(np.testing.assert_array_equal, got, one)
    jax.tree.map(np.testing.assert_array_equal, there, many)
    with pytest.raises(ValueError, match="pack each code of a vmap by itself"):
        wire.pack(codes)


# --- frames --------------------------------------------------------------------------------------


def golden_contexts():
    """Those of the golden frames: fitted once, as a regression may differ in its last bits."""
    frame = bytes.fromhex(json.loads(GOLDEN.read_text())["state"]["frame"])
    return jax.tree.map(jnp.asarray, wire.unpack(frame))


@functools.cache
def with_contexts():
    return compiled(delta_uplink(cell=2, contexts=golden_contexts()))


def transmission():
    """Golden frames of one device, in order: key, something, nothing, no number, by contexts."""
    rng = np.random.default_rng(7)
    init, key, delta, _ = ends(cell=2)
    x = rng.integers(0, 5, SHAPE).astype(np.float32)  # nothing that rounds one way or the other
    y = x.copy()
    y[0, 3:6, 2:5] += 1
    z = y.copy()
    z[0, 0, 0, 0] = np.nan
    state = init(jnp.asarray(x))
    for name, make, frame in (("key", key, x), ("moved", delta, y), ("still", delta, y)):
        state, code = make(state, jnp.asarray(frame))
        yield name, code, state
    state, code = delta(state, jnp.asarray(z))
    yield "no_number", code, state
    state, code = key(state, jnp.asarray(z * 0 + x))
    yield "key_no_number", code, state
    yield from by_contexts(state)


def by_contexts(state):
    """A key frame of a sort that contexts were fitted to, and a part that is another of it."""
    _, key, delta, _ = with_contexts()
    x = smooth(2)
    y = x.copy()
    y[:, 2:6, 2:8] = smooth(1)[:, 2:6, 2:8]
    for name, make, frame in (("key_by_context", key, x), ("new", delta, y)):
        state, code = make(state, jnp.asarray(frame))
        yield name, code, state


def smooth(seed):
    """Whole numbers that are alike in all channels, and next to each other."""
    slopes = np.random.default_rng(seed).integers(0, 2, (2, 1, 1))
    row, col = np.mgrid[:7, :9]
    return np.repeat(((slopes[0] * row + col) // 3 % 4)[None, :, :, None], 4, axis=3).astype("f4")


def test_golden_frames_are_written_and_read_exactly():
    wanted, reader = json.loads(GOLDEN.read_text()), oracle.Cloud()
    known, names = bytes.fromhex(wanted["state"]["frame"]), ["state"]
    assert wire.pack(golden_contexts()) == known
    for name, code, state in transmission():
        names.append(name)
        assert wire.pack(code).hex() == wanted[name]["frame"], name
        back = wire.unpack(bytes.fromhex(wanted[name]["frame"]))
        assert_same(back, jax.device_get(code))
        assert reader.receive(bytes.fromhex(wanted[name]["frame"]), known)
        values = np.frombuffer(bytes.fromhex(wanted[name]["float32"]), "<f4")
        np.testing.assert_array_equal(reader.values().ravel(), values)
        np.testing.assert_array_equal(np.asarray(sgq_decode(state.features)).ravel(), values)
        if name in ("new", "key_by_context"):
            stream = code.stream if name == "new" else code.features.packed
            assert int(stream.mode) == streams.BY_CONTEXT
    assert names == list(wanted)


def accepted(data):
    try:
        code = wire.unpack(data, most=4096)
    except ValueError:
        return False
    assert wire.pack(code) == data  # a frame of this very code, and so not wrong
    return True


def test_no_mutated_frame_is_accepted_wrong(rng):
    frames = [wire.pack(code) for _, code, _ in transmission()]
    found = 0
    for turn in range(10_000):
        frame = frames[turn % len(frames)]
        data = MUTATIONS[turn // len(frames) % len(MUTATIONS)](rng, frame, frames)
        if turn // 2 % 2:
            found += accepted(signed(data[:-4]))
        else:
            assert data in frames or not accepted(data)
    assert found > 0


@pytest.mark.parametrize("name", ["moved", "new"])
def test_a_mutated_stream_leads_to_the_codes_that_it_names_or_nowhere(rng, name):
    states, codes = {}, {}
    for each, codes[each], states[each] in transmission():
        if each == name:
            break
        start = states[each]  # of either end
    right, frame = jax.device_get(states[name].features), wire.pack(codes[name])
    *_, receive = with_contexts()  # which reads differences of both sorts
    taken = refused = 0
    for turn in range(400):
        data = MUTATIONS[(0, 4)[turn % 2]](rng, frame, [frame])
        try:
            code = wire.unpack(signed(data[:-4]))
            after, valid = receive(start, code)
        except ValueError:
            continue
        taken += bool(valid)
        refused += not bool(valid)
        kept = jax.device_get(after.features)
        if valid and int(code.scale) == int(codes[name].scale):
            assert int(code.check) != int(codes[name].check) or (kept.packed == right.packed).all()
        if not valid:
            assert_same(kept, jax.device_get(start.features))
    assert refused > 20


def test_codes_by_contexts_that_the_cloud_has_not_are_refused():
    *_, (_, _, start), (_, new, _) = transmission()
    assert int(new.stream.state) == int(golden_contexts().tag)
    *_, receive = ends(cell=2)
    refused, valid = receive(start, wire.unpack(wire.pack(new)))
    assert not bool(valid)
    assert not bool(refused.synced)
    assert_same(jax.device_get(refused.features), jax.device_get(start.features))
    other = dataclasses.replace(new.stream, state=new.stream.state ^ 1)
    named = dataclasses.replace(new, stream=other)
    assert not bool(with_contexts()[3](start, wire.unpack(wire.pack(named)))[1])


FIXED = struct.pack("<IIH", 1, 0, 0x3F80)
DELTA = dict(kind=6, stage=1, bits=4, groups=2, shape=(1, 2, 4, 1), body=FIXED)
RAW = b"\2\0" + bytes(4)


def a_frame(kind, bits, body, groups=0, shape=(), stage=0, flags=0, state=0, dtype=0):
    first = (b"SGQR", 2, kind, stage, flags, bits, dtype, len(shape), 0)
    head = struct.pack("<4sBBBBBBBBIHHI", *first, state, groups, 0, len(body))
    return signed(head + struct.pack(f"<{len(shape)}I", *shape) + body)


def test_the_smallest_frames_are_accepted():
    assert accepted(a_frame(**DELTA))
    assert accepted(a_frame(**DELTA | {"body": FIXED + b"\2" + RAW}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 0}, "a difference has one sample, a stream and a side of cells"),
        ({"bits": 3}, "a difference has one sample, a stream and a side of cells"),
        ({"stage": 0}, "a difference has one sample, a stream and a side of cells"),
        ({"flags": 1}, "a difference has one sample, a stream and a side of cells"),
        ({"state": 1}, "it has a state and no stream"),
        ({"state": 1, "bits": 8}, "no state that it could have"),
        ({"state": 1, "body": FIXED + b"\1" + RAW}, "does not fit its state"),
        ({"shape": (2, 2, 4, 1)}, "a difference has one sample, a stream and a side of cells"),
        ({"shape": (1, 4, 1)}, "a difference has one sample, a stream and a side of cells"),
        ({"dtype": 3}, "its dtype or shape is none"),
        ({"shape": (1, 2**16, 2**16, 1)}, "elements where 4096 are allowed"),
        ({"body": FIXED[:-1]}, "whose body of 9 is not as long"),
        ({"body": FIXED + b"\1"}, "its stream is too short"),
        ({"body": FIXED[:-2] + b"\0\0"}, "a scale is out of range"),
        ({"body": FIXED + b"\0" + RAW}, "its cells are none"),
        ({"body": FIXED + b"\4" + RAW}, "its cells are none"),
        ({"body": FIXED + b"\1\2\1" + RAW[2:]}, "its lanes are others"),
        ({"body": FIXED + b"\1\0\0" + bytes(8)}, "does not fit its state"),
        ({"body": FIXED + b"\1" + RAW[:-1]}, "its stream is too long"),
        ({"body": FIXED + b"\1" + RAW + b"\0\0"}, "its stream is too long"),
    ],
)
def test_what_is_wrong_with_a_difference_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        wire.unpack(a_frame(**DELTA | changes), most=4096)


def test_key_frames_are_not_nested():
    """Or a long frame would be read as deep as it is long."""
    *_, frame = (wire.pack(code) for name, code, _ in transmission() if name == "key")
    for _ in range(3):
        frame = a_frame(5, 0, struct.pack("<I", 1) + frame)
        with pytest.raises(ValueError, match="other features than those of one step"):
            wire.unpack(frame)
    for body in (b"", struct.pack("<I", 1), struct.pack("<I", 1) + b"SGQR\2"):
        with pytest.raises(ValueError, match=r"features|whose body"):
            wire.unpack(a_frame(5, 0, body))
    with pytest.raises(ValueError, match="too short for a header"):
        wire.unpack(a_frame(5, 0, struct.pack("<I", 1) + b"SGQR\2\0\0"))


# --- what is refused -----------------------------------------------------------------------------


def test_bad_settings_and_inputs_are_one_sentence(rng):
    uplink = delta_uplink(cell=2)
    _, jitted_key, jitted_delta, _ = ends(cell=2)
    x, y, *_ = features(rng)
    start = uplink.init(x)
    state, key = jitted_key(start, x)
    _, code = jitted_delta(state, y)
    other = delta_uplink(cell=4)
    bad = [
        (lambda: delta_uplink(cell=0), "cell is 0: use an int"),
        (lambda: delta_uplink(cell=True), "cell is True: use an int"),
        (lambda: delta_uplink(bits=3), "bits"),
        (lambda: delta_uplink(step=0.0), "step is 0.0"),
        (lambda: delta_uplink(bits=2, contexts=golden_contexts()), "for 16 symbols were given"),
        (lambda: delta_uplink(bits=8, contexts=golden_contexts()), "for 16 symbols were given"),
        (lambda: uplink.init(jnp.ones((2, 4, 4, 3))), "give those of one frame"),
        (lambda: uplink.init(jnp.ones((4, 3))), "give those of one frame"),
        (lambda: uplink.init(jnp.ones((1, 4, 4, 3), jnp.int32)), "int32"),
        (lambda: uplink.key(start, x[:, 1:]), "begin again with init"),
        (lambda: uplink.delta(state, x.astype(jnp.float16)), "begin again with init"),
        (lambda: uplink.receive(start, key.features), "received StepCode: give it"),
        (lambda: other.receive(start, code), "with cells of 4 received one of 2"),
        (lambda: uplink.receive(uplink.init(x[:, 1:]), key), "make both ends alike"),
        (lambda: uplink.receive(uplink.init(x[:, 1:]), code), "make both ends alike"),
        (lambda: wire.pack(dataclasses.replace(code, cell=0)), "has no frame, since a difference"),
        (lambda: wire.pack(dataclasses.replace(code, scale=jnp.uint16(0))), "a scale is out of"),
    ]
    for run, message in bad:
        with pytest.raises(ValueError, match=message) as error:
            run()
        one_sentence(error)
