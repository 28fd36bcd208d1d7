"""Links whose coder learns: what arrives, when states are sent, what compiles, what is refused."""

import functools
import logging
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import hostile, split
from tinyjax import collab, global_step, sgq, stripe_gains, stripe_groups, wire
from tinyjax.collab import learning

SHAPE = (4, 16, 16, 16)
FEATURES = jax.ShapeDtypeStruct(SHAPE, np.float32)
CODECS = {"one step": sgq(), "masked": sgq(quantizer=global_step(exact=True))}
WAYS = functools.cache(lambda name: collab.compressed(CODECS[name], FEATURES, samples=8))


def drawn(rng, kind):
    """Features of which channels repeat each other, in another order for each kind."""
    x = np.repeat(rng.normal(size=(*SHAPE[:3], 4)), 4, axis=3)
    x += 0.2 * rng.normal(size=SHAPE)
    order = np.random.default_rng(kind).permutation(SHAPE[3])
    return np.maximum(x[..., order], 0).astype(np.float32)


def talk(ways, x, ends, seed=0, g=None):
    """One step over a link: what arrives, the frames, both ends."""
    device, cloud = ends
    up, device = ways.up.encode(jnp.asarray(x), device, seed)
    features, cloud = ways.up.decode(up, cloud)
    g = jnp.asarray(x[::-1] if g is None else g)
    down, cloud = ways.down.encode(g, cloud, seed)
    back, device = ways.down.decode(down, device)
    return features, back, (up, down), (device, cloud)


def news(frame):
    """Whether a frame of features brings a state."""
    return frame[:4] != bytes(4)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", CODECS)
def test_what_arrives_is_what_the_codec_makes(name, rng):
    codec, ways = CODECS[name], WAYS(name)
    ends = ways.device, ways.cloud
    for seed in range(4):
        x = drawn(rng, 0)
        features, back, _, ends = talk(ways, x, ends, seed)
        code = jax.jit(codec.encode)(x)
        equal(features, jax.jit(codec.decode)(code))
        right = jax.jit(codec.encode_gradient)(x[::-1], np.uint32(seed), code)
        # The step is the root of a sum, whose order is the compiler's.
        np.testing.assert_allclose(back, jax.jit(codec.decode_gradient)(right), rtol=1e-6)
        equal(ends[0].state, ends[1].state)
        equal(ends[0].code, ends[1].code)


def test_states_are_fitted_when_there_are_samples_and_when_features_change(rng):
    ways = WAYS("one step")
    ends, sent, sizes = (ways.device, ways.cloud), [], []
    for step in range(60):
        *_, (up, _), ends = talk(ways, drawn(rng, step // 30), ends)
        sent.append(news(up))
        sizes.append(len(up))
    assert sent.index(True) == 1  # eight samples are two batches
    assert sum(sent[2:30]) == 0  # nothing has changed
    assert 1 <= sum(sent[30:45]) <= 2
    assert sum(sent[45:]) == 0
    early, settled = sizes[0], np.median(sizes[5:30])
    assert settled < 0.9 * early
    assert np.median(sizes[50:]) < 1.05 * settled


def test_states_never_take_more_than_was_lost_without_them(rng):
    watch, states, excess = WAYS("one step").device.watch, 0, 0.0
    watch = watch._replace(cost=np.float32(1000), usual=np.float32(0.5))
    for _ in range(500):
        plain = np.float32(rng.uniform(200, 400))
        bits = np.float32(plain * rng.uniform(0.4, 0.7))
        watch = learning._watched(watch, bits, plain)
        excess += max(0.0, float(bits - np.float32(0.5) * plain))
        if watch.lost > watch.cost:
            states, watch = states + 1, watch._replace(lost=np.float32(0))
    assert 0 < 1000 * states <= excess


@pytest.mark.parametrize("steps", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_nothing_compiles_again_when_states_change(steps, rng, caplog):
    ways = WAYS("one step")
    ends, states = (ways.device, ways.cloud), 0
    for _ in range(3):  # which compiles and fits the first state
        *_, ends = talk(ways, drawn(rng, 0), ends)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for step in range(steps):
            if step % (steps // 3) == steps // 3 - 1:  # as if all had been lost
                device, cloud = ends
                watch = device.watch._replace(lost=device.watch.cost + 1)
                ends = device._replace(watch=watch), cloud
            *_, (up, _), ends = talk(ways, drawn(rng, step % 2), ends)
            states += news(up)
    assert states >= 2
    assert [r.message for r in caplog.records if "Compiling" in r.message] == []


def test_an_end_goes_on_from_what_was_kept(rng):
    """Through plain NumPy arrays, as a checkpoint has them."""
    ways = WAYS("masked")
    batches = [drawn(rng, 0) for _ in range(6)]
    ends, frames = (ways.device, ways.cloud), []
    for x in batches:
        *_, both, ends = talk(ways, x, ends)
        frames.append(both)
    ends = (ways.device, ways.cloud)
    for x, right in zip(batches, frames, strict=True):
        ends = jax.tree.map(np.array, ends)
        *_, both, ends = talk(ways, x, ends)
        assert both == right


# --- what is refused -----------------------------------------------------------------------------


def test_every_other_frame_is_refused(rng):
    ways = WAYS("one step")
    ends, frames = (ways.device, ways.cloud), []
    for _ in range(3):
        before = ends
        *_, (up, down), ends = talk(ways, drawn(rng, 0), ends)
        frames.append((up, down, before))
    assert [news(up) for up, _, _ in frames] == [False, True, False]
    for up, down, (device, cloud) in frames:
        for _ in range(200):
            with pytest.raises(ValueError, match="frame"):
                ways.up.decode(hostile.damaged(rng, up, (0,)), cloud)
        for _ in range(50):
            bad = hostile.damaged(rng, b"0000" + down, (0,))[4:]
            if bad != down:
                with pytest.raises(ValueError, match="frame"):
                    ways.down.decode(bad, device)
    # A stream for another state than the cloud has.
    with pytest.raises(ValueError, match="frame"):
        ways.up.decode(frames[2][0], ways.cloud)


def test_forged_streams_are_refused_or_are_features(rng):
    """Damage below a checksum that is right: what a device with credentials could send."""
    ways, refused = WAYS("one step"), 0
    frame, _ = ways.up.encode(jnp.asarray(drawn(rng, 0)), ways.device, 0)
    for _ in range(100):
        data = bytearray(frame[:-4])
        data[rng.integers(4 + 24 + 16 + 35, len(data))] ^= 1 << rng.integers(8)
        forged = bytes(data) + zlib.crc32(data[4:]).to_bytes(4, "little")
        try:
            x, _ = ways.up.decode(forged, ways.cloud)
        except ValueError:
            refused += 1
        else:
            assert (x.shape, x.dtype) == (SHAPE, np.float32)
    assert refused > 90  # a stream has to end as it should


def test_frames_of_others_are_refused(rng):
    ways, x = WAYS("one step"), drawn(rng, 0)
    zero = bytes(4)
    other = split.ways("compressed")
    small, end = b"", other.device
    for seed in range(2):  # it learns from two batches
        small, end = other.up.encode(jnp.asarray(x[:, 0, 0, :8]), end, seed)
    assert news(small)
    length = int.from_bytes(small[:4], "little")
    features, _ = ways.up.encode(jnp.asarray(x), ways.device, 0)
    plain = wire.pack(jax.jit(CODECS["one step"].encode)(x))
    for frame in (
        small[:4] + small[4 : 4 + length] + features[4:],  # a state of 8 channels
        zero + small[4 + length :],  # features of 8 channels
        zero + plain,  # packed, not compressed
        len(plain).to_bytes(4, "little") + plain + features[4:],  # no state at all
    ):
        with pytest.raises(ValueError, match="holds another code than one of float32"):
            ways.up.decode(frame, ways.cloud)


def test_what_cannot_be_learned_is_refused():
    for other in (global_step(bits=8), stripe_gains()):
        with pytest.raises(ValueError, match="only codes of SGQ in 2 or 4 bits"):
            collab.compressed(sgq(quantizer=other), FEATURES)
    with pytest.raises(ValueError, match="samples is 0: use 1 or more"):
        collab.compressed(sgq(quantizer=stripe_groups()), FEATURES, samples=0)
    with pytest.raises(ValueError, match="a state of 128 channels takes"):
        collab.compressed(sgq(), jax.ShapeDtypeStruct((1, 128), np.float32))


def test_a_bad_frame_changes_nothing_in_the_cloud():
    ways = split.ways("compressed")
    cloud = collab.Cloud(split.upper(), ways)
    x, labels = np.ones(split.FEATURES.shape, np.float32), np.zeros(split.BATCH, np.int32)
    frame, _ = ways.up.encode(jnp.asarray(x), ways.device, 0)
    step = collab.Message(collab.Kind.STEP, 0, 1, labels=labels, frame=frame)
    before = jax.tree.map(np.array, cloud._training.state)
    with pytest.raises(collab.Refused, match="frame"):
        cloud.answer(step._replace(frame=frame[:-1]))
    equal(before, cloud._training.state)
    assert cloud.answer(step).kind is collab.Kind.GRADIENT
