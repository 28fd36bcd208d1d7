"""Small networks and steps of every style that a user may bring."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state


class Residual(nn.Module):
    """Convolutions, BatchNorm, a residual, max pooling, dropout, dense."""

    width: int = 20
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        conv = nn.remat(nn.Conv) if self.remat else nn.Conv
        x = nn.relu(conv(self.width, (3, 3), name="stem")(x))
        y = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)
        x = nn.max_pool(nn.relu(x + y), (2, 2), strides=(2, 2))
        x = nn.Dropout(0.25, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(5)(x)


class BatchNormState(train_state.TrainState):
    """A train state with running averages and a dropout key."""

    batch_stats: Any
    key: jax.Array


def linen_step(state: BatchNormState, x: jax.Array, y: jax.Array) -> Any:
    """The step of flax's own examples, for a model with BatchNorm and dropout."""

    def loss_fn(params: Any) -> Any:
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(state.key, state.step)},
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

    (loss, updates), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads)
    return state.replace(batch_stats=updates["batch_stats"]), {"loss": loss}


def plain_step(state: train_state.TrainState, x: jax.Array, y: jax.Array) -> Any:
    """A step for an ``apply(params, x)``."""

    def loss_fn(params: Any) -> jax.Array:
        logits = state.apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss}


class Nnx(nnx.Module):
    """A convolution and a dense layer in flax nnx."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 20, (3, 3), rngs=rngs)
        self.head = nnx.Linear(20, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))


def plain_apply(params: Any, x: jax.Array) -> jax.Array:
    """A convolution and a dense layer in bare jax, the dense one as ``w @ x``."""
    y = jax.lax.conv_general_dilated(
        x, params["w1"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jnp.tanh(y + params["b1"]).mean((1, 2))
    return (params["w2"] @ y.T).T


class Case(NamedTuple):
    """A state, the step that trains it, and how the model is called without the step."""

    state: Any
    step: Any


def drawn(shapes: Any) -> Any:
    """Variables of the shapes of a network, drawn by NumPy.

    What draws them as jax does takes longer to compile than most of the tests take.
    """
    rng = np.random.default_rng(0)

    def leaf(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            x = rng.normal(size=like.shape) / math.prod(like.shape[:-1]) ** 0.5
        else:
            x = np.full(like.shape, "scale" in name or "var" in name)
        return jnp.asarray(x, like.dtype)

    return jax.tree.map_with_path(leaf, shapes)


def initial(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What ``model.init`` gives, drawn by NumPy."""
    init = functools.partial(model.init, **kwargs)
    return drawn(jax.eval_shape(init, jax.random.key(0), *args))


def _optimizer() -> optax.GradientTransformation:
    return optax.sgd(0.05, momentum=0.9)


def linen_case(batch: tuple[jax.Array, jax.Array], **fields: Any) -> Case:
    """Convolutions, BatchNorm, residual, dropout in linen."""
    model = Residual(**fields)
    variables = initial(model, batch[0], train=False)
    state = BatchNormState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        key=jax.random.key(1),
        tx=_optimizer(),
    )
    return Case(state, linen_step)


def nnx_case(batch: tuple[jax.Array, jax.Array]) -> Case:
    """An ``nnx.split`` model behind an apply function."""
    del batch
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))))
    state = train_state.TrainState.create(
        apply_fn=lambda params, x: nnx.merge(graph, params)(x),
        params=drawn(shapes),
        tx=_optimizer(),
    )
    return Case(state, plain_step)


def plain_case(batch: tuple[jax.Array, jax.Array]) -> Case:
    """A plain function of a dict."""
    del batch
    keys = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(keys[0], (3, 3, 3, 20)) / 5,
        "b1": jnp.zeros(20),
        "w2": jax.random.normal(keys[1], (5, 20)) / 5,
    }
    state = train_state.TrainState.create(apply_fn=plain_apply, params=params, tx=_optimizer())
    return Case(state, plain_step)


CASES = {"linen": linen_case, "nnx": nnx_case, "plain": plain_case}


def batch_of(rng: Any, n: int = 8, size: int = 8) -> tuple[jax.Array, jax.Array]:
    """Images float32 [n, size, size, 3] whose label can be learned from their mean."""
    labels = rng.integers(0, 5, n)
    images = rng.normal(size=(n, size, size, 3)) + labels[:, None, None, None]
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)
