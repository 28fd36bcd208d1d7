"""``python -m benchmarks.gpu pass``: at which share of patches skipping pays on a GPU.

The network is ``backbone`` of ``benchmarks pass``, on frames of 1280x720 and 1920x1080; frames take
turns that differ in the middle of some patches, as there.

What a figure means:

``crossover``
    Of a frame size and a share of patches: ``dense_ms`` of the network, ``skip_ms`` through
    ``pass_skip``, whose loops run on the device, and ``whole_ms`` of the same where any change
    computes the frame whole (``dense_above=0``): what is left where a loop of small products does
    not fill the device. ``speedup`` is the network's time over that of the faster of the two.
    ``equal`` has to be true: the output is the network's to 1e-5 of its largest value.
"""

from collections.abc import Iterator
from statistics import median

import jax
import jax.numpy as jnp

from benchmarks.rows import Row, call
from benchmarks.skip import ACTIVE, CASES, Played, begun
from experiments import measure
from tinyjax import pass_skip, rewrite

__all__ = ["rows"]

SIZES = {"720p": (720, 1280, 3), "1080p": (1080, 1920, 3)}


def rows(smoke: bool, rounds: int) -> Iterator[tuple[str, Row]]:
    """Each figure with the name of the list that it belongs to.

    Args:
      smoke: small frames, and few shares.
      rounds: runs of each program.
    """
    for size, frame in SIZES.items():
        case = CASES["backbone"]._replace(frame=frame)
        x, params = begun(case, 8 if smoke else 1)
        dense = jax.jit(case.model.apply).lower(params, x).compile()
        programs = {}
        for name, above in (("skip", None), ("whole", 0.0)):
            skipping = rewrite(pass_skip(patch=case.patch, dense_above=above), case.model.apply)
            state = skipping.init(params, x)
            step = jax.jit(lambda *args, s=skipping: s.apply(*args)[::-1], donate_argnums=0)
            programs[name] = step.lower(state, params, x).compile(), state
        for share in (0.0, 0.25, 1.0) if smoke else ACTIVE:
            frames = [jnp.asarray(image) for image in case.video(x, case.patch, share)]
            wanted = [dense(params, image) for image in frames]
            played = {
                name: Played(program, jax.tree.map(jnp.copy, state), params, frames)
                for name, (program, state) in programs.items()
            }
            near = [
                bool(jnp.abs(one() - want).max() <= 1e-5 * jnp.abs(want).max())
                for one in played.values()
                for want in 2 * wanted
            ]
            calls = {"dense": call(dense, (params, frames[0])), **played}
            seconds = measure.interleaved(calls, rounds)
            best = min(played, key=lambda name, s=seconds: median(s[name]))
            yield (
                "crossover",
                {
                    "size": size,
                    "active": share,
                    **{f"{key}_ms": 1e3 * median(taken) for key, taken in seconds.items()},
                    "speedup": measure.ratio(seconds["dense"], seconds[best]),
                    "equal": all(near),
                },
            )
