"""What features and gradients of a cut take on a wire, and what is left of them.

Every way is measured alike: real codes of real tensors, made into bytes by ``tinyjax.wire``.
Uniform quantization is one scale for the whole tensor, through the same code as SGQ, one group.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.extras import imported
from tinyjax import Codec, numerics, sgq_decode, sgq_encode, wire

__all__ = ["Carried", "carriers", "compress", "decompress", "relative_error", "snr_db", "uniform"]

Array = jax.Array


class Carried(NamedTuple):
    """A tensor after a wire."""

    size: int  # bytes of the frame
    compressed: int  # bytes of the frame after `compress`
    decoded: np.ndarray


Carrier = Callable[[Array], Carried]


def uniform(bits: int) -> Codec:
    """One scale and zero point for a whole tensor, in both directions, rounded to nearest."""

    def encode(x: Array, seed: Array | None = None) -> Any:
        del seed
        c = x.shape[-1]
        one_group = numerics.fixed(np.zeros(c, np.int32))
        return sgq_encode(x.reshape(1, -1, c), group_size=c, bits=bits, grouping=one_group)

    return Codec(encode, sgq_decode, encode, sgq_decode)


def carriers(codec: Codec) -> tuple[Carrier, Carrier]:
    """How features, and how gradients, are carried by a codec, all the way through bytes."""
    gradient = lambda g: codec.encode_gradient(g, jnp.uint32(0))
    return (
        _carrier(codec.encode, codec.decode),
        _carrier(gradient, codec.decode_gradient),
    )


def _carrier(encode: Callable[[Array], Any], decode: Callable[[Any], Array]) -> Carrier:
    encode, decode = jax.jit(encode), jax.jit(decode)

    def carry(x: Array) -> Carried:
        frame = wire.pack(encode(x))
        decoded = np.asarray(decode(wire.unpack(frame))).reshape(x.shape)
        return Carried(len(frame), len(compress(frame)), decoded)

    return carry


def compress(data: bytes) -> bytes:
    """By zstandard at level 1: higher levels are slower, and no smaller on packed codes."""
    return imported("zstandard").ZstdCompressor(level=1).compress(data)


def decompress(data: bytes) -> bytes:
    """What `compress` was given."""
    return imported("zstandard").ZstdDecompressor().decompress(data)


def relative_error(found: Any, exact: Any) -> float:
    """``|found - exact| / |exact|``, in float64."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def snr_db(found: Any, exact: Any) -> float:
    """Signal to noise in decibels; infinite for an exact copy."""
    error = relative_error(found, exact)
    return float("inf") if error == 0 else float(-20 * np.log10(error))
