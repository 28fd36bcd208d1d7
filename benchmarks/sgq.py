"""Encoding and decoding of features: bytes, fidelity and speed, next to uniform quantization.

The features are real: float32 ``[128, 16, 16, 64]`` after the relu of the second convolution of
``SmallCnn``, trained for two epochs on the first 2,000 images of the bundled Fashion-MNIST sample,
resized to 32x32, and they are of the 128 images after those. Everything is compiled first, then
the cases run in turn, round after round, in one process; a turn is three calls in a row, of which
the first is not counted. Speeds are of float32 data, ``8.4 MB / median seconds``.

Cases:

``sgq_packed``
    ``tinyjax.sgq``: 4-bit codes, one step for all features.
``groups_packed``
    ``tinyjax.stripe_groups``: 4-bit codes, groups of 16 channels, grouped by range in every call.
``sgq_contexts``, ``sgq_order0``
    The codes of ``sgq_packed`` through ``tinyjax.entropy`` as well, all in one program: by context,
    fitted to the features of 128 images that the network was trained on, and with one table.
``int8``, ``int4``
    One scale for the whole tensor, through the same code.
``int4_zstd``
    INT4's frame through zstandard at level 1, its two halves at once; compression and checksum are
    included in the speed: a strong simple rival. Codes packed by pairs of channels instead of rows
    make it a seventh smaller still.
``sgq_zstd``, ``groups_zstd``
    The other frames through the same.
``memcpy``
    A plain copy, the speed of memory.

Metrics of a row:

``ratio_f32``
    Bytes of float32 over those of the whole ``tinyjax.wire`` frame, side information included, but
    for the fitted contexts of ``sgq_contexts``: they are sent once, in ``state_bytes``.
``snr_db``
    Signal to noise of the decoded features; a copy has none.
``encode_gbps``, ``decode_gbps``
    Between features and code arrays; between features and compressed bytes for ``*_zstd``.
``encode_mps``, ``decode_mps``, ``cores``
    The same in millions of elements, and the cores that the process may use: with ``taskset -c 0``
    before the command, one.
``encode_gradient_gbps``, ``encode_closed_gbps``
    Of ``sgq_packed``, with the features in place of a gradient: at the solved step, and at that of
    the closed form.
``encode_fixed_gbps``
    Of ``groups_packed``: with a grouping that was found before.
``frame_gbps``, ``unframe_gbps``
    Of ``sgq_packed``: ``wire.pack`` and ``wire.unpack``, of float32 data likewise.
``rounds``
    Turns of each.
"""

import functools
import os
from collections.abc import Callable
from statistics import median
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, measure, train
from experiments.carriers import snr_db, uniform
from experiments.extras import imported
from experiments.models import SmallCnn
from tinyjax import entropy, numerics, sgq, sgq_decode, sgq_encode, stripe_groups, wire

__all__ = ["CASES", "features", "run"]

CASES = (
    "sgq_packed",
    "sgq_contexts",
    "sgq_order0",
    "groups_packed",
    "int8",
    "int4",
    "int4_zstd",
    "sgq_zstd",
    "groups_zstd",
    "memcpy",
)

_SAMPLES, _TRAINED_ON, _BATCH = 128, 2000, 50
_LAYER = "Conv_1"


def run(name: str, *, rounds: int = 15, shrink: int = 1) -> list[dict[str, Any]]:
    """One row: the metrics of one case. All cases are measured together, once.

    Args:
      name: one of ``CASES``.
      rounds: how often each program runs.
      shrink: divides the batch, to try things out quickly.
    """
    row = _measured(rounds, shrink)[name]
    speeds = {f"{way}_mps": 1e3 * row[f"{way}_gbps"] / 4 for way in ("encode", "decode")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [{"case": name, **row, **speeds, "cores": cores, "rounds": rounds}]


def features(shrink: int = 1) -> jax.Array:
    """Post-relu features float32 [128 / shrink, 16, 16, 64] of a briefly trained network."""
    return _known_and_unseen(shrink)[1]


@functools.cache
def _known_and_unseen(shrink: int) -> tuple[jax.Array, jax.Array]:
    """Such features of images that the network was trained on, and of others."""
    split, _ = data.load("fashion_mnist_sample")
    known = data.first(split, _TRAINED_ON // shrink)
    resized = lambda images: jax.image.resize(images, (len(images), 32, 32, 1), "linear")
    state = train.create_state(
        SmallCnn(), np.zeros((1, 32, 32, 1), np.float32), learning_rate=0.03, steps=80, seed=0
    )
    for epoch in range(2):
        for images, labels in data.epoch_batches(known, _BATCH, seed=0, epoch=epoch):
            state, _ = train.train_step(state, resized(images), labels)

    def of(first: int) -> jax.Array:
        _, kept = state.apply_fn(
            {"params": state.params},
            resized(data.pixels(split.images[first : first + _SAMPLES // shrink])),
            capture_intermediates=lambda module, _: module.name == _LAYER,
            mutable=["intermediates"],
        )
        return nn.relu(kept["intermediates"][_LAYER]["__call__"][0])

    return of(0), of(_TRAINED_ON)


@functools.cache
def _measured(rounds: int, shrink: int) -> dict[str, dict[str, float]]:
    """The metrics of every case."""
    known, x = _known_and_unseen(shrink)
    codecs = {
        "sgq_packed": sgq(),
        "groups_packed": sgq(quantizer=stripe_groups()),
        "int8": uniform(8),
        "int4": uniform(4),
    }
    calls: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, codec in codecs.items():
        encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
        code = encode(x)
        frame = wire.pack(code)
        rows[name] = {
            "ratio_f32": x.nbytes / len(frame),
            "snr_db": snr_db(decode(code).reshape(x.shape), x),
        }
        calls[f"{name} encode"] = functools.partial(encode, x)
        calls[f"{name} decode"] = functools.partial(decode, code)
        if name == "int8":
            continue
        short, small = name.replace("_packed", "") + "_zstd", _halves(frame)
        rows[short] = {**rows[name], "ratio_f32": x.nbytes / sum(map(len, small))}
        calls[f"{short} encode"] = lambda encode=encode: _halves(wire.pack(encode(x)))
        calls[f"{short} decode"] = lambda decode=decode, small=small: decode(
            wire.unpack(_whole(small))
        )
    for name, state in {"sgq_contexts": entropy.fit(sgq_encode(known)), "sgq_order0": None}.items():
        calls |= _compressed(name, state, x)
        frame = wire.pack(jax.device_get(entropy.compress(sgq_encode(x), state)))
        rows[name] = {"ratio_f32": x.nbytes / len(frame), "snr_db": rows["sgq_packed"]["snr_db"]}
        rows[name] |= {"state_bytes": len(wire.pack(state))} if state is not None else {}
    calls |= _sgq_only(x) | _copies(x)
    seconds = measure.interleaved(calls, rounds, calls=3)
    for call, times in seconds.items():
        name, what = call.split()
        rows.setdefault(name, {"ratio_f32": 1.0})[f"{what}_gbps"] = x.nbytes / median(times) / 1e9
    return rows


def _halves(frame: bytes) -> list[bytes]:
    """Both halves of a frame by zstandard at level 1, on a core each as far as there are two."""
    view, half = memoryview(frame), len(frame) // 2
    compressor = imported("zstandard").ZstdCompressor(level=1)
    made = compressor.multi_compress_to_buffer([view[:half], view[half:]], threads=2)
    return [part.tobytes() for part in made]


def _whole(halves: list[bytes]) -> bytes:
    """The frame of such halves, one after the other: two threads take longer."""
    return b"".join(map(imported("zstandard").ZstdDecompressor().decompress, halves))


def _compressed(name: str, state: Any, x: jax.Array) -> dict[str, Callable[[], Any]]:
    """From features to a stream and back, each in one program."""
    encode = jax.jit(lambda x, state: entropy.compress(sgq_encode(x), state))
    small = encode(x, state)

    @jax.jit
    def decode(small: Any, state: Any) -> tuple[jax.Array, jax.Array]:
        code, valid = entropy.expand(small, state)
        return sgq_decode(code), valid

    return {
        f"{name} encode": lambda: encode(x, state),
        f"{name} decode": lambda: decode(small, state),
    }


def _sgq_only(x: jax.Array) -> dict[str, Callable[[], Any]]:
    """The calls that only SGQ has."""
    found: Any = stripe_groups()(x)
    calibrated = jax.jit(stripe_groups(grouping=numerics.fixed(found.ids)))
    code = jax.device_get(jax.jit(sgq().encode)(x))
    frame, seed = wire.pack(code), jnp.uint32(0)
    solved = jax.jit(sgq().encode_gradient)
    closed = jax.jit(sgq(gradient_step=numerics.bounded_step).encode_gradient)
    return {
        "sgq_packed encode_gradient": lambda: solved(x, seed, code),
        "sgq_packed encode_closed": lambda: closed(x, seed, code),
        "groups_packed encode_fixed": lambda: calibrated(x),
        "sgq_packed frame": lambda: wire.pack(code),
        "sgq_packed unframe": lambda: jax.tree.leaves(wire.unpack(frame)),
    }


def _copies(x: jax.Array) -> dict[str, Callable[[], Any]]:
    """A copy of the features into memory that is there, in either direction."""
    here = np.array(x)
    there = np.empty_like(here)
    return {
        "memcpy encode": lambda: np.copyto(there, here),
        "memcpy decode": lambda: np.copyto(here, there),
    }
