"""The gradient of a network over video through ``pass_skip`` against that of the whole network.

The networks and frames are those of :mod:`benchmarks.skip`: two frames that differ in the middle of
some patches. The loss is half the sum of the output's squares; gradients are of the parameters and
of the frame. A call is the forward and the backward direction of one frame.

Metrics of a row:

``active``
    The share of patches that changes; ``recomputed`` the share of cells, a mean over blocks.
``dense_ms``, ``skip_ms``, ``share``
    ``jax.value_and_grad`` of the network, the same through ``pass_skip``, and the median over the
    rounds of the second over the first.
``dense_off_ms``, ``share_best``
    The network with XLA's CPU library fusion off, and the share of the faster of the two.
"""

import functools
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.skip import CASES as NETWORKS
from benchmarks.skip import begun, whole
from experiments import measure
from tinyjax import pass_skip, rewrite

__all__ = ["CASES", "run"]

SHARES = (0.0, 0.05, 0.1, 0.25, 1.0)
CASES = {name: NETWORKS[name] for name in ("block", "backbone")}


def run(name: str, *, rounds: int = 15, shrink: int = 1) -> list[dict[str, Any]]:
    """A row for each share of active patches.

    Args:
      name: a key of ``CASES``.
      rounds: how often each program runs.
      shrink: divides the frame, down to two patches a side, to try things out quickly.
    """
    case = CASES[name]
    frame, params = begun(case, shrink)
    apply: Callable[..., Any] = case.model.apply
    skipping = rewrite(pass_skip(patch=case.patch), apply)

    def energy(params: Any, frame: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(apply(params, frame))) / 2

    def skipped(params: Any, frame: jax.Array, state: Any) -> jax.Array:
        return jnp.sum(jnp.square(skipping.apply(state, params, frame)[0])) / 2

    dense = whole(jax.value_and_grad(energy, argnums=(0, 1)), params, frame)
    skip = jax.jit(jax.value_and_grad(skipped, argnums=(0, 1)))
    step = jax.jit(skipping.apply)
    _, state = step(skipping.init(params, frame), params, frame)
    rows = []
    for share in SHARES:
        _, other = (jnp.asarray(x) for x in case.video(frame, case.patch, share))
        active = step(state, params, other)[1].active
        programs = {**dense, "skip": lambda params, x: skip(params, x, state)}
        calls = {key: functools.partial(call, params, other) for key, call in programs.items()}
        seconds = measure.interleaved(calls, rounds)
        best = min(dense, key=lambda key, s=seconds: median(s[key]))
        rows.append(
            {"case": name, "active": share}
            | {"recomputed": float(np.mean([np.mean(cells) for cells in active]))}
            | {f"{key}_ms": 1e3 * median(taken) for key, taken in seconds.items()}
            | {"share": measure.ratio(seconds["skip"], seconds["dense"])}
            | {"share_best": measure.ratio(seconds["skip"], seconds[best]), "rounds": rounds}
        )
    return rows
