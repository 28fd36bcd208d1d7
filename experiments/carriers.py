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

    size: int  # bytes
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


def carriers(codec: Codec) -> dict[str, tuple[Carrier, Carrier]]:
    """How features, and how gradients, are carried, by name: `codec` and uniform quantization.

    ``zstd`` stands for zstandard level 1 on the whole frame, the strongest simple rival.
    """
    kinds = {"sgq": codec, "int8": uniform(8), "int4": uniform(4)}
    found: dict[str, tuple[Carrier, Carrier]] = {}
    for name, each in kinds.items():
        seeded = lambda g, each=each: each.encode_gradient(g, jnp.uint32(0))
        for suffix, size in (("", len), (" + zstd", lambda frame: len(compress(frame)))):
            found[name + suffix] = (
                _carrier(each.encode, each.decode, size),
                _carrier(seeded, each.decode_gradient, size),
            )
    return found


def _carrier(encode: Any, decode: Any, size: Callable[[bytes], int]) -> Carrier:
    encode, decode = jax.jit(encode), jax.jit(decode)

    def carry(x: Array) -> Carried:
        frame = wire.pack(encode(x))
        return Carried(size(frame), np.asarray(decode(wire.unpack(frame))).reshape(x.shape))

    return carry


def compress(data: bytes) -> bytes:
    """By zstandard at level 1: higher levels are slower and no smaller here."""
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
