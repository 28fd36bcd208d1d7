"""Integer convolutions as backends other than the CPU compute them, with the same integers."""

import jax
import numpy as np
import pytest

from tests import networks, sharded
from tests.numerics.test_integer_conv import CASES, check, codes, random_case, whole
from tests.oracles import integer as oracle
from tinyjax import attach, int8_qat, numerics

NEAREST = int8_qat(gradient_rounding=numerics.nearest)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """What is traced in these tests is what a GPU would get; it runs on the CPU all the same."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


# What these are made of is in other cases.
MIXED = (
    "large map",
    "full",
    "asymmetric",
    "dilated stride",
    "stride with rest",
    "multiplier",
    "depthwise stride",
)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if c in MIXED else ()) for c in CASES]
)
def test_equal_to_int64(rng, case):
    check(rng, *CASES[case])


@pytest.mark.parametrize("case", ["same", pytest.param("stride", marks=pytest.mark.slow)])
def test_equal_outside_jit(rng, case):
    check(rng, *CASES[case], jit=lambda f: f)


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes(seed):
    rng = np.random.default_rng(2000 + seed)
    check(rng, *random_case(rng))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_many_random_shapes(seed):
    rng = np.random.default_rng(3000 + seed)
    check(rng, *random_case(rng, most=27))


def test_contractions_that_int32_cannot_hold_are_split(rng, monkeypatch):
    monkeypatch.setattr("tinyjax.numerics.integer_ops.MAX_CONTRACTION", 40)
    _, space, taps, c, f, spec = CASES["same"]
    x, w, g = codes(rng, 3, *space, c), codes(rng, *taps, c, f), codes(rng, 3, *space, f)
    y, dx, dw = jax.jit(
        lambda x, w, g: (
            numerics.conv(x, w, spec),
            numerics.conv_dx(g, w, spec, space),
            numerics.conv_dw(x, g, spec, taps),
        )
    )(x, w, g)
    assert min(len(y), len(dx), len(dw)) > 1
    np.testing.assert_array_equal(whole(y), oracle.conv(x, w, spec))
    np.testing.assert_array_equal(whole(dx), oracle.conv_dx(g, w, spec, space))
    np.testing.assert_array_equal(whole(dw), oracle.conv_dw(x, g, spec, taps))


def test_a_step_has_dots_only_and_no_constraints(monkeypatch):
    step, state, batch = sharded.case("conv")
    text = jax.jit(lambda *args: step(*args)).lower(state, *batch).as_text()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.convolution" not in text
    assert "LayoutConstraint" not in text
    monkeypatch.undo()
    assert "stablehlo.convolution" in jax.jit(step).lower(state, *batch).as_text()


def test_a_step_has_the_same_kernels(rng, monkeypatch):
    batch = networks.batch_of(rng)
    (state, step), tx = networks.plain_case(batch), int8_qat()
    state = attach(tx, step, state, *batch)
    after = lambda: sharded.kernels(jax.jit(lambda *args: tx(step)(*args))(state, *batch)[0])
    found = after()
    monkeypatch.undo()
    jax.tree.map(np.testing.assert_array_equal, found, after())


def test_a_sharded_step_gathers_nothing(rng):
    x, y = networks.batch_of(rng, n=8)
    case = networks.plain_case((x, y))
    mesh = sharded.mesh_of()
    whole, batch = jax.sharding.PartitionSpec(), sharded.BATCH
    args = (*sharded.placed(mesh, (case.state,), whole), *sharded.placed(mesh, (x, y), batch))
    with jax.set_mesh(mesh):
        program = jax.jit(NEAREST(case.step)).lower(*args).compile()
    assert {what for what, _ in sharded.collectives(program)} == {"all-reduce"}
