"""The audit: rows, the policy that follows from times, their cache, the table.

Times are made up; one test measures, and judges nothing by it.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tinyjax
from experiments.__main__ import main
from tests.networks import CASES, Residual, batch_of
from tinyjax import (
    Site,
    alone,
    at,
    attach,
    audit,
    chain,
    count_macs,
    identity,
    int8_qat,
    numerics,
    rewrite,
    timing,
    where,
)
from tinyjax.numerics.integer_ops import MAX_CONTRACTION
from tinyjax.timing import Timing


def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def net(params, x):
    """A convolution, a jitted dense layer, one with the weight first, that same weight again."""
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.tanh(x + params["b"]).mean((1, 2))
    x = jax.jit(lambda x, w: jnp.tanh(x @ w))(x, params["inside"])
    x = (params["square"] @ x.T).T
    return x @ params["square"]


PARAMS = {
    "conv": shape(3, 3, 3, 20),
    "b": shape(20),
    "inside": shape(20, 8),
    "square": shape(8, 8),
}
IMAGES = shape(4, 6, 6, 3)
KEY = jax.eval_shape(jax.random.key, 0)
PATHS = ["conv", "inside", "square", "square#2"]


def untimed(*args, **kwargs):
    """An audit that neither measures nor keeps anything."""
    return audit(*args, measure=False, cache=None, **kwargs)


class Stopwatch:
    """Stands in for the measurement: times by the shape of the weight, float 1 ms by default."""

    def __init__(self, **int8_ms: float) -> None:
        self.int8_ms = {
            PARAMS[name].shape: taken for name, taken in int8_ms.items() if name in PARAMS
        }
        self.calls: list[tuple[Site, bool]] = []

    def __call__(self, tx, site, first, options):
        self.calls.append((site, first))
        return Timing(1.0, self.int8_ms.get(site.w.shape, 2.0))


@pytest.fixture
def timed(monkeypatch):
    """Puts a stopwatch in place of the measurement."""

    def put(**int8_ms):
        watch = Stopwatch(**int8_ms)
        monkeypatch.setattr(timing, "measure", watch)
        return watch

    return put


# --- rows ----------------------------------------------------------------------------------------


def test_every_site_has_its_row():
    rows = untimed(net, PARAMS, IMAGES).rows
    assert [row.site.path for row in rows] == PATHS
    assert [row.site for row in rows] == tinyjax.sites(net, PARAMS, IMAGES)
    assert [row.first for row in rows] == [True, False, False, False]
    assert [row.site.kind for row in rows] == ["conv", "dot", "dot", "dot"]
    forward = [4 * 36 * 20 * 27, 4 * 20 * 8, 4 * 8 * 8, 4 * 8 * 8]
    assert [row.macs for row in rows] == [
        (n, 0 if row.first else n, n) for n, row in zip(forward, rows, strict=True)
    ]
    assert [row.int8 for row in rows] == [(True, not row.first, True) for row in rows]
    assert [(row.float_ms, row.int8_ms, row.faster) for row in rows] == 4 * [(None, None, False)]


def test_arrays_and_their_shapes_give_the_same():
    arrays = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), (PARAMS, IMAGES))
    assert untimed(net, *arrays) == untimed(net, PARAMS, IMAGES)


def test_bytes_are_those_of_the_float_activation_and_of_its_codes():
    first, inside, *_ = untimed(net, PARAMS, IMAGES).rows
    # A scale of x in float32 and a uint32 seed are kept beside the codes.
    assert (first.float_bytes, first.int8_bytes) == (0, 4 * 36 * 3 + 8)
    assert (inside.float_bytes, inside.int8_bytes) == (4 * 4 * 20, 4 * 20 + 8)


@pytest.mark.parametrize(
    ("params", "x", "fun", "first"),
    [
        ({"w": shape(3, 3)}, shape(2, 3), lambda p, x: jnp.tanh(x) @ p["w"], True),
        ({"w": shape(3, 3), "b": shape(3)}, shape(2, 3), lambda p, x: (x + p["b"]) @ p["w"], False),
        # What indexes is not differentiated; what is looked up is.
        ({"w": shape(3, 3)}, shape(2, 3), lambda p, x: (x > p["w"][0]).astype("f4") @ p["w"], True),
        (
            {"table": shape(7, 3), "w": shape(3, 3)},
            shape(2, dtype=jnp.int32),
            lambda p, x: p["table"][x] @ p["w"],
            False,
        ),
        ({"w": shape(3, 3)}, shape(2, 3), jax.checkpoint(lambda p, x: x @ p["w"]), True),
        (
            {"w": shape(3, 3), "b": shape(3)},
            shape(2, 3),
            lambda p, x: jax.checkpoint(lambda w, y: y @ w)(p["w"], x * p["b"]),
            False,
        ),
    ],
)
def test_a_site_is_first_where_no_parameter_is_behind_its_input(params, x, fun, first):
    (row,) = untimed(fun, params, x).rows
    assert row.first == first
    assert row.macs.dx == (0 if first else row.macs.y)


@pytest.mark.parametrize("remat", [False, True])
def test_a_linen_model_in_training(remat):
    model, images = Residual(remat=remat), shape(2, 8, 8, 3)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), KEY, images)
    found = untimed(
        model.apply, variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    assert [row.site.path.split("/")[1] for row in found.rows] == ["stem", "Conv_0", "Dense_0"]
    assert [row.first for row in found.rows] == [True, False, False]
    assert found.int8_share == 1.0


def test_a_first_site_runs_no_input_gradient():
    (row, *_) = untimed(net, PARAMS, IMAGES).rows
    for tx in (None, int8_qat()):
        outs = [
            jax.eval_shape(alone.step(tx, row.site, first), *alone.operands(row.site))
            for first in (True, False)
        ]
        assert [[t.shape for t in out] for out in outs] == [
            [row.site.out.shape, row.site.w.shape],
            [row.site.out.shape, row.site.w.shape, row.site.x.shape],
        ]


def test_sites_a_transform_leaves_out_stay_float(timed):
    watch = timed(inside=0.5)
    found = audit(net, PARAMS, IMAGES, tx=at("inside", int8_qat()), cache=None)
    assert [any(row.int8) for row in found.rows] == [False, True, False, False]
    assert [row.int8_bytes < row.float_bytes for row in found.rows] == [False, True, False, False]
    assert [site.path for site, _ in watch.calls] == ["inside"]
    assert [row.faster for row in found.rows] == [False, True, False, False]
    with pytest.raises(ValueError, match="matched none of the sites"):
        untimed(net, PARAMS, IMAGES, tx=at("elsewhere", int8_qat()))


def test_float_products_are_told_from_int8_ones():
    def call(op, site, vars, key, x, w, epilogue, **overrides):
        """int8 forward, float backward."""

        @jax.custom_vjp
        def product(x, w):
            z = op(x.astype(jnp.int8), w.astype(jnp.int8), preferred_element_type=jnp.int32)
            return z.astype(jnp.float32)

        product.defvjp(
            lambda x, w: (product(x, w), (x, w)), lambda kept, g: jax.vjp(op, *kept)[1](g)
        )
        return product(x, w), vars

    mixed = tinyjax.Transform(lambda site: (), call)
    assert {row.int8 for row in untimed(net, PARAMS, IMAGES, tx=mixed).rows[1:]} == {
        (True, False, False)
    }
    assert not any(any(row.int8) for row in untimed(net, PARAMS, IMAGES, tx=identity()).rows)


def test_depthwise_products_count_as_int8():
    def apply(w, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=6
        )

    (row,) = untimed(apply, shape(3, 3, 1, 6), shape(2, 8, 8, 6)).rows
    assert row.int8 == (True, False, True)
    assert row.contractions == (9, 9, 2 * 4 * 4)


@pytest.mark.parametrize(
    "tx", [int8_qat(), at("inside", int8_qat()), chain(at("square*", int8_qat(bits=4)))]
)
def test_the_share_in_int8_is_that_of_count_macs(tx):
    def loss(params, x, key):
        y, _ = rewrite(tx, attended).apply({}, params, x, key=key)
        return y.sum()

    def attended(params, x):  # with products that are no sites
        y = net(params, x * params["b"][:3])
        return jax.nn.softmax(y @ y.T) @ y

    counted = count_macs(jax.grad(loss), PARAMS, IMAGES, KEY)
    found = untimed(attended, PARAMS, IMAGES, tx=tx)
    assert found.int8_share == pytest.approx(
        counted["int8"] / sum(counted.values()), rel=0, abs=1e-12
    )
    assert 0 < found.int8_share < 1
    assert found.macs == sum(counted.values())


# --- int32 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "n"), [(3 * MAX_CONTRACTION, 5, 4), (2, 133_145, 300_000)])
def test_long_sums_of_dots_are_split(m, k, n):
    (row,) = untimed(lambda w, x: x @ w, shape(k, n), shape(m, k)).rows
    assert row.contractions == (k, n, m)
    assert row.parts == tuple(-(-size // MAX_CONTRACTION) for size in (k, n, m))
    assert max(row.sums) <= MAX_CONTRACTION
    assert f"adds up {max(row.sums)} products" in str(
        untimed(lambda w, x: x @ w, row.site.w, row.site.x)
    )


def test_long_sums_of_convolutions_are_split():
    def apply(w, x):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    (row,) = untimed(apply, shape(3, 3, 15_000, 20), shape(300, 32, 32, 15_000)).rows
    assert row.contractions == (9 * 15_000, 9 * 20, 300 * 32 * 32)
    assert row.parts == (2, 1, 3)
    assert max(row.sums) <= MAX_CONTRACTION


def test_batched_dots_sum_within_an_example():
    def apply(w, x):
        return jnp.einsum("bmk,bkn->bmn", x, w)

    (row,) = untimed(apply, shape(7, 3, 5), shape(7, 4, 3)).rows
    assert row.contractions == (3, 5, 4)


# --- the policy ----------------------------------------------------------------------------------


def test_the_policy_takes_what_was_measured_faster(timed):
    timed(conv=0.9, inside=0.98, square=1.5)
    found = audit(net, PARAMS, IMAGES, cache=None)
    assert [found.policy(row.site) for row in found.rows] == [True, False, False, False]
    tx = found.choose(int8_qat(gradient_rounding=numerics.nearest))
    forward = lambda p, x: rewrite(tx, net).apply({}, p, x)[0]
    int8 = 4 * 36 * 20 * 27
    assert count_macs(forward, PARAMS, IMAGES)["int8"] == int8
    through = rewrite(where(found.policy, int8_qat()), net)
    assert count_macs(lambda p, x: through.apply({}, p, x)[0], PARAMS, IMAGES)["int8"] == int8


def test_where_nothing_is_faster_nothing_is_chosen(timed):
    timed()
    found = audit(net, PARAMS, IMAGES, cache=None)
    plain = rewrite(found.choose(int8_qat()), net)
    assert set(count_macs(lambda p, x: plain.apply({}, p, x)[0], PARAMS, IMAGES)) == {"float32"}
    through = rewrite(where(found.policy, int8_qat()), net)
    with pytest.raises(ValueError, match=r"where\(policy\) matched none of the sites \['conv'"):
        through.init(PARAMS, IMAGES)


def test_a_policy_lifts_a_step(timed, rng):
    batch = batch_of(rng)
    state, step = CASES["plain"](batch)
    timed()
    found = audit(state.apply_fn, state.params, batch[0], cache=None)
    assert [row.site.path for row in found.rows] == ["w1", "w2"]
    for tx in (found.choose(int8_qat()), at("w1", int8_qat())):
        ready = attach(tx, step, state, *batch)
        _, scores = jax.jit(tx(step))(ready, *batch)
        assert np.isfinite(scores["loss"])


def test_sites_in_loops_are_not_advised():
    def apply(params, x):
        y, _ = jax.lax.scan(lambda y, _: (jnp.tanh(y @ params["loop"]), None), x, length=3)
        return y @ params["w"]

    found = untimed(apply, {"loop": shape(4, 4), "w": shape(4, 4)}, shape(2, 4))
    assert [row.site.path for row in found.rows] == ["w"]
    assert found.macs == 3 * (3 + 1) * 2 * 4 * 4
    assert found.int8_share == 0.25
    assert "no sites" in str(found)


# --- the cache -----------------------------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(timed, tmp_path):
    watch = timed(inside=0.25)
    first = audit(net, PARAMS, IMAGES, cache=tmp_path)
    assert [site.path for site, _ in watch.calls] == PATHS
    assert [is_first for _, is_first in watch.calls] == [True, False, False, False]
    again = timed()
    assert audit(net, PARAMS, IMAGES, cache=tmp_path) == first
    assert audit(net, PARAMS, IMAGES, cache=tmp_path, measure=False) == first
    assert again.calls == []
    assert untimed(net, PARAMS, IMAGES).rows[1].int8_ms is None
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert content["machine"]["jax"] == jax.__version__
    assert len(content["timings"]) == len(PATHS)


@pytest.mark.parametrize(
    "changes",
    [
        {"tx": int8_qat(bits=4)},
        {"tx": int8_qat(gradient_rounding=numerics.nearest)},
        {"compiler_options": {"xla_cpu_enable_fast_math": True}},
    ],
)
def test_what_computes_differently_is_measured_anew(changes, timed, tmp_path):
    watch = timed()
    for settings in ({}, changes, {}, changes):
        audit(lambda w, x: x @ w, shape(8, 8), shape(4, 8), cache=tmp_path, **settings)
    assert len(watch.calls) == 2


def test_the_same_shapes_are_measured_once(timed):
    watch = timed()
    params = {name: shape(8, 8) for name in "abc"}
    found = audit(lambda p, x: x @ p["a"] @ p["b"] @ p["c"], params, shape(4, 8), cache=None)
    assert [(site.path, first) for site, first in watch.calls] == [("a", True), ("b", False)]
    assert [row.int8_ms for row in found.rows] == 3 * [2.0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"timings": 3}',
        lambda text: '{"timings": {"a": 3}}',
        lambda text: "\x00",
        lambda text: re.sub(r"2\.0", "NaN", text),
        lambda text: re.sub(r"2\.0", "-1.0", text),
        lambda text: re.sub(r"2\.0", '"fast"', text),
    ],
)
def test_a_damaged_file_is_measured_anew(damage, timed, tmp_path):
    dense = lambda w, x: x @ w
    timed()
    found = audit(dense, shape(8, 8), shape(4, 8), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(damage(path.read_text()))
    again = timed()
    assert audit(dense, shape(8, 8), shape(4, 8), cache=tmp_path) == found
    assert len(again.calls) == 1
    assert len(timing.load(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_costs_a_warning(timed, tmp_path):
    watch = timed()
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.warns(UserWarning, match="times are not kept .*: pass cache=None"):
        audit(lambda w, x: x @ w, shape(8, 8), shape(4, 8), cache=taken)
    assert len(watch.calls) == 1


def test_other_machines_have_their_own_file(timed, tmp_path, monkeypatch):
    watch = timed()
    for flags in ("", "--xla_cpu_enable_fast_math=true"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        audit(lambda w, x: x @ w, shape(8, 8), shape(4, 8), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(watch.calls) == 2


# --- the rest ------------------------------------------------------------------------------------


def test_a_real_measurement_gives_times():
    (row,) = audit(lambda w, x: x @ w, shape(16, 8), shape(4, 16), cache=None).rows
    assert row.float_ms > 0
    assert row.int8_ms > 0


def test_the_table_is_aligned_and_has_units(timed):
    timed(inside=0.5)
    lines = str(audit(net, PARAMS, IMAGES, cache=None)).splitlines()
    assert max(map(len, lines)) <= 100
    heads = ("MMAC", "kept kB", "ms", "int32", "int8")
    assert all(head in lines[0] for head in heads)
    table = dict(zip(("head", "units", "rule", *PATHS), lines, strict=False))
    assert len({len(table[path]) for path in PATHS}) == 1
    assert table["inside"].split()[-6:] == ["0.50", "2.00x", "1", "1", "1", "yes"]
    assert table["conv"].split()[-7:] == ["1.00", "2.00", "0.50x", "1", "1", "1", "no"]
    assert lines[8].startswith("total")
    assert "faster at 1 of 4 sites" in lines[-2]
    long = {"a" * 60: shape(3, 3)}
    (line,) = [
        t
        for t in str(untimed(lambda p, x: x @ p["a" * 60], long, shape(2, 3))).splitlines()
        if "…" in t
    ]
    assert len(line) <= 100


def test_an_argument_with_the_name_of_ours_is_refused(timed):
    def apply(params, x, cache=None, tx=None):
        return x @ params["w"]

    params, x = {"w": shape(3, 3)}, shape(2, 3)
    timed()
    assert len(audit(lambda p, x: apply(p, x, cache=None), params, x, cache=None).rows) == 1
    with pytest.raises(ValueError, match=r"cache=... is the audit's, but the function has a cache"):
        audit(apply, params, x, cache=None)
    with pytest.raises(ValueError, match="no parameter meets an activation"):
        untimed(lambda p, x: x, params, x)


def test_the_experiment_writes_json_and_prints_the_table(timed, tmp_path, capsys):
    timed()
    words = ["audit", "--config", "simple_cnn", "--smoke", "--out", str(tmp_path)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["table"] in shown
    assert [site["path"] for site in metrics["sites"]] == [
        f"params/{name}/kernel" for name in ("Conv_0", "Dense_0", "Dense_1")
    ]
    assert metrics["sites"][0]["macs"]["dx"] == 0
    assert (metrics["int8_share"], metrics["faster"]) == (1.0, [])
    assert main([*words, "--set", "fusion=some"]) == 2
    assert main([*words, "--seed", "1"]) == 2
    assert "there is no setting 'seed'" in capsys.readouterr().err
