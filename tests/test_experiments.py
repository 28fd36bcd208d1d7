"""Models, measurements, the training loop, results and the command line of the experiments."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    compare,
    data,
    demo,
    extras,
    measure,
    models,
    networks,
    octo,
    report,
    results,
    train,
)
from experiments.__main__ import main
from experiments.errors import UserError
from tests import clips
from tests.networks import initial

TINY = ("epochs=1", "batch=10", "limit=20", "model=mlp")  # compiles fast, learns nothing


def command(*words: object) -> list[str]:
    return [str(word) for word in words]


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "parameters"),
    [
        (models.SmallCnn(), (28, 28, 1), 141_130),
        (models.Vgg6(), (32, 32, 3), 1_147_978),
        (models.Mlp(), (32, 32, 3), 4_206_602),
        (models.Mlp(hidden=(8,)), (2, 2, 1), 4 * 8 + 8 + 8 * 10 + 10),
        (models.SimpleCnn(), (28, 28, 1), 433_890),
        (networks.Vgg6Bn(), (32, 32, 3), 1_148_874),
        (networks.ResNet(), (32, 32, 3), 1_227_594),
        (networks.ResNet((16, 32, 64), blocks=3), (32, 32, 3), 272_474),
        (networks.MobileNet(), (32, 32, 3), 116_458),
    ],
)
def test_models_have_the_stated_size(model, shape, parameters):
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


@pytest.mark.parametrize(
    ("size", "taps", "strides", "padding"),
    [
        ((6, 6), (3, 3), (1, 1), "SAME"),
        ((7, 6), (3, 3), (2, 2), "SAME"),
        ((7, 8), (2, 3), (1, 2), "VALID"),
        ((5, 5), (1, 1), (2, 1), [(0, 0), (0, 0)]),
        ((5, 4), (3, 2), (2, 1), [(1, 0), (2, 1)]),
    ],
)
def test_shifted_depthwise_is_the_grouped_convolution(rng, size, taps, strides, padding):
    whole = lambda *shape: jnp.asarray(rng.integers(-9, 10, shape), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")
    shifted = lambda x, w: networks.shifted_depthwise(x, w, strides, padding, lhs_dilation=(1, 1))
    grouped = lambda x, w: jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers, feature_group_count=5
    )
    x, kernel = whole(2, *size, 5), whole(*taps, 1, 5)
    g = whole(*jax.eval_shape(grouped, x, kernel).shape)

    def found(f, x, kernel, g):
        y, pull = jax.vjp(f, x, kernel)
        return y, pull(g)

    # Small whole numbers: exact in every order.
    each = [jax.jit(found, static_argnums=0)(f, x, kernel, g) for f in (shifted, grouped)]
    jax.tree.map(np.testing.assert_array_equal, *each)


def test_the_backbone_quarters_an_image_and_sees_what_it_says():
    model = models.Backbone()
    image = jnp.zeros((1, 64, 64, 3))
    variables, apply = initial(model, image), jax.jit(model.apply)
    plain = apply(variables, image)
    assert plain.shape == (1, 16, 16, 64)
    touched = apply(variables, image.at[:, 32, 32].set(1)) != plain
    rows, columns = np.nonzero(np.asarray(touched.any((0, 3))))
    reached = [i for i in range(16) if 4 * i - 10 <= 32 <= 4 * i + 16]
    assert {rows.min(), columns.min()} == {reached[0]}
    assert {rows.max(), columns.max()} == {reached[-1]}


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 5, 2)])
def test_pools_agree(shape, rng):
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    np.testing.assert_array_equal(*(jax.jit(pool)(x) for pool in POOLS))
    g = [jax.jit(jax.grad(lambda x, pool=pool: (pool(x) ** 2).sum()))(x) for pool in POOLS]
    np.testing.assert_array_equal(*g)


POOLS = (models.max_pool, models.slice_max_pool)


def test_the_pool_of_a_model_can_be_swapped():
    images = jnp.ones((2, 8, 8, 1))
    stock, swapped = (models.SmallCnn(((4,),), pool=pool) for pool in POOLS)
    variables = initial(stock, images)
    found = [jax.jit(model.apply)(variables, images) for model in (stock, swapped)]
    np.testing.assert_array_equal(*found)


# --- measurements --------------------------------------------------------------------------------


def test_saved_bytes_counts_what_is_kept_and_not_what_is_alive():
    x, w, v = jnp.ones((4, 8)), jnp.ones((8, 16)), jnp.ones((16, 2))
    # A product keeps its operands: x and w, v are alive anyway, only x @ w is new.
    product = lambda params, x: (x @ params[0] @ params[1]).sum()
    assert measure.saved_bytes(product, (w, v), x) == 4 * 16 * 4
    assert measure.saved_bytes(lambda w, x: (x @ w).sum(), w, x) == 0
    half = lambda w, x: (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).sum()
    assert measure.saved_bytes(half, w, x) == 4 * 8 * 2  # a cast copy counts
    assert measure.saved_bytes(lambda w: 3.0 * w.sum(), w) == 0


def test_temp_bytes_and_compile_seconds():
    x = jnp.ones((64, 64))
    program, seconds = measure.compiled(lambda x: jnp.sin(x @ x) @ x, x)
    assert seconds > 0
    assert measure.temp_bytes(program) >= x.nbytes


def test_a_program_may_take_over_what_is_given_away():
    x = jnp.ones((64, 64))
    program, _ = measure.compiled(lambda x: x + 1, x, donate=(0,))
    np.testing.assert_array_equal(program(x), 2)
    assert x.is_deleted()


def test_interleaved_takes_turns_after_a_warm_up():
    calls = []
    fns = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = measure.interleaved(fns, 3)
    assert calls == list("ab" * 4)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    calls.clear()
    seconds = measure.interleaved(fns, 2, calls=3)
    assert calls == list("ab" + "aaabbb" * 2)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4}
    with pytest.raises(ValueError, match=r"rounds=0, calls=1 measure nothing"):
        measure.interleaved(fns, 0)


def test_environment_is_json():
    found = json.loads(json.dumps(measure.environment()))
    assert found["jax"] == jax.__version__
    assert {"python", "jaxlib", "flax", "numpy", "cpu", "cores", "commit"} <= set(found)


# --- training ------------------------------------------------------------------------------------


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def split():
    return data.first(data.load("fashion_mnist_sample").train, 100)


def a_fit(split, folder, watch, epochs=4):
    state = train.create_state(
        Tiny(), np.zeros((1, 28, 28, 1), np.float32), learning_rate=0.1, steps=20, seed=0
    )
    test = lambda state: train.evaluate(state, split)
    return train.fit(
        train.train_step,
        state,
        split,
        test,
        epochs=epochs,
        batch=20,
        seed=3,
        folder=folder,
        watch=watch,
    )


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, split):
    steps = []

    def watch(done, standing):
        steps.append(done)
        if len(steps) == 13:  # in the middle of the third epoch of five steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_fit(split, tmp_path / "run", watch)
    steps.clear()
    resumed = a_fit(split, tmp_path / "run", lambda done, standing: steps.append(done))
    assert steps[0] == 11  # the third epoch again, the first two not
    whole = a_fit(split, None, lambda done, standing: None)
    for a, b in zip(*map(jax.tree.leaves, (resumed.state, whole.state)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [e[:4] for e in resumed.history] == [e[:4] for e in whole.history]
    assert whole.history[-1].train_loss < whole.history[0].train_loss


def test_a_finished_run_is_not_trained_again(tmp_path, split):
    first = a_fit(split, tmp_path, lambda done, standing: None, epochs=2)
    steps = []
    again = a_fit(split, tmp_path, lambda done, standing: steps.append(done), epochs=2)
    assert steps == [10]  # told once that all is done
    assert again.history == first.history


def test_a_damaged_checkpoint_is_named_with_the_cure(tmp_path, split):
    a_fit(split, tmp_path, lambda done, standing: None, epochs=1)
    for path in (tmp_path / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cannot be read .* remove .* to start over"):
        a_fit(split, tmp_path, lambda done, standing: None, epochs=2)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x.mean((1, 2)))
        return nn.Dense(10)(x)


def test_running_averages_are_trained_and_evaluated_with(rng):
    images = jnp.asarray(rng.normal(3.0, 2.0, (50, 4, 4, 2)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, 50), jnp.int32)
    state = train.create_state(Normed(), np.asarray(images), learning_rate=0.5, steps=30, seed=0)
    assert isinstance(state, train.StatisticsState)
    first = train.statistics_step(state, images, labels)[1]["loss"]
    for _ in range(20):  # the averages forget where they started by 2^-20
        state, scores = train.statistics_step(state, images, labels)
    assert scores["loss"] < first
    mean = state.batch_stats["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-5)  # float32 sums; 2^-20
    logits = state.apply_fn(
        {"params": state.params, "batch_stats": state.batch_stats}, images, train=False
    )
    right = train.cross_entropy(logits, labels)
    found = train._eval_step(state, images, labels)["loss"]
    np.testing.assert_allclose(found, right, rtol=1e-6)


def test_evaluation_weighs_a_ragged_last_piece(split):
    state = train.create_state(
        Tiny(), np.zeros((1, 28, 28, 1), np.float32), learning_rate=0.1, steps=20, seed=0
    )
    whole, pieces = (train.evaluate(state, split, batch) for batch in (100, 30))
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)  # float32 means, added in another order
    with pytest.raises(ValueError, match="no images to evaluate on"):
        train.evaluate(state, data.first(split, 0))


# --- experiments ---------------------------------------------------------------------------------


# These are the arms on the sample with other data, or the network that the ablation trains, or
# what the experiment of SGQ trains beside its own: compiling them again is slow.
SLOW = {name: pytest.mark.slow for name in octo.CONFIGS if name.endswith(("_full", "_mnist", "32"))}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW.get(name, ())) for name in octo.CONFIGS]
)
def test_every_configuration_runs(name):
    config = octo.smoke(octo.CONFIGS[name])
    if not data.available(config.dataset):
        pytest.skip(f"{config.dataset} is not in {data.folder(config.dataset)}")
    found = octo.run(config)
    assert len(found.history) == config.epochs
    assert np.isfinite(found.history[-1].train_loss)
    assert found.saved_bytes > 0
    assert found.macs.get("int8" if config.bits == 8 else "float32", 0) > 0
    assert octo.results(json.loads(json.dumps(results.plain(found)))) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "lenet"}, "model='lenet' is unknown: choose one of small_cnn"),
        ({"dataset": "cifar"}, "dataset='cifar' is unknown"),
        ({"bits": 9}, "bits=9 is not supported: choose 2 to 8, or 32"),
        ({"epochs": 0}, "epochs=0 is too small: choose 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate=nan cannot train"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        octo.Config(**changes)
    with pytest.raises(UserError, match="leaves nothing to compare"):
        compare.Config(bits=32)


def test_runs_that_differ_never_share_a_file(tmp_path):
    run = lambda folder: octo.Results((), 0, 0, 0, 0, 0, 0, {}, 0, 0, 0)
    paths = {results.once("a", octo.Config(seed=seed), tmp_path, run).path for seed in (0, 1)}
    assert len(paths) == 2
    taken = paths.pop()
    taken.write_text("{}")
    with pytest.raises(UserError, match="is not a record of this configuration: remove it"):
        [results.once("a", octo.Config(seed=seed), tmp_path, run) for seed in (0, 1)]
    taken.write_text("[")
    with pytest.raises(UserError, match=r"cannot be read .* remove it"):
        results.read(taken)


# --- the command line ----------------------------------------------------------------------------


def test_octo_writes_json_and_reuses_it(tmp_path, capsys):
    words = command("octo", "--config", "float32", "--set", *TINY, "--seed", 7, "--out", tmp_path)
    assert main(words) == 0
    (path,) = tmp_path.iterdir()  # and no checkpoints left
    record = results.read(path)
    assert record["config"]["seed"] == 7
    assert record["config"]["model"] == "mlp"
    assert record["environment"]["jax"] == jax.__version__
    assert record["command"].startswith("python -m experiments octo --config float32")
    assert "not run again" not in capsys.readouterr().out
    written = path.read_bytes()
    assert main(words) == 0
    assert "not run again" in capsys.readouterr().out
    assert path.read_bytes() == written


class Links(HTMLParser):
    """Collects whatever would make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        links = {key: value or "" for key, value in attrs if key in ("src", "href", "xlink:href")}
        self.fetched += [v for v in links.values() if not v.startswith(("data:", "#"))]
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.fetched.append(tag)


# Some parts say as much as all do, and take half the time.
@pytest.mark.parametrize(
    ("left_out", "figures"),
    [("sgq", 3 + 4), pytest.param(None, 3 + 1 + 4, marks=pytest.mark.slow)],
)
def test_demo_writes_a_self_contained_report(
    left_out, figures, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    assert list(demo.PARTS) == list(report.SECTIONS)
    configs = {name: config for name, config in demo.CONFIGS["sample"].items() if name != left_out}
    monkeypatch.setattr(demo, "CONFIGS", {"sample": configs})
    clip = clips.written(tmp_path_factory.mktemp("clip"))
    changes = ("octo.model=mlp", f"pass.video={clip}")
    words = command("demo", "--smoke", "--set", *changes, "--out", tmp_path)
    assert main(words) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["pass.mp4", "report.html", "results.json"]
    records = results.read(tmp_path / "results.json")
    assert list(records) == list(configs)
    octo = records["octo"]["metrics"]
    assert octo["summary"]["int8_share"] == 1
    assert octo["summary"]["speedup"] > 0
    assert octo["float32"]["macs"].keys() == {"float32"}
    assert len(octo["int8_seconds"]) == records["octo"]["config"]["rounds"]
    page = (tmp_path / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert links.fetched == []
    assert "url(http" not in page
    assert "@import" not in page
    assert page.count("<svg") == figures
    for record in records.values():
        assert record["command"] in page
    assert "report.html" in capsys.readouterr().out.replace("\n", "")
    assert report.page(records) == page  # of the same records, the same report


def test_an_interrupted_demo_keeps_the_parts_that_are_done(tmp_path, monkeypatch):
    done = []

    class Part:
        def __init__(self, name, stops):
            self.name, self.stops = name, stops

        def run(self, config, out, follow):
            del config, out, follow
            done.append(self.name)
            if self.stops:
                self.stops = False
                raise KeyboardInterrupt
            return octo.Results((), 0, 0, 0, 0, 0, 0, {}, 0, 0, 0)

    configs = {"a": octo.Config(seed=1), "b": octo.Config(seed=2)}
    monkeypatch.setattr(demo, "PARTS", {"a": Part("a", False), "b": Part("b", True)})
    with pytest.raises(KeyboardInterrupt):
        demo.run(configs, tmp_path)
    records = demo.run(configs, tmp_path, command="again")
    assert done == ["a", "b", "b"]
    assert [record["config"]["seed"] for record in records.values()] == [1, 2]
    assert "command" not in records["a"]
    seeds = {demo.unfinished(demo.change(configs, [], seed), tmp_path) for seed in (None, 3)}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("octo --config int9", "octo has no configuration 'int9': choose one of float32, int8"),
        ("demo --config int8", "demo has no configuration 'int8': choose one of sample, full"),
        ("demo --set epochs=3", "'epochs=3' does not say which part of the demo: write octo.epoch"),
        ("demo --set octo.epoch=3", "there is no setting 'epoch': choose one of model, dataset"),
        ("octo --set epoch=3", "there is no setting 'epoch': choose one of model, dataset, bits"),
        ("octo --set epochs=ten", "epochs='ten' is not a whole number: write one"),
        ("octo --set batch=20 learning_rate=fast", "learning_rate='fast' is not a number"),
        ("octo --set epochs", "--set 'epochs' is not of the form key=value: add the value"),
        ("octo --set epochs=1 --set bits=1", "bits=1 is not supported"),
        ("octo --seed -1", "seed=-1 is too small: choose 0 or more"),
        ("octo --set batch=100000", "batch=100000 does not fit 4000 items"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(words, message, tmp_path, capsys):
    assert main([*words.split(), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras, "importlib", SimpleNamespace(import_module=absent))
    assert main(command("demo", "--out", tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the package 'tyro', which is missing: install tinyjax[experiments]")


def test_an_unknown_experiment_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sgd"])
    assert stop.value.code == 2
    assert "octo" in capsys.readouterr().err
