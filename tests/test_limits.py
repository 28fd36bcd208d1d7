"""Limits found on frames; gates of the mean square and of the k largest moves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tinyjax
from tests.moving import close, conv, follow, one_sentence, video
from tinyjax import inner_limits, pass_skip, rewrite, root_mean_square, threshold, top_k


def deep(rng, shape):
    """Six convolutions, of which some change less than others."""
    widths = [(shape[2], 6), *[(6, 6)] * 5]
    params = [jnp.asarray(rng.normal(size=(3, 3, *w)) / 5, jnp.float32) for w in widths]

    def apply(params, x):
        for w in params:
            x = jnp.tanh(conv(x, w))
        return {"all": x, "mean": x.mean((1, 2))}

    return apply, params


def waving(rng, shape, count=6):
    """A square that moves over a background, with little noise everywhere."""
    background = rng.normal(size=(1, *shape))
    for t in range(count):
        x = background + rng.normal(size=(1, *shape)) * 0.002
        x[:, 5 : 5 + 8, 3 * t : 3 * t + 8] = 1.0
        yield jnp.asarray(x, jnp.float32)


def clip_error(skipping, apply, params, frames, limits):
    """The error over a clip, and the mean share of cells that were recomputed after frame 0."""
    state = skipping.init(params, frames[0])._replace(limits=limits)
    step, off, norm, active = jax.jit(skipping.apply), 0.0, 0.0, []
    for t, x in enumerate(frames):
        out, state = step(state, params, x)
        for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(apply(params, x)), strict=True):
            off += np.sum(np.square(np.asarray(a, np.float64) - b))
            norm += np.sum(np.square(np.asarray(b, np.float64)))
        if t:
            active.append(np.mean(np.concatenate([np.ravel(a) for a in state.active])))
    return np.sqrt(off / norm), np.mean(active)


@pytest.mark.parametrize("shape", [(48, 64, 2), (41, 55, 1)], ids=str)
def test_limits_keep_the_error_and_save_cells(shape, rng):
    apply, params = deep(rng, shape)
    frames = list(waving(rng, shape))
    skipping = rewrite(pass_skip(patch=8, fuse=False, gate=threshold(0.02), dense_above=1.0), apply)
    zero = skipping.init(params, frames[0]).limits
    found, shares = {}, []
    for tolerance in (0.01, 0.02, 0.1):
        found[tolerance] = inner_limits(skipping, apply, params, frames, tolerance=tolerance)
        error, share = clip_error(skipping, apply, params, frames, found[tolerance])
        assert error <= tolerance * 1.001
        shares.append(share)
    _, exact_share = clip_error(skipping, apply, params, frames, zero)
    assert found[0.02].shape == zero.shape
    assert found[0.02].size > 1
    assert exact_share >= shares[0] >= shares[1] >= shares[2]
    assert shares[2] < exact_share
    wanted = inner_limits(skipping, apply, params, frames, tolerance=0.02)
    np.testing.assert_array_equal(wanted, found[0.02])  # pure


def test_what_the_input_gate_alone_does_wrong_is_refused(rng):
    apply, params = deep(rng, (24, 24, 1))
    frames = [jnp.ones((1, 24, 24, 1)), jnp.ones((1, 24, 24, 1)) * 1.5]
    skipping = rewrite(pass_skip(patch=8, fuse=False, gate=threshold(1.0)), apply)
    with pytest.raises(ValueError, match=r"before any inner limit, more than 0\.001") as error:
        inner_limits(skipping, apply, params, frames, tolerance=0.001)
    one_sentence(error)


@pytest.mark.parametrize(
    ("options", "frames", "message"),
    [
        (dict(tolerance=0.0), 3, "tolerance is 0.0: use a relative error above 0"),
        (dict(tolerance=float("nan")), 3, "tolerance is nan"),
        (dict(tries=0), 3, "tries is 0: use a number of limits from 1 up"),
        ({}, 1, "there are 1 frames: give two or more"),
    ],
)
def test_bad_settings_are_refused(options, frames, message, rng):
    apply, params = deep(rng, (24, 24, 1))
    skipping = rewrite(pass_skip(patch=8), apply)
    with pytest.raises(ValueError, match=message) as error:
        inner_limits(skipping, apply, params, [jnp.ones((1, 24, 24, 1))] * frames, **options)
    one_sentence(error)


# --- root_mean_square ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (13, 18), (4, 30)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8], ids=str)
def test_root_mean_square_takes_what_moved_further_in_the_mean(size, dtype, rng):
    ref = rng.integers(0, 200, (*size, 3))
    x = ref + rng.integers(0, 9, (*size, 3)) * (rng.random((*size, 1)) < 0.1)
    cell = lambda a, i, j: a[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
    rows, cols = (math.ceil(side / 4) for side in size)
    wanted = np.zeros((rows, cols), bool)
    for i, j in np.ndindex(rows, cols):
        wanted[i, j] = np.mean((cell(x, i, j) - cell(ref, i, j)) ** 2.0) > 1.6**2
    taken = root_mean_square(1.6)(jnp.asarray(x, dtype), jnp.asarray(ref, dtype), 4)
    np.testing.assert_array_equal(taken, wanted)
    assert wanted.any()
    assert not wanted.all()


def test_root_mean_square_takes_nan_and_is_never_0():
    ref = jnp.zeros((8, 8, 1))
    x = ref.at[0, 0].set(jnp.nan).at[0, 5].set(jnp.inf)
    taken = root_mean_square(100.0)(x, ref, 4)
    assert taken.tolist() == [[True, True], [False, False]]
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"limit is {limit}: use a positive number"):
            root_mean_square(limit)


def test_the_effective_input_stays_within_the_root_mean_square(rng):
    apply, params = lambda w, x: jnp.tanh(x @ w), jnp.ones((1, 2))
    frames = np.cumsum(rng.normal(size=(12, 1, 16, 24, 1)) * 0.05, axis=0).astype(np.float32)
    took = []
    for x, out, of_ref, state in follow(apply, params, frames, patch=8, gate=root_mean_square(0.1)):
        np.testing.assert_allclose(out, of_ref, atol=1e-6)
        moved = np.square(np.asarray(x - state.ref))[0].reshape(2, 8, 3, 8).mean((1, 3))
        assert np.sqrt(moved).max() <= 0.1 * (1 + 1e-5)
        took.append(float((state.age == 0).mean()))
    assert 0 < np.mean(took[1:]) < 1


# --- top_k ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (13, 21), (8, 9), (7, 30)])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_top_k_takes_what_moved_furthest(size, count, rng):
    ref = rng.normal(size=(*size, 2)).astype(np.float32)
    x = ref + rng.normal(size=ref.shape).astype(np.float32) * (rng.random((*size, 1)) < 0.05)
    taken = np.asarray(top_k(count)(jnp.asarray(x), jnp.asarray(ref), 4))
    scores = {}
    for i, j in np.ndindex(taken.shape):
        here = np.s_[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        scores[i, j] = np.abs(x[here] - ref[here]).max()
    moved = sum(score > 0 for score in scores.values())
    assert taken.sum() == min(count, moved)
    inside = [score for at, score in scores.items() if taken[at]]
    outside = [score for at, score in scores.items() if not taken[at]]
    assert not outside or not inside or min(inside) >= max(outside)


def test_top_k_takes_nan_first_and_nothing_that_is_still(rng):
    ref = jnp.zeros((8, 8, 1))
    x = ref.at[0, 0].set(9.0).at[5, 5].set(jnp.nan)
    assert np.argwhere(top_k(1)(x, ref, 4)).tolist() == [[1, 1]]
    assert not top_k(3)(ref, ref, 4).any()
    for count in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="use a number of patches from 1 up") as error:
            tinyjax.top_k(count)
        one_sentence(error)


def test_output_under_top_k_is_dense_of_the_effective_input(rng):
    apply, params = deep(rng, (33, 47, 2))
    last = lambda params, x: apply(params, x)["all"]
    frames = video(rng, (33, 47, 2))
    for _, out, of_ref, state in follow(last, params, frames, patch=8, gate=top_k(2)):
        assert close(out, of_ref, 1e-6)
        assert int(state.frames) == 1 or int((state.age == 0).sum()) <= 2
