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

With ``l`` the inner limit of a tensor between blocks, ``e`` its effective value and ``b`` the block
that makes it, the same happens there, position by position::

    e  <-  b(e_before)  where that differs from e by more than l in any channel

so ``|b(e_before) - e| <= l`` in every frame: nothing adds up.

References:
  Zhou et al., `PASS: Patch Automatic Skip Scheme for Efficient Real-Time Video Perception on Edge
  Devices <https://doi.org/10.1609/aaai.v37i3.25491>`_, AAAI 2023: patches that take the reference's
  input. Its released gate runs every convolution in full; that outputs are reused, exactly, is
  ours. Only its abstract was at hand. Cavigelli, Benini, `CBinfer
  <https://arxiv.org/abs/1808.05488>`_, 2018: a reference that is updated where it is recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax.base import BlockTransform
from tinyjax.blocks import (
    Blocks,
    SkipState,
    begin,
    begin_state,
    break_even,
    effective_input,
    finish,
    fits,
    no_cotangents,
    oldest,
    pull_back,
    run_blocks,
    sample,
    tiling,
)
from tinyjax.gates import Gate, VariableGate, exact
from tinyjax.numerics.patches import differs

__all__ = ["pass_skip"]


def pass_skip(
    *,
    patch: int = 16,
    gate: Gate = exact,
    inner: float | Sequence[float] = 0.0,
    dense_above: float | None = None,
    key_every: int = 0,
    refresh_every: int = 0,
    fuse: bool = True,
) -> BlockTransform:
    """Recomputes only the patches of a video that changed.

    For functions ``apply(params, frame)`` of one frame ``[1, h, w, c]`` without randomness, by way
    of :func:`tinyjax.rewrite`. Convolutions, pools, products over channels and everything
    elementwise are skipped patch by patch; from the first operation on that is neither (a mean
    over the frame, a flattening), all is computed in full for every frame. The first frame is
    taken whole, and so is one of which the gate takes more than ``dense_above``. A block of which
    more than that must be recomputed is computed whole.

    The state belongs to its parameters. Some values of each are kept and compared, and where one
    differs, as after a step of an optimizer, the frame is taken whole; if you change parameters
    here and there, begin again with ``init``. The state can be saved at any frame. It is updated
    in place in a ``lax.scan`` over frames, or if it is given away to a jitted step that returns it
    first, ``jax.jit(lambda *args: skipping.apply(*args)[::-1], donate_argnums=0)``:
    jax pairs what is given away with the outputs in their order. Otherwise it is copied. Under
    ``vmap`` every frame costs more than a whole one.

    The derivative is that of what was recomputed, and runs there alone: what was reused, in the
    frame and between blocks, is a constant, and so is the state. What an inner limit held back has
    the derivative of what it stands for. On two cores it takes half the time of the whole network's
    with a tenth of the patches, and pays up to about a fifth (``python -m benchmarks
    pass_gradient``).

    Args:
      patch: side of the patches; strides inside a block must divide the side of its cells.
      gate: ``(x, ref, patch) -> bool [rows, cols]``: the patches that are taken, from the frame and
        the effective input of the frame before. A gate that gives a NumPy array is static. The
        variables of a :class:`tinyjax.VariableGate` are in the state, ``state.gate``.
      inner: how far tensors between blocks may move unseen, in their own units: a limit for all or
        one for each in order. They are in the state: ``state._replace(limits=...)`` changes them.
      dense_above: share of the patches, 0 to 1. A static mask is kept to, however large it is.
        By default the share from which on the whole costs less, of each block and of all, after the
        model of the cost.
      key_every: every so many frames one is computed whole, which ends all errors; 0 for never.
      refresh_every: within so many frames every patch is taken, the oldest first; 0 for never.
      fuse: products share blocks, in cells of half, once or twice ``patch``, as a model of the cost
        has it (``tinyjax.blocks``). False: a block for each, in cells of ``patch`` at its finest
        tensor, so that an inner limit stands behind each.

    Returns:
      A transform of blocks.

    Raises:
      ValueError: if an option is out of range; on use, if limits are too many or too few, if the
        function is not of this kind, if a frame changes its size or dtype, if a gate's mask does
        not tile the frame, or if it is differentiated through a custom derivative other than
        ``jax.nn.relu``'s.

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
    if dense_above is not None and not 0 <= dense_above <= 1:
        raise ValueError(f"dense_above is {dense_above}: use a share from 0 to 1")
    for name, every in (("key_every", key_every), ("refresh_every", refresh_every)):
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise ValueError(f"{name} is {every!r}: use a number of frames, or 0 for never")
    if not all(math.isfinite(limit) and limit >= 0 for limit in np.ravel(inner)):
        raise ValueError(f"inner is {inner}: use limits from 0 up, in units of the tensors")

    plain = lambda _, x, ref, patch: gate(x, ref, patch)
    varied = gate if isinstance(gate, VariableGate) else VariableGate((), plain)

    def init(blocks: Blocks) -> SkipState:
        return begin_state(blocks, patch, inner, varied.variables)

    def call(
        blocks: Blocks, state: SkipState, values: Sequence[Any]
    ) -> tuple[list[Any], SkipState]:
        @jax.custom_vjp
        def advance(state: SkipState, values: Sequence[Any]) -> tuple[list[Any], SkipState]:
            return _advance(blocks, state, values)

        def forward(state: SkipState, values: Sequence[Any]) -> tuple[Any, Any]:
            outs, after = _advance(blocks, state, values)
            return (outs, after), (after, values)

        def backward(kept: Any, cotangents: Any) -> tuple[Any, list[Any]]:
            (after, values), (outs, _) = kept, cotangents
            return no_cotangents(after), pull_back(blocks, after, values, outs, patch)

        advance.defvjp(forward, backward)
        fits(state, jax.eval_shape(lambda: init(blocks)))
        return advance(state, list(values))

    def _advance(
        blocks: Blocks, state: SkipState, values: Sequence[Any]
    ) -> tuple[list[Any], SkipState]:
        env, seen = begin(blocks, values), sample(blocks, values)
        x, fresh = env[blocks.frame], (state.frames == 0) | differs(seen, state.seen).any()
        if key_every:
            fresh = fresh | (state.frames % key_every == 0)
        taken = tiling(varied.call(state.gate, x[0], state.ref[0], patch), state.age.shape)
        most = break_even(blocks.blocks) if dense_above is None else dense_above
        much = not isinstance(taken, np.ndarray) and taken.sum() > int(most * taken.size)
        whole_frame = fresh | much
        if refresh_every:
            taken = taken | oldest(state.age, refresh_every)
        env[blocks.frame], flags = effective_input(x, state.ref, taken, whole_frame, patch)
        limits = jnp.where(fresh, 0, state.limits)  # nothing is held back where all is begun anew
        # Where nothing is held back, what is taken whole may be computed as one.
        entire = whole_frame & ~(limits > 0).any()
        old = state.cuts, state.between
        kept, active = run_blocks(blocks, env, old, flags, limits, entire, fresh, dense_above)
        state = SkipState(
            ref=env[blocks.frame],
            cuts=kept[0],
            between=kept[1],
            active=active,
            frames=state.frames + 1,
            limits=state.limits,
            age=jnp.where(taken | whole_frame, 0, state.age + 1),
            seen=seen,
            gate=jax.tree.map(jnp.asarray, state.gate),
        )
        outs = (v for block in blocks.blocks for v in block.outs)
        env |= dict(zip((*outs, *blocks.between), (*kept[0], *kept[1]), strict=True))
        return finish(blocks, env), state

    return BlockTransform(patch, init, call, fuse)
