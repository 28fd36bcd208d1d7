"""The three phases of pixels, and sums over neighbours, against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import features as oracle
from tinyjax.numerics import lattice

SIZES = [(1, 1), (1, 6), (5, 1), (2, 2), (3, 4), (4, 3), (7, 7)]


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_parts_are_joined_again(rng, h, w):
    planes = jnp.asarray(rng.integers(0, 16, (3, 2, h, w)), jnp.uint8)
    parts = lattice.split(planes)
    np.testing.assert_array_equal(lattice.joined(parts), planes)
    pixels = lattice.phases(parts)
    assert sum(p.shape[1] for p in pixels) == 2 * h * w
    assert [p.shape[0] for p in pixels] == [3, 3, 3]


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_sums_equal_the_oracle(rng, h, w):
    planes = rng.integers(0, 16, (1, 2, h, w))
    parts = lattice.split(jnp.asarray(planes, jnp.uint8))
    around = np.moveaxis(planes, 0, -1)

    def sums(offsets):
        return [
            [oracle._around(around, i, y, x, 0, offsets) for y in range(h) for x in range(w)]
            for i in range(2)
        ]

    found = lattice.joined(lattice.neighbour_sums(parts))
    np.testing.assert_array_equal(found[0].reshape(2, -1), sums(oracle.DIRECT))
    diagonal = lattice.own_sums(parts.ee, None, h, w)[0]
    want = np.reshape(sums(oracle.DIAGONAL), (2, h, w))[:, 1::2, 1::2]
    np.testing.assert_array_equal(diagonal[0], want)


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 3), (2, 4, 5, 3), (2, 3, 4, 5, 2)])
def test_planes_of_any_space(rng, shape):
    x = rng.integers(0, 99, shape)
    planes = lattice.to_planes(jnp.asarray(x))
    assert planes.shape == lattice.plane_shape(shape)
    np.testing.assert_array_equal(lattice.from_planes(planes, shape), x)


def test_features_have_channels():
    with pytest.raises(ValueError, match="no channels"):
        lattice.plane_shape((3,))
