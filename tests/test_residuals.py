"""What is kept for the backward pass: the same gradients, few bytes, and XLA keeps to it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import measure
from tinyjax import numerics, rewrite
from tinyjax.residuals import lean_vjp
from tinyjax.transforms import int8_qat

EXACT = {
    "nothing": lambda z, b: (z,),
    "bias": lambda z, b: (z + b,),
    "relu": lambda z, b: (nn.relu(z + b),),
    "relu6": lambda z, b: (nn.relu6(z + b),),
    "leaky": lambda z, b: (nn.leaky_relu(z + b),),
    "relu, pool": lambda z, b: (numerics.max_pool(nn.relu(z + b), (1, 2, 2, 1)),),
    "two exits": lambda z, b: (nn.relu(z + b), jnp.argmax(z, -1)),
}
CODED = {
    "gelu": lambda z, b: (nn.gelu(z + b),),
    "tanh": lambda z, b: (jnp.tanh(z + b),),
    "norm": lambda z, b: ((z - z.mean(0)) / (z.std((0, 1, 2)) + 1) + b, z.mean((0, 1, 2))),
}


def operands(rng, shape=(4, 8, 6, 16)):
    z, b = (jnp.asarray(rng.normal(size=s).astype(np.float32)) for s in (shape, shape[-1:]))
    return z, b


def cotangents(rng, outs):
    def of(y):
        if jnp.issubdtype(y.dtype, jnp.floating):
            return jnp.asarray(rng.normal(size=y.shape).astype(np.float32))
        return np.zeros(y.shape, jax.dtypes.float0)

    return tuple(map(of, outs))


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


SHAPES = [(4, 8, 6, 16), (1, 4, 4, 3), (3, 16, 2, 1)]
CASES = [  # the other shapes with what depends on shapes, and else slow
    pytest.param(name, shape, marks=() if shape == SHAPES[0] or "," in name else pytest.mark.slow)
    for name in EXACT
    for shape in SHAPES
]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_cheap_epilogues_keep_their_exact_derivative(rng, name, shape):
    z, b = operands(rng, shape)
    outs, pull = jax.jit(lambda z, b: lean_vjp(EXACT[name], z, (b,), (0, 1, 2)))(z, b)
    want, pull_want = jax.jit(lambda z, b: jax.vjp(EXACT[name], z, b))(z, b)
    jax.tree.map(np.testing.assert_array_equal, outs, want)
    gs = cotangents(rng, want)
    got = jax.jit(lambda pull, b, gs: pull((b,), gs))(pull, b, gs)
    jax.tree.map(np.testing.assert_array_equal, got, pull_want(gs))
    assert nbytes(pull) <= 1.5 * z.size


@pytest.mark.parametrize("name", CODED)
def test_other_epilogues_are_computed_once_more_from_codes(rng, name):
    z, b = operands(rng)
    outs, pull = jax.jit(lambda z, b: lean_vjp(CODED[name], z, (b,), (0, 1, 2)))(z, b)
    want, pull_want = jax.jit(lambda z, b: jax.vjp(CODED[name], z, b))(z, b)
    jax.tree.map(lambda a, w: np.testing.assert_allclose(a, w, atol=1e-5), outs, want)
    assert nbytes(pull) <= z.size + 4 * z.shape[-1]
    gs = cotangents(rng, want)

    @jax.jit
    def at_codes_of(z, b, gs):
        scale = numerics.symmetric_scale(numerics.abs_max(z, (0, 1, 2)))
        seen = numerics.dequantize(numerics.quantize(z, scale), scale)
        return jax.vjp(CODED[name], seen, b)[1](gs)

    again = jax.jit(lambda pull, b, gs: pull((b,), gs))(pull, b, gs)
    for got, at_codes, exact in zip(again, at_codes_of(z, b, gs), pull_want(gs), strict=True):
        np.testing.assert_allclose(got, at_codes, rtol=1e-5, atol=1e-5)
        # Half a step of 127 in z; the derivatives of these change by less than one per unit of z.
        assert np.linalg.norm(got - exact) < 0.02 * np.linalg.norm(exact)


def test_a_relu_keeps_one_bit(rng):
    z, b = operands(rng)
    _, pull = lean_vjp(EXACT["relu"], z, (b,), (0, 1, 2))
    assert nbytes(pull) == z.size // 8
    _, pull = lean_vjp(EXACT["relu, pool"], z, (b,), (0, 1, 2))
    assert nbytes(pull) == z.size // 8 + z.size // 4 // 4  # a bit, and two per window


def test_integers_alone_have_no_derivative(rng):
    z, b = operands(rng)
    _, pull = lean_vjp(lambda z, b: (jnp.argmax(jnp.tanh(z) * b, -1),), z, (b,), (0,))
    dz, db = pull((b,), (np.zeros(z.shape[:-1], jax.dtypes.float0),))
    assert not np.any(dz)
    assert not np.any(db)


class Net(nn.Module):
    """Four convolutions, with or without norms, so that what is kept outweighs what is in use."""

    norm: bool

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = nn.Conv(32, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=False)(x) if self.norm else x
            x = nn.relu(x)
        return x.mean((1, 2))


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_compiled_programs_keep_to_it(norm):
    model, x = Net(norm), jnp.zeros((16, 32, 32, 32))
    params = jax.eval_shape(model.init, jax.random.key(0), x)

    def temp(apply):
        loss = lambda p, v, x, key: jnp.sum(jnp.sin(apply({**v, "params": p}, x, key)))
        rest = {k: v for k, v in params.items() if k != "params"}
        key = jax.random.key(0)
        lowered = jax.jit(jax.grad(loss)).lower(params["params"], rest, x, key)
        return measure.temp_bytes(lowered.compile())

    def int8(v, x, key):
        rewritten = rewrite(int8_qat(), model.apply)
        return rewritten.apply({}, v, x, key=key, mutable=["batch_stats"])[0][0]

    float32 = temp(lambda v, x, key: model.apply(v, x, mutable=["batch_stats"])[0])
    tensor = 4 * x.size
    # Float keeps a tensor or two per layer. Int8 holds a few float tensors in the midst of a layer
    # (accumulators, gradient, what it is made into), and of each layer a byte per value in the
    # input's codes, and in the output's where there is a norm.
    within, kept = (5, 0.5) if norm else (3.3, 0.3)
    assert temp(int8) <= tensor * (within + 4 * kept)
    assert temp(int8) < 0.8 * float32
