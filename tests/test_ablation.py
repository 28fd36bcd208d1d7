"""The ablation: its pieces, its runs on next to nothing, what is made of their records."""

import json
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import ablation, adapt, compat, data, grids, models, normed, probe, results
from experiments import summary as summing
from experiments.__main__ import main
from experiments.errors import UserError
from experiments.rivals import RIVALS
from tinyjax import attach, int8_qat, numerics, rewrite

pytestmark = pytest.mark.usefixtures("standard_promotion")  # for optax.adam
KEY = jax.random.key(1)


class Small(nn.Module):
    """A convolution and a dense layer, one of them normed."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(4, (3, 3), padding="VALID")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Plain(nn.Module):
    """A dense layer, not normed."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.fixture
def batch(rng):
    labels = np.arange(6, dtype=np.int32) % 3
    images = rng.normal(size=(6, 6, 6, 2)).astype(np.float32) + labels[:, None, None, None]
    return images, labels


def state_of(batch, model=None):
    return normed.create_state(model or Small(), batch[0], optax.adam(1e-2), 0)


# --- the step ------------------------------------------------------------------------------------


def test_the_step_learns_and_moves_the_averages(batch):
    state = start = state_of(batch)
    losses = []
    for _ in range(5):
        state, scores = normed.normed_step(state, *batch)
        losses.append(float(scores["loss"]))
    assert losses[-1] < losses[0]
    before, after = (np.concatenate(jax.tree.leaves(s.batch_stats)) for s in (start, state))
    assert np.abs(after - before).max() > 0
    split = data.Split((batch[0] * 0).astype(np.uint8), batch[1])
    loss, accuracy = normed.evaluate(normed.scoring_step, state, split, 3)
    assert loss > 0
    assert 0 <= accuracy <= 1


def test_a_network_without_norm_takes_the_same_step(batch):
    state, _ = normed.normed_step(state_of(batch, Plain()), *batch)
    assert state.batch_stats == {}


def test_norms_of_the_small_network_keep_what_they_say():
    images = jnp.zeros((2, 28, 28, 1))
    for axes, shape in (((-1,), (30,)), ((1, 2, 3), (24, 24, 30))):
        model = models.SimpleCnn(normed=axes)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        assert variables["batch_stats"]["BatchNorm_0"]["mean"].shape == shape


# --- rivals --------------------------------------------------------------------------------------


# What these two are made of is in octo and in switchback.
PLAIN = dict.fromkeys(("per_tensor", "row_wise"), pytest.mark.slow)


@pytest.mark.parametrize("name", [pytest.param(name, marks=PLAIN.get(name, ())) for name in RIVALS])
def test_rivals_train_in_an_unedited_step(name, batch):
    # Two of them on a convolution too: it takes the others as long again to compile.
    model = Small() if name in ("octo", "switchback") else Plain()
    tx, state = RIVALS[name](), state_of(batch, model)
    ready = attach(tx, normed.normed_step, state, *batch)
    step = tx(normed.normed_step)
    losses = []
    for _ in range(4):
        ready, scores = step(ready, *batch)
        losses.append(float(scores["loss"]))
    assert losses[-1] < losses[0]


def dense_gradient(tx, x, w, g, key=KEY):
    f = lambda w: rewrite(tx, lambda p, x: x @ p).apply({}, w, x, key=key)[0]
    return jax.vjp(f, w)[1](g)[0]


@pytest.mark.slow
def test_ui8_slows_what_turns(rng):
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((64, 16), (16, 8)))
    tx = RIVALS["ui8"]()
    plain = int8_qat(
        weight_range=numerics.per_tensor,
        gradient_range=numerics.least_angle(of=numerics.coarse),
        gradient_rounding=numerics.nearest,
    )
    even = jnp.ones((64, 8), jnp.float32)
    # All but one element of this gradient are rounded away, and so it turns by 60 degrees.
    uneven = jnp.full((64, 8), 0.003).at[0, 0].set(1.0) * 1.0
    for g, slow in ((even, False), (uneven, True)):
        ratio = jnp.linalg.norm(dense_gradient(tx, x, w, g))
        ratio /= jnp.linalg.norm(dense_gradient(plain, x, w, g))
        assert (ratio < 0.99) == slow


def test_dai8_cuts_long_tails_only(rng):
    from experiments.rivals import _by_tails

    bell = rng.normal(size=5000)
    tail = rng.laplace(size=5000)
    g = jnp.asarray(np.stack([bell, tail], -1), jnp.float32)
    _, features = _by_tails(g, jnp.ones(2))
    np.testing.assert_allclose(features, jnp.abs(g).max(0) * jnp.array([1.0, 0.8]), rtol=1e-6)


# --- the release ---------------------------------------------------------------------------------


def test_the_released_scheme_has_its_defects(rng):
    t = jnp.asarray(rng.uniform(size=500), jnp.float32)
    codes, step = compat.affine(t, jnp.zeros(500))
    assert float(codes.max()) > 127  # nine bits
    # The zero point stays in the codes: what they stand for is the tensor minus its middle.
    np.testing.assert_allclose(codes * step, t - 0.5 * (t.max() + t.min()), atol=0.003)
    back, _ = compat.symmetric(compat.cut(t))
    assert float(back.max()) > 127  # a one-sided tensor leaves int8
    np.testing.assert_allclose(compat.cut(t).max(), 0.95 * t.max(), rtol=1e-6)


def test_the_released_scheme_knows_one_batch_size(batch):
    tx, state = compat.released(), state_of(batch)
    ready = attach(tx, normed.normed_step, state, *batch)
    ready, _ = tx(normed.normed_step)(ready, *batch)
    (slots,) = (own for own in ready.params.sites.values() if own != ())
    assert slots.mu.shape == (6, 4, 4, 4)
    assert float(jnp.abs(slots.mu).max()) > 0
    with pytest.raises(TypeError, match="incompatible shapes"):
        tx(normed.scoring_step)(ready, batch[0][:3], batch[1][:3])


# --- the probe -----------------------------------------------------------------------------------


def test_the_probe_sees_each_layer(batch):
    state = state_of(batch)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    forward = lambda variables, images: state.apply_fn(variables, images, train=True)[0]
    found = probe.layers(int8_qat(), {}, forward, variables, *batch)
    assert list(found) == ["params/Conv_0/kernel", "params/Dense_0/kernel"]
    for layer in found.values():
        assert 0 < layer.forward_error < 0.02
        assert min(layer.dx_cosine, layer.dw_cosine) > 0.99
    counts = found["params/Conv_0/kernel"].activation
    assert sum(counts.before) == sum(counts.after) == batch[0].size


# --- summing up ----------------------------------------------------------------------------------


def record(policy, seed, accuracy, norm=1):
    config = {"policy": policy, "norm": norm, "seed": seed, "model": "m", "dataset": "d"}
    history = [{"test_accuracy": accuracy / 2}, {"test_accuracy": accuracy}]
    metrics = {"test_accuracy": accuracy, "layers": {}, "step_ms": 1.0, "history": history}
    return {"config": config, "metrics": metrics}


def test_verdicts_follow_the_interval():
    found = {0: 0.90, 1: 0.91, 2: 0.92}
    lower = {seed: value - 0.01 for seed, value in found.items()}
    for seed, move in ((0, 0.001), (1, -0.001)):
        lower[seed] += move
    better, worse = summing.difference(found, lower), summing.difference(lower, found)
    assert (better.verdict, worse.verdict) == ("better", "worse")
    # By hand: points 0.9, 1.1, 1.0, so 1 +- 2.920 * 0.1 / sqrt(3).
    np.testing.assert_allclose([better.low, better.high], [0.8314, 1.1686], atol=1e-4)
    assert summing.difference(found, {0: 0.8, 1: 0.99, 2: 0.92}).verdict == "undecided"
    assert summing.difference({0: 0.9}, {0: 0.8, 1: 0.8}).verdict == "one seed"
    assert summing.difference({0: 0.9}, {1: 0.8}) is None


def test_arms_are_compared_within_their_norm():
    records = [
        record(policy, seed, accuracy + seed / 100, norm)
        for policy, norm, accuracy in (
            ("float32", 1, 0.9), ("int8", 1, 0.8), ("int8", 0, 0.6), ("float32", 0, 0.7),
        )
        for seed in (0, 1)
    ]  # fmt: skip
    arms = {arm.arm: arm for arm in summing.summary(records)["m on d"]}
    assert list(arms) == ["float32 bn", "int8 bn", "float32", "int8"]
    np.testing.assert_allclose(arms["int8"].to_float32.points, -10)
    assert arms["int8"].to_int8 is None
    assert arms["float32"].to_int8.verdict == "better"


def test_a_grid_continues_and_draws(tmp_path):
    ran = []

    class Out(dict):
        _asdict = lambda self: dict(self)

    def one(config, folder, follow):
        del folder, follow
        ran.append(config)
        return Out(record(config.policy, config.seed, 0.5 + config.seed / 10)["metrics"])

    configs = [
        ablation.Config(policy, seed=seed) for policy in ("float32", "int8") for seed in (0, 1)
    ]
    grids.run(one, configs[:3], tmp_path, None)
    records = grids.run(one, configs, tmp_path, None)
    assert ran == configs
    found = grids.written(records, tmp_path)
    assert found == results.read(tmp_path / "summary.json")["tasks"]
    figures = {path.stem for path in tmp_path.rglob("*.svg")}
    assert figures == {"accuracy", "convergence", "throughput"}
    with pytest.raises(UserError, match="no runs"):
        grids.run(one, [], tmp_path, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "int9"}, "policy='int9' is unknown: choose one of float32"),
        ({"model": "lenet"}, "model='lenet' is unknown"),
        ({"epochs": 0}, "epochs=0 is too small"),
        ({"tests": 20}, "batch=50 is more than limit or tests"),
        ({"policy": "released", "norm": 0}, "the released scheme is here for simple_cnn with norm"),
    ],
)
def test_impossible_runs_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ablation.Config(**changes)


def test_no_run_is_in_a_grid_twice():
    for configs in ablation.CONFIGS.values():
        assert len(set(configs)) == len(configs)


@pytest.mark.slow
def test_the_command_line_runs_a_grid(tmp_path, capsys):
    assert main(["ablation", "--smoke", "--out", str(tmp_path)]) == 0
    (arms,) = json.loads((tmp_path / "summary.json").read_text())["tasks"].values()
    assert {arm["arm"] for arm in arms} >= {"float32 bn", "released bn"}
    assert "paired by seed" in capsys.readouterr().out
    assert {path.stem for path in tmp_path.rglob("*.svg")} >= {"accuracy", "gradient_Conv_0"}


# --- adaptation ----------------------------------------------------------------------------------


def test_the_other_domain_is_turned_and_noisy():
    images = np.zeros((2, 28, 28, 1), np.uint8)
    images[:, 13:15, 2:26] = 255  # a bar across
    split = data.Split(images, np.zeros(2, np.int32))
    config = replace(adapt.Config(), angle=90.0, noise=0.0)
    turned = adapt.shifted(split, config, 1)
    np.testing.assert_allclose(turned.images[0, :, :, 0], images[0, :, :, 0].T, atol=1)
    noisy = adapt.shifted(split, replace(config, noise=0.1), 1).images.astype(float)
    assert 2 < np.abs(noisy - turned.images).mean() < 30
    again = adapt.shifted(split, replace(config, noise=0.1), 1).images
    np.testing.assert_array_equal(again, noisy)


@pytest.mark.parametrize("policy", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_adaptation_runs_and_continues(policy, tmp_path):
    (config,) = (c for c in adapt.smoke(adapt.CONFIGS["mnist"]) if c.policy == policy)
    first = adapt.run(config, tmp_path)
    again = adapt.run(config, tmp_path)
    assert again == first
    assert len(first.history) == 1
    with pytest.raises(UserError, match="has no grey images here"):
        adapt.Config(dataset="cifar10")
