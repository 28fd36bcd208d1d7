"""An int8 train step as this process compiles it, and as ``jax.export`` carries it away.

The step through ``int8_qat()`` on the models of ``benchmarks int8``; exported means
``jax.export`` of ``tinyjax.portable`` of the step, serialized, loaded and called. Both are compiled
first and then run in turn, in one process; a turn is three calls, the first of which is not
counted. Times are medians.

Metrics of a row:

``native_ms``, ``portable_ms``
    The step, and the loaded step.
``portable_over_native``
    The second over the first.
``same_bits``
    1.0 if the whole state after one step is the same bit for bit.
``exported_mb``
    Size of the bytes.
``rounds``
    Turns of each.
"""

from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from benchmarks import int8
from experiments import measure, train
from tinyjax import attach, int8_qat, portable

__all__ = ["CASES", "run"]

CASES = {name: int8.CASES[name] for name in ("mlp", "vgg6")}


def run(name: str, *, rounds: int = 15, shrink: int = 1) -> list[dict[str, Any]]:
    """One row: the metrics of one case.

    Args:
      name: a key of ``CASES``.
      rounds: how often each program runs.
      shrink: divides the batch, to try things out quickly.
    """
    case, rng = CASES[name], np.random.default_rng(0)
    size = case.batch // shrink
    images = jnp.asarray(rng.normal(size=(size, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, size), jnp.int32)
    state = train.create_state(
        case.model, np.asarray(images), learning_rate=0.01, steps=1000, seed=0
    )
    tx = int8_qat()
    state = attach(tx, train.train_step, state.replace(step=jnp.int32(0)), images, labels)
    arrays, tree = jax.tree.flatten(state)

    def step(arrays: Any, images: jax.Array, labels: jax.Array) -> Any:
        new, metrics = tx(train.train_step)(jax.tree.unflatten(tree, arrays), images, labels)
        return jax.tree.leaves(new), metrics["loss"]

    data = export.export(jax.jit(portable(step)))(arrays, images, labels).serialize()
    native, loaded = (
        jax.jit(fn).lower(arrays, images, labels).compile()
        for fn in (step, export.deserialize(data).call)
    )
    seconds = measure.interleaved(
        {
            "native": lambda: native(arrays, images, labels),
            "portable": lambda: loaded(arrays, images, labels),
        },
        rounds,
        calls=3,
    )
    ms = {f"{key}_ms": 1e3 * median(times) for key, times in seconds.items()}
    pairs = zip(native(arrays, images, labels)[0], loaded(arrays, images, labels)[0], strict=True)
    row = {
        "case": name,
        **ms,
        "portable_over_native": ms["portable_ms"] / ms["native_ms"],
        "same_bits": float(all(np.array_equal(a, b) for a, b in pairs)),
        "exported_mb": len(data) / 1e6,
        "rounds": rounds,
    }
    return [row]
