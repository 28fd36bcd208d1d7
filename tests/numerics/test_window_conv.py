"""Gradients of convolutions written for loops against jax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tinyjax.numerics import window_conv
from tinyjax.numerics.conv_taps import ConvSpec
from tinyjax.numerics.window_conv import with_gradients

SPECS = {
    "plain": ((1, 1), ((0, 0), (0, 0)), (1, 1), 1, (3, 3)),
    "padding of every kind": ((1, 1), ((1, 2), (-1, 0)), (1, 1), 1, (3, 2)),
    "strides that leave a rest": ((2, 3), ((1, 0), (0, 2)), (1, 1), 1, (3, 3)),
    "dilated": ((1, 2), ((2, 2), (0, 0)), (2, 1), 1, (3, 3)),
    "groups": ((2, 1), ((1, 1), (1, 1)), (1, 1), 2, (3, 3)),
    "depthwise": ((1, 1), ((1, 1), (0, 1)), (1, 1), 4, (3, 3)),
    "one tap": ((2, 2), ((0, 0), (0, 0)), (1, 1), 1, (1, 1)),
}


def plain(spec, x, w):
    return lax.conv_general_dilated(
        x,
        w,
        spec.strides,
        spec.padding,
        rhs_dilation=spec.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SPECS)
def test_gradients_equal_jax_own(name, batch, rng):
    agrees_with_jax(name, batch, rng)


@pytest.mark.parametrize("name", ["plain", "dilated"])
def test_gradients_are_the_same_where_the_columns_are_many(name, rng, monkeypatch):
    monkeypatch.setattr(window_conv, "IN_CACHE", 0)
    agrees_with_jax(name, 1, rng)


def agrees_with_jax(name, batch, rng):
    *about, taps = SPECS[name]
    spec = ConvSpec(*about)
    run = functools.partial(plain, spec)
    x = jnp.asarray(rng.normal(size=(batch, 11, 13, 4)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(*taps, 4 // spec.groups, 8)), jnp.float32)

    @jax.jit
    def pulled(x, w):
        found, pull = jax.vjp(with_gradients(run, spec), x, w)
        wanted, own = jax.vjp(run, x, w)
        g = jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
        return (found, pull(g)), (wanted, own(g))

    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-5), *pulled(x, w))


def test_gradients_in_half_precision_keep_their_dtypes(rng):
    spec = ConvSpec((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    run = functools.partial(plain, spec)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((1, 9, 7, 4), (3, 3, 4, 8)))
    found = jax.grad(lambda x, w: with_gradients(run, spec)(x, w).sum(), argnums=(0, 1))(x, w)
    wanted = jax.grad(lambda x, w: run(x, w).sum(), argnums=(0, 1))(x, w)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == jnp.bfloat16
        close = functools.partial(np.testing.assert_allclose, rtol=0.05, atol=0.1)
        close(got.astype(jnp.float32), want.astype(jnp.float32))
