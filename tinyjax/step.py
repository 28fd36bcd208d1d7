"""Transforms on train steps: the user's step stays as it is, jitted or not.

The transformed forward function travels into the step in ``state.apply_fn``, which is static
metadata of a train state: ``jax.jit`` keys its cache on it, so a step jitted long ago is traced
once more for the transform and never again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tinyjax.base import Site, Sited, TrainStep, Transform, Vars, unchanged
from tinyjax.compat import abstractly
from tinyjax.numerics.rounding import fold_key
from tinyjax.rewrite import apply_with, reached

__all__ = ["attach", "detach", "over_step"]


@functools.lru_cache(maxsize=256)
def over_step(tx: Transform, step: TrainStep) -> TrainStep:
    """Lifts a transform onto an unmodified train step; ``tx(step)`` is the same.

    Memoised, so that ``tx(step)(state, ...)`` may stand in a loop.

    Args:
      tx: the transform.
      step: ``step(state, *batch)``, jitted or not, that calls ``state.apply_fn``; it returns the
        new state, alone or inside a pytree (a tuple with metrics, say).

    Returns:
      The same step under the transform. States that come out have the user's own ``apply_fn``.

    Raises:
      ValueError: when called, if the step never calls ``state.apply_fn``, if the transform has
        variables or needs keys and the state was not prepared with :func:`attach`, or if the
        transform changes its variables, which a train step we do not own cannot return.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tinyjax
      >>> from flax.training.train_state import TrainState
      >>> @jax.jit
      ... def step(state, x):
      ...   grads = jax.grad(lambda p: jnp.sum(state.apply_fn(p, x) ** 2))(state.params)
      ...   return state.apply_gradients(grads=grads)
      >>> state = TrainState.create(
      ...   apply_fn=lambda p, x: x @ p["w"], params={"w": jnp.ones((3, 2))}, tx=optax.sgd(0.1))
      >>> tx = tinyjax.int8_qat()
      >>> state = tinyjax.attach(tx, step, state, jnp.ones((4, 3)))
      >>> int(tx(step)(state, jnp.ones((4, 3))).step)
      1
    """
    lift = functools.lru_cache(maxsize=64)(functools.partial(_Lifted, tx))

    @functools.wraps(step)
    def lifted(state: Any, *batch: Any, **kwargs: Any) -> Any:
        _only_state(state, batch, kwargs)
        apply_fn = state.apply_fn
        inner = lift(apply_fn)
        out = step(_entering(state, inner), *batch, **kwargs)
        if not inner.called:
            raise ValueError(
                "this step never called state.apply_fn, so the transform could not reach the "
                "model: call state.apply_fn in the step, or pass "
                "tinyjax.rewrite(tx, model.apply) where you build it"
            )
        return jax.tree.map(
            lambda leaf: leaf.replace(apply_fn=apply_fn) if _carries(inner, leaf) else leaf,
            out,
            is_leaf=functools.partial(_carries, inner),
        )

    return lifted


def attach(tx: Transform, step: TrainStep, state: Any, *batch: Any, **kwargs: Any) -> Any:
    """Prepares a train state for a transform that has variables or needs keys.

    The step is traced, not run, to see how it calls ``state.apply_fn``. The parameters become a
    :class:`tinyjax.Sited`; the optimizer's state grows to match and keeps its moments. Arrays are
    shared with the state that was given. Several calls of ``apply_fn`` in one step share their
    random bits.

    Args:
      tx: the transform.
      step: the train step, not lifted.
      state: the train state.
      *batch: what the step takes after the state; arrays or ``jax.ShapeDtypeStruct``.
      **kwargs: its keywords.

    Returns:
      The state with ``params`` a ``Sited``.

    Raises:
      ValueError: if the step never calls ``state.apply_fn`` or takes a second state, if the state
        is prepared already, if a variable is not floating point and so cannot be under
        ``jax.grad``, or if the optimizer cannot take the new structure.

    Example:
      See :func:`over_step`; afterwards:

      >>> import tinyjax
      >>> tinyjax.Sited._fields
      ('model', 'sites', 'tick')
    """
    _only_state(state, batch, kwargs)
    if _sited(state.params):
        raise ValueError("the state has variables already: call detach(state) before attach(...)")
    seen: dict[str, Site] = {}

    def spy(params: Any, /, *args: Any, **kwargs: Any) -> Any:
        seen.update({site.path: site for site in reached(tx, state.apply_fn, params, args, kwargs)})
        return state.apply_fn(params, *args, **kwargs)

    abstractly(step, state.replace(apply_fn=spy), *batch, **kwargs)
    if not seen:
        raise ValueError(
            "this step never called state.apply_fn, so its sites are unknown: "
            "call state.apply_fn in the step"
        )
    # Made here, after the trace, so that no variable is a value of it.
    found: dict[str, Vars] = {path: tx.init(site) for path, site in seen.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            raise ValueError(
                f"variable {jax.tree_util.keystr(path)} is {leaf.dtype}, which cannot be trained "
                "in a train step: use rewrite(tx, apply) in your own loop"
            )
    params = Sited(state.params, found, _tick(state.step))
    return state.replace(params=params, opt_state=_grown(state, params))


def detach(state: Any) -> Any:
    """Undoes :func:`attach`: the ordinary state, with plain parameters and optimizer moments.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> tinyjax.detach({"params": tinyjax.Sited({"w": 1.0}, {}, jnp.zeros(4))})
      {'params': {'w': 1.0}}
    """
    return jax.tree.map(lambda n: n.model if _is_sited(n) else n, state, is_leaf=_is_sited)


def _grown(state: Any, params: Sited) -> Any:
    """The optimizer's state for the new parameters, with the moments of the old ones."""
    try:
        return jax.tree.map(
            lambda new, old: new._replace(model=old) if _is_sited(new) else old,
            state.tx.init(params),
            state.opt_state,
            is_leaf=_is_sited,
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "the optimizer needs the parameters in their own structure (a mask or labels by name, "
            "say), and attach puts variables beside them: give it functions of the tree that pass "
            "Sited through, or round with tinyjax.numerics.nearest, which needs no attach"
        ) from error


def _is_sited(node: Any) -> bool:
    return isinstance(node, Sited)


def _sited(tree: Any) -> list[Sited]:
    return [n for n in jax.tree.leaves(tree, is_leaf=_is_sited) if _is_sited(n)]


def _only_state(state: Any, batch: Any, kwargs: Any) -> None:
    """Refuses arguments in which something would be left in float unnoticed."""
    if not hasattr(state, "apply_fn"):
        raise ValueError(
            f"the step's first argument is {type(state).__name__}, which has no apply_fn: pass the "
            "train state first"
        )
    is_state = lambda node: hasattr(node, "apply_fn")
    if any(map(is_state, jax.tree.leaves((batch, kwargs), is_leaf=is_state))):
        raise ValueError(
            "the step takes a second train state, which would stay as it is: transform its model "
            "with tinyjax.rewrite(tx, model.apply) where you build it"
        )


def _carries(apply_fn: Callable[..., Any], node: Any) -> bool:
    return getattr(node, "apply_fn", None) is apply_fn


class _Lifted:
    """``apply_fn`` under a transform; remembers whether a step ever called it."""

    def __init__(self, tx: Transform, apply_fn: Callable[..., Any]) -> None:
        self.tx, self.apply_fn, self.called = tx, apply_fn, False

    def __call__(self, params: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        beside = _sited(params)
        vars, key = (beside[0].sites, _key(beside[0].tick)) if beside else ({}, None)
        out, new = apply_with(self.tx, self.apply_fn, vars, key, detach(params), args, kwargs)
        changed = [path for path, own in new.items() if not unchanged(own, vars.get(path, ()))]
        if changed:
            raise ValueError(
                f"the transform changed its variables at {changed}, which a train step cannot "
                "return: use rewrite(tx, apply) in your own loop"
            )
        return out


_UNIT = 2.0**-120  # its square is 0 in float32, and it is a normal number in bfloat16


def _tick(step: Any) -> jax.Array:
    """The step as a variable that weighs nothing: see :class:`tinyjax.Sited`."""
    shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)
    digits = (jnp.asarray(step).astype(jnp.uint32) >> shifts) & jnp.uint32(255)
    return digits.astype(jnp.float32) * jnp.float32(_UNIT)


def _key(tick: jax.Array) -> jax.Array:
    """The random key of one step. Rounding needs no secret, so the seed is fixed."""
    if tick.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"the step casts all of state.params to {tick.dtype}, in which the step counter beside "
            "the model is lost: cast to bfloat16, or leave Sited.tick in float32"
        )
    digits = jax.lax.stop_gradient(tick).astype(jnp.float32) * jnp.float32(1 / _UNIT)
    words = jnp.rint(digits).astype(jnp.uint32) << jnp.arange(0, 32, 8, dtype=jnp.uint32)
    return fold_key(jax.random.key(0), jnp.sum(words, dtype=jnp.uint32))


def _entering(state: Any, inner: Callable[..., Any]) -> Any:
    """The state as the step sees it: transformed ``apply_fn``, current tick."""
    if isinstance(state.params, Sited):
        state = state.replace(params=state.params._replace(tick=_tick(state.step)))
    return state.replace(apply_fn=inner)
