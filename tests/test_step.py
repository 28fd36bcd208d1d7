"""Transforms on unmodified train steps: every style of model, jit, scan, state, checkpoints."""

import functools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import tinyjax
from tests import networks
from tinyjax import Sited, Transform, at, attach, chain, detach, int8_qat, numerics, over_step
from tinyjax.transforms._skeleton import gain

NEAREST = int8_qat(gradient_rounding=numerics.nearest)


def counting(step):
    """A jitted step that counts how often it is traced; by its name it is the same program."""
    traces = []

    @functools.wraps(step)
    def counted(*args):
        traces.append(1)
        return step(*args)

    return jax.jit(counted), traces


def dense_case(tx=None):
    """A dense layer alone, for what a step of any network shows: it compiles in half the time."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(192, 5)) / 14, jnp.float32)
    apply = lambda params, x: x.reshape(len(x), -1) @ params["w"]
    state = train_state.TrainState.create(
        apply_fn=apply, params={"w": w}, tx=tx or optax.sgd(0.05, momentum=0.9)
    )
    return networks.Case(state, networks.plain_step)


@pytest.mark.parametrize("style", networks.CASES)
def test_unmodified_jitted_steps_train_through_a_chain_in_one_trace(rng, style):
    batch = networks.batch_of(rng)
    case = networks.CASES[style](batch)
    step, traces = counting(case.step)
    tx = chain(gain(), int8_qat())
    apply_fn = case.state.apply_fn
    state, losses = attach(tx, step, case.state, *batch), []
    traces.clear()
    lifted = tx(step)
    for _ in range(20):
        state, metrics = lifted(state, *batch)
        assert state.apply_fn is apply_fn
        losses.append(float(metrics["loss"]))
    assert len(traces) == 1
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 20
    assert all((v != 1.0).all() for v in jax.tree.leaves(state.params.sites))  # trained


@pytest.mark.parametrize("style", networks.CASES)
def test_every_gemm_of_the_step_is_int8(rng, style):
    batch = networks.batch_of(rng)
    case = networks.CASES[style](batch)
    lifted = NEAREST(jax.jit(case.step))
    text = lifted_text(lifted, case.state, *batch)
    gemms = [
        line
        for line in text.splitlines()
        if "= stablehlo.convolution" in line or "= stablehlo.dot_general" in line
    ]
    assert (
        len(gemms)
        >= 3
        * len(tinyjax.sites(*call_of(case, batch[0])[:2], batch[0], **call_of(case, batch[0])[2]))
        - 1
    )
    assert all("xi8>" in line and "xi32>" in line and "xf32>" not in line for line in gemms)


def lifted_text(lifted, state, *batch):
    return jax.jit(lambda s, *b: lifted(s, *b)).lower(state, *batch).as_text()


def call_of(case, x):
    """How a case's step calls its model."""
    state = case.state
    if case.step is networks.linen_step:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        rngs = {"dropout": jax.random.key(0)}
        return state.apply_fn, variables, {"mutable": ["batch_stats"], "rngs": rngs}
    return state.apply_fn, state.params, {}


def test_a_step_jitted_long_ago_and_a_step_that_is_not(rng):
    batch = networks.batch_of(rng)
    case = dense_case()  # one of the steps is compiled an operation at a time
    jitted = jax.jit(case.step)
    plain_state, plain = jitted(case.state, *batch)  # traced and cached before the transform
    _, quantized = NEAREST(jitted)(case.state, *batch)
    _, eager = NEAREST(case.step)(case.state, *batch)
    assert plain["loss"] != quantized["loss"]
    np.testing.assert_allclose(quantized["loss"], plain["loss"], rtol=0.02)
    np.testing.assert_allclose(eager["loss"], quantized["loss"], rtol=1e-5)
    again_state, again = jitted(case.state, *batch)  # the plain step is what it was
    assert again["loss"] == plain["loss"]
    jax.tree.map(np.testing.assert_array_equal, plain_state.params, again_state.params)


@pytest.mark.parametrize("style", ["plain", pytest.param("linen", marks=pytest.mark.slow)])
def test_inside_scan_over_batches(rng, style):
    batch = networks.batch_of(rng)
    case = networks.CASES[style](batch)
    batches = jax.tree.map(lambda b: jnp.stack([b] * 5), batch)
    tx = chain(gain(), int8_qat())
    state = attach(tx, case.step, case.state.replace(step=jnp.int32(0)), *batch)
    lifted = tx(jax.jit(case.step))

    @jax.jit
    def run(state, batches):
        return jax.lax.scan(lambda s, b: lifted(s, *b), state, batches)

    final, metrics = run(state, batches)
    loop = state
    for _ in range(5):
        loop, last = lifted(loop, *batch)
    np.testing.assert_allclose(metrics["loss"][-1], last["loss"], rtol=1e-4)
    assert int(final.step) == 5
    assert metrics["loss"][-1] < metrics["loss"][0]


def test_sharded_batch_gives_the_integers_of_one_device(rng):
    batch = networks.batch_of(rng, n=8)
    case = networks.plain_case(batch)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = NEAREST(jax.jit(case.step))
    one, _ = step(case.state, *batch)
    state = case.state.replace(params=jax.device_put(case.state.params, whole))
    two, _ = step(state, *jax.device_put(batch, split))
    # Global scales, so equal codes and equal int32 sums; the float work around them adds in
    # another order, and a gradient on the edge between two codes may take the other one.
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_vmap_over_examples_and_remat(rng):
    x, _ = networks.batch_of(rng, n=4)
    case = dense_case()
    run = tinyjax.rewrite(NEAREST, case.state.apply_fn).apply
    loss = lambda p, x: run({}, p, x[None])[0].sum()
    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(case.state.params, x)
    one = jax.jit(jax.grad(loss))(case.state.params, x[2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[2], b, rtol=1e-4, atol=1e-5), each, one)
    kept = jax.jit(jax.grad(jax.checkpoint(loss)))(case.state.params, x[2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), kept, one)


# --- attach and detach ---------------------------------------------------------------------------


def test_attach_keeps_moments_and_detach_gives_them_back(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    state, _ = jax.jit(case.step)(case.state, *batch)
    tx = chain(gain(), int8_qat())
    grown = attach(tx, case.step, state, *batch)
    assert isinstance(grown.params, Sited)
    assert grown.params.tick.tolist() == [2.0**-120, 0, 0, 0]
    trace = grown.opt_state[0].trace
    assert isinstance(trace, Sited)
    jax.tree.map(np.testing.assert_array_equal, trace.model, state.opt_state[0].trace)
    back = detach(grown)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-2),
        pytest.param(optax.adamw(1e-2), marks=pytest.mark.slow),
        optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(1e-2)),
    ],
    ids=["adam", "adamw", "chain"],
)
def test_any_optimizer_carries_the_variables(rng, optimizer, standard_promotion):
    batch = networks.batch_of(rng)
    case = dense_case(optimizer)
    tx = chain(gain(), int8_qat())
    state = attach(tx, case.step, case.state, *batch)
    step = jax.jit(tx(case.step))
    losses = []
    for _ in range(15):
        state, metrics = step(state, *batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert np.isfinite(jax.tree.leaves(detach(state).params)[0]).all()


def test_variables_survive_serialization(rng):
    batch = networks.batch_of(rng)
    case = networks.linen_case(batch)
    tx = chain(gain(), int8_qat())
    fresh = attach(tx, case.step, case.state, *batch)
    step = tx(jax.jit(case.step))
    state, _ = step(fresh, *batch)
    saved = flax.serialization.to_bytes(state.replace(key=jax.random.key_data(state.key)))
    empty = fresh.replace(key=jax.random.key_data(fresh.key))
    loaded = flax.serialization.from_bytes(empty, saved)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, state.params)
    loaded = loaded.replace(key=state.key)
    _, a = step(state, *batch)
    _, b = step(loaded, *batch)
    np.testing.assert_array_equal(a["loss"], b["loss"])


def test_variables_survive_orbax(rng, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    tx = chain(gain(), int8_qat())
    fresh = attach(tx, case.step, case.state, *batch)
    state, _ = tx(jax.jit(case.step))(fresh, *batch)
    assert state.params.sites.keys() == {"w1", "w2"}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        arrays = jax.tree.map(lambda leaf: jnp.array(leaf), fresh)
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        loaded = checkpointer.restore(tmp_path / "state", shapes)
    jax.tree.map(np.testing.assert_array_equal, loaded, state)


def test_stochastic_rounding_differs_by_step_and_is_reproducible(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    tx = int8_qat()
    state = attach(tx, case.step, case.state, *batch)
    step = tx(jax.jit(case.step))
    kernel = lambda state: np.asarray(step(state, *batch)[0].params.model["w1"])
    np.testing.assert_array_equal(kernel(state), kernel(state))
    assert (kernel(state) != kernel(state.replace(step=1))).any()


# --- refusals ------------------------------------------------------------------------------------


def test_a_step_that_never_calls_apply_fn(rng):
    batch = networks.batch_of(rng)
    case = dense_case()
    apply_fn = case.state.apply_fn
    closed = lambda state, x, y: networks.plain_step(state.replace(apply_fn=apply_fn), x, y)
    for step in (closed, jax.jit(closed)):
        with pytest.raises(ValueError, match=r"never called state\.apply_fn.*rewrite\(tx, model"):
            NEAREST(step)(case.state, *batch)
        with pytest.raises(ValueError, match=r"never called state\.apply_fn"):
            attach(NEAREST, step, case.state, *batch)


def test_a_missing_key(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    with pytest.raises(ValueError, match=r"no seed: pass key=.*attach\(tx, step, state, \*batch\)"):
        int8_qat()(jax.jit(case.step))(case.state, *batch)


def test_missing_variables_name_attach(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    with pytest.raises(ValueError, match=r"none were given: make them with state = attach"):
        gain()(jax.jit(case.step))(case.state, *batch)


def test_state_that_a_train_step_cannot_return(rng):
    def call(op, site, vars, key, x, w, epilogue, **overrides):
        return op(x, w, epilogue, **overrides), vars + 1

    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    tx = Transform(lambda site: jnp.zeros(()), call)
    state = attach(tx, case.step, case.state, *batch)
    with pytest.raises(ValueError, match=r"variables at \['w1', 'w2'\], which a train step cannot"):
        tx(jax.jit(case.step))(state, *batch)


def test_variables_that_cannot_be_trained(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    tx = Transform(lambda site: jnp.zeros((), jnp.int32), tinyjax.identity().call)
    with pytest.raises(ValueError, match=r"is int32, which cannot be trained in a train step"):
        attach(tx, case.step, case.state, *batch)


def test_attaching_twice(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    state = attach(NEAREST, case.step, case.state, *batch)
    with pytest.raises(ValueError, match=r"has variables already: call detach\(state\)"):
        attach(NEAREST, case.step, state, *batch)


def test_a_pattern_that_matches_nothing_in_the_step(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    with pytest.raises(
        ValueError, match=r"at\('Conv_9'\) matched none of the sites \['w1', 'w2'\]"
    ):
        at("Conv_9", NEAREST)(jax.jit(case.step))(case.state, *batch)


def test_over_step_is_what_calling_a_transform_does(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    _, a = over_step(NEAREST, jax.jit(case.step))(case.state, *batch)
    _, b = NEAREST(jax.jit(case.step))(case.state, *batch)
    assert a["loss"] == b["loss"]


def test_a_step_that_returns_the_state_alone(rng):
    batch = networks.batch_of(rng)
    case = dense_case()
    state = NEAREST(jax.jit(lambda s, x, y: case.step(s, x, y)[0]))(case.state, *batch)
    assert state.apply_fn is case.state.apply_fn
    assert int(state.step) == 1


# --- what a step may do to its parameters --------------------------------------------------------


def test_the_step_counter_weighs_nothing(rng):
    """A penalty over all parameters, weight decay and a norm see the model alone, at any step."""
    batch = networks.batch_of(rng)
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.clip_by_global_norm(1.0))
    state = dense_case(optimizer).state.replace(step=2**31 - 5)

    def step(state, x, y):
        def loss(params):
            penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
            return jnp.mean(state.apply_fn(params, x) ** 2) + penalty

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    plain, want = NEAREST(step)(state, *batch)
    sited, got = NEAREST(step)(attach(NEAREST, step, state, *batch), *batch)
    np.testing.assert_array_equal(got, want)
    jax.tree.map(np.testing.assert_array_equal, detach(sited).params, plain.params)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_every_step_has_its_own_bits_in_mixed_precision_too(rng, dtype):
    batch = networks.batch_of(rng)
    case = dense_case()

    def step(state, x, y):
        def loss(params):
            low = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            return jnp.mean(state.apply_fn(low, x.astype(dtype)).astype(jnp.float32) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    tx = int8_qat(bits=4)
    state = attach(tx, step, case.state, *batch)
    run = jax.jit(tx(step))
    kernels = [
        run(state.replace(step=jnp.int32(n)), *batch).params.model["w"] for n in range(70000, 70008)
    ]
    assert len({np.asarray(k, np.float32).tobytes() for k in kernels}) == 8


def test_a_precision_that_loses_the_counter_is_refused(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)

    def step(state, x, y):
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), state.params)
        return state, state.apply_fn(half, x.astype(jnp.float16))

    state = attach(int8_qat(), step, case.state, *batch)
    with pytest.raises(ValueError, match=r"casts all of state\.params to float16.*bfloat16"):
        int8_qat()(step)(state, *batch)


def test_lifting_inside_the_loop_traces_once(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    step, traces = counting(case.step)
    state = case.state
    for _ in range(4):
        state, _ = NEAREST(step)(state, *batch)
    assert len(traces) == 1


def test_static_arguments_reach_the_step(rng):
    batch = networks.batch_of(rng)
    case = dense_case()

    @functools.partial(jax.jit, static_argnums=3, static_argnames="again")
    def step(state, x, y, mode, again=False):
        assert isinstance(mode, str)
        assert isinstance(again, bool)
        return case.step(state, x, y)

    tx = int8_qat()
    shapes = (jax.ShapeDtypeStruct(b.shape, b.dtype) for b in batch)
    state = attach(tx, step, case.state, *shapes, "mean", again=True)
    state, _ = tx(step)(state, *batch, "mean", again=True)
    assert int(state.step) == 1
    counts = tinyjax.count_macs(tx(step), state, *batch, "mean", again=True)
    assert set(counts) == {"int8"}


def test_states_that_would_be_overlooked(rng):
    batch = networks.batch_of(rng)
    state = networks.plain_case(batch).state
    both = lambda first, second, x: first
    with pytest.raises(ValueError, match="takes a second train state"):
        NEAREST(both)(state, state, batch[0])
    with pytest.raises(ValueError, match=r"first argument is ArrayImpl, which has no apply_fn"):
        NEAREST(both)(batch[0], state)


def test_optimizers_that_look_parameters_up_by_name(rng):
    batch = networks.batch_of(rng)
    case = networks.plain_case(batch)
    labels = {"w1": "a", "b1": "a", "w2": "b"}
    optimizer = optax.multi_transform({"a": optax.sgd(0.1), "b": optax.sgd(0.2)}, labels)
    state = train_state.TrainState.create(
        apply_fn=case.state.apply_fn, params=case.state.params, tx=optimizer
    )
    with pytest.raises(ValueError, match=r"optimizer needs the parameters in their own structure"):
        attach(int8_qat(), case.step, state, *batch)
    state, _ = NEAREST(jax.jit(case.step))(state, *batch)
    assert int(state.step) == 1
