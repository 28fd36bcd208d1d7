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


def ways(codec="sgq"):
    if codec == "sgq":
        return collab.coded(CODEC, FEATURES)
    return collab.plain(FEATURES) if codec == "plain" else remembering()


def remembering():
    """Sends what has changed since the array before: both ends have to agree on what that was."""
    plain = collab.plain(FEATURES).up
    init = lambda: {"before": np.zeros(FEATURES.shape, np.float32), "count": np.int32(0)}

    def encode(x, state, seed):
        frame, _ = plain.encode(np.asarray(x) - np.asarray(state["before"]), (), seed)
        return frame, decode(frame, state)[1]

    def decode(frame, state):
        change, _ = plain.decode(frame, ())
        x = np.asarray(state["before"]) + np.asarray(change)
        return jnp.asarray(x), {"before": x, "count": np.int32(state["count"] + 1)}

    way = collab.Way(init, encode, decode)
    return collab.Ways(way, way, FEATURES)


def batch(device, step):
    rng = np.random.default_rng((device, step))
    x = rng.normal(size=(BATCH, 5)).astype(np.float32)
    return x, (x.sum(1) > 0).astype(np.int32)


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
