"""Several cameras through one program: each is as it is alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.moving import conv, one_sentence, video
from tinyjax import cameras, exact, pass_skip, rewrite, threshold


def a_network(rng):
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 3, 2, 6)) / 4, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(3, 3, 6, 4)) / 4, jnp.float32),
    }

    def apply(params, x):
        y = conv(jnp.tanh(conv(x, params["a"])), params["b"], stride=2)
        return {"map": y, "mean": y.mean()}

    return apply, params


@pytest.mark.parametrize("gate", [exact, threshold(0.3)], ids=["exact", "threshold"])
def test_each_camera_is_as_it_is_alone(rng, gate):
    apply, params = a_network(rng)
    clips = [video(rng, (34, 48, 2), 6) for _ in range(3)]
    clips[1] = clips[1][:1] * 6  # nothing moves in it
    skipping = rewrite(pass_skip(patch=8, gate=gate, refresh_every=0), apply)
    several, traces = cameras(skipping), []

    def stepped(states, params, frames):
        traces.append(1)
        return several.apply(states, params, frames)[::-1]

    step, one = jax.jit(stepped, donate_argnums=0), jax.jit(skipping.apply)
    states = several.init(params, jnp.concatenate([clip[0] for clip in clips]))
    alone = [skipping.init(params, clip[0]) for clip in clips]
    for number, frames in enumerate(zip(*clips, strict=True)):
        if gate is not exact and number == 3:  # a limit for each camera
            limits = jnp.asarray([0.3, 0.1, 2.0], jnp.float32)
            states = states._replace(gate=limits)
            alone = [s._replace(gate=v) for s, v in zip(alone, limits, strict=True)]
        states, outs = step(states, params, jnp.concatenate(frames))
        for i, x in enumerate(frames):
            want, alone[i] = one(alone[i], params, x)
            np.testing.assert_array_equal(states.ref[i], alone[i].ref)
            for found, cells in zip(states.active, alone[i].active, strict=True):
                np.testing.assert_array_equal(found[i], cells)
            np.testing.assert_allclose(outs["map"][i], want["map"], atol=1e-6)
            np.testing.assert_allclose(outs["mean"][i], want["mean"], atol=1e-6)
        if number:
            assert not states.active[0][1].any()
    np.testing.assert_array_equal(states.frames, [6, 6, 6])
    assert len(traces) == 1


def test_gradients_are_sums_over_cameras(rng):
    apply, params = a_network(rng)
    skipping = rewrite(pass_skip(patch=8), apply)
    frames = jnp.asarray(rng.normal(size=(2, 16, 24, 2)), jnp.float32)
    several = cameras(skipping)
    moved = frames.at[0, 3, 3].add(1.0).at[1, :, 12:].add(0.5)
    _, states = jax.jit(several.apply)(several.init(params, frames), params, frames)
    loss = lambda params: jnp.square(several.apply(states, params, moved)[0]["map"]).sum()

    def alone(params):
        of = lambda i: jax.tree.map(lambda a: a[i], states)
        outs = [skipping.apply(of(i), params, moved[i : i + 1])[0]["map"] for i in (0, 1)]
        return sum(jnp.square(out).sum() for out in outs)

    found, wanted = (jax.jit(jax.grad(f))(params) for f in (loss, alone))
    for name in params:
        scale = float(jnp.abs(wanted[name]).max())
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5 * scale)


def test_what_does_not_fit_is_refused(rng):
    apply, params = a_network(rng)
    several = cameras(rewrite(pass_skip(patch=8), apply))
    frames = jnp.zeros((2, 16, 24, 2))
    states = several.init(params, frames)
    for wrong, message in (
        (frames[0], r"frames are \(16, 24, 2\): give \[n, h, w, c\]"),
        (frames[:0], r"frames are \(0, 16, 24, 2\): give"),
        (frames[:1], "frames of 1 cameras and states of 2: give one frame of each"),
        (frames[:, :8], "came after one"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            several.apply(states, params, wrong)
        one_sentence(error)
