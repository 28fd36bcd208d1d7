"""``python -m benchmarks.gpu sgq``: SGQ's codecs, and whether their bits are the CPU's.

The features are those of ``benchmarks sgq``, and stand in for their gradient too.

What a figure means:

``speeds``
    Of a stage: ``encode_ms``, ``decode_ms`` and millions of elements per second of either.
    ``quantizer`` is ``tinyjax.sgq_encode`` and ``sgq_decode``; ``gradient`` the gradient's code;
    ``by_context`` and ``order0`` are ``tinyjax.entropy`` on the codes, ``order0_gradient`` on the
    masked gradient's.
``bits``
    ``codes_equal``: share of the features' codes that are the CPU's; the step is a sum of floats,
    which another order may change. All others from the same codes, and they have to be true:
    ``frames_equal``, whether the compressed frames are the CPU's byte for byte; ``expanded_equal``,
    whether the CPU's frames come back here as they were; ``decoded_equal``, whether their features
    are the CPU's bit for bit.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import Row, call, medians
from benchmarks.sgq import features
from tinyjax import entropy, global_step, sgq, sgq_decode, wire

__all__ = ["rows"]

_CODEC = sgq(quantizer=global_step(exact=True))


def rows(smoke: bool, rounds: int) -> Iterator[tuple[str, Row]]:
    """Each figure with the name of the list that it belongs to.

    Args:
      smoke: few samples.
      rounds: runs of each program.
    """
    x = features(16 if smoke else 1)
    code = jax.jit(_CODEC.encode)(x)
    state, seed = entropy.fit(code), jnp.uint32(0)
    gradient = jax.jit(_CODEC.encode_gradient)(x, seed, code)
    stages: dict[str, tuple[Any, Any, Any, Any]] = {
        "quantizer": (_CODEC.encode, (x,), sgq_decode, lambda made: (made,)),
        "gradient": (
            _CODEC.encode_gradient,
            (x, seed, code),
            _CODEC.decode_gradient,
            lambda made: (made,),
        ),
        "by_context": (
            entropy.compress,
            (code, state),
            entropy.expand,
            lambda made: (made, state),
        ),
        "order0": (entropy.compress, (code,), entropy.expand, lambda made: (made,)),
        "order0_gradient": (
            entropy.compress,
            (gradient, None, code),
            entropy.expand,
            lambda made: (made, None, code),
        ),
    }
    for name, (encode, given, decode, back) in stages.items():
        encode, decode = jax.jit(encode), jax.jit(decode)
        calls = {"encode": call(encode, given), "decode": call(decode, back(encode(*given)))}
        ms = medians(calls, rounds)
        speed = {key.replace("_ms", "_mps"): x.size / 1e3 / value for key, value in ms.items()}
        yield "speeds", {"stage": name, **ms, **speed}
    yield "bits", _bits(x, code, state, gradient)


def _bits(x: jax.Array, code: Any, state: Any, gradient: Any) -> Row:
    there = jax.devices("cpu")[0]

    def here_and_there(program: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        args = jax.device_get(args)
        made = [jax.jit(program)(*jax.device_put(args, d)) for d in (jax.devices()[0], there)]
        return tuple(jax.device_get(made))

    def same(pair: tuple[Any, Any]) -> bool:
        return all(map(np.array_equal, *map(jax.tree.leaves, pair)))

    ours, theirs = here_and_there(_CODEC.encode, x)
    small = here_and_there(entropy.compress, code, state)
    short = here_and_there(entropy.compress, gradient, None, code)
    back = here_and_there(entropy.expand, small[1], state)
    again = here_and_there(entropy.expand, short[1], None, code)
    known = jax.device_get((code, gradient))
    restored = [
        bool(valid) and same((plain, was))
        for (plain, valid), was in zip((back[0], again[0]), known, strict=True)
    ]
    return {
        "codes_equal": float((ours.packed == theirs.packed).mean()),
        "frames_equal": all(wire.pack(a) == wire.pack(b) for a, b in (small, short)),
        "expanded_equal": all(restored),
        "decoded_equal": same(here_and_there(sgq_decode, code)),
    }
