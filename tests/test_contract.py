"""What every transform owes its users, on the same small network. Add new transforms to CASES."""

import functools
import inspect
from typing import Any, NamedTuple

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tinyjax
from tests import networks
from tinyjax import (
    Transform,
    at,
    attach,
    bias,
    chain,
    compensate,
    detach,
    global_step,
    identity,
    int8_qat,
    numerics,
    pass_skip,
    rewrite,
    send,
    sgq,
    shifted,
    spatial,
    static,
    stripe_groups,
    threshold,
    top_k,
    where,
    zero_point,
)
from tinyjax.transforms._skeleton import gain


class Case(NamedTuple):
    """A transform, how far its output may be from the plain one, and whether it takes a key."""

    tx: Transform
    error: float  # of the largest output, relative
    key: Any = None


KEY = jax.random.key(7)
CASES = {
    "identity": Case(identity(), 1e-6),
    "gain": Case(gain(), 1e-6),
    "int8": Case(int8_qat(), 0.03, KEY),
    "int8, nearest": Case(int8_qat(gradient_rounding=numerics.nearest), 0.03),
    # One step of half a root mean square leaves 20 dB, a tenth of the features.
    "sgq": Case(at("w2", send(sgq())), 0.2, KEY),
    "sgq, exact": Case(at("w2", send(sgq(quantizer=global_step(exact=True)))), 0.2, KEY),
    "sgq, closed form": Case(at("w2", send(sgq(gradient_step=numerics.bounded_step))), 0.2, KEY),
    "sgq, groups": Case(at("w2", send(sgq(quantizer=stripe_groups(group_size=5)))), 0.05, KEY),
    "sgq, cosine": Case(
        at(
            "w2",
            send(sgq(quantizer=stripe_groups(group_size=5, bits=8, grouping=numerics.by_cosine))),
        ),
        0.01,
        KEY,
    ),
    "sgq, int8": Case(chain(at("w2", send(sgq())), int8_qat()), 0.2, KEY),
    "bias": Case(compensate(bias()), 1e-6),
    "bias, int8": Case(chain(compensate(bias()), int8_qat()), 0.03, KEY),
    "spatial, int8": Case(chain(compensate(spatial()), int8_qat()), 0.03, KEY),
    "zero point, int8": Case(chain(at("w2", compensate(zero_point())), int8_qat()), 0.03, KEY),
    "shifted": Case(compensate(shifted(rounded=lambda w, axes, bits: w)), 1e-5),
    "shifted, int8": Case(chain(compensate(shifted()), int8_qat()), 0.03, KEY),
    "at": Case(at("w2", int8_qat()), 0.03, KEY),
    "where": Case(where(lambda site: site.kind == "conv", gain()), 1e-6),
    "chain": Case(chain(gain(), int8_qat()), 0.03, KEY),
    "chain of chains": Case(chain(at("w1", gain()), chain(identity(), int8_qat())), 0.03, KEY),
}


# What these are made of is in other cases, so that what they owe is asked in the wide run only.
VARIANTS = ("int8, nearest", "sgq, closed form", "sgq, cosine", "bias, int8", "at", "chain")
SLOW = (*VARIANTS, "pass, threshold 0", "pass, never whole")
# Of a compiled step, gradient or batch it matters what is carried and which product it ends in:
# others have that too.
CARRIED = ("bias", "where", "shifted", "sgq, exact", "sgq, groups", "chain of chains")


def each(cases, slow=SLOW):
    """The names of cases, some of them as slow ones."""
    return [pytest.param(c, marks=pytest.mark.slow if c in slow else ()) for c in cases]


@pytest.fixture(params=each(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture
def model(rng):
    batch = networks.batch_of(rng)
    return networks.plain_case(batch), batch


def losses_and_gradients(case, apply, vars, params, x, wrap=lambda f: f):
    def loss(vars, params):
        return jnp.sum(jnp.sin(rewrite(case.tx, apply).apply(vars, params, x, key=case.key)[0]))

    return wrap(jax.value_and_grad(loss, (0, 1)))(vars, params)


def test_it_approximates_the_plain_function(case, model):
    (state, _), (x, _) = model
    rewritten = rewrite(case.tx, state.apply_fn)
    got, _ = rewritten.apply(rewritten.init(state.params, x), state.params, x, key=case.key)
    want = state.apply_fn(state.params, x)
    assert got.dtype == want.dtype
    assert np.abs(got - want).max() <= case.error * np.abs(want).max()


@pytest.mark.parametrize("case", each(CASES, SLOW + CARRIED), indirect=True)
def test_jit_is_no_jit_and_gradients_are_finite(case, model):
    (state, _), (x, _) = model
    vars = rewrite(case.tx, state.apply_fn).init(state.params, x)
    eager = losses_and_gradients(case, state.apply_fn, vars, state.params, x)
    jitted = losses_and_gradients(case, state.apply_fn, vars, state.params, x, jax.jit)
    chex.assert_trees_all_equal_structs(jitted[1], (vars, state.params))
    chex.assert_tree_all_finite(jitted)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        assert a.dtype == b.dtype
        # Fusion rounds differently, which may move a value to the next code: one step in 127.
        np.testing.assert_allclose(a, b, atol=0.02 * max(1e-6, float(np.abs(b).max())))


@pytest.mark.parametrize("case", each(CASES, SLOW + CARRIED), indirect=True)
def test_it_lifts_onto_a_jitted_step_in_one_trace_and_comes_off(case, model):
    (state, step), batch = model
    traces = []

    @jax.jit
    @functools.wraps(step)
    def jitted(*args):
        traces.append(1)
        return step(*args)

    plain, _ = jitted(state, *batch)
    ready = attach(case.tx, jitted, state, *batch)
    traces.clear()
    lifted = case.tx(jitted)
    for _ in range(3):
        ready, metrics = lifted(ready, *batch)
    assert len(traces) == 1
    assert np.isfinite(metrics["loss"])
    assert ready.apply_fn is state.apply_fn
    back = detach(ready)
    assert jax.tree.structure(back) == jax.tree.structure(plain)
    again, _ = jitted(state, *batch)
    jax.tree.map(np.testing.assert_array_equal, again, plain)


@pytest.mark.parametrize("case", each(CASES, SLOW + CARRIED), indirect=True)
def test_vmap_over_examples(case, model):
    (state, _), (x, _) = model
    rewritten = rewrite(case.tx, state.apply_fn)
    vars = rewritten.init(state.params, x[:1])
    run = lambda x: rewritten.apply(vars, state.params, x[None], key=case.key)[0][0]
    one = jax.jit(run)(x[3])
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(x)[3], one, rtol=1e-4, atol=1e-5)


def test_variables_round_trip(case, model):
    (state, step), batch = model
    ready = attach(case.tx, step, state, *batch)
    leaves, tree = jax.tree.flatten(ready.params)
    assert jax.tree.structure(jax.tree.unflatten(tree, leaves)) == tree
    data = flax.serialization.to_bytes(ready.params)
    jax.tree.map(
        np.testing.assert_array_equal,
        flax.serialization.from_bytes(ready.params, data),
        ready.params,
    )


def test_no_matching_site_is_an_error(case, model):
    (_, _), (x, _) = model
    with pytest.raises(ValueError, match=r"no parameter meets an activation|matched none"):
        rewrite(case.tx, lambda p, x: x * p["w"]).apply({}, {"w": jnp.ones(3)}, x)


# Transforms of blocks keep their promises over frames instead of steps. Add new ones to BLOCKS.

BLOCKS = {
    "pass, exact": pass_skip(patch=4),
    "pass, threshold 0": pass_skip(patch=4, gate=threshold(0.0)),
    "pass, all taken": pass_skip(patch=4, gate=static(np.ones((2, 2), bool))),
    "pass, never whole": pass_skip(patch=4, dense_above=1.0),
    "pass, top k": pass_skip(patch=4, gate=top_k(4), key_every=3, refresh_every=2),
}


@pytest.fixture(params=each(BLOCKS))
def skipping(request, model):
    (state, _), (x, _) = model
    return BLOCKS[request.param], state.apply_fn, state.params, x


def test_blocks_neutral_setting_changes_nothing_in_one_trace(skipping):
    tx, apply, params, xs = skipping
    rewritten, traces = rewrite(tx, apply), []

    @jax.jit
    def step(vars, params, x):
        traces.append(1)
        return rewritten.apply(vars, params, x)

    vars = rewritten.init(params, xs[:1])
    for frame in [*xs, xs[-1]]:
        out, vars = step(vars, params, frame[None])
        want = apply(params, frame[None])
        assert out.dtype == want.dtype
        assert np.abs(out - want).max() <= 1e-6 * np.abs(want).max()
    assert len(traces) == 1


@pytest.mark.parametrize(
    "skipping", each(BLOCKS, [b for b in BLOCKS if b != "pass, exact"]), indirect=True
)
def test_blocks_jit_is_no_jit_and_vmap_is_a_loop(skipping):
    tx, apply, params, xs = skipping
    rewritten = rewrite(tx, apply)
    start = rewritten.init(params, xs[:1])
    run = lambda x: rewritten.apply(rewritten.apply(start, params, x)[1], params, x + 1)[0]
    eager, jitted = run(xs[:1]), jax.jit(run)(xs[:1])
    np.testing.assert_allclose(eager, jitted, rtol=1e-5, atol=1e-6)
    many = jax.jit(jax.vmap(run))(xs[:3, None])
    np.testing.assert_allclose(many[0], jitted, rtol=1e-5, atol=1e-6)


def test_blocks_variables_round_trip(skipping):
    tx, apply, params, xs = skipping
    rewritten = rewrite(tx, apply)
    _, vars = rewritten.apply(rewritten.init(params, xs[:1]), params, xs[:1])
    back = flax.serialization.from_bytes(vars, flax.serialization.to_bytes(vars))
    jax.tree.map(np.testing.assert_array_equal, back, vars)
    assert jax.tree.structure(back) == jax.tree.structure(vars)


def test_blocks_refuse_steps_and_functions_without_blocks(skipping, model):
    tx, _, _, xs = skipping
    (_, step), _ = model
    with pytest.raises(ValueError, match="which a train step cannot return"):
        tx(step)
    with pytest.raises(ValueError, match="no product of this function"):
        rewrite(tx, lambda p, x: x * p["w"]).init({"w": jnp.ones(3)}, xs[:1])


@pytest.mark.parametrize("name", tinyjax.transforms.__all__)
def test_settings_are_keywords_only_and_sources_are_cited(name):
    function = getattr(tinyjax.transforms, name)
    parameters = inspect.signature(function).parameters.values()
    # Only what is worked on stands before the settings: an array, a code, a codec.
    settings = [p for p in parameters if p.default is not p.empty]
    assert {p.kind for p in settings} <= {inspect.Parameter.KEYWORD_ONLY}
    operands = {p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert operands <= {"x", "code", "codec", "key", "kind", "params"}
    assert "References:" in function.__doc__
    assert name in tinyjax.__all__
