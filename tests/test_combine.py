"""chain, at, where, identity: order, variables, keys, and what matches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyjax import Transform, at, chain, identity, rewrite, where

PARAMS = {"block": {"a": jnp.eye(2), "b": 2 * jnp.eye(2)}, "ab": 3 * jnp.eye(2)}
X = jnp.ones((1, 2))


def apply(p, x):
    return (x @ p["block"]["a"]) @ p["block"]["b"] @ p["ab"]


def affine(a, b):
    """Computes ``a * op + b``."""

    def call(op, site, vars, key, x, w, epilogue, **overrides):
        return a * op(x, w, **overrides) + b, vars

    return Transform(lambda site: (), call)


def counter():
    """Counts its calls in its variable."""

    def call(op, site, vars, key, x, w, epilogue, **overrides):
        return op(x, w, epilogue, **overrides), vars + 1

    return Transform(lambda site: jnp.zeros((), jnp.int32), call)


def out(tx, vars=None, key=None):
    rewritten = rewrite(tx, apply)
    vars = rewritten.init(PARAMS, X) if vars is None else vars
    return rewritten.apply(vars, PARAMS, X, key=key)


def test_the_first_is_outermost():
    y, _ = out(at("a", chain(affine(2, 0), affine(1, 10))))
    np.testing.assert_array_equal(y, apply(PARAMS, X) * 0 + 6 * 2 * (1 + 10))


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a", ["block/a"]),
        ("a*", ["block/a", "ab"]),
        ("block", ["block/a", "block/b"]),
        ("block/b", ["block/b"]),
        ("*", ["block/a", "block/b", "ab"]),
    ],
)
def test_patterns(pattern, paths):
    assert list(rewrite(at(pattern, identity()), apply).init(PARAMS, X)) == paths


@pytest.mark.parametrize("pattern", ["c", "A", "block/a/b", "lock/a", ""])
def test_patterns_that_match_nothing(pattern):
    with pytest.raises(ValueError, match=r"matched none of the sites .*name at least one"):
        out(at(pattern, identity()))


def test_nested_patterns_must_all_match():
    inner = chain(at("a", identity()), at("ab", identity()))
    assert list(rewrite(inner, apply).init(PARAMS, X)) == ["block/a", "ab"]
    with pytest.raises(ValueError, match=r"at\('block'\) of at\('ab'\) matched none"):
        out(at("block", inner))

    def big(site):
        return site.w.size > 100

    with pytest.raises(ValueError, match=r"where\(big\) matched none"):
        out(chain(identity(), where(big, identity())))


def test_members_see_only_their_sites():
    tx = chain(at("a", affine(2, 0)), at("b", affine(5, 0)), affine(1, 0))
    y, _ = out(tx)
    np.testing.assert_array_equal(y, 10 * apply(PARAMS, X))
    assert out(chain(chain(tx), at("ab", affine(3, 0))))[0][0, 0] == 30 * apply(PARAMS, X)[0, 0]


def test_only_the_outermost_may_change_its_variables():
    vars = {"block/a": (jnp.int32(0), ()), "block/b": (jnp.int32(5), ()), "ab": (jnp.int32(0), ())}
    _, new = out(chain(counter(), identity()), vars)
    assert [int(v[0]) for v in new.values()] == [1, 6, 1]
    with pytest.raises(
        ValueError, match=r"member 1 of chain\(\) changed its variables.*put it first"
    ):
        out(chain(identity(), counter()))
    _, new = out(chain(at("b", identity()), at("a", counter())))
    assert int(new["block/a"][1]) == 1


def test_variables_of_sites_not_selected_are_empty():
    vars = rewrite(chain(at("a", counter()), identity()), apply).init(PARAMS, X)
    assert [jax.tree.leaves(v) for v in vars.values()] == [[0], [], []]


def test_every_member_and_site_has_its_own_key():
    keys = []

    def call(op, site, vars, key, x, w, epilogue, **overrides):
        keys.append(key)
        return op(x, w, epilogue, **overrides), vars

    spy = Transform(lambda site: (), call)
    out(chain(spy, spy), key=jax.random.key(0))
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 6
    first = [jax.random.key_data(k).tolist() for k in keys]
    keys.clear()
    out(chain(spy, spy), key=jax.random.key(0))
    assert first == [jax.random.key_data(k).tolist() for k in keys]
    keys.clear()
    out(chain(spy, spy))
    assert keys == [None] * 6


def test_an_empty_chain():
    with pytest.raises(ValueError, match=r"chain\(\) was given no transforms"):
        chain()
