"""Skips the patches of a video in which nothing happened; computes the others for real.

With ``x`` a frame, ``r`` the effective input of the frame before, ``u`` the patches that a gate
takes, and ``f`` the function::

    r  <- u x + (1 - u) r
    y  =  f(r)

Only those patches of a block are recomputed whose window holds a position at which its input
changed; all others keep the values of the frame before. So ``y`` is what the whole computation
would give for ``r``, whatever the gate decides, and with the gate that takes every changed patch
``r`` is ``x``. What a block recomputed is compared with what it held, so that a change which dies
out (behind a relu, say) wakes nothing in the next block.

References:
  Zhou et al., `PASS: Patch Automatic Skip Scheme for Efficient Real-Time Video Perception on Edge
  Devices <https://doi.org/10.1609/aaai.v37i3.25491>`_, AAAI 2023: patches that take the reference's
  input. Its released gate runs every convolution in full; that outputs are reused, exactly, is
  ours. Only its abstract was at hand. Cavigelli, Benini, `CBinfer
  <https://arxiv.org/abs/1808.05488>`_, 2018: a reference that is updated where it is recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax.base import Array, BlockTransform
from tinyjax.blocks import Blocks, active_cells, begin, effective_input, finish, run_block
from tinyjax.gates import Gate, exact
from tinyjax.numerics.patches import Pair, tiles

__all__ = ["SkipState", "pass_skip"]


class SkipState(NamedTuple):
    """What is carried from frame to frame.

    Attributes:
      ref: the effective input ``[1, h, w, c]``, in the frame's dtype.
      cuts: outputs of every block, ``[1, h, w, c]`` each.
      active: for every block, the cells recomputed in the last frame: bool ``[rows, cols]``.
      frames: how many there were, int32.

    Example:
      >>> import tinyjax
      >>> tinyjax.SkipState._fields
      ('ref', 'cuts', 'active', 'frames')
    """

    ref: Array
    cuts: tuple[Array, ...]
    active: tuple[Array, ...]
    frames: Array


def pass_skip(*, patch: int = 16, gate: Gate = exact, dense_above: float = 0.45) -> BlockTransform:
    """Recomputes only the patches of a video that changed.

    For functions ``apply(params, frame)`` of one frame ``[1, h, w, c]`` without randomness, by way
    of :func:`tinyjax.rewrite`. Convolutions, pools, products over channels and everything
    elementwise are skipped patch by patch; from the first operation on that is neither (a mean
    over the frame, a flattening), all is computed in full for every frame. The first frame is
    taken whole, and so is one of which the gate takes more than ``dense_above``. A block of which
    more than that must be recomputed is computed whole.

    The state belongs to its parameters: after they change, begin again with ``init``. It is
    updated in place in a ``lax.scan`` over frames, or if it is given away to a jitted step that
    returns it first, ``jax.jit(lambda *args: skipping.apply(*args)[::-1], donate_argnums=0)``:
    jax pairs what is given away with the outputs in their order. Otherwise it is copied. Under
    ``vmap`` every frame costs more than a whole one.

    Args:
      patch: side of the patches; strides inside a block must divide it.
      gate: ``(x, ref, patch) -> bool [rows, cols]``: the patches that are taken, from the frame and
        the effective input of the frame before. A gate that gives a NumPy array is static.
      dense_above: share of the patches, 0 to 1. A static mask is kept to, however large it is.
        Cells are computed one by one and a whole block on all cores, so that the whole pays from
        about 0.45 on two cores (``python -m benchmarks pass``).

    Returns:
      A transform of blocks.

    Raises:
      ValueError: if ``patch`` or ``dense_above`` is out of range; on use, if the function is not
        of this kind, if a frame changes its size or dtype, if a gate's mask does not tile the
        frame, or if it is differentiated.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> def apply(params, frame):
      ...   return jnp.tanh(frame @ params["w"])
      >>> params, frame = {"w": jnp.ones((3, 2))}, jnp.zeros((1, 32, 32, 3))
      >>> skipping = tinyjax.rewrite(tinyjax.pass_skip(patch=8), apply)
      >>> state = skipping.init(params, frame)
      >>> _, state = skipping.apply(state, params, frame)
      >>> out, state = skipping.apply(state, params, frame.at[0, 3, 30].set(1.0))
      >>> state.active[0].sum().item(), out.shape
      (1, (1, 32, 32, 2))

    References:
      Zhou et al., PASS, AAAI 2023 (see the module).
    """
    if isinstance(patch, bool) or not isinstance(patch, int) or patch < 1:
        raise ValueError(f"patch is {patch!r}: use an int from 1 up")
    if not 0 <= dense_above <= 1:
        raise ValueError(f"dense_above is {dense_above}: use a share from 0 to 1")

    def init(blocks: Blocks) -> SkipState:
        frame = blocks.frame.aval
        outs = [v.aval for block in blocks.blocks for v in block.outs]
        return SkipState(
            ref=jnp.zeros(frame.shape, frame.dtype),
            cuts=tuple(jnp.zeros(out.shape, out.dtype) for out in outs),
            active=tuple(jnp.zeros(block.grid, bool) for block in blocks.blocks),
            frames=jnp.int32(0),
        )

    def call(
        blocks: Blocks, state: SkipState, values: Sequence[Any]
    ) -> tuple[list[Any], SkipState]:
        @jax.custom_jvp
        def advance(state: SkipState, values: Sequence[Any]) -> tuple[list[Any], SkipState]:
            return _advance(blocks, state, values)

        @advance.defjvp
        def derivative(*ignored: Any) -> Any:
            del ignored
            raise ValueError(
                "pass_skip was differentiated, and it is for inference only: differentiate the "
                "function itself, at state.ref for the same output"
            )

        _fits(state, jax.eval_shape(lambda: init(blocks)))
        return advance(state, list(values))

    def _advance(
        blocks: Blocks, state: SkipState, values: Sequence[Any]
    ) -> tuple[list[Any], SkipState]:
        env = begin(blocks, values)
        x, fresh = env[blocks.frame], state.frames == 0
        taken = _tiling(gate(x[0], state.ref[0], patch), tiles(x.shape[1:3], (patch, patch)))
        whole_frame = fresh if isinstance(taken, np.ndarray) else _is_much(taken) | fresh
        env[blocks.frame], flags = effective_input(x, state.ref, taken, whole_frame, patch)
        changed = {blocks.frame: flags}
        watched = {v for block in blocks.blocks for v in block.ins}
        held, active = iter(state.cuts), []
        for block in blocks.blocks:
            cells, old = active_cells(block, changed), [next(held) for _ in block.outs]
            whole_block = _is_much(cells) | fresh
            outs, flags = run_block(block, env, old, cells, whole_block, watched)
            env |= dict(zip(block.outs, outs, strict=True))
            changed |= flags
            active.append(cells | whole_block)
        cuts = tuple(env[v] for block in blocks.blocks for v in block.outs)
        state = SkipState(env[blocks.frame], cuts, tuple(active), state.frames + 1)
        return finish(blocks, env), state

    def _is_much(cells: Any) -> Any:
        return cells.sum() > int(dense_above * cells.size)

    return BlockTransform(patch, init, call)


def _tiling(mask: Any, grid: Pair) -> Any:
    """A gate's mask, if it tiles the frame."""
    given = (getattr(mask, "dtype", None), getattr(mask, "shape", None))
    if given != (np.bool_, grid):
        raise ValueError(
            f"a gate gave {type(mask).__name__} {given[0]} {given[1]}, which does not tile the "
            f"frame: give a bool array {grid}, a flag per patch"
        )
    return mask


def _fits(state: Any, wanted: SkipState) -> None:
    """Refuses a state that was made for something else."""
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
    described = [[(a.shape, a.dtype) for a in jax.tree.leaves(tree)] for tree in (state, wanted)]
    if described[0] != described[1]:
        raise ValueError(
            "the state was made for another function or patch: begin again with init(params, frame)"
        )
