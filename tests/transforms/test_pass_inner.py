"""pass_skip: gates inside the network, key frames, refresh, and what its state survives."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.moving import close, conv, follow, one_sentence, video
from tinyjax import compat, graph, pass_skip, rewrite, threshold
from tinyjax.blocks import begin, divide, finish, gated, run_frame

SHAPES = [(40, 56, 2), (33, 47, 1), (24, 25, 3)]


def network(rng, shape):
    """Convolutions, a residual, a stride, and a head that reads everything."""
    widths = [(shape[2], 6), (6, 6), (6, 6), (6, 5), (5, 4)]
    params = [jnp.asarray(rng.normal(size=(3, 3, *w)) / 4, jnp.float32) for w in widths]

    def apply(params, x):
        x = jnp.tanh(conv(x, params[0]))
        x = x + jnp.tanh(conv(jnp.tanh(conv(x, params[1])), params[2]))
        x = jnp.maximum(conv(x, params[3], stride=2), 0.1 * x[:, :1, :1, :5])
        return conv(x, params[4]), x.mean((1, 2))

    def local(params, x):
        x = jnp.tanh(conv(x, params[0]))
        x = x + jnp.tanh(conv(jnp.tanh(conv(x, params[1])), params[2]))
        return conv(jnp.tanh(conv(x, params[3], stride=2)), params[4])

    return {"with a tail": apply, "local": local}, params


def divided(apply, params, frame, patch=8):
    flat = graph.flatten(apply, params, (frame,), {}, compat.CALLS | compat.CUSTOM)
    return divide(flat, patch, fuse=False), flat


def check_effective(apply, params, state, out):
    """Every block from what its readers saw, densely: within its limit; the output: equal."""
    parts, flat = divided(apply, params, state.ref)
    env = begin(parts, flat.values)
    limits = dict(zip(gated(parts), np.asarray(state.limits), strict=True))
    held = iter(state.cuts)
    for block in parts.blocks:
        for v, new in zip(block.outs, run_frame(block, env), strict=True):
            env[v] = next(held)
            error = np.abs(np.asarray(env[v]) - np.asarray(new)).max()
            assert error <= limits.get(v, 0) + 1e-6 * np.abs(new).max()
    wanted = jax.tree.unflatten(flat.out_tree, finish(parts, env))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), out, wanted)


SLOW = pytest.mark.slow  # of the cases that compile again, or are much like another
DENSE_ABOVE = [
    (SHAPES[1], 1.0),
    (SHAPES[2], 0.45),
    *(
        pytest.param(SHAPES[i], above, marks=SLOW)
        for i, above in ((0, 0.45), (0, 1.0), (1, 0.45), (2, 1.0))
    ),
]
INNER = [0.0, pytest.param(0.05, marks=SLOW), 0.5, pytest.param(100.0, marks=SLOW), None]


@pytest.mark.parametrize(("shape", "dense_above"), DENSE_ABOVE, ids=str)
@pytest.mark.parametrize("inner", INNER)
def test_output_is_dense_of_the_effective_values(shape, inner, dense_above, rng):
    applies, params = network(rng, shape)
    apply = applies["local"]
    frames = [x + 0.1 * jnp.float32(i) for i, x in enumerate(video(rng, shape))]
    tensors = len(gated(divided(apply, params, frames[0])[0]))
    assert tensors > 1
    inner = rng.random(tensors) if inner is None else inner
    options = dict(patch=8, fuse=False, gate=threshold(0.3), inner=inner, dense_above=dense_above)
    for _, out, of_ref, state in follow(apply, params, frames, **options):
        check_effective(apply, params, state, out)
        if np.max(inner) == 0:
            assert close(out, of_ref, 1e-6)


def test_a_change_below_the_limit_is_not_passed_on(rng):
    applies, params = network(rng, (64, 64, 2))
    apply, frame = applies["local"], video(rng, (64, 64, 2))[0]
    moved = frame.at[0, 32, 32].add(0.01)
    counts = {}
    for inner in (0.0, 0.1):
        skipping = rewrite(pass_skip(patch=8, fuse=False, inner=inner), apply)
        step = jax.jit(skipping.apply)
        _, state = step(skipping.init(params, frame), params, frame)
        _, state = step(state, params, moved)
        counts[inner] = [int(a.sum()) for a in state.active]
    assert counts[0.1][0] == counts[0.0][0] > 0
    assert not any(counts[0.1][1:])
    assert all(counts[0.0])


def test_limits_change_without_another_compilation(rng):
    applies, params = network(rng, SHAPES[0])
    frames = video(rng, SHAPES[0])
    skipping, traces = rewrite(pass_skip(patch=8, fuse=False), applies["local"]), []

    @jax.jit
    def step(state, x):
        traces.append(1)
        return skipping.apply(state, params, x)

    state = skipping.init(params, frames[0])
    for i, x in enumerate(frames):
        out, state = step(state._replace(limits=jnp.full_like(state.limits, 0.1 * i)), x)
    check_effective(applies["local"], params, state, out)
    assert len(traces) == 1


def test_nan_passes_every_limit(rng):
    applies, params = network(rng, SHAPES[0])
    frame = video(rng, SHAPES[0])[0]
    hurt = frame.at[0, 20, 20, 0].set(jnp.nan)
    found = list(
        follow(applies["local"], params, [frame, hurt, frame], patch=8, fuse=False, inner=50.0)
    )
    for _, out, of_ref, _ in found:
        np.testing.assert_array_equal(np.isnan(out), np.isnan(of_ref))
    assert np.isnan(found[1][1]).any()
    assert not np.isnan(found[2][1]).any()


def test_key_frames_end_every_error(rng):
    shape = SHAPES[1]
    applies, params = network(rng, shape)
    base = video(rng, shape)[0]
    frames = [base + jnp.float32(0.01 * t) for t in range(13)]
    options = dict(patch=8, fuse=False, gate=threshold(0.2), inner=0.3, key_every=4)
    dense, wrong = jax.jit(applies["local"]), 0
    found = follow(applies["local"], params, frames, **options)
    for t, (x, out, _, state) in enumerate(found):
        whole = all(a.all() for a in state.active)
        assert whole == (t % 4 == 0)
        if whole:
            np.testing.assert_array_equal(state.ref, x)
            np.testing.assert_array_equal(out, dense(params, x))
        else:
            wrong += bool((out != dense(params, x)).any())
    assert wrong == 9


@pytest.mark.parametrize("every", [3, *(pytest.param(n, marks=SLOW) for n in (1, 2, 7, 1000))])
def test_refresh_bounds_the_age_of_the_effective_input(every, rng):
    shape = SHAPES[1]
    applies, params = network(rng, shape)
    base = video(rng, shape)[0]
    frames = [base + jnp.float32(0.001 * t) for t in range(3 * min(every, 7) + 2)]
    frames[4] = frames[4].at[0, :9, :9].add(9.0)
    options = dict(patch=8, fuse=False, gate=threshold(1.0), refresh_every=every, dense_above=1.0)
    found = follow(applies["local"], params, frames, **options)
    for t, (x, out, of_ref, state) in enumerate(found):
        assert state.age.max() < every
        assert close(out, of_ref, 1e-6)
        # What was taken n frames ago differs by n steps of the ramp, and by the jump in frame 4.
        if t < 4:
            behind = np.kron(state.age, np.ones((8, 8)))[: shape[0], : shape[1], None]
            wanted = np.broadcast_to(0.001 * behind, shape)
            np.testing.assert_allclose((x - state.ref)[0], wanted, rtol=0, atol=1e-5)


def test_a_ramp_of_1000_frames_stays_within_its_limits(rng):
    shape = (24, 25, 1)
    applies, params = network(rng, shape)
    apply, base = applies["local"], rng.normal(size=(1, *shape)).astype(np.float32)
    skipping = rewrite(pass_skip(patch=8, fuse=False, gate=threshold(0.05), inner=0.05), apply)
    step = jax.jit(skipping.apply)
    state = skipping.init(params, base)
    worst, taken = 0.0, 0
    for t in range(1000):
        x = base + np.float32(0.003 * t)
        out, state = step(state, params, x)
        worst = max(worst, float(jnp.abs(x - state.ref).max()))
        taken += int(state.age.min() == 0)
        if t % 250 == 249:
            check_effective(apply, params, state, out)
    assert worst <= 0.05
    assert taken < 500


def test_an_update_of_the_weights_takes_the_frame_whole(rng):
    applies, params = network(rng, SHAPES[0])
    apply, frame = applies["with a tail"], video(rng, SHAPES[0])[0]
    skipping = rewrite(pass_skip(patch=8, fuse=False), apply)
    step = jax.jit(skipping.apply)
    _, state = step(skipping.init(params, frame), params, frame)
    _, state = step(state, params, frame)
    assert not any(a.any() for a in state.active)
    for changed in (
        jax.tree.map(lambda w: w * 0.999, params),
        [*params[:-1], params[-1] + 1e-6],  # the last layer alone
    ):
        out, after = step(state, changed, frame)
        assert all(a.all() for a in after.active)
        np.testing.assert_array_equal(out[0], jax.jit(apply)(changed, frame)[0])
        # The mean behind the blocks, which a program may sum in its own order: as if begun anew.
        anew, _ = step(skipping.init(changed, frame), changed, frame)
        jax.tree.map(np.testing.assert_array_equal, out, anew)
        _, after = step(after, changed, frame)
        assert not any(a.any() for a in after.active)


def test_a_stream_goes_on_from_a_saved_state(rng):
    applies, params = network(rng, SHAPES[1])
    frames = video(rng, SHAPES[1])
    options = dict(
        patch=8, fuse=False, gate=threshold(0.3), inner=0.2, refresh_every=3, key_every=5
    )
    skipping = rewrite(pass_skip(**options), applies["with a tail"])
    step = jax.jit(skipping.apply)
    state = skipping.init(params, frames[0])
    for x in frames[:4]:
        _, state = step(state, params, x)
    fresh = skipping.init(params, frames[0])
    again = flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state))
    for x in frames[4:]:
        out, state = step(state, params, x)
        resumed, again = step(again, params, x)
        jax.tree.map(np.testing.assert_array_equal, (resumed, again), (out, state))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(inner=-0.1), "inner is -0.1: use limits from 0 up"),
        (dict(inner=(0.1, float("nan"))), "use limits from 0 up"),
        (dict(key_every=-1), "key_every is -1: use a number of frames, or 0"),
        (dict(refresh_every=2.5), "refresh_every is 2.5: use a number of frames"),
        (dict(key_every=True), "key_every is True"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        pass_skip(**options)
    one_sentence(error)


def test_limits_must_be_as_many_as_tensors(rng):
    applies, params = network(rng, SHAPES[0])
    frame = jnp.zeros((1, *SHAPES[0]))
    skipping = rewrite(pass_skip(patch=8, fuse=False, inner=[0.1] * 9), applies["local"])
    with pytest.raises(ValueError, match="inner has 9 limits, and 4 tensors lie") as error:
        skipping.init(params, frame)
    one_sentence(error)


def test_a_block_computed_whole_passes_on_only_what_exceeds_the_limit(rng):
    applies, params = network(rng, (64, 64, 2))
    frame = video(rng, (64, 64, 2))[0]
    moved = (frame + 1e-4).at[0, 30:33, 30:33].add(5.0)  # all of it moves a little, a part far
    skipping = rewrite(pass_skip(patch=8, fuse=False, inner=0.05), applies["local"])
    step = jax.jit(skipping.apply)
    _, state = step(skipping.init(params, frame), params, frame)
    out, state = step(state, params, moved)
    assert state.active[0].all()
    assert 0 < state.active[1].mean() < 0.45
    check_effective(applies["local"], params, state, out)
