"""Operations that other encoders are made of: upsampling, concatenation, and what is not local."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.encoders import MobileNetEncoder, ResNetEncoder, UNet
from tests.moving import close, conv, follow, mean_pool, video
from tinyjax import blocks, compat, graph


def weights(*shapes):
    rng = np.random.default_rng(5)
    return [jnp.asarray(rng.normal(size=s) / np.sqrt(s[0] * s[2]), jnp.float32) for s in shapes]


def divided(apply, params, frame, patch=8, **options):
    flat = graph.flatten(apply, params, (frame,), {}, compat.CALLS | compat.CUSTOM)
    return blocks.divide(flat, patch, **options)


def repeat(x, times):
    return jnp.repeat(jnp.repeat(x, times[0], axis=1), times[1], axis=2)


def broadcast(x, times):
    n, h, w, c = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (n, h, times[0], w, times[1], c))
    return wide.reshape(n, h * times[0], w * times[1], c)


def nearest(x, times):
    n, h, w, c = x.shape
    return jax.image.resize(x, (n, h * times[0], w * times[1], c), "nearest")


def transposed(w, x, stride, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_transpose(x, w, stride, padding, dimension_numbers=numbers)


def around(up):
    """A stride down, something up again, and the way past both."""

    def apply(p, x):
        y = jnp.tanh(conv(x, p[0]))
        z = up(nn.relu(conv(y, p[1], stride=2)))
        return conv(jnp.concatenate([y, z[:, : y.shape[1], : y.shape[2]]], axis=3), p[2])

    return apply


AROUND = [(3, 3, 2, 4), (3, 3, 4, 4), (3, 3, 8, 3)]
LOCAL = {
    "repeat": (around(lambda x: repeat(x, (2, 2))), AROUND, (40, 48)),
    "broadcast": (around(lambda x: broadcast(x, (2, 2))), AROUND, (40, 48)),
    "nearest": (around(lambda x: nearest(x, (2, 2))), AROUND, (40, 48)),
    "transposed": (
        lambda p, x: around(lambda y: transposed(p[3], y, (2, 2), "SAME"))(p, x),
        [*AROUND, (3, 3, 4, 4)],
        (40, 48),
    ),
    "transposed, larger kernel": (
        lambda p, x: around(lambda y: transposed(p[3], y, (2, 2), "SAME"))(p, x),
        [*AROUND, (4, 5, 4, 4)],
        (48, 56),
    ),
    "one axis": (
        lambda p, x: conv(repeat(conv(x, p[0]), (2, 1)), p[1]),
        [(3, 3, 2, 4), (3, 3, 4, 3)],
        (30, 43),
    ),
    "beyond the frame's size": (
        lambda p, x: conv(nn.relu(conv(repeat(x, (2, 4)), p[0])), p[1], stride=2),
        [(3, 3, 2, 4), (3, 3, 4, 3)],
        (24, 26),
    ),
    "dilated": (
        lambda p, x: conv(jnp.tanh(conv(x, p[0], dilation=2)), p[1], dilation=4),
        [(3, 3, 2, 4), (3, 3, 4, 3)],
        (41, 50),
    ),
    "pool by the number inside": (
        lambda p, x: conv(
            nn.avg_pool(conv(x, p[0]), (3, 3), (2, 2), "SAME", count_include_pad=False), p[1]
        ),
        [(3, 3, 2, 4), (3, 3, 4, 3)],
        (41, 50),
    ),
    "a map of positions": (
        lambda p, x: conv(conv(x, p[0]) + p[1], p[2]),
        [(3, 3, 2, 4), (1, 41, 50, 4), (3, 3, 4, 3)],
        (41, 50),
    ),
    "grouped": (
        lambda p, x: conv(jnp.tanh(conv(x, p[0])), p[1], stride=2, groups=4) + p[2][0, 0, 0],
        [(3, 3, 2, 8), (3, 3, 2, 8), (1, 1, 1, 8)],
        (41, 50),
    ),
}


@pytest.mark.parametrize("fuse", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LOCAL)
def test_local_operations_are_skipped_and_right(name, fuse, rng):
    apply, shapes, size = LOCAL[name]
    params, frames = weights(*shapes), video(rng, (*size, 2), frames=6)
    hurt = frames[0].at[0, 20, 21].set(jnp.nan)
    parts = divided(apply, params, frames[0], fuse=fuse)
    made = {v for block in parts.blocks for v in block.outs}
    products = [eqn for eqn in parts.tail if eqn.primitive.name in compat.KINDS]
    assert not products
    assert not parts.between
    assert made
    skipped = 0
    options = dict(patch=8, fuse=fuse, dense_above=1.0)
    for _, out, want, state in follow(apply, params, [*frames, hurt, frames[0]], **options):
        assert np.array_equal(np.isnan(out), np.isnan(want))
        assert close(np.nan_to_num(out), np.nan_to_num(want), 1e-6)
        skipped += sum(int((~a).sum()) for a in state.active)
    assert skipped > 0


def excited(p, x):
    """Squeeze and excitation between convolutions."""
    x = nn.relu(conv(x, p[0]))
    x = x * nn.sigmoid(x.mean((1, 2)) @ p[1][0, 0])[:, None, None]
    return conv(nn.relu(conv(x, p[2])), p[3])


FULL = {
    "squeeze-excite": (excited, [(3, 3, 2, 4), (1, 1, 4, 4), (3, 3, 4, 4), (3, 3, 4, 3)], False),
    "bilinear": (
        lambda p, x: conv(
            jax.image.resize(conv(x, p[0]), (1, 82, 100, 4), "bilinear"), p[1], stride=2
        ),
        [(3, 3, 2, 4), (3, 3, 4, 3)],
        True,
    ),
    "sorted rows": (
        lambda p, x: conv(jnp.sort(conv(x, p[0]), axis=1), p[1]),
        [(3, 3, 2, 4), (3, 3, 4, 3)],
        True,
    ),
    "a pool of whole rows and a head": (
        lambda p, x: (conv(conv(x, p[0]), p[1]), mean_pool(x, (1, 50), (1, 1), "VALID").sum()),
        [(3, 3, 2, 4), (3, 3, 4, 3)],
        True,
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_blocks_begin_again_behind_what_is_computed_in_full(name, rng):
    apply, shapes, again = FULL[name]
    params, frames = weights(*shapes), video(rng, (41, 50, 2), frames=6)
    moved = [frames[0].at[0, 20, 20 + t].add(1.0) for t in range(2)]
    options = dict(patch=8, fuse=False, dense_above=1.0)
    assert len(divided(apply, params, frames[0], fuse=False).blocks) >= 2
    for x, out, want, state in follow(apply, params, [*frames, *moved], **options):
        same = zip(jax.tree.leaves(out), jax.tree.leaves(want), strict=True)
        assert all(close(a, b, 1e-6) for a, b in same)
        if x is moved[-1]:
            assert not state.active[0].all()
            assert bool(state.active[-1].all()) != again  # a change of a whole is one everywhere


ENCODERS = {
    "resnet": (ResNetEncoder((4, 8), blocks=1), (67, 90)),
    "mobilenet": (MobileNetEncoder(4, (4, 4, 6, 6), (1, 2, 1, 2)), (67, 90)),
    "unet": (UNet((3, 4, 6)), (68, 92)),
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("patch", "fuse"),
    [(8, False), pytest.param(8, True, marks=SLOW), pytest.param(16, True, marks=SLOW)],
)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_dense(name, patch, fuse, rng):
    model, size = ENCODERS[name]
    frames = video(rng, (*size, 3), frames=7)
    variables = model.init(jax.random.key(0), frames[0])
    parts = divided(model.apply, variables, frames[0], patch, fuse=fuse)
    assert len(parts.blocks) > 1 or fuse
    assert not parts.tail
    dense = jax.jit(model.apply)
    for x, out, want, _ in follow(model.apply, variables, frames, patch=patch, fuse=fuse):
        assert close(out, want, 2e-6)
        assert close(out, dense(variables, x), 2e-6)
