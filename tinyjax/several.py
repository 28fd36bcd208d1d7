"""Skips in the video of several cameras, through one program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.base import Array, Rewritten

__all__ = ["cameras"]


def cameras(skipping: Rewritten) -> Rewritten:
    """One program for the frames of several cameras, each with a state of its own.

    A loop over the cameras, so that each costs what moved in it, and the program is as large as
    that of one. Outputs and states are those of every camera alone. The states are stacked, and a
    camera's is copied out and in: ``donate_argnums`` as for one (:func:`tinyjax.pass_skip`) saves
    another copy. ``vmap`` would compute all patches of all cameras. Limits and the variables of
    gates may differ from camera to camera.

    Args:
      skipping: ``rewrite(pass_skip(...), apply)``.

    Returns:
      ``init(params, frames) -> states`` and ``apply(states, params, frames) -> (outs, states)``,
      with frames ``[n, h, w, c]``, one of each camera. All leaves of outs and states have ``n``
      before the shape that they have of one camera, whose frame is ``[1, h, w, c]``.

    Raises:
      ValueError: on use, if frames are not ``[n, h, w, c]``, or not as many as states.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda params, frame: jnp.tanh(frame @ params)
      >>> both = tinyjax.cameras(tinyjax.rewrite(tinyjax.pass_skip(patch=8), apply))
      >>> frames = jnp.zeros((2, 32, 32, 3))
      >>> states = both.init(jnp.eye(3), frames)
      >>> _, states = both.apply(states, jnp.eye(3), frames)
      >>> outs, states = both.apply(states, jnp.eye(3), frames.at[1, 0, 9].set(1.0))
      >>> outs.shape, states.active[0].sum((1, 2)).tolist()  # cells recomputed, by camera
      ((2, 1, 32, 32, 3), [0, 1])

    References:
      ``jax.lax.fori_loop``, whose carry XLA updates in place.
    """

    def init(params: Any, frames: Array) -> Any:
        count = _count(frames)
        one = skipping.init(params, frames[:1])
        return jax.tree.map(lambda a: jnp.stack([a] * count), one)

    def apply(states: Any, params: Any, frames: Array) -> tuple[Any, Any]:
        count = _count(frames)
        if (given := len(states.frames)) != count:
            raise ValueError(
                f"there are frames of {count} cameras and states of {given}: give one frame of "
                "each, in the same order"
            )
        of = lambda tree, i: jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, 0, False), tree)
        put = lambda tree, new, i: jax.tree.map(
            lambda a, b: lax.dynamic_update_index_in_dim(a, b, i, 0), tree, new
        )
        step = lambda states, i: skipping.apply(of(states, i), params, of(frames, i)[None])
        shapes = jax.eval_shape(lambda: step(states, 0)[0])
        outs = jax.tree.map(lambda a: jnp.zeros((count, *a.shape), a.dtype), shapes)

        def body(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            outs, states = carry
            out, state = step(states, i)
            return put(outs, out, i), put(states, state, i)

        return lax.fori_loop(0, count, body, (outs, states))

    return Rewritten(init, apply)


def _count(frames: Array) -> int:
    if frames.ndim != 4 or not len(frames):
        raise ValueError(f"frames are {frames.shape}: give [n, h, w, c], one of each camera")
    return len(frames)
