"""pass_skip: its gates, that it really skips, what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tinyjax
from tests.moving import close, conv, follow, one_sentence, video
from tests.oracles import patches as oracle
from tinyjax import exact, pass_skip, rewrite, static, threshold
from tinyjax.numerics import patches

# --- gates ---------------------------------------------------------------------------------------


def every_third(x, ref, patch):
    """A gate without reason, decided on the device: takes what depends on the frame's content."""
    shape = patches.tiles(x.shape[:2], (patch, patch))
    places = jnp.arange(shape[0] * shape[1]).reshape(shape)
    return (places + jnp.sum(jnp.abs(x)).astype(jnp.int32)) % 3 == 0


def a_chain(rng, shape=(50, 70, 2), features=6):
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 3, shape[2], features)) / 4, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(3, 3, features, 4)) / 4, jnp.float32),
    }
    apply = lambda params, x: conv(jnp.tanh(conv(x, params["a"])), params["b"], stride=2)
    return apply, params, shape


MASK = np.random.default_rng(3).random((4, 5)) < 0.3


@pytest.mark.parametrize(
    ("gate", "dense_above"),
    [
        pytest.param(exact, 0.65, id="exact"),
        pytest.param(exact, 1.0, id="exact, never whole"),
        pytest.param(threshold(0.0), 0.3, id="threshold 0"),
        pytest.param(threshold(0.5), 0.65, id="threshold"),
        pytest.param(threshold(100.0), 1.0, id="takes nothing"),
        pytest.param(static(MASK), 0.65, id="static"),
        pytest.param(every_third, 0.3, id="any function, whole"),
        pytest.param(every_third, 1.0, id="any function"),
    ],
)
def test_output_is_dense_of_the_effective_input(gate, dense_above, rng):
    apply, params, shape = a_chain(rng)
    frames = [x + 0.1 * jnp.float32(i) for i, x in enumerate(video(rng, shape))]
    ref = None
    options = dict(patch=16, gate=gate, dense_above=dense_above)
    for x, out, of_ref, state in follow(apply, params, frames, **options):
        assert close(out, of_ref, 1e-6)
        if ref is None:
            ref = np.asarray(x[0])
        else:
            taken = np.asarray(jax.jit(gate, static_argnums=2)(x[0], jnp.asarray(ref), 16))
            if taken.mean() > dense_above:
                taken = np.ones_like(taken)
            ref = oracle.effective_input(np.asarray(x[0]), ref, taken, 16)
        np.testing.assert_array_equal(state.ref[0], ref)


def test_threshold_bounds_a_drift_for_ever(rng):
    apply, params, shape = a_chain(rng)
    base = rng.normal(size=(1, *shape)).astype(np.float32)
    frames = [jnp.asarray(base + np.float32(0.004 * t)) for t in range(60)]
    for x, _, _, state in follow(apply, params, frames, patch=16, gate=threshold(0.02)):
        assert float(jnp.abs(x - state.ref).max()) <= 0.02
    assert 0 < int(state.frames) <= 60


# --- that it really skips ------------------------------------------------------------------------


def test_what_is_skipped_is_not_computed(rng):
    apply, params, shape = a_chain(rng)
    frame = video(rng, shape)[0]
    skipping = rewrite(pass_skip(patch=16, fuse=False), apply)
    step = jax.jit(skipping.apply)
    _, state = step(skipping.init(params, frame), params, frame)
    planted = state._replace(cuts=(*state.cuts[:-1], jnp.full_like(state.cuts[-1], 7.0)))
    out, same = step(planted, params, frame)
    assert (out == 7.0).all()
    assert not any(a.any() for a in same.active)
    out, changed = step(planted, params, frame.at[0, 24, 40].add(1.0))  # inside patch (1, 2)
    for active in changed.active:
        assert active.sum() == 1
        assert active[1, 2]
    fresh = np.asarray(out[0] != 7.0).any(-1)
    np.testing.assert_array_equal(np.argwhere(fresh).min(0), (8, 16))
    np.testing.assert_array_equal(np.argwhere(fresh).max(0), (15, 23))
    assert "while" in step.lower(state, params, frame).as_text()


def test_a_change_that_dies_out_wakes_nothing_behind_it(rng):
    params = jnp.asarray(rng.normal(size=(5, 5, 2, 2)), jnp.float32)
    apply = lambda w, x: conv(nn.relu(conv(x, w) - 1e6), w)  # the relu lets nothing through
    frame = video(rng, (64, 64, 2))[0]
    skipping = rewrite(pass_skip(patch=8, fuse=False), apply)
    _, state = skipping.apply(skipping.init(params, frame), params, frame)
    _, state = skipping.apply(state, params, frame.at[0, 32, 32].add(1.0))
    first, second = state.active
    assert first.any()
    assert not second.any()


def test_one_compilation_for_300_masks(rng):
    apply, params, shape = a_chain(rng)
    skipping = rewrite(pass_skip(patch=16, gate=threshold(0.1), fuse=False), apply)
    traces = []

    @jax.jit
    def step(state, params, x):
        traces.append(1)
        return skipping.apply(state, params, x)

    frame = np.zeros((1, *shape), np.float32)
    state = skipping.init(params, frame)
    masks, levels = set(), set()
    for _ in range(300):
        rows, cols = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        frame[0, : rows + 1 : 7, cols::9] = rng.normal()
        level = np.float32(rng.choice([0.0, 0.1, 0.5, 2.0]) * rng.random())
        before = state._replace(gate=jnp.asarray(level))
        out, state = step(before, params, jnp.asarray(frame))
        if int(before.frames):  # a first frame is taken whole, and so is one of which too much is
            moved = np.abs(frame - np.asarray(before.ref)).max(3, keepdims=True)
            taken = oracle.window_any(~(moved[0] <= level), (16, 16), (0, 0), (0, 0))
            whole = taken.mean() > 0.45
            np.testing.assert_array_equal(np.asarray(state.age) == 0, taken | whole)
        masks.add(np.asarray(state.active[0]).tobytes())
        levels.add(float(level))
    assert len(traces) == 1
    assert len(masks) > 20
    assert len(levels) > 200
    assert close(out, jax.jit(apply)(params, state.ref), 1e-6)


def test_variables_of_a_gate_are_in_the_state(rng):
    apply, params, shape = a_chain(rng)
    frame = jnp.zeros((1, *shape))
    gate = threshold(0.1)
    skipping = rewrite(pass_skip(patch=16, gate=gate), apply)
    step = jax.jit(lambda *args: skipping.apply(*args)[::-1], donate_argnums=0)
    state = skipping.init(params, frame)
    assert state.gate == np.float32(0.1)
    for moved, level, taken in ((0.0, 0.1, 20), (0.3, 0.5, 0), (0.3, 0.2, 20)):
        state = state._replace(
            gate=jnp.float32(level)
        )  # given away, and the gate still has its own
        state, _ = step(state, params, frame + moved)
        assert int((state.age == 0).sum()) == taken
        assert state.gate == np.float32(level)
    assert gate.variables == np.float32(0.1)
    assert skipping.init(params, frame).gate == np.float32(0.1)
    assert rewrite(pass_skip(patch=16), apply).init(params, frame).gate == ()
    for wrong in (jnp.zeros(3), jnp.int32(1), ()):
        with pytest.raises(ValueError, match="for its gate, whose variables are") as error:
            skipping.apply(state._replace(gate=wrong), params, frame)
        one_sentence(error)
    _, after = skipping.apply(state._replace(gate=0.7), params, frame)  # a plain number will do
    assert after.gate == np.float32(0.7)


def test_scan_over_frames_equals_a_loop(rng):
    apply, params, shape = a_chain(rng)
    frames = video(rng, shape)
    skipping = rewrite(pass_skip(patch=16), apply)
    start = skipping.init(params, frames[0])
    body = lambda state, x: skipping.apply(state, params, x)[::-1]
    state, outs = jax.jit(lambda s, xs: lax.scan(body, s, xs))(start, jnp.stack(frames))
    wanted = list(follow(apply, params, frames, patch=16))
    for out, (_, want, _, _) in zip(outs, wanted, strict=True):
        np.testing.assert_array_equal(out, want)
    jax.tree.map(np.testing.assert_array_equal, state, wanted[-1][3])


def test_nan_pixels_are_recomputed_and_leave_with_the_frame(rng):
    apply, params, shape = a_chain(rng)
    frame = video(rng, shape)[0]
    hurt = frame.at[0, 20, 20, 0].set(jnp.nan)
    for gate in (exact, threshold(0.5)):
        frames = [frame, hurt, hurt, frame]
        outs = [out for _, out, _, _ in follow(apply, params, frames, patch=16, gate=gate)]
        dense = [jax.jit(apply)(params, x) for x in frames]
        for out, want in zip(outs, dense, strict=True):
            np.testing.assert_allclose(out, want, rtol=0, atol=1e-6 * np.nanmax(np.abs(want)))
        assert np.isnan(outs[1]).any()


def test_frames_of_bytes(rng):
    apply = lambda w, x: nn.relu(conv(x.astype(jnp.float32) / 255, w))
    w = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
    frames = [jnp.asarray(rng.integers(0, 256, (1, 40, 40, 3)), jnp.uint8)]
    frames += [frames[0], frames[0].at[0, 3, 3].set(9), frames[0]]
    for x, out, of_ref, state in follow(apply, w, frames, patch=8, gate=threshold(2)):
        assert close(out, of_ref, 1e-6)
        assert state.ref.dtype == jnp.uint8
        assert int(jnp.abs(x.astype(jnp.int32) - state.ref.astype(jnp.int32)).max()) <= 2
        assert int(state.frames) == 1 or state.active[0].sum() < 5


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pass_skip(patch=0), "patch is 0: use an int from 1 up"),
        (lambda: pass_skip(patch=2.5), "patch is 2.5: use an int from 1 up"),
        (lambda: pass_skip(dense_above=1.5), "dense_above is 1.5: use a share"),
        (lambda: threshold(-1.0), "limit is -1.0: use a number from 0 up"),
        (lambda: threshold(float("nan")), "limit is nan"),
        (lambda: static(np.ones((2, 2))), r"mask is float64 \(2, 2\), expected bool"),
        (lambda: static([True]), r"mask is bool \(1,\), expected bool \[rows, cols\]"),
        (lambda: pass_skip()(lambda state: state), "a train step cannot return"),
        (lambda: tinyjax.chain(pass_skip()), "works on blocks"),
        (lambda: tinyjax.at("a", pass_skip()), "works on blocks"),
        (lambda: tinyjax.where(lambda site: True, pass_skip()), "works on blocks"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    one_sentence(error)


def test_hostile_frames_and_masks_are_refused(rng):
    apply, params, shape = a_chain(rng)
    frame = jnp.zeros((1, *shape))
    skipping = rewrite(pass_skip(patch=16), apply)
    state = skipping.init(params, frame)
    cases = {
        "a frame float32 .* came after one": frame[:, :-1],
        "a frame uint8 .* came after one float32": frame.astype(jnp.uint8),
        r"expected one frame \[1, h, w, c\]: pass one frame at a time": jnp.zeros((2, *shape)),
        "more than a side of the frame": frame[:, :9],
    }
    apply_any = lambda w, x: conv(x.astype(jnp.float32), w["a"])
    for message, x in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            rewrite(pass_skip(patch=16), apply_any).apply(state, params, x)
        one_sentence(error)
    for mask in (np.ones((4, 4), bool), np.ones((3, 5), bool)):
        with pytest.raises(ValueError, match="does not tile the frame: give a bool array") as error:
            rewrite(pass_skip(patch=16, gate=static(mask)), apply).apply(state, params, frame)
        one_sentence(error)
    gate = lambda x, ref, patch: jnp.ones((4, 5))
    with pytest.raises(ValueError, match="does not tile the frame") as error:
        rewrite(pass_skip(patch=16, gate=lambda *given: [True]), apply).apply(state, params, frame)
    one_sentence(error)
    with pytest.raises(ValueError, match="does not tile the frame") as error:
        rewrite(pass_skip(patch=16, gate=gate), apply).apply(state, params, frame)
    with pytest.raises(ValueError, match="made for another function or patch") as error:
        rewrite(pass_skip(patch=8), apply).apply(state, params, frame)
    one_sentence(error)
    with pytest.raises(ValueError, match="was given dict for its state: make one") as error:
        skipping.apply({}, params, frame)
    one_sentence(error)


def test_functions_without_blocks_are_refused(rng):
    w = jnp.ones((3, 3, 2, 2))
    frame = jnp.zeros((1, 32, 32, 2))
    for apply in (
        lambda w, x: conv(x - x.mean(), w),  # reads the whole frame first
        lambda w, x: x + 1,
        lambda w, x: conv(x, w, stride=3),  # does not divide the patch
    ):
        with pytest.raises(ValueError, match="no product of this function") as error:
            rewrite(pass_skip(patch=16), apply).init(w, frame)
        one_sentence(error)
    with pytest.raises(ValueError, match="expected one frame"):
        rewrite(pass_skip(patch=16), lambda w, x, y: conv(x, w) + y).init(w, frame, frame)
