"""The derivative of pass_skip: that of the function whose reused values are constants."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.moving import conv, one_sentence, video
from tests.test_blocks import random_chain
from tinyjax import compat, graph, int8_frozen, pass_skip, rewrite, threshold
from tinyjax.blocks import begin, divide, finish, run_before, run_frame
from tinyjax.numerics.patches import origins, spread


def covered(active, cell, size):
    """The positions of some cells, of which the last are moved inside: bool ``[1, h, w, 1]``."""
    found = np.zeros(size, bool)
    rows, cols = (origins(n, c, h) for n, c, h in zip(active.shape, cell, size, strict=True))
    for i, j in np.argwhere(active):
        found[rows[i] : rows[i] + cell[0], cols[j] : cols[j] + cell[1]] = True
    return found[None, :, :, None]


def masks(apply, params, frame, after, patch):
    """Where each output of a block was computed anew."""
    parts = divide(graph.flatten(apply, params, (frame,), {}, compat.CALLS | compat.CUSTOM), patch)
    return [
        covered(np.asarray(active), block.cells[v], block.sizes[v])
        for block, active in zip(parts.blocks, after.active, strict=True)
        for v in block.outs
    ]


def emulate(apply, params, frame, before, after, anew, patch):
    """The output, all of it computed, its reused values without a derivative."""
    flat = graph.flatten(apply, params, (frame,), {}, compat.CALLS | compat.CUSTOM)
    parts = divide(flat, patch)
    env, held = begin(parts, flat.values), iter(zip(before.cuts, after.cuts, anew, strict=True))
    taken = spread(after.age == 0, (patch, patch), frame.shape[1:3])[None, :, :, None]
    env[parts.frame] = jnp.where(taken, env[parts.frame], before.ref)
    for block in parts.blocks:
        env = run_before(block, env)
        for v, new in zip(block.outs, run_frame(block, env), strict=True):
            old, now, where = next(held)
            # What an inner limit held back has the derivative of what it stands for.
            env[v] = jnp.where(where, new + lax.stop_gradient(now - new), old)
    return jax.tree.unflatten(flat.out_tree, finish(parts, env))


def weighted(out):
    return sum(
        (jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) * a).sum()
        for a in jax.tree.leaves(out)
    )


def gradients(apply, params, frames, patch, **options):
    """Of every frame: those of pass_skip, those of ``emulate``, and the state."""
    skipping = rewrite(pass_skip(patch=patch, **options), apply)

    @jax.jit
    def step(params, frame, state):
        def loss(params, frame):
            out, after = skipping.apply(state, params, frame)
            return weighted(out), after

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, frame)

    @jax.jit
    def wanted(params, frame, *states_and_masks):
        loss = lambda *args: weighted(emulate(apply, *args, *states_and_masks, patch))
        return jax.grad(loss, argnums=(0, 1))(params, frame)

    state = skipping.init(params, frames[0])
    for frame in frames:
        found, after = step(params, frame, state)
        anew = masks(apply, params, frame, after, patch)
        yield found, wanted(params, frame, state, after, anew), after
        state = after


def check(pairs):
    shares = []
    for found, wanted, state in pairs:
        for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert np.isfinite(want).all()
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max()))
        shares += [float(active.mean()) for active in state.active]
    assert any(0 < share < 1 for share in shares)


SEEDS = [0, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, *range(3, 30)))]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_chains_equal_their_emulation(seed):
    apply, params, shape, heavy = random_chain(seed)
    if not heavy:
        pytest.skip("no product in this chain")
    frames = video(np.random.default_rng(seed), shape, frames=5)
    params = jax.tree.map(jnp.asarray, params)
    check(gradients(apply, params, frames, 8, dense_above=1.0))


class Encoder(nn.Module):
    """A residual, squeeze-excite, a depthwise convolution, a pool, upsampling, and a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = x + nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (5, 5))(x)))
        x = x * nn.sigmoid(nn.Dense(8)(x.mean((1, 2), keepdims=True)))
        y = nn.Conv(8, (3, 3), strides=2, feature_group_count=8)(x)
        y = nn.max_pool(y, (3, 3), strides=(2, 2), padding="SAME")
        y = nn.relu(nn.Conv(6, (3, 3), kernel_dilation=2, feature_group_count=2)(y))
        x = jnp.concatenate([x, y.repeat(4, axis=1).repeat(4, axis=2)], axis=-1)
        x = nn.Conv(4, (3, 3))(x)
        return {"map": x, "class": nn.Dense(5)(x.mean((1, 2)))}


ENCODED = [
    (0.2, 0.3),
    *(pytest.param(*p, marks=pytest.mark.slow) for p in ((0, 0.3), (0.2, 1), (0, 1))),
]


@pytest.mark.parametrize(("inner", "dense_above"), ENCODED)
def test_an_encoder_equals_its_emulation(inner, dense_above, rng):
    model = Encoder()
    frames = video(rng, (60, 88, 3), frames=5)
    params = model.init(jax.random.key(0), frames[0])
    options = dict(gate=threshold(0.5), inner=inner, dense_above=dense_above)
    check(gradients(model.apply, params, frames, 16, **options))


def test_a_relu_at_zero_has_jax_own_derivative(rng):
    params = {"w": jnp.zeros((3, 3, 2, 4)), "v": jnp.ones((3, 3, 4, 1))}
    apply = lambda p, x: conv(nn.relu(conv(x, p["w"])), p["v"])
    frame = jnp.asarray(rng.normal(size=(1, 24, 24, 2)), jnp.float32)
    skipping = rewrite(pass_skip(patch=8), apply)
    state = skipping.init(params, frame)
    found = jax.grad(lambda p: skipping.apply(state, p, frame)[0].sum())(params)
    assert not np.asarray(found["w"]).any()
    assert jax.grad(lambda p: apply(p, frame).sum())(params)["w"].any() == found["w"].any()


def test_a_clip_in_a_scan_and_a_frame_of_integers(rng):
    """Weights that stay while their gradient is added up over frames."""
    w = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
    apply = lambda w, x: nn.relu(conv(x.astype(jnp.float32) / 255, w))
    clip = jnp.asarray(rng.integers(0, 256, (6, 1, 32, 40, 2)), jnp.uint8)
    clip = clip.at[1:3].set(clip[0]).at[2, 0, 5, 5].add(9)
    skipping = rewrite(pass_skip(patch=8), apply)

    def loss(w, clip):
        def frame(state, x):
            out, state = skipping.apply(state, w, x)
            return state, (weighted(out), state)

        _, (losses, states) = lax.scan(frame, skipping.init(w, clip[0]), clip)
        return losses.sum(), states

    (_, states), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(w, clip)
    none, wanted = skipping.init(w, clip[0]), jnp.zeros_like(w)
    for t, x in enumerate(clip):
        after = jax.tree.map(lambda a, t=t: a[t], states)
        before = jax.tree.map(lambda a, t=t: a[t - 1], states) if t else none
        anew = masks(apply, w, x, after, 8)
        emulated = lambda w, x=x, s=(before, after, anew): weighted(emulate(apply, w, x, *s, 8))
        wanted = wanted + jax.grad(emulated)(w)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    assert not states.active[0][1].any()  # the same frame again: nothing to differentiate
    assert states.active[0][2].sum() == 1


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -1, 1)


clipped.defjvp(lambda primals, tangents: (clipped(*primals), tangents[0]))  # straight through


def test_derivatives_that_would_be_lost_are_refused(rng):
    w = jnp.ones((3, 3, 2, 2))
    frame = jnp.zeros((1, 24, 24, 2))
    int8 = rewrite(int8_frozen(table={"": 1.0}), lambda w, x: conv(x, w))
    for apply, name in (
        (lambda w, x: clipped(conv(x, w)), "clipped"),
        (lambda w, x: int8.apply({}, w, x)[0], "product"),
    ):
        skipping = rewrite(pass_skip(patch=8), apply)
        state = skipping.init(w, frame)
        out, _ = skipping.apply(state, w, frame)
        assert out.shape == frame.shape
        with pytest.raises(ValueError, match=f"differentiated through {name}, whose") as error:
            jax.grad(lambda w, s=state, k=skipping: k.apply(s, w, frame)[0].sum())(w)
        one_sentence(error)
