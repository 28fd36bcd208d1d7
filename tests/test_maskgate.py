"""The released gate: what pass.md says of it, and of the learned gate's place, held as tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.maskgate import MaskGate, blended, draw, normalized, released
from tests.moving import close, conv, follow, one_sentence
from tests.oracles import gating as oracle
from tinyjax import count_macs


def costs(channels, side, patch=4):
    """Multiply-accumulates of the gate and of the 3x3 convolution, and the gate's parameters."""
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
    model = MaskGate(patch)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, x)
    gate = sum(count_macs(model.apply, variables, x, x).values())
    params = sum(a.size for a in jax.tree.leaves(variables["params"]))
    return gate, sum(count_macs(conv, x, w).values()), params


@pytest.mark.parametrize(
    ("channels", "side", "ratio", "millions"),
    [(32, 128, 4.15, 5.9), (64, 128, 1.48, 6.1), (128, 64, 0.59, 3.5), (256, 32, 0.26, 3.8)],
)
def test_it_costs_more_than_narrow_convolutions(channels, side, ratio, millions):
    gate, guarded, params = costs(channels, side)
    positions, patches = side**2, (side // 4) ** 2
    mixed = 4 * (81 * 256 + 256**2) * patches
    assert gate == 2 * 16 * channels * 256 * patches + mixed + 256 * 4096 + 4096 * patches
    assert guarded == 9 * channels**2 * positions
    assert abs(gate / guarded - ratio) < 0.006
    assert abs(params / 1e6 - millions) < 0.06


def test_density_of_skips_at_the_start():
    """0.275 in training and 0.5 in tests, for 1024 patches of flat logits (pass.md B7.5)."""
    keys = jax.random.split(jax.random.key(0), 64)
    flat = jnp.zeros((1, 32, 32))
    train = jax.vmap(lambda key: draw(flat, key).mean())(keys)
    assert abs(float(train.mean()) - 0.275) < 0.02
    assert 0.02 < float(train.std()) < 0.06
    nearly = lambda key: draw(1e-3 * jax.random.normal(key, flat.shape)).mean()
    test = jax.vmap(nearly)(keys)
    assert abs(float(test.mean()) - 0.5) < 0.05
    assert 0.05 < float(test.std()) < 0.15
    assert np.isnan(normalized(flat)).all()  # 0 / 0


@pytest.fixture(scope="module")
def gate():
    """A small one, of the same build, and frames of 16x16 patches."""
    model, shape = MaskGate(4, features=32, depth=2, hidden=64), (1, 64, 64, 2)
    x, ref = jax.random.uniform(jax.random.key(1), (2, *shape))
    return model, jax.jit(model.init)(jax.random.key(0), x, ref), x, ref


def test_density_of_initialized_gates(gate):
    """0.50 in tests, which one draw misses by 0.1 as often as not: so over several starts."""
    model, _, x, ref = gate
    start = lambda key: draw(model.init_with_output(key, x, ref)[0]).mean()
    densities = jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(3), 24))
    assert abs(float(densities.mean()) - 0.5) < 0.1


def test_it_never_skips_all_or_nothing_whatever_the_frames(gate):
    model, variables, x, _ = gate
    for frame, ref in ((x, x), (x, 1 - x), (0 * x, 0 * x)):
        skips = draw(model.apply(variables, frame, ref))
        assert 0 < float(skips.mean()) < 1


def test_where_something_moved_does_not_reach_the_head(gate):
    """The mean over positions: a change in one corner or the other is nearly the same to it."""
    model, variables, x, _ = gate
    still = jnp.full_like(x, 0.5)
    at = lambda row, col: model.apply(
        variables, still.at[:, row : row + 4, col : col + 4].set(1.0), still
    )
    inside = at(28, 28), at(32, 32)  # as far from every border, but for a patch
    scale = float(jnp.abs(inside[0] - model.apply(variables, still, still)).max())
    assert scale > 0
    assert float(jnp.abs(inside[0] - inside[1]).max()) < 0.2 * scale


def test_blends_are_complements_and_draws_have_the_gradient_of_the_range(gate):
    model, variables, x, ref = gate
    logits = model.apply(variables, x, ref)
    skips = draw(logits)
    positive, negative = blended(x, ref, skips)
    wanted = oracle.blended(np.asarray(x[0]), np.asarray(ref[0]), np.asarray(skips[0]) > 0.5, 4)
    np.testing.assert_array_equal(positive[0], wanted)
    np.testing.assert_allclose(positive + negative, x + ref, rtol=1e-6)
    total = lambda draw: jax.grad(lambda logits: (draw(logits) * x[:, ::4, ::4, 0]).sum())(logits)
    np.testing.assert_allclose(total(draw), total(normalized), rtol=1e-5)


def test_in_pass_skip_the_output_is_that_of_the_effective_input(gate):
    model, variables, x, ref = gate
    w = jax.random.normal(jax.random.key(2), (3, 3, 2, 4))
    options = dict(patch=4, gate=released(model, variables), dense_above=1.0)
    frames, shares = [x, ref, x, x], []
    for _, out, of_ref, state in follow(lambda w, x: jnp.tanh(conv(x, w)), w, frames, **options):
        assert close(out, of_ref, 1e-6)
        shares.append(float((state.age == 0).mean()))
    assert all(0.3 < share < 0.7 for share in shares[1:])  # the last one, of a frame that stands
    with pytest.raises(ValueError, match="patch is 8, and the gate's 4") as error:
        released(model, variables)(x[0], ref[0], 8)
    one_sentence(error)


def test_the_derivative_dies_where_frames_are_equal(gate):
    """B7.7: on equal patches the released loss has no derivative, so nothing tells it to skip."""
    model, variables, x, _ = gate
    logits = model.apply(variables, x, 0.9 * x)
    loss = lambda logits: sum(jnp.sum(a**2) for a in blended(x, x, draw(logits)))
    assert float(jnp.abs(jax.grad(loss)(logits)).max()) < 1e-4 * float((x**2).sum())
