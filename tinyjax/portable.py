"""Functions that can leave the process: without what ``jax.export`` refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from tinyjax import compat
from tinyjax.numerics.layout import flattened

__all__ = ["portable"]


def portable(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The same function in operations that ``jax.export`` takes, with the same integers.

    Integer products hold their operands row-major by layout constraints, which are custom calls of
    one compiler. Here each is a reshape to one axis and back around a barrier, which holds them as
    well: a step takes about a fifth longer, where merely leaving the constraints out makes it 15
    times slower. Calls, ``jax.checkpoint`` regions and loops are entered and stay what they
    are; nothing else changes.

    It goes outermost, around the whole step: of ``jax.grad(portable(f))`` the backward pass is
    that of ``f``, which ``jax.export`` refuses. On a batch sharded over devices the integers are
    the same too, but one axis has one sharding, so activations may travel.

    Args:
      fun: a pure function of pytrees. Arrays among the leaves of its arguments are traced; all
        else is static.

    Returns:
      A function of the same arguments.

    Example:
      A train step travels as arrays, since a ``TrainState`` holds functions:

      >>> import jax, jax.numpy as jnp, optax, tinyjax
      >>> from flax.training.train_state import TrainState
      >>> from jax import export
      >>> def step(state, x):
      ...   grads = jax.grad(lambda p: jnp.sum(state.apply_fn(p, x) ** 2))(state.params)
      ...   return state.apply_gradients(grads=grads)
      >>> state = TrainState.create(
      ...   apply_fn=lambda p, x: x @ p["w"], params={"w": jnp.ones((3, 2))}, tx=optax.sgd(0.1))
      >>> tx, x = tinyjax.int8_qat(), jnp.ones((4, 3))
      >>> state = tinyjax.attach(tx, step, state.replace(step=jnp.int32(0)), x)
      >>> arrays, tree = jax.tree.flatten(state)
      >>> def flat(arrays, x):
      ...   return jax.tree.leaves(tx(step)(jax.tree.unflatten(tree, arrays), x))
      >>> exported = export.export(jax.jit(tinyjax.portable(flat)))(arrays, x)
      >>> data = exported.serialize()  # bytes, to be loaded where there is no model

      and in another process, which keeps the arrays from step to step:

      >>> arrays = export.deserialize(data).call(arrays, x)
      >>> int(jax.tree.unflatten(tree, arrays).step)  # back where the model is
      1
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        dynamic = [i for i, leaf in enumerate(leaves) if compat.is_array(leaf)]
        out_trees = []

        def flat(*values: Any) -> list[Any]:
            full = list(leaves)
            for i, value in zip(dynamic, values, strict=True):
                full[i] = value
            args, kwargs = jax.tree.unflatten(tree, full)
            outs, out_tree = jax.tree.flatten(fun(*args, **kwargs))
            out_trees.append(out_tree)
            return outs

        outs = compat.replaced(flat, compat.CONSTRAINT, flattened, *(leaves[i] for i in dynamic))
        return jax.tree.unflatten(out_trees[0], outs)

    return run
