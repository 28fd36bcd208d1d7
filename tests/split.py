"""A small network cut in two, for the tests of split training."""

import socket

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tinyjax
from tinyjax import collab

BATCH, WIDTH, CLASSES = 4, 8, 3
FEATURES = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
AVERAGED = 5 * WIDTH + WIDTH  # parameters of a lower half


def tx():
    return optax.sgd(0.1, momentum=0.9)


def lower(device=0):
    rng = np.random.default_rng(device)
    params = {
        "w": jnp.asarray(rng.normal(size=(5, WIDTH)), jnp.float32),
        "b": jnp.zeros(WIDTH, jnp.float32),
    }
    return collab.Lower(lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]), params, tx())


def upper():
    rng = np.random.default_rng(99)
    params = {"w": jnp.asarray(rng.normal(size=(WIDTH, CLASSES)) / 3, jnp.float32)}
    cross = lambda y, labels: optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()
    return collab.Upper(lambda p, x: x @ p["w"], params, tx(), cross)


CODEC = tinyjax.sgq()
MASKED = tinyjax.sgq(quantizer=tinyjax.global_step(exact=True))


def ways(codec="sgq"):
    made = {
        "sgq": lambda: collab.coded(CODEC, FEATURES),
        "masked": lambda: collab.coded(MASKED, FEATURES),
        "compressed": lambda: collab.compressed(CODEC, FEATURES, samples=2 * BATCH),
        "compressed and masked": lambda: collab.compressed(MASKED, FEATURES, samples=2 * BATCH),
        "plain": lambda: collab.plain(FEATURES),
        "remembering": remembering,
    }
    return made[codec]()


def remembering():
    """Sends what has changed since the array before: both ends have to agree on what that was."""
    plain = collab.plain(FEATURES).up
    first = {"before": np.zeros(FEATURES.shape, np.float32), "count": np.int32(0)}
    first = {"up": first, "down": first}

    def way(name):
        def encode(x, end, seed):
            frame, _ = plain.encode(np.asarray(x) - np.asarray(end[name]["before"]), (), seed)
            return frame, decode(frame, end)[1]

        def decode(frame, end):
            change, _ = plain.decode(frame, ())
            x = np.asarray(end[name]["before"]) + np.asarray(change)
            count = np.int32(end[name]["count"] + 1)
            return jnp.asarray(x), {**end, name: {"before": x, "count": count}}

        return collab.Way(encode, decode)

    return collab.Ways(way("up"), way("down"), FEATURES, first, first)


def batch(device, step):
    rng = np.random.default_rng((device, step))
    x = rng.normal(size=(BATCH, 5)).astype(np.float32)
    return x, (x.sum(1) > 0).astype(np.int32)


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
