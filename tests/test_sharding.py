"""A batch on several devices, in one process and in two: the integers of one device."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import tinyjax
from tests import networks, sharded
from tests.numerics.test_integer_conv import CASES, codes
from tinyjax import int8_qat, numerics

NEAREST = int8_qat(gradient_rounding=numerics.nearest)
WHOLE = PartitionSpec()


def on_devices(function, mesh, batch, *whole):
    """``function(*whole, *batch)`` compiled with the batch sharded, and its result."""
    args = (
        *sharded.placed(mesh, whole, WHOLE),
        *sharded.placed(mesh, batch, sharded.BATCH),
    )
    with jax.set_mesh(mesh):
        program = jax.jit(function).lower(*args).compile()
        return program, program(*args)


def same(found, right):
    jax.tree.map(np.testing.assert_array_equal, found, right)


def only_reduces(program, *dtypes):
    found = set(sharded.collectives(program))
    assert found
    if sharded.PARTITIONED:
        assert found <= {("all-reduce", dtype) for dtype in dtypes}


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        pytest.param("conv", AxisType.Auto, id="conv-auto", marks=pytest.mark.slow),
        pytest.param("conv", AxisType.Explicit, id="conv-explicit", marks=pytest.mark.slow),
        pytest.param("dense", AxisType.Auto, id="dense-auto"),
        pytest.param("dense", AxisType.Explicit, id="dense-explicit"),
    ],
)
def test_a_step_is_that_of_one_device(net, kind):
    step, state, batch = sharded.case(net)
    one = jax.jit(step)(state, *batch)
    program, two = on_devices(step, sharded.mesh_of(kind), batch, state)
    same(sharded.kernels(two), sharded.kernels(one))
    for name in ("b1", "b2"):  # float sums over the batch: a rounding for every addition
        np.testing.assert_allclose(two.params.model[name], one.params.model[name], rtol=1e-5)
    only_reduces(program, "f32", "s32", "f32 s32")


@pytest.mark.parametrize("net", ["conv", "narrow", "dense"])
def test_codes_and_sums_of_a_layer(net):
    form, (x, w, g) = sharded.layer(net)
    run = lambda w, x, g: sharded.integers(form, x, w, g)
    program, two = on_devices(run, sharded.mesh_of(), (x, g), w)
    same(two, jax.jit(run)(w, x, g))
    assert two["dw"][0].dtype == jnp.int32
    only_reduces(program, "f32", "s32", "f32 s32")


@pytest.mark.parametrize("case", ["same", "stride", "depthwise", "groups stride", "one axis"])
def test_a_weight_gradient_exchanges_its_sums_only(rng, case):
    _, space, taps, c, f, spec = CASES[case]
    x, g = codes(rng, 4, *space, c), codes(rng, 4, *spec.out_space(space, taps), f)
    run = lambda x, g: numerics.conv_dw(x, g, spec, taps)
    program, two = on_devices(run, sharded.mesh_of(), (x, g))
    same(two, jax.jit(run)(x, g))
    only_reduces(program, "s32")


def test_a_large_batch_is_not_cut_through(rng):
    _, _, taps, c, f, spec = CASES["same"]
    x, g = codes(rng, 256, 32, 32, c), codes(rng, 256, 32, 32, f)
    run = lambda x, g: numerics.conv_dw(x, g, spec, taps)
    program, two = on_devices(run, sharded.mesh_of(), (x, g))
    assert len(two) > 1  # more than int32 holds
    same(two, jax.jit(run)(x, g))
    only_reduces(program, "s32")


# --- where "the tensor" is not the whole batch ---------------------------------------------------


@pytest.mark.parametrize("checked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_in_shard_map_a_scale_is_a_shards(rng, checked):
    x, _ = networks.batch_of(rng, n=8)
    x = x.at[:4].multiply(8.0)  # shards that differ
    case = networks.plain_case((x, None))
    run = tinyjax.rewrite(NEAREST, case.state.apply_fn).apply
    loss = lambda params, x: run({}, params, x)[0].sum()

    def shard(params, x):
        if checked:  # the type of params, the same on every device, brings the sum with it
            return jax.grad(loss)(params, x)
        return jax.tree.map(lambda g: jax.lax.psum(g, "data"), jax.grad(loss)(params, x))

    over = jax.shard_map(
        shard,
        mesh=sharded.mesh_of(),
        in_specs=(WHOLE, sharded.BATCH),
        out_specs=WHOLE,
        check_vma=checked,
    )
    found = jax.jit(over)(case.state.params, x)
    shards = [jax.jit(jax.grad(loss))(case.state.params, part) for part in (x[:4], x[4:])]
    for name, got in found.items():
        np.testing.assert_allclose(got, shards[0][name] + shards[1][name], rtol=1e-5, atol=1e-6)
    batch = jax.jit(jax.grad(loss))(case.state.params, x)
    assert np.abs(found["w1"] - batch["w1"]).max() > 1e-3  # which is not the batch's


def test_under_vmap_a_scale_is_an_examples(rng):
    form, (x, w, g) = sharded.layer("dense")
    del form, g
    run = tinyjax.rewrite(NEAREST, lambda params, x: x @ params["w"]).apply
    x = x * (2.0 ** jnp.arange(8, dtype=jnp.float32))[:, None]
    one = lambda row: run({}, {"w": w}, row[None])[0][0]
    each = jax.jit(jax.vmap(one))(x)
    alone = jax.jit(one)
    same(each, np.stack([alone(row) for row in np.asarray(x)]))
    batch = jax.jit(run)({}, {"w": w}, x)[0]
    exact = np.asarray(x) @ np.asarray(w)
    error = lambda y: np.abs(y - exact)[0].max() / np.abs(exact)[0].max()
    assert error(each) < 0.03 < error(batch)  # the smallest example, in its own scale and theirs


# --- two processes -------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


@pytest.mark.parametrize("net", ["dense", pytest.param("conv", marks=pytest.mark.slow)])
def test_two_processes_make_the_integers_of_one(tmp_path, net):
    files = [tmp_path / f"{rank}.npz" for rank in range(2)]
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_processes", port, str(file), str(rank), net],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    step, state, batch = sharded.case(net)
    form, (x, w, g) = sharded.layer(net)
    found = jax.jit(lambda x, w, g: sharded.integers(form, x, w, g))(x, w, g)
    right = sharded.whole(jax.jit(step)(state, *batch), found)
    for file in files:
        found = np.load(file)
        assert set(found) == set(right)
        for name, value in right.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
