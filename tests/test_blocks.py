"""Blocks of every shape against the whole function, and the windows that they read."""

from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.moving import close, conv, follow, mean_pool, one_sentence, video
from tinyjax import blocks, compat, exact, graph, pass_skip, rewrite, threshold

# --- exactness -----------------------------------------------------------------------------------


def random_chain(seed):
    """A chain of local operations of every kind, its parameters, and a frame size.

    Whether there is a product in it comes last: without one there is nothing to skip.
    """
    rng = np.random.default_rng(seed)
    params, layers, width = {}, [], int(rng.integers(1, 4))
    channels = width
    for i in range(int(rng.integers(1, 6))):
        kind = rng.choice(["conv", "conv", "conv", "depthwise", "pool", "mean", "dot"])
        k = int(rng.choice([1, 2, 3, 3, 5]))
        stride = [(1, 1), (1, 1), (1, 1), (2, 2), (2, 1)][rng.integers(5)]
        padding = ["SAME", "SAME", "VALID", ((1, 2), (0, 1)), ((-1, 1), (2, -2))][rng.integers(5)]
        dilation = int(rng.choice([1, 1, 2])) if stride == (1, 1) else 1
        if kind in ("conv", "depthwise"):
            groups = channels if kind == "depthwise" else 1
            features = channels if kind == "depthwise" else int(rng.integers(2, 9))
            w = rng.normal(size=(k, k, channels // groups, features)) / (k * np.sqrt(channels))
            params |= {f"w{i}": w.astype(np.float32), f"b{i}": rng.normal(size=features)}
            params[f"b{i}"] = params[f"b{i}"].astype(np.float32)
            layers.append(("conv", i, dict(stride=stride, padding=padding, dilation=dilation)))
            layers[-1][2]["groups"], channels = groups, features
        elif kind == "dot":
            w = rng.normal(size=(channels, 4)) / np.sqrt(channels)
            params[f"w{i}"], channels = w.astype(np.float32), 4
            layers.append((kind, i, {}))
        else:
            layers.append((kind, i, dict(window=(3, 3), strides=stride, padding="SAME")))

    def apply(params, x):
        for kind, i, options in layers:
            if kind == "conv":
                y = conv(x, params[f"w{i}"], **options) + params[f"b{i}"]
                y = (nn.relu, nn.silu, jnp.tanh, nn.elu)[i % 4](y)
                x = x + y if x.shape == y.shape else y  # a residual where there can be one
            elif kind == "dot":
                x = x @ params[f"w{i}"]
            else:
                window = options["window"], options["strides"], options["padding"]
                x = {"pool": nn.max_pool, "mean": mean_pool}[kind](x, *window)
        return x

    size = tuple(int(s) for s in rng.integers(33, 60, 2))
    return apply, params, (*size, width), any(kind in ("conv", "dot") for kind, *_ in layers)


@pytest.mark.parametrize(
    "seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 40))]
)
def test_random_chains_equal_dense(seed):
    apply, params, shape, heavy = random_chain(seed)
    frames = video(np.random.default_rng(seed), shape)
    if not heavy:
        with pytest.raises(ValueError, match="no product of this function"):
            next(follow(apply, params, frames, patch=8))
        return
    dense, skipped = jax.jit(apply), 0
    for x, out, of_ref, state in follow(apply, params, frames, patch=8 * (1 + seed % 2)):
        np.testing.assert_array_equal(state.ref, x)
        assert close(out, of_ref, 1e-6)
        assert close(out, dense(params, x), 1e-6)
        skipped += sum(int((~a).sum()) for a in state.active)
    assert skipped > 0


def tiles_change_nothing(pairs, size):
    """Whether this machine's convolutions give a pixel the same bits in whatever window it lies."""
    rng, same = np.random.default_rng(0), True
    run = jax.jit(conv, static_argnames="padding")
    for pair in sorted(set(pairs)):
        w = jnp.asarray(rng.normal(size=(3, 3, *pair)), jnp.float32)
        x = jnp.asarray(rng.normal(size=(1, *size, pair[0])), jnp.float32)
        whole = run(x, w)
        for q in (16, 18, 20, 22, 24):
            part = run(x[:, 9 : 11 + q, 9 : 11 + q], w, padding="VALID")
            same &= bool((part == whole[:, 10 : 10 + q, 10 : 10 + q]).all())
    return same


DEEP = (1, *7 * (32,))


@pytest.mark.parametrize(
    ("widths", "size"),
    [
        ((3, 32, 32, 32, 32), (64, 64)),
        ((64, 64, 64), (50, 71)),
        pytest.param((3, 32, 32, 32, 32), (50, 71), marks=pytest.mark.slow),
        pytest.param((64, 64, 64), (64, 64), marks=pytest.mark.slow),
        pytest.param(DEEP, (64, 64), marks=pytest.mark.slow),
        pytest.param(DEEP, (50, 71), marks=pytest.mark.slow),
    ],
)
def test_chains_of_3x3_at_patch_16_are_bit_exact(widths, size, rng):
    pairs = list(pairwise(widths))
    params = [jnp.asarray(rng.normal(size=(3, 3, *pair)) / 5, jnp.float32) for pair in pairs]

    def apply(params, x):
        for w in params:
            x = nn.relu(conv(x, w) + 0.1)
        return x

    frames, exactly = video(rng, (*size, widths[0])), tiles_change_nothing(pairs, size)
    for x, out, _, _ in follow(apply, params, frames, patch=16):
        want = jax.jit(apply)(params, x)
        assert close(out, want, 0.0 if exactly else 1e-6)
    if not exactly:
        pytest.skip("equal to 1e-6: convolutions here depend on the window in the last bit")


class Encoder(nn.Module):
    """Scaled input, stem, residual with BatchNorm, pools, then what no patch can do: a head."""

    @nn.compact
    def __call__(self, x):
        x = (x - 0.5) / 0.25
        x = nn.relu(nn.Conv(8, (7, 7), strides=2)(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        y = nn.Conv(8, (3, 3))(y)
        x = nn.relu6(x + y)
        y = nn.gelu(nn.Conv(16, (3, 3), strides=2)(x))
        x = nn.Conv(16, (1, 1), strides=2)(x) + y
        return {"map": x, "class": nn.Dense(5)(x.mean((1, 2)))}


@pytest.mark.parametrize(("patch", "fuse"), [(16, False), (32, True)])
def test_an_unmodified_model_with_several_blocks_and_a_head(patch, fuse, rng):
    model = Encoder()
    frames = video(rng, (101, 130, 3), frames=6)
    variables = model.init(jax.random.key(0), frames[0])
    dense = jax.jit(model.apply)
    for x, out, _, state in follow(model.apply, variables, frames, patch=patch, fuse=fuse):
        want = dense(variables, x)
        assert close(out["map"], want["map"], 1e-6)
        assert close(out["class"], want["class"], 1e-6)
        assert fuse or len(state.active) == 5  # one for each convolution


def weights(*shapes):
    rng = np.random.default_rng(5)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def deep(p, x):
    for w in p:
        x = nn.relu(conv(x, w, 2)) if w.shape[0] == 3 else conv(x, w)
    return x


ODD = {
    # What is wider than the frame, in samples or in rows, is not of the frame.
    "more samples": (lambda p, x: conv(x, p[0]) * p[1], [(3, 3, 2, 4), (5, 1, 1, 1)], (16, 16), 4),
    "more samples, broadcast": (
        lambda p, x: conv(x, p[0]) + jnp.broadcast_to(p[1], (5, 16, 16, 4)),
        [(3, 3, 2, 4), (4,)],
        (16, 16),
        4,
    ),
    "more rows": (
        lambda p, x: x @ p[0] + jnp.broadcast_to(p[1], (1, 5, 30, 4)),
        [(2, 4), (4,)],
        (1, 30),
        1,
    ),
    # Outputs of one size and two scales cannot share cells.
    "two scales": (
        lambda p, x: (conv(x, p[0], 2), conv(x, p[1], padding=((0, -16), (0, -16)))),
        [(3, 3, 2, 4), (1, 1, 2, 3)],
        (32, 32),
        8,
    ),
    "products by position": (
        lambda p, x: lax.dot_general(conv(x, p[1]), p[0], (((3,), (1,)), ((2,), (0,)))),
        [(16, 2, 3), (3, 3, 2, 2)],
        (32, 16),
        16,
    ),
    # Windows that are larger than the frame, and grids of one row.
    "patch is the frame": (lambda p, x: conv(x, p[0]), [(3, 3, 2, 4)], (16, 16), 16),
    "hardly larger": (
        lambda p, x: conv(nn.relu(conv(x, p[0])), p[1]),
        [(3, 3, 2, 4), (3, 3, 4, 2)],
        (17, 18),
        16,
    ),
    "one row": (lambda p, x: conv(x, p[0]), [(3, 3, 2, 4)], (4, 30), 4),
    "deep": (deep, [(3, 3, 2, 4), (3, 3, 4, 4), (3, 3, 4, 4), (1, 1, 4, 4)], (128, 136), 16),
    "a constant per position": (
        lambda p, x: conv(conv(x, p[0]) + p[1], p[0][:, :, :, :2]),
        [(3, 3, 2, 2), (1, 24, 24, 1)],
        (24, 24),
        4,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_shapes_are_computed_in_full_or_right(name, rng):
    apply, shapes, size, patch = ODD[name]
    params, frames = weights(*shapes), video(rng, (*size, 2), frames=6)
    frames.insert(2, frames[0].at[0, -1, -1].add(1.0))
    for _, out, want, _ in follow(apply, params, frames, patch=patch, dense_above=1.0):
        assert all(map(lambda a, b: close(a, b, 1e-6), jax.tree.leaves(out), jax.tree.leaves(want)))


def test_the_sign_of_zero_is_no_change_and_leaves_no_trace():
    frame = jnp.zeros((1, 16, 16, 1)).at[0, 0, 0].set(1.0)
    frames = [frame, frame.at[0, 0, 3].set(-0.0), frame.at[0, 0, 3].set(-0.0).at[0, 0, 0].set(2.0)]
    apply = lambda w, x: conv(1 / x, w)
    for gate in (exact, lambda x, ref, patch: jnp.ones((4, 4), bool)):
        options = dict(patch=4, gate=gate, dense_above=1.0)
        for x, out, of_ref, state in follow(apply, jnp.ones((3, 3, 1, 1)), frames, **options):
            np.testing.assert_array_equal(state.ref, x)
            np.testing.assert_array_equal(out, of_ref)


def test_a_key_is_the_function_s_own(rng):
    (w,), frame = weights((3, 3, 2, 2)), jnp.zeros((1, 16, 16, 2))
    noisy = lambda p, x, key=None: conv(x, p) + jax.random.normal(key, ())
    with pytest.raises(ValueError, match=r"expected one frame .* bind everything else") as error:
        rewrite(pass_skip(patch=4), noisy).init(w, frame, key=jax.random.key(0))
    one_sentence(error)


def test_with_64_bit_numbers(rng):
    with jax.enable_x64(True):
        w = jnp.asarray(rng.normal(size=(3, 3, 2, 2)))
        frames = [x.astype(jnp.float64) for x in video(rng, (20, 20, 2), frames=5)]
        for gate in (exact, threshold(0.5)):
            for _, out, of_ref, _ in follow(lambda w, x: conv(x, w), w, frames, patch=4, gate=gate):
                assert out.dtype == jnp.float64
                assert close(out, of_ref, 1e-12)


# --- geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 24))]
)
def test_a_window_reads_what_its_halo_says_and_no_less(seed):
    """Everything outside a window is NaN and the cell stays finite; one row less, and it is not."""
    apply, params, shape, heavy = random_chain(seed)
    if not heavy:
        pytest.skip("nothing to compute in patches")
    size = (96, 96, shape[2])
    flat = graph.flatten(apply, params, (jnp.zeros((1, *size)),), {}, compat.CALLS | compat.CUSTOM)
    parts = blocks.divide(flat, 16)
    block, env = parts.blocks[0], blocks.begin(parts, flat.values)
    (v,) = block.ins
    index = tuple(jnp.int32(g // 2) for g in block.grid)
    (low, high), cell = block.halos[v], block.cells[v]
    starts = [int(o) - lo for o, lo in zip(blocks.corner(block, v, index), low, strict=True)]
    ends = [s + lo + c + hi for s, lo, c, hi in zip(starts, low, cell, high, strict=True)]

    run = jax.jit(lambda x: blocks.run_windows(block, {**env, v: x}, [index]))

    def probe(trim):
        x = np.full((1, *size), np.nan, np.float32)
        x[0, starts[0] + trim : ends[0], starts[1] : ends[1]] = 1.0
        return all(bool(jnp.isfinite(out).all()) for out in run(jnp.asarray(x)))

    assert probe(0)
    assert not probe(1)
