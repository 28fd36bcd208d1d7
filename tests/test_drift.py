"""Drift along a clip: it does not add up, it ends at key frames, and nothing grows old."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.moving import conv, one_sentence
from tests.oracles import gating as oracle
from tinyjax import drift, pass_skip, rewrite, threshold

SHAPE = (24, 32, 2)


@pytest.fixture
def network(rng):
    w = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
    return (lambda w, x: jnp.tanh(conv(x, w))), w


def followed(network, frames, **options):
    apply, w = network
    skipping = rewrite(pass_skip(patch=8, dense_above=1.0, **options), apply)
    return drift(skipping, apply, w, (jnp.asarray(x)[None] for x in frames))


def wandering(rng, count):
    """Noise on every frame, patches that change for good now and then."""
    x = rng.normal(size=SHAPE).astype(np.float32)
    for _ in range(count):
        if rng.random() < 0.5:
            i, j = 4 * rng.integers(0, 6), 4 * rng.integers(0, 8)
            x[i : i + 4, j : j + 4] += rng.normal(size=2).astype(np.float32)
        yield x + 0.03 * rng.normal(size=SHAPE).astype(np.float32)


def test_a_ramp_is_followed_for_a_thousand_frames(network, rng):
    """pass.md F.6: the last used input bounds the error, the last frame as reference does not."""
    tau, base = np.float32(0.02), rng.normal(size=SHAPE).astype(np.float32)
    frames = [base + np.float32(0.0005 * t) for t in range(1000)]
    found = followed(network, frames, gate=threshold(float(tau)))
    assert found.held_back.shape == found.error.shape == (1000,)
    assert (found.held_back <= tau).all()
    assert found.held_back.max() > 0.9 * tau  # so the bound is met and not missed
    assert found.age.max() > 20
    ref = frames[0]
    for before, x in itertools.pairwise(frames):  # takes what moved since the last frame
        moved = np.abs(x - before).reshape(3, 8, 4, 8, 2).max((1, 3, 4))
        ref = oracle.blended(x, ref, moved <= tau, 8)
    assert np.abs(frames[-1] - ref).max() > 10 * tau


def test_errors_settle_and_figures_are_those_of_the_frames(network, rng):
    found = followed(network, wandering(rng, 200), gate=threshold(0.2))
    quarters = found.quarters()
    assert 0 < quarters[3] <= 1.1 * quarters[1]
    assert found.error[0] < 1e-6
    assert found.held_back[0] == 0
    assert 0 < found.active[1:].mean() < 0.9
    assert str(found).startswith("200 frames, ")
    assert np.isclose(np.mean(quarters), found.error.mean())


def test_a_gate_that_drifts_is_seen(network, rng):
    """Half of the frame is never taken again."""
    base = rng.normal(size=SHAPE).astype(np.float32)
    half = lambda x, ref, patch: jnp.arange(12).reshape(3, 4) % 2 == 0
    found = followed(network, (base + np.float32(0.01 * t) for t in range(60)), gate=half)
    quarters = found.quarters()
    assert quarters[3] > 2 * quarters[1] > 0
    np.testing.assert_allclose(found.held_back, 0.01 * np.arange(60), atol=1e-5)
    np.testing.assert_array_equal(found.age, np.arange(60))


@pytest.mark.parametrize("every", [3, 7])
def test_key_frames_are_exact_and_refreshing_bounds_the_age(network, rng, every):
    frames = list(wandering(rng, 40))
    found = followed(network, frames, gate=threshold(10.0), key_every=every)
    keys = np.arange(40) % every == 0
    assert (found.held_back[keys] == 0).all()
    assert (found.error[keys] < 1e-6).all()
    assert (found.error[~keys] > 1e-3).all()
    found = followed(network, frames, gate=threshold(10.0), refresh_every=every)
    assert found.age.max() == math.ceil(12 / math.ceil(12 / every)) - 1 < every  # of 12 patches


def test_no_frames_are_refused(network):
    with pytest.raises(ValueError, match="there are no frames: give some") as error:
        followed(network, [])
    one_sentence(error)
