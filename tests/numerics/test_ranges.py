"""How far codes of a gradient reach, and what clipping them costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyjax import numerics

SHAPES = [(4, 5), (3, 6, 5), (2, 5, 6, 3), (1, 1), (7, 2, 1, 33)]
RANGES = {
    "fine": numerics.fine,
    "coarse": numerics.coarse,
    "shrunk": numerics.shrunk(0.95),
    "gaussian": numerics.gaussian(2.576),
    "least_angle": numerics.least_angle(),
    "shrunk coarse": numerics.shrunk(0.9, of=numerics.coarse),
}


def gradient(rng, shape):
    g = rng.normal(size=shape).astype(np.float32)
    return g, rng.uniform(0.1, 2, size=shape[-1]).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_fine_and_coarse_are_largest_magnitudes(rng, shape):
    g, s_w = gradient(rng, shape)
    folded = np.abs(g * s_w)
    rows, features = numerics.fine(jnp.asarray(g), jnp.asarray(s_w))
    np.testing.assert_array_equal(
        rows, folded.max(tuple(range(1, g.ndim)), keepdims=True), strict=True
    )
    np.testing.assert_array_equal(features, np.abs(g).max(tuple(range(g.ndim - 1))), strict=True)
    row, feature = numerics.coarse(jnp.asarray(g), jnp.asarray(s_w))
    np.testing.assert_array_equal(row, np.full((1,) * g.ndim, folded.max()), strict=True)
    np.testing.assert_array_equal(feature, [np.abs(g).max()])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RANGES)
def test_every_range_fits_its_products_and_clips_only(rng, shape, name):
    g, s_w = (jnp.asarray(a) for a in gradient(rng, shape))
    rows, features = RANGES[name](g, s_w)
    assert jnp.broadcast_shapes(rows.shape, g.shape) == g.shape
    assert jnp.broadcast_shapes(features.shape, g.shape[-1:]) == g.shape[-1:]
    assert rows.size == 1 or rows.shape == (shape[0],) + (1,) * (g.ndim - 1)
    whole, every = numerics.coarse(g, s_w)
    assert (rows > 0).all()
    assert (rows <= whole).all()
    assert (features > 0).all()
    assert (features <= every).all()


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_never_clipped_to_confident_ones(rng, name, bad):
    g, s_w = gradient(rng, (3, 4, 5))
    g[1, 2, 3] = bad
    rows, features = RANGES[name](jnp.asarray(g), jnp.asarray(s_w))
    assert not np.isfinite(rows).any()
    assert not np.isfinite(features[3 if features.size > 1 else 0])


def test_the_gaussian_bound_is_mean_and_deviation(rng):
    g = (0.3 + rng.standard_t(2, size=(64, 32))).astype(np.float32)
    _, features = numerics.gaussian(1.5)(jnp.asarray(g), jnp.ones(32))
    bound = np.abs(g.mean()) + 1.5 * g.std()
    np.testing.assert_allclose(features, np.minimum(np.abs(g).max(0), bound), rtol=1e-5)


def test_the_least_angle_is_least(rng):
    ratios = (1.0, 0.7, 0.4, 0.1)
    g = rng.standard_t(3, size=(16, 400)).astype(np.float32)
    g[0, 0] = 200  # an outlier, which few codes are left for without clipping
    chosen, _ = numerics.least_angle(ratios, of=numerics.coarse)(jnp.asarray(g), jnp.ones(400))

    def angle(ratio):
        step = np.float64(ratio * np.abs(g).max() / 127)
        coded = np.clip(np.rint(g / step), -127, 127) * step
        return 1 - (g * coded).sum() / np.sqrt((g * g).sum() * (coded * coded).sum())

    best = min(ratios, key=angle)
    np.testing.assert_allclose(chosen.item(), best * np.abs(g).max(), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", RANGES)
def test_at_any_size(rng, name, scale):
    g = rng.standard_t(2, size=(4, 50)).astype(np.float32)
    found = RANGES[name](jnp.asarray(g), jnp.ones(50))
    scaled = RANGES[name](jnp.asarray(g * np.float32(scale)), jnp.ones(50))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a * scale, b, rtol=1e-5), found, scaled)


@pytest.mark.parametrize("ratio", [0, -1, 1.01, float("nan")])
def test_ratios_are_checked(ratio):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        numerics.shrunk(ratio)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        numerics.least_angle((1.0, ratio))


def test_other_settings_are_checked():
    with pytest.raises(ValueError, match="name at least one"):
        numerics.least_angle(())
    with pytest.raises(ValueError, match="deviations above 0"):
        numerics.gaussian(0)
