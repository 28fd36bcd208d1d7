"""What skipping carries from frame to frame: how it begins, whom it fits, when it is stale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax.blocks.divide import Blocks
from tinyjax.blocks.local import Var
from tinyjax.numerics.patches import Pair, tiles

__all__ = ["SkipState", "begin_state", "fits", "gated", "oldest", "sample", "tiling"]

Array = jax.Array
SAMPLED = 64  # values of every parameter that are compared


class SkipState(NamedTuple):
    """What is carried from frame to frame.

    Attributes:
      ref: the effective input ``[1, h, w, c]``, in the frame's dtype.
      cuts: effective outputs of every block, ``[1, h, w, c]`` each: what their readers saw.
      between: what is computed in full before a block, for every frame.
      active: for every block, the cells recomputed in the last frame: bool ``[rows, cols]``.
      frames: how many there were, int32.
      limits: of every tensor between blocks, how far it may move unseen: float32 ``[tensors]``.
        May be replaced at any time, without another compilation.
      age: for every patch of the frame, how many frames ago it was taken: int32 ``[rows, cols]``.
      seen: some values of every parameter, float32 ``[values]``.
      gate: the variables of a :class:`tinyjax.VariableGate`; ``()`` of other gates. May be replaced
        at any time by others of their shapes and dtypes, without another compilation.

    Example:
      >>> import tinyjax
      >>> tinyjax.SkipState._fields
      ('ref', 'cuts', 'between', 'active', 'frames', 'limits', 'age', 'seen', 'gate')
    """

    ref: Array
    cuts: tuple[Array, ...]
    between: tuple[Array, ...]
    active: tuple[Array, ...]
    frames: Array
    limits: Array
    age: Array
    seen: Array
    gate: Any = ()


def gated(blocks: Blocks) -> list[Var]:
    """The tensors between blocks whose changes an inner limit may hold back: floats."""
    read = {v for block in blocks.blocks for v in block.ins}
    outs = [v for block in blocks.blocks for v in block.outs if v in read]
    return [v for v in outs if jnp.issubdtype(v.aval.dtype, jnp.floating)]


def begin_state(
    blocks: Blocks, patch: int, inner: float | Sequence[float], gate: Any = ()
) -> SkipState:
    """The state before the first frame.

    Args:
      blocks: the function, divided.
      patch: side of the frame's patches.
      inner: the limit of all tensors between blocks, or of each.
      gate: its variables, copied, since a state may be given away.

    Raises:
      ValueError: if there are not as many limits as tensors.
    """
    frame, tensors = blocks.frame.aval, gated(blocks)
    limits = np.asarray(inner, np.float32)
    if limits.ndim and limits.shape != (len(tensors),):
        raise ValueError(
            f"inner has {limits.size} limits, and {len(tensors)} tensors lie between blocks: give "
            "one for each, or one number for all"
        )
    values = [v.aval for v in (*blocks.jaxpr.constvars, *blocks.jaxpr.invars)]
    seen = jax.eval_shape(lambda values: sample(blocks, values), values)
    return SkipState(
        ref=jnp.zeros(frame.shape, frame.dtype),
        cuts=tuple(
            jnp.zeros(v.aval.shape, v.aval.dtype) for block in blocks.blocks for v in block.outs
        ),
        between=tuple(jnp.zeros(v.aval.shape, v.aval.dtype) for v in blocks.between),
        active=tuple(jnp.zeros(block.grid, bool) for block in blocks.blocks),
        frames=jnp.int32(0),
        limits=jnp.asarray(np.broadcast_to(limits, len(tensors))),
        age=jnp.zeros(tiles(frame.shape[1:3], (patch, patch)), jnp.int32),
        seen=jnp.zeros(seen.shape, seen.dtype),
        gate=jax.tree.map(jnp.array, gate),
    )


def sample(blocks: Blocks, values: Sequence[Any]) -> Array:
    """Up to 64 values of every parameter, spread over it: float32 ``[values]``.

    A digest of them all would read every weight in every frame. An optimizer's step moves nearly
    all of them, so that some do for all.
    """
    names = (*blocks.jaxpr.constvars, *blocks.jaxpr.invars)
    parts = [jnp.zeros(0, jnp.float32)]
    for name, value in zip(names, values, strict=True):
        numeric = jnp.issubdtype(name.aval.dtype, jnp.number)
        if name is not blocks.frame and numeric and name.aval.size:
            # An odd stride, or it would meet the same channel again and again.
            stride = math.ceil(name.aval.size / SAMPLED) | 1
            parts.append(jnp.ravel(jnp.asarray(value))[::stride].astype(jnp.float32))
    return jnp.concatenate(parts)


def oldest(age: Array, every: int) -> Array:
    """The patches to take so that none grows older than ``every`` frames; bool ``[rows, cols]``.

    Example:
      >>> oldest(jnp.array([[3, 0], [1, 4]]), 2).tolist()
      [[True, False], [False, True]]
    """
    count = math.ceil(age.size / every)
    _, places = jax.lax.top_k(age.ravel(), count)
    return jnp.zeros(age.size, bool).at[places].set(True).reshape(age.shape)


def fits(state: Any, wanted: SkipState) -> None:
    """Refuses a state that was made for something else.

    Raises:
      ValueError: if its shapes and dtypes are not those of ``wanted``.
    """
    if not isinstance(state, SkipState):
        raise ValueError(
            f"pass_skip was given {type(state).__name__} for its state: make one with "
            "rewrite(pass_skip(...), apply).init(params, frame)"
        )
    frame, ref = wanted.ref, state.ref
    if (ref.shape, ref.dtype) != (frame.shape, frame.dtype):
        raise ValueError(
            f"a frame {frame.dtype} {frame.shape} came after one {ref.dtype} {ref.shape}: begin "
            "again with init(params, frame)"
        )
    if _described(state.gate) != _described(wanted.gate):
        raise ValueError(
            f"the state holds {_described(state.gate)[0]} for its gate, whose variables are "
            f"{_described(wanted.gate)[0]}: give those shapes and dtypes, or begin again with "
            "init(params, frame)"
        )
    if _described(state) != _described(wanted):
        raise ValueError(
            "the state was made for another function or patch: begin again with init(params, frame)"
        )


def _described(tree: Any) -> tuple[Any, Any]:
    """Shapes and dtypes of a tree's leaves, and how it is built."""
    leaves, structure = jax.tree.flatten(tree)
    return [(jnp.shape(a), str(jnp.result_type(a))) for a in leaves], structure


def tiling(mask: Any, grid: Pair) -> Any:
    """A gate's mask, if it tiles the frame.

    Raises:
      ValueError: if it is not bool ``grid``.
    """
    given = (getattr(mask, "dtype", None), getattr(mask, "shape", None))
    if given != (np.bool_, grid):
        raise ValueError(
            f"a gate gave {type(mask).__name__} {given[0]} {given[1]}, which does not tile the "
            f"frame: give a bool array {grid}, a flag per patch"
        )
    return mask
