"""describe against the traced program and the multiply-accumulates of the network itself."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import turns
from experiments.encoders import MobileNetEncoder, ResNetEncoder, UNet
from experiments.models import Backbone
from tests.moving import one_sentence
from tinyjax import count_macs, describe, int8_qat, pass_skip, rewrite

CASES = {
    "backbone": (Backbone(), (96, 128), 16),
    "resnet": (ResNetEncoder(), (128, 128), 16),
    "mobilenet": (MobileNetEncoder(), (96, 128), 16),
    "unet": (UNet(), (64, 96), 16),
}


@pytest.mark.parametrize(
    ("name", "fuse"),
    [
        ("backbone", True),
        ("backbone", False),
        ("unet", True),
        ("mobilenet", False),
        pytest.param("unet", False, marks=pytest.mark.slow),
        pytest.param("mobilenet", True, marks=pytest.mark.slow),
        pytest.param("resnet", True, marks=pytest.mark.slow),
        pytest.param("resnet", False, marks=pytest.mark.slow),
    ],
)
def test_it_is_what_the_program_does(name, fuse):
    model, size, patch = CASES[name]
    frame = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), frame)
    tx = pass_skip(patch=patch, fuse=fuse)
    found = describe(tx, model.apply, params, frame)
    skipping = rewrite(tx, model.apply)
    fresh = functools.partial(jax.eval_shape, skipping.init, params, frame)
    costs = turns.costs(skipping, fresh, params, frame)  # counted in the trace
    assert [(b.macs, b.cell_macs) for b in found.blocks] == costs.blocks
    assert found.macs_in_full == costs.tail
    assert [block.grid for block in found.blocks] == [cells.shape for cells in fresh().active]
    (total,) = count_macs(model.apply, params, frame).values()
    assert sum(block.macs for block in found.blocks) + found.macs_in_full == total
    paths = [path for block in found.blocks for path in block.products]
    kernels = jax.tree_util.tree_leaves_with_path(params["params"])
    in_full = found.in_full.get("conv_general_dilated", 0)
    assert len(paths) + in_full == sum(leaf.ndim == 4 for _, leaf in kernels)
    assert len(set(paths)) == len(paths)
    for block in found.blocks:
        sides = zip(block.size, block.cell, block.grid, strict=True)
        assert all(math.ceil(size / cell) == count for size, cell, count in sides)
        assert math.prod(block.grid) * block.cell_macs >= block.macs
        assert 0 < block.break_even <= 1
        assert fuse or len(block.products) == 1
    text = str(found)
    assert f"{total:,} MACs" in text
    assert all(path in text for path in paths)
    assert len(text.splitlines()) == 4 + 2 * len(found.blocks)
    assert f"{found.break_even:.0%} of the cells" in text


def test_halos_are_those_of_the_convolutions():
    apply = lambda w, x: jnp.tanh(_conv(jnp.tanh(_conv(x, w["a"], 2)), w["b"], 1))
    w = {"a": np.zeros((5, 5, 3, 32), np.float32), "b": np.zeros((3, 3, 32, 32), np.float32)}
    found = describe(
        pass_skip(patch=16, fuse=False), apply, w, np.zeros((1, 64, 96, 3), np.float32)
    )
    first, second = found.blocks
    assert (first.low, first.high) == ((1, 1), (2, 2))  # SAME with a stride of 2
    assert (second.low, second.high) == ((1, 1), (1, 1))
    assert (first.size, first.cell, first.grid) == ((32, 48), (8, 8), (4, 6))


def _conv(x, w, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=numbers)


def test_what_is_in_full_is_named():
    def apply(w, x):
        x = nn.relu(_conv(x, w["a"], 1))
        return x.mean((1, 2)) @ w["b"]

    w = {"a": np.zeros((3, 3, 3, 8), np.float32), "b": np.zeros((8, 5), np.float32)}
    found = describe(pass_skip(patch=8), apply, w, np.zeros((1, 32, 32, 3), np.float32))
    assert found.macs_in_full == 40
    assert found.in_full["dot_general"] == found.in_full["reduce_sum"] == 1
    assert "1 dot_general" in str(found)


def test_what_cannot_be_described_is_refused():
    frame = np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(ValueError, match="works on sites: give pass_skip") as error:
        describe(int8_qat(), lambda w, x: x * w, np.float32(1), frame)
    one_sentence(error)
    with pytest.raises(ValueError, match="no product of this function"):
        describe(pass_skip(patch=8), lambda w, x: x * w, np.float32(1), frame)
