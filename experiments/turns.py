"""Programs over a clip: they take turns frame by frame, in one process, and are summed up.

A program is the dense network or that network behind a gate, ``call(state, params, image) ->
(state, out)``; a state that is a `tinyjax.SkipState` makes it a gate. Who is first changes from
frame to frame, so that none is favoured.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import measure, patchwork, video
from experiments.errors import UserError
from experiments.progress import Watch

__all__ = ["Arm", "Program", "Seen", "begun", "costs", "prepared", "summed", "watched"]

Note = Callable[[int, Mapping[str, jax.Array]], None]  # (frame, the outputs by name)


class Program(NamedTuple):
    """Dense or a gate, compiled: ``call(state, params, image) -> (state, out)``."""

    call: jax.stages.Compiled
    compile_seconds: float
    fresh: Callable[[], Any]  # a state before the first frame


class Seen(NamedTuple):
    """What one program did with one frame; sums are over the elements of an output."""

    ms: float
    energy: float  # sum of squares of the dense output
    error: float  # sum of squared differences to the dense output
    largest: float  # absolute difference to the dense output
    change: float  # sum of squared differences to the output of the frame before
    taken: float  # share of patches
    recomputed: list[np.ndarray]  # bool [rows, columns], per block


class Arm(NamedTuple):
    """What a gate came to; lists have an entry per frame, the first frame being dense."""

    ms: list[float]
    taken: list[float]  # share of the patches that the gate took, 0..1
    active: list[float]  # share of the patches recomputed, of all blocks: patchwork.recomputed
    recomputed: list[str]  # which ones of the first block, that of the frame: video.packed
    error: list[float]  # output error of the frame
    speedup: float  # over the clip: sum of dense ms over sum of ms
    output_error: float  # over the clip
    output_error_p95: float  # of the frames, 95th percentile
    largest_difference: float  # of an output to its dense value, absolute
    change: float  # of the output from frame to frame, relative: like output_error
    macs_share: float  # multiply-accumulates over dense, the margins of patches included
    state_bytes: int  # of the caches
    temp_bytes: int  # scratch memory of the compiled program
    compile_seconds: float


def begun(skipping: Any, params: Any, frame: Any) -> Any:
    """A state before the first frame.

    Raises:
      UserError: if the patch does not fit the frame.
    """
    try:
        return skipping.init(params, frame)
    except ValueError as error:
        raise UserError(str(error)) from error


def costs(skipping: Any, fresh: Callable[[], Any], params: Any, frame: Any) -> patchwork.Costs:
    """What a network costs, divided into blocks; the gate does not matter.

    Args:
      skipping: `tinyjax.rewrite` of `tinyjax.pass_skip` and the network.
      fresh: makes its state.
      params: of the network.
      frame: its shape and dtype.
    """
    state = jax.eval_shape(fresh)
    trace = jax.make_jaxpr(skipping.apply)(state, params, frame)
    return patchwork.costs(trace, [cells.shape for cells in state.active])


def prepared(fn: Any, fresh: Callable[[], Any], params: Any, image: np.ndarray) -> Program:
    """Compiled, and called once so that no frame pays for a first call."""
    call, seconds = measure.compiled(fn, fresh(), params, image, donate=(0,))
    jax.block_until_ready(call(fresh(), params, image))
    return Program(call, seconds, fresh)


def watched(
    programs: Mapping[str, Program],
    params: Any,
    patch: int,
    images: Iterable[np.ndarray],
    watch: Watch,
    note: Note | None = None,
) -> dict[str, list[Seen]]:
    """Every program on every frame, in turn.

    Args:
      programs: by name; one is ``dense``.
      params: of all of them.
      patch: side of a patch of the frame.
      images: uint8 [h, w, 3].
      watch: told of every frame.
      note: given the outputs of every frame, after they were timed.

    Returns:
      What each did, frame by frame.
    """
    states = {name: program.fresh() for name, program in programs.items()}
    gates = [name for name, state in states.items() if hasattr(state, "ref")]
    seen: dict[str, list[Seen]] = {name: [] for name in programs}
    before: dict[str, jax.Array] = {}
    for index, image in enumerate(images):
        # The states are given away, so what is compared later is copied first.
        refs = {name: np.array(states[name].ref) for name in gates}
        outs, ms = {}, {}
        first = index % len(programs)
        for name in [*programs][first:] + [*programs][:first]:
            start = time.perf_counter()
            result = programs[name].call(states[name], params, image)
            states[name], outs[name] = jax.block_until_ready(result)
            ms[name] = 1e3 * (time.perf_counter() - start)
        for name, out in outs.items():
            taken, recomputed = 1.0, []
            if name in gates:
                recomputed = [np.array(cells) for cells in states[name].active]
                if index:  # the first frame is taken whole, even where it is black
                    taken = patchwork.moved(refs[name], np.asarray(states[name].ref), patch)
            energy, error, largest = map(float, measure.compared(outs["dense"], out))
            change = float(measure.compared(before.get(name, out), out)[1])
            seen[name].append(Seen(ms[name], energy, error, largest, change, taken, recomputed))
        if note:
            note(index, outs)
        before = outs
        watch(index + 1, "  ".join(f"{name} {taken:.1f} ms" for name, taken in ms.items()))
    return seen


def summed(program: Program, seen: list[Seen], dense: list[Seen], costs: patchwork.Costs) -> Arm:
    """One gate, summed up.

    Args:
      program: of the gate.
      seen: what it did, per frame.
      dense: what the dense network did, per frame.
      costs: of the network, divided into blocks.
    """
    total = lambda key, of: sum(getattr(one, key) for one in of)
    energy = total("energy", dense)
    error = [measure.relative(one.error, one.energy) for one in seen]
    spent = sum(patchwork.macs(costs, one.recomputed) for one in seen)
    state = jax.eval_shape(program.fresh)
    return Arm(
        ms=[round(one.ms, 3) for one in seen],
        taken=[round(one.taken, 5) for one in seen],
        active=[round(patchwork.recomputed(costs, one.recomputed), 5) for one in seen],
        recomputed=[video.packed(one.recomputed[0]) for one in seen],
        error=[float(f"{value:.4g}") for value in error],
        speedup=total("ms", dense) / total("ms", seen),
        output_error=measure.relative(total("error", seen), energy),
        output_error_p95=float(np.quantile(error, 0.95)),
        largest_difference=max(one.largest for one in seen),
        change=measure.relative(total("change", seen), energy),
        macs_share=spent / (len(seen) * costs.dense()),
        state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        temp_bytes=measure.temp_bytes(program.call),
        compile_seconds=program.compile_seconds,
    )
