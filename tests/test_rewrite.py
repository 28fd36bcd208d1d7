"""The rewrite: what it finds, that it changes nothing by itself, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import tinyjax
from tests import networks
from tinyjax import Transform, compat, identity, int8_qat, rewrite, sites


def forward(case, x, **kwargs):
    """The forward function of the linen case as a function of its variables."""
    state = case.state
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(3)}}
    return state.apply_fn, variables, (x,), {**options, **kwargs}


def owner():
    """A transform that takes the epilogue over and computes the same."""

    def call(op, site, vars, key, x, w, epilogue, **overrides):
        return epilogue.fn(op(x, w, **overrides), *epilogue.captured), vars

    return Transform(lambda site: (), call)


def recorder(seen):
    def call(op, site, vars, key, x, w, epilogue, **overrides):
        seen[site.path] = (site, epilogue.prims, len(epilogue.captured))
        return op(x, w, epilogue, **overrides), vars

    return Transform(lambda site: (), call)


# --- what is found -------------------------------------------------------------------------------


def test_sites_of_every_kind_of_model(rng):
    batch = networks.batch_of(rng)
    apply, variables, args, kwargs = forward(networks.linen_case(batch), batch[0])
    assert [(s.path, s.kind) for s in sites(apply, variables, *args, **kwargs)] == [
        ("params/stem/kernel", "conv"),
        ("params/Conv_0/kernel", "conv"),
        ("params/Dense_0/kernel", "dot"),
    ]
    state = networks.nnx_case(batch).state
    assert [s.path for s in sites(state.apply_fn, state.params, batch[0])] == [
        "conv/kernel/value",
        "head/kernel/value",
    ]
    state = networks.plain_case(batch).state
    assert [s.path for s in sites(state.apply_fn, state.params, batch[0])] == ["w1", "w2"]


def test_a_site_is_static_and_counts_its_work():
    apply = lambda p, x: lax.conv_general_dilated(
        x, p["w"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    (site,) = sites(apply, {"w": jnp.ones((3, 3, 4, 8))}, jnp.ones((2, 9, 9, 4)))
    assert hash(site) == hash(site._replace())
    assert site.macs == 2 * 4 * 4 * 8 * 3 * 3 * 4


def test_names_pass_layout_and_casts_and_count_uses():
    def apply(p, x):
        w = p["a"]["w"].T.reshape(6, 4).astype(jnp.bfloat16)
        return (x @ w).astype(jnp.float32) @ p["b"] @ p["b"]

    params = {"a": {"w": jnp.ones((4, 6))}, "b": jnp.ones((4, 4))}
    found = sites(apply, params, jnp.ones((2, 6), jnp.bfloat16))
    assert [s.path for s in found] == ["a/w", "b", "b#2"]


def test_names_pass_checkpoints_constraints_and_slices():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    forms = {
        "constraint": lambda w: lax.with_sharding_constraint(w[0], place),
        "name": lambda w: checkpoint_name(w[0], "w"),
        "checkpoint": lambda w: jax.checkpoint(jnp.transpose)(w[0]),
        "slice": lambda w: w[1],
    }
    params = {"a": jnp.ones((2, 3, 3)), "b": jnp.eye(3)}
    for form in forms.values():
        apply = lambda p, x, form=form: x @ form(p["a"]) @ p["b"]
        assert [s.path for s in sites(apply, params, jnp.ones((2, 3)))] == ["a", "b"]
        got, _ = rewrite(owner(), apply).apply({}, params, jnp.ones((2, 3)))
        np.testing.assert_array_equal(got, apply(params, jnp.ones((2, 3))))


def test_paths_are_unique():
    apply = lambda p, x: x @ p["w"] @ p["w#2"] @ p["w"]
    params = {"w": jnp.eye(2), "w#2": jnp.eye(2)}
    assert [s.path for s in sites(apply, params, jnp.ones((1, 2)))] == ["w", "w#2", "w#3"]
    one = tinyjax.at("w#3", identity())
    assert list(rewrite(one, apply).init(params, jnp.ones((1, 2)))) == ["w#3"]


def test_classes_among_the_arguments_are_static():
    apply = lambda p, x, dtype: (x @ p["w"]).astype(dtype)
    out, _ = rewrite(identity(), apply).apply({}, {"w": jnp.eye(2)}, jnp.ones((1, 2)), np.float16)
    assert out.dtype == jnp.float16


def test_an_ambiguous_key_is_refused():
    apply = lambda p, x, key=None: x @ p["w"]
    with pytest.raises(ValueError, match=r"key=\.\.\. is the transform's.*by position"):
        rewrite(identity(), apply).apply(
            {}, {"w": jnp.eye(2)}, jnp.ones((1, 2)), key=jax.random.key(0)
        )


def test_products_of_activations_and_computed_weights_are_no_sites():
    def apply(p, x):
        q = x @ p["q"]
        normalized = p["v"] / jnp.sum(p["v"])
        return jnp.einsum("ij,kj->ik", q, q) @ (x @ normalized) @ (p["low"] @ p["rank"])

    params = {
        "q": jnp.ones((3, 3)),
        "v": jnp.ones((3, 3)),
        "low": jnp.ones((3, 1)),
        "rank": jnp.ones((1, 2)),
    }
    assert [s.path for s in sites(apply, params, jnp.ones((4, 3)))] == ["q"]


# --- that it changes nothing by itself -----------------------------------------------------------


@pytest.mark.parametrize("tx", [identity(), owner()], ids=["identity", "epilogue owner"])
@pytest.mark.parametrize("remat", [False, True])
def test_neutral_transforms_change_nothing(rng, tx, remat):
    batch = networks.batch_of(rng)
    apply, variables, args, kwargs = forward(networks.linen_case(batch, remat=remat), batch[0])
    same = lambda v, *a, **k: rewrite(tx, apply).apply({}, v, *a, **k)[0]

    def grads(f):
        def loss(params):
            out, updates = f({**variables, "params": params}, *args, **kwargs)
            return jnp.sum(out**2), updates

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    assert set(variables) == {"params", "batch_stats"}
    (loss, updates), got = grads(same)
    (want_loss, want_updates), want = grads(apply)

    # The same equations, but calls inside the model were entered, so XLA fuses (and rounds) them
    # differently: a few ulps of the largest entry.
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * 2.0**-23 * np.abs(b).max())

    jax.tree.map(close, (loss, updates, got), (want_loss, want_updates, want))


def test_epilogues_hold_what_only_the_site_feeds(rng):
    batch = networks.batch_of(rng)
    apply, variables, args, kwargs = forward(networks.linen_case(batch), batch[0])
    seen = {}
    rewrite(recorder(seen), apply).apply({}, variables, *args, **kwargs)
    stem, conv, dense = (seen[f"params/{n}/kernel"] for n in ("stem", "Conv_0", "Dense_0"))
    assert stem[1] == ("add", "custom_jvp_call")  # bias and relu, not the residual
    assert {"reduce_sum", "rsqrt"} <= set(conv[1])  # BatchNorm, running averages included
    assert not {"reduce_window_max", "custom_jvp_call"} & set(conv[1])  # beyond the residual
    assert dense[1] == ("add",)
    assert (stem[2], dense[2]) == (1, 1)
    assert conv[2] > 2


def test_epilogues_close_over_nothing(rng):
    """An epilogue is a function of its arguments alone: replacing them replaces the result."""
    kept = {}

    def call(op, site, vars, key, x, w, epilogue, **overrides):
        kept["epilogue"] = epilogue
        return op(x, w, **overrides), vars

    apply = lambda p, x: jnp.maximum(x @ p["w"] + p["b"], 0.0) * jnp.exp(x[:, :1])
    tx = Transform(lambda site: (), call)
    params, x = {"w": jnp.eye(3), "b": jnp.ones(3)}, jnp.ones((2, 3))
    jax.jit(lambda p, x: rewrite(tx, apply).apply({}, p, x)[0])(params, x)
    epilogue = kept["epilogue"]
    fresh = [np.full(np.shape(c), 2.0, np.float32) for c in epilogue.captured]
    (out,) = epilogue.fn(jnp.zeros((2, 3)), *fresh)  # tracers inside would have leaked
    assert np.isfinite(out).all()


def test_consts_captured_from_an_outer_trace():
    def outer(scale):
        apply = lambda p, x: (x @ p["w"]) * scale
        return rewrite(owner(), apply).apply({}, {"w": jnp.eye(2)}, jnp.ones((1, 2)))[0].sum()

    assert jax.jit(jax.grad(outer))(3.0) == 2.0


def test_structure_of_the_output_is_kept():
    apply = lambda p, x: {"y": x @ p["w"], "aux": (x.sum(), None)}
    out, vars = rewrite(identity(), apply).apply({}, {"w": jnp.eye(2)}, jnp.ones((1, 2)))
    assert jax.tree.structure(out) == jax.tree.structure({"y": 0, "aux": (0, None)})
    assert list(vars) == ["w"]


@pytest.mark.parametrize(
    "spec", ["ij,jk->ik", "ji,jk->ik", "ij,kj->ik", "bij,jk->bik", "bij,bjk->bik"]
)
@pytest.mark.parametrize("swap", [False, True])
def test_every_orientation_of_a_product(rng, spec, swap):
    left, right = spec.split("->")[0].split(",")
    dims = {"i": 3, "j": 4, "k": 5, "b": 2}
    a, b = (jnp.asarray(rng.normal(size=[dims[d] for d in s]), jnp.float32) for s in (left, right))
    x, w = (b, a) if swap else (a, b)
    apply = lambda p, x: jnp.einsum(spec, *((p["w"], x) if swap else (x, p["w"])))
    got, _ = rewrite(owner(), apply).apply({}, {"w": w}, x)
    want = apply({"w": w}, x)
    # The operands may be exchanged, so sums of 4 products differ by rounding alone.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert got.shape == want.shape


# --- in company ----------------------------------------------------------------------------------


def test_remat_is_kept():
    apply = lambda p, x: jax.checkpoint(lambda p, x: jnp.sin(x @ p["w"]))(p, x).sum()
    params, x = {"w": jnp.ones((3, 3))}, jnp.ones((2, 3))
    jaxpr = jax.make_jaxpr(lambda p: rewrite(owner(), apply).apply({}, p, x)[0])(params)
    assert [e.primitive.name for e in jaxpr.eqns if e.primitive.name in compat.REMAT]
    saved = jax.tree.leaves(
        jax.vjp(lambda p: rewrite(owner(), apply).apply({}, p, x)[0], params)[1]
    )
    plain = jax.tree.leaves(jax.vjp(lambda p: apply(p, x), params)[1])
    assert sorted(s.shape for s in saved) == sorted(s.shape for s in plain)


def test_the_policy_of_remat_is_kept():
    policy = jax.checkpoint_policies.everything_saveable
    apply = lambda p, x: jax.checkpoint(lambda p, x: jnp.sin(x @ p["w"]), policy=policy)(p, x)
    jaxpr = jax.make_jaxpr(lambda p: rewrite(identity(), apply).apply({}, p, jnp.ones((2, 3)))[0])
    (eqn,) = [e for e in jaxpr({"w": jnp.ones((3, 3))}).eqns if e.primitive.name in compat.REMAT]
    assert eqn.params["policy"] is policy


def test_one_checkpointed_function_used_twice():
    layer = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))
    apply = lambda p, x: layer(p["b"], layer(p["a"], x))
    seen = {}
    params, x = {"a": jnp.eye(3), "b": 2 * jnp.eye(3)}, jnp.ones((2, 3))
    out, _ = rewrite(recorder(seen), apply).apply({}, params, x)
    assert list(seen) == ["a", "b"]
    np.testing.assert_array_equal(out, apply(params, x))


def test_variables_change_inside_remat_too():
    def call(op, site, vars, key, x, w, epilogue, **overrides):
        return op(x, w, epilogue, **overrides), vars + 1

    tx = Transform(lambda site: jnp.zeros(()), call)
    apply = lambda p, x: jax.checkpoint(lambda x: jnp.sin(x @ p["w"]))(x)
    rewritten = rewrite(tx, apply)
    vars = rewritten.init({"w": jnp.eye(2)}, jnp.ones((1, 2)))
    _, vars = rewritten.apply(vars, {"w": jnp.eye(2)}, jnp.ones((1, 2)))
    assert vars == {"w": 1.0}


def test_jit_inside_and_outside():
    apply = lambda p, x: jax.jit(lambda w, x: jnp.tanh(x @ jax.jit(jnp.transpose)(w)))(p["w"], x)
    params, x = {"w": jnp.arange(6.0).reshape(2, 3)}, jnp.ones((4, 3))
    got = jax.jit(lambda p, x: rewrite(owner(), apply).apply({}, p, x)[0])(params, x)
    np.testing.assert_allclose(got, apply(params, x), rtol=1e-6)


def test_vmap_and_named_axes():
    def apply(p, x):
        y = x @ p["w"]
        return y - lax.pmean(y, "batch")

    params, xs = {"w": jnp.eye(3)}, jnp.arange(12.0).reshape(4, 3)
    run = lambda x: rewrite(owner(), apply).apply({}, params, x)[0]
    got = jax.vmap(run, axis_name="batch")(xs)
    np.testing.assert_allclose(got, xs - xs.mean(0), rtol=1e-6)


def test_loops_without_weights_pass_through():
    def apply(p, x):
        y = x @ p["w"]
        return lax.fori_loop(0, 3, lambda i, y: jnp.sin(y), y) + lax.cond(True, jnp.cos, jnp.sin, y)

    params, x = {"w": jnp.eye(3)}, jnp.ones((2, 3))
    got, _ = rewrite(owner(), apply).apply({}, params, x)
    np.testing.assert_array_equal(got, apply(params, x))


def test_effects_stay_in_order(capfd):
    def apply(p, x):
        y = x @ p["w"]
        jax.debug.print("between", ordered=True)
        return jnp.tanh(y)

    out, _ = rewrite(owner(), apply).apply({}, {"w": jnp.eye(2)}, jnp.ones((1, 2)))
    jax.effects_barrier()
    assert capfd.readouterr().out.count("between") == 1
    np.testing.assert_allclose(out, jnp.tanh(jnp.ones((1, 2))))


def test_the_pool_rule_fires_and_only_where_it_is_exact():
    def prims(f, *args):
        jaxpr = jax.make_jaxpr(lambda *a: rewrite(identity(), f).apply({}, *a)[0])(*args)
        return {e.primitive.name for e, _ in compat.equations(jaxpr)}

    params, x = {"w": jnp.eye(3)}, jnp.ones((2, 8, 8, 3))
    plain = lambda p, x: nn.max_pool(x @ p["w"], (2, 2), strides=(2, 2))
    overlapping = lambda p, x: nn.max_pool(x @ p["w"], (3, 3), strides=(2, 2))
    padded = lambda p, x: nn.max_pool(x @ p["w"], (2, 2), strides=(2, 2), padding=((1, 1), (1, 1)))
    assert "reduce_window_max" not in prims(plain, params, x)
    assert "reduce_window_max" in prims(overlapping, params, x)
    assert "reduce_window_max" in prims(padded, params, x)
    for f in (plain, overlapping, padded):
        got, _ = rewrite(identity(), f).apply({}, params, x)
        np.testing.assert_array_equal(got, f(params, x))


def test_memoised():
    apply = lambda p, x: x @ p["w"]
    tx = identity()
    assert rewrite(tx, apply) is rewrite(tx, apply)


# --- what it refuses -----------------------------------------------------------------------------


def scanned(p, x):
    y, _ = lax.scan(lambda y, _: (jnp.tanh(y @ p["w"]), None), x, None, length=3)
    return y @ p["head"]


SCANNED = {"w": jnp.eye(3), "head": jnp.eye(3)}


@pytest.mark.parametrize(
    ("loop", "name"),
    [
        (lambda p, x: scanned(p, x), "scan"),
        (lambda p, x: lax.fori_loop(0, x.shape[0], lambda i, y: y @ p["w"], x), "scan"),
        (lambda p, x: lax.while_loop(lambda y: y.sum() < 1, lambda y: y @ p["w"], x), "while"),
        (lambda p, x: lax.cond(x.sum() > 0, lambda y: y @ p["w"], lambda y: y, x), "cond"),
        (lambda p, x: lax.map(jax.jit(lambda row: row @ p["w"]), x), "scan"),
    ],
)
def test_weights_in_loops_are_refused(loop, name):
    with pytest.raises(ValueError, match=rf"'w' is in the body of a {name}.*rewrite the body"):
        rewrite(identity(), loop).apply({}, SCANNED, jnp.ones((2, 3)))


def test_what_is_outside_a_loop_can_still_be_had():
    tx = tinyjax.at("head", owner())
    got, _ = rewrite(tx, scanned).apply({}, SCANNED, jnp.ones((2, 3)))
    np.testing.assert_array_equal(got, scanned(SCANNED, jnp.ones((2, 3))))
    assert [s.path for s in sites(scanned, SCANNED, jnp.ones((2, 3)))] == ["head"]


def test_nothing_to_transform():
    with pytest.raises(ValueError, match=r"no parameter meets an activation.*tinyjax\.sites"):
        rewrite(identity(), lambda p, x: x + p["b"]).apply({}, {"b": jnp.ones(3)}, jnp.ones(3))


def test_missing_variables():
    tx = Transform(lambda site: jnp.ones(()), identity().call)
    with pytest.raises(ValueError, match=r"variables at 'w', and none were given: make them with"):
        rewrite(tx, lambda p, x: x @ p["w"]).apply({}, {"w": jnp.eye(2)}, jnp.ones((1, 2)))


def test_a_wrong_number_of_exits():
    def call(op, site, vars, key, x, w, epilogue, **overrides):
        return (op(x, w), op(x, w)), vars

    tx = Transform(lambda site: (), call)
    with pytest.raises(ValueError, match=r"returned 2 values at 'w', whose epilogue has 1 exits"):
        rewrite(tx, lambda p, x: x @ p["w"]).apply({}, {"w": jnp.eye(2)}, jnp.ones((1, 2)))


def test_custom_derivatives_are_left_alone():
    @jax.custom_vjp
    def dense(w, x):
        return x @ w

    dense.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (7 * r[1].T @ g, g @ r[0].T))
    apply = lambda p, x: dense(p["a"], x) @ p["b"]
    params, x = {"a": jnp.eye(2), "b": jnp.eye(2)}, jnp.ones((1, 2))
    assert [s.path for s in sites(apply, params, x)] == ["b"]
    grad = jax.grad(lambda p: rewrite(owner(), apply).apply({}, p, x)[0].sum())(params)
    np.testing.assert_array_equal(grad["a"], 7 * jnp.ones((2, 2)))


def test_key_without_conflict_with_the_users_own():
    apply = lambda p, x, key: x @ p["w"] + jax.random.normal(key, ())
    params, x, key = {"w": jnp.eye(2)}, jnp.ones((1, 2)), jax.random.key(5)
    out, _ = rewrite(identity(), apply).apply({}, params, x, key)
    np.testing.assert_array_equal(out, apply(params, x, key))


def test_int8_reaches_swapped_and_batched_products(rng):
    apply = lambda p, x: jnp.einsum("nk,bk->bn", p["w"], x) + jnp.einsum("bk,bkn->bn", x, p["e"])
    params = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "e": jnp.ones((3, 4, 6))}
    x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    counts = tinyjax.count_macs(lambda p: rewrite(int8_qat(), apply).apply({}, p, x)[0], params)
    assert set(counts) == {"int8"}
    got, _ = rewrite(int8_qat(), apply).apply({}, params, x)
    np.testing.assert_allclose(got, apply(params, x), atol=0.1)
