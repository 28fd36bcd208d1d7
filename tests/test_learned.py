"""The learned gate: its statistics, its rules, the loss that trains it, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tinyjax
from tests.moving import close, conv, follow, one_sentence, video
from tests.oracles import gating as oracle
from tests.oracles import patches
from tinyjax import gate_logits, gate_loss, gate_weights, learned, pass_skip, rewrite
from tinyjax.gate_training import computed_share, draw_skips
from tinyjax.numerics import asleep, patch_statistics


def weights_for(rng, channels=3):
    """Weights that decide this way and that."""
    weights = gate_weights(jax.random.key(int(rng.integers(1000))), channels)
    return weights._replace(bias=jnp.float32(0.1))


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((1, 1, 1), 1), ((16, 32, 3), 16), ((33, 47, 8), 16), ((30, 17, 11), 5), ((5, 64, 20), 8)],
)
def test_statistics_are_those_of_the_oracle(rng, shape, patch):
    x, ref = rng.normal(size=(2, *shape)).astype(np.float32)
    of_bytes = [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(2)]
    for pair in ((x, ref), of_bytes):
        found = patch_statistics(*map(jnp.asarray, pair), patch)
        wanted = oracle.statistics(*pair, patch)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5)  # sums of up to 768 of one sign


@pytest.mark.parametrize("shape", [(1, 1), (4, 7), (9, 2)])
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_asleep_is_that_of_the_oracle_and_so_is_its_derivative(rng, shape, reach):
    slopes = jax.jit(jax.value_and_grad(lambda skips: asleep(skips, reach).sum()))
    for share in (0.0, 0.5, 0.9, 1.0):
        skips = rng.random(shape) < share
        value, slope = slopes(jnp.asarray(skips, jnp.float32))
        assert float(value) == oracle.asleep(skips, reach).sum()
        np.testing.assert_allclose(slope, oracle.asleep_slopes(skips, reach), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reach", [0, 1])
@pytest.mark.parametrize(
    ("shape", "patch"), [((24, 32, 3), 8), ((21, 30, 2), 8), ((16, 16, 1), 16)]
)
def test_loss_is_that_of_the_oracle(rng, shape, patch, reach):
    weights, key = weights_for(rng, shape[2]), jax.random.key(1)
    w = rng.normal(size=(shape[2], 4)).astype(np.float32)
    x, ref = rng.random((2, 4, *shape)).astype(np.float32)
    ref[1] = x[1]  # a pair that says nothing
    ref[2, : shape[0] // 2] = x[2, : shape[0] // 2]
    logits = jax.vmap(lambda x, ref: gate_logits(weights, x, ref, patch))(x, ref)
    drawn = np.asarray(draw_skips(key, logits, 0.7)) > 0.5
    same = [
        ~patches.window_any(a != b, (patch,) * 2, (0, 0), (0, 0))
        for a, b in zip(x, ref, strict=True)
    ]
    skips = drawn | np.array(same)
    options = dict(patch=patch, budget=0.2, margin=0.6, weight=3.0, temperature=0.7)
    share = lambda skips: 1 - asleep(skips, reach).mean()
    loss, terms = jax.jit(
        lambda: gate_loss(weights, key, lambda x: jnp.tanh(x @ w), x, ref, share=share, **options)
    )()
    wanted = oracle.terms(
        lambda x: np.tanh(x.astype(np.float64) @ w), x, ref, skips, patch, 0.2, 0.6, 3.0, reach
    )
    for got, want in zip((loss, *terms), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert terms.positive[1] == terms.negative[1] == 0


def test_draws_have_the_probability_and_the_derivative_of_their_logits():
    draw = lambda logit: draw_skips(jax.random.key(0), jnp.full(20_000, logit), 1.0)
    for logit in (-2.0, 0.0, 1.0):
        drawn = draw(logit)
        assert set(np.unique(drawn)) == {0.0, 1.0}
        p = float(jax.nn.sigmoid(logit))
        assert abs(float(drawn.mean()) - p) < 4 * (p * (1 - p) / 20_000) ** 0.5
        # At temperature 1 the soft decision's derivative has, on average, that of a mean of
        # sigmoids over logistic noise; it is positive and no more than a quarter.
        slope = jax.grad(lambda logit: draw(logit).mean())(logit)
        assert 0.05 < slope < 0.25
    assert computed_share(jnp.ones((2, 3, 3))) == 0
    assert computed_share(jnp.zeros((2, 3, 3))) == 1


def test_equal_patches_have_only_the_budgets_derivative(rng):
    """pass.md B7.7: where nothing changed, what is skipped does not matter to the output."""
    x = jnp.asarray(rng.random((2, 32, 32, 1)), jnp.float32)
    loss = lambda w, **options: gate_loss(
        w, jax.random.key(0), jnp.sin, x, x, patch=8, budget=0.5, **options
    )
    slopes, terms = jax.jit(jax.grad(loss, has_aux=True))(weights_for(rng, 1))
    assert terms.share == 0  # by the rule, and not by the weights
    assert all((slope == 0).all() for slope in slopes)


def a_network(rng, shape=(48, 64, 3)):
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 3, shape[2], 6)) / 4, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(3, 3, 6, 4)) / 4, jnp.float32),
    }
    return lambda params, x: conv(jnp.tanh(conv(x, params["a"])), params["b"]), params, shape


def test_output_is_dense_of_the_effective_input(rng):
    apply, params, shape = a_network(rng)
    gate = learned(weights_for(rng))
    frames = [x + 0.1 * jnp.float32(i // 3) for i, x in enumerate(video(rng, shape))]
    ref = None
    for x, out, of_ref, state in follow(
        apply, params, frames, patch=16, gate=gate, dense_above=1.0
    ):
        assert close(out, of_ref, 1e-6)
        if ref is not None:
            taken = np.asarray(gate(x[0], jnp.asarray(ref), 16))
            ref = oracle.blended(np.asarray(x[0]), ref, ~taken, 16)
            np.testing.assert_array_equal(state.ref[0], ref)
        ref = np.asarray(state.ref[0])


def test_rules_stand_around_the_network(rng):
    x = jnp.asarray(rng.random((32, 48, 3)), jnp.float32)
    small, large = x.at[0, 0, 0].add(0.01), x.at[20, 20, 1].add(0.4)
    never = weights_for(rng)._replace(bias=jnp.float32(1e6))
    every = never._replace(bias=jnp.float32(-1e6))
    for weights, frame, always, wanted in (
        (every, x, 0.0, []),  # nothing changed, nothing is taken
        (every, small, 1.0, [(0, 0)]),
        (never, small, 0.1, []),
        (never, large, 0.1, [(1, 1)]),
        (never, large, np.inf, []),
        (never, x.at[3, 40, 2].set(jnp.nan), 0.1, [(0, 2)]),
        (never, x.at[3, 40, 2].set(jnp.nan), np.inf, [(0, 2)]),
        (weights_for(rng), x.at[3, 40, 2].set(jnp.nan), np.inf, [(0, 2)]),
    ):
        taken = jax.jit(learned(weights, always=always), static_argnums=2)(frame, x, 16)
        assert [tuple(place) for place in np.argwhere(taken).tolist()] == wanted


def test_weights_may_change_without_another_compilation(rng):
    apply, params, shape = a_network(rng)
    skipping = rewrite(pass_skip(patch=16, gate=learned(weights_for(rng)), dense_above=1.0), apply)
    traces = []

    @jax.jit
    def step(state, x):
        traces.append(1)
        return skipping.apply(state, params, x)[1]

    frame = jnp.asarray(rng.random((1, *shape)), jnp.float32)
    state = step(skipping.init(params, frame), frame)
    for bias, count in ((1e6, 0), (-1e6, 12)):
        weights, always = state.gate
        frame = frame + 0.1
        state = step(state._replace(gate=(weights._replace(bias=jnp.float32(bias)), always)), frame)
        assert int((state.age == 0).sum()) == count
    assert len(traces) == 1


def test_it_costs_less_than_a_hundredth_of_a_small_network():
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((128, 128, 64), (3, 3, 64, 64))
    ]
    (guarded,) = tinyjax.count_macs(lambda x, w: conv(x[None], w), *shapes).values()
    weights, logits = gate_weights(jax.random.key(0), 64), functools.partial(gate_logits, patch=16)
    gate = sum(tinyjax.count_macs(logits, weights, shapes[0], shapes[0]).values())
    assert gate == 64 * (9 * 24 * 16 + 9 * 16 * 16 + 16)  # pass.md D8: 5.8k a patch
    assert gate / guarded < 0.01


def moving_pairs(rng, count):
    """Textured frames with the noise of a sensor; in half of them one patch of 8 changes for good.

    Of the 16 patches it wakes 6.25 on average, so that a share of 0.195 is to be computed.
    """
    base = rng.random((count, 32, 32, 1))
    frames = [base.copy(), base.copy()]
    for sample in frames[0][: count // 2]:
        i, j = 8 * rng.integers(0, 4, 2)
        sample[i : i + 8, j : j + 8] = rng.random((8, 8, 1))
    noisy = [x + 0.03 * rng.normal(size=x.shape) for x in frames]
    return [jnp.asarray(x, jnp.float32) for x in noisy]


def test_it_learns_to_tell_changes_from_noise(rng):
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.float32)
    apply = lambda x: jnp.tanh(conv(x, kernel))
    optimizer = optax.adam(0.02)

    @jax.jit
    def step(weights, state, key, x, ref):
        loss = lambda w: gate_loss(w, key, apply, x, ref, patch=8, budget=0.195, unit=0.03)
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(weights)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(weights, updates), state, value

    weights = gate_weights(jax.random.key(0), 1)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        state = optimizer.init(weights)
        for key in jax.random.split(jax.random.key(1), 100):
            weights, state, _ = step(weights, state, key, *moving_pairs(rng, 16))
    x, ref = moving_pairs(rng, 40)
    gate = learned(weights, unit=0.03)
    taken = np.asarray(jax.vmap(lambda x, ref: gate(x, ref, 8))(x, ref))
    energy = np.square(np.asarray(x - ref)).reshape(40, 4, 8, 4, 8).mean((2, 4))
    moved = energy > 0.02  # noise has 2 * 0.03^2 = 0.0018
    assert taken[moved].mean() > 0.9
    assert taken[~moved].mean() < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: gate_weights(jax.random.key(0), 0), "channels is 0: use the number"),
        (lambda w: gate_weights(jax.random.key(0), 2.5), "channels is 2.5: use the number"),
        (lambda w: learned(w, unit=0.0), "unit is 0.0: use a step"),
        (lambda w: learned(w, always=-1.0), "always is -1.0: use a limit"),
        (lambda w: learned(w, always=float("nan")), "always is nan: use a limit"),
        (lambda w: learned(w)(*np.zeros((2, 16, 16, 1)), 8), "weights are for 9 statistics"),
        (lambda w: _loss(w, (2, 8, 8, 3), (1, 8, 8, 3)), "give pairs"),
        (lambda w: _loss(w, (8, 8, 3), (8, 8, 3)), "give pairs"),
        (lambda w: _loss(w, *2 * [(2, 8, 8, 3)], dtype=jnp.uint8), "of floats"),
        (lambda w: _loss(w, *2 * [(2, 8, 8, 3)], budget=2), "budget is 2: use a share"),
        (lambda w: _loss(w, *2 * [(2, 8, 8, 3)], temperature=0), "temperature is 0: use a number"),
    ],
)
def test_what_cannot_be_is_refused(rng, make, message):
    with pytest.raises(ValueError, match=message) as error:
        make(weights_for(rng))
    one_sentence(error)


def _loss(weights, *shapes, dtype=jnp.float32, budget=0.1, **options):
    frames = [jnp.zeros(shape, dtype) for shape in shapes]
    key = jax.random.key(0)
    return gate_loss(weights, key, lambda x: x, *frames, patch=8, budget=budget, **options)
