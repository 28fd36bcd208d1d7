"""pass_skip against the dense function of the effective input, on frames that move."""

import math
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tinyjax
from tests.oracles import patches as oracle
from tinyjax import blocks, compat, exact, graph, pass_skip, rewrite, static, threshold
from tinyjax.numerics import patches


def conv(x, w, stride=1, padding="SAME", dilation=1, groups=1):
    return lax.conv_general_dilated(
        x,
        w,
        stride if isinstance(stride, tuple) else (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def mean_pool(x, window, strides, padding):
    shape = [(1, *pair, 1) for pair in (window, strides)]
    return lax.reduce_window(x, 0.0, lax.add, *shape, padding) / math.prod(window)


def video(rng, shape, frames=8):
    """Frames [1, h, w, c] with moving squares that cross the borders, corners, and a cut."""
    h, w, c = shape
    background = rng.normal(size=shape).astype(np.float32)
    found = [background, background]
    for t in range(frames - 2):
        x = background.copy()
        if t % 3 != 2:
            row, col = rng.integers(-4, h), rng.integers(-4, w)
            x[max(0, row) : row + 6, max(0, col) : col + 6] = rng.normal(size=c)
        else:
            x[rng.choice([0, h - 1]), rng.choice([0, w - 1])] += 1.0  # one corner
        found.append(x)
    found[-2] = rng.normal(size=shape).astype(np.float32)  # a cut
    return [jnp.asarray(x)[None] for x in found]


def follow(apply, params, frames, dense=None, **options):
    """Runs a video; yields frame, output, the dense output of the effective input, state."""
    skipping = rewrite(pass_skip(**options), apply)
    step, dense = jax.jit(skipping.apply), jax.jit(dense or apply)
    state = skipping.init(params, frames[0])
    for x in frames:
        out, state = step(state, params, x)
        yield x, out, dense(params, state.ref), state


def close(got, want, limit):
    scale = float(np.abs(want).max())
    return float(np.abs(np.asarray(got) - np.asarray(want)).max()) <= limit * scale


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


@pytest.mark.parametrize("seed", range(20))
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


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
@pytest.mark.parametrize("widths", [(3, 32, 32, 32, 32), (64, 64, 64), (1, *7 * (32,))])
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


@pytest.mark.parametrize(("patch", "count"), [(16, 3), (32, 1)])
def test_an_unmodified_model_with_several_blocks_and_a_head(patch, count, rng):
    model = Encoder()
    frames = video(rng, (101, 130, 3), frames=6)
    variables = model.init(jax.random.key(0), frames[0])
    dense = jax.jit(model.apply)
    for x, out, _, state in follow(model.apply, variables, frames, patch=patch):
        want = dense(variables, x)
        assert close(out["map"], want["map"], 1e-6)
        assert close(out["class"], want["class"], 1e-6)
        assert len(state.active) == count


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
    skipping = rewrite(pass_skip(patch=16), apply)
    step = jax.jit(skipping.apply)
    _, state = step(skipping.init(params, frame), params, frame)
    planted = state._replace(cuts=tuple(jnp.full_like(c, 7.0) for c in state.cuts))
    out, same = step(planted, params, frame)
    assert (out == 7.0).all()
    assert not any(a.any() for a in same.active)
    out, changed = step(planted, params, frame.at[0, 24, 40].add(1.0))  # inside patch (1, 2)
    assert changed.active[0].sum() == 1
    assert changed.active[0][1, 2]
    fresh = np.asarray(out[0] != 7.0).any(-1)
    np.testing.assert_array_equal(np.argwhere(fresh).min(0), (8, 16))
    np.testing.assert_array_equal(np.argwhere(fresh).max(0), (15, 23))
    assert "while" in step.lower(state, params, frame).as_text()


def test_a_change_that_dies_out_wakes_nothing_behind_it(rng):
    params = jnp.asarray(rng.normal(size=(5, 5, 2, 2)), jnp.float32)
    apply = lambda w, x: conv(nn.relu(conv(x, w) - 1e6), w)  # the relu lets nothing through
    frame = video(rng, (64, 64, 2))[0]
    skipping = rewrite(pass_skip(patch=8), apply)
    _, state = skipping.apply(skipping.init(params, frame), params, frame)
    _, state = skipping.apply(state, params, frame.at[0, 32, 32].add(1.0))
    first, second = state.active
    assert first.any()
    assert not second.any()


def test_one_compilation_for_300_masks(rng):
    apply, params, shape = a_chain(rng)
    skipping = rewrite(pass_skip(patch=16, gate=threshold(0.1)), apply)
    traces = []

    @jax.jit
    def step(state, params, x):
        traces.append(1)
        return skipping.apply(state, params, x)

    frame = np.zeros((1, *shape), np.float32)
    state = skipping.init(params, frame)
    masks = set()
    for _ in range(300):
        rows, cols = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        frame[0, : rows + 1 : 7, cols::9] = rng.normal()
        out, state = step(state, params, jnp.asarray(frame))
        masks.add(np.asarray(state.active[0]).tobytes())
    assert len(traces) == 1
    assert len(masks) > 20
    assert close(out, jax.jit(apply)(params, state.ref), 1e-6)


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

    run = jax.jit(lambda x: blocks.run_window(block, {**env, v: x}, index))

    def probe(trim):
        x = np.full((1, *size), np.nan, np.float32)
        x[0, starts[0] + trim : ends[0], starts[1] : ends[1]] = 1.0
        return all(bool(jnp.isfinite(out).all()) for out in run(jnp.asarray(x)))

    assert probe(0)
    assert not probe(1)


# --- what is refused -----------------------------------------------------------------------------


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert not text.endswith(".")
    return text


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


def test_derivatives_are_refused_in_one_sentence(rng):
    apply, params, shape = a_chain(rng)
    frame = jnp.zeros((1, *shape))
    skipping = rewrite(pass_skip(patch=16), apply)
    state = skipping.init(params, frame)
    with pytest.raises(ValueError, match="for inference only: differentiate") as error:
        jax.grad(lambda p: skipping.apply(state, p, frame)[0].sum())(params)
    one_sentence(error)
