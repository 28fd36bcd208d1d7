"""What features and gradients of a cut take on a wire, and what is left of them.

Every way is measured alike: real codes of real tensors, made into bytes by ``tinyjax.wire``.
Uniform quantization is one scale for the whole tensor, through the same code as SGQ, one group.
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import mean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.extras import imported
from experiments.train import cross_entropy
from tinyjax import (
    Codec,
    Transform,
    at,
    chain,
    numerics,
    rewrite,
    send,
    sgq_decode,
    stripe_groups,
    wire,
)

__all__ = [
    "Carried",
    "Crossing",
    "at_cut",
    "carriers",
    "compress",
    "crossings",
    "decompress",
    "relative_error",
    "snr_db",
    "uniform",
]

Array = jax.Array


class Carried(NamedTuple):
    """A tensor after a wire."""

    size: int  # bytes of the frame
    compressed: int  # bytes of the frame after `compress`
    decoded: np.ndarray


class Crossing(NamedTuple):
    """What one step sends across the cut in one way; float32 takes 4 bytes an element."""

    up: float  # bytes of features
    down: float  # bytes of gradients
    features_db: float  # signal to noise of the features that arrive
    gradient_error: float  # relative error of the gradient that arrives


Carrier = Callable[[Array, Array], tuple[Carried, Carried]]


def uniform(bits: int) -> Codec:
    """One scale and zero point for a whole tensor, in both directions, rounded to nearest."""

    def encode(x: Array, *seed_and_code: Any) -> Any:
        del seed_and_code
        c = x.shape[-1]
        one_group = stripe_groups(group_size=c, bits=bits, grouping=numerics.in_order)
        return one_group(x.reshape(1, -1, c))

    return Codec(encode, sgq_decode, encode, sgq_decode)


def carriers(codec: Codec) -> Carrier:
    """How features and their gradient are carried by a codec, all the way through bytes."""
    encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
    encode_gradient = jax.jit(codec.encode_gradient)
    decode_gradient = jax.jit(codec.decode_gradient)

    def carry(features: Array, gradient: Array) -> tuple[Carried, Carried]:
        code = encode(features)
        up = wire.pack(code)
        down = wire.pack(encode_gradient(gradient, jnp.uint32(0), code), code)
        arrived: Any = wire.unpack(up)
        return (
            _carried(up, decode(arrived), features),
            _carried(down, decode_gradient(wire.unpack(down, arrived)), gradient),
        )

    return carry


def _carried(frame: bytes, decoded: Array, sent: Array) -> Carried:
    return Carried(len(frame), len(compress(frame)), np.asarray(decoded).reshape(sent.shape))


def crossings(
    ways: Mapping[str, Carrier], sent: Iterable[tuple[Array, Array]]
) -> dict[str, Crossing]:
    """What steps send on average, in every way, as frames and compressed.

    Args:
      ways: from `carriers`, by name.
      sent: features and gradient of each step, as before encoding.
    """
    found: dict[str, list[Crossing]] = {}
    for features, gradient in sent:
        for name, carry in ways.items():
            up, down = carry(features, gradient)
            quality = snr_db(up.decoded, features), relative_error(down.decoded, gradient)
            plain = Crossing(up.size, down.size, *quality)
            short = Crossing(up.compressed, down.compressed, *quality)
            found.setdefault(name, []).append(plain)
            found.setdefault(f"{name} + zstd", []).append(short)
    return {name: Crossing(*map(mean, zip(*each, strict=True))) for name, each in found.items()}


def at_cut(
    cut: str, codec: Codec, apply: Callable[..., Any], params: Any, images: Any, labels: Any
) -> tuple[Array, Array]:
    """Features that go up and gradient that comes down in a step, both as before encoding.

    A number is added to what the server gets, and the gradient of the loss by it is what the
    server sends; where the number is 0 nothing else changes.

    Args:
      cut: pattern of the first site after the cut, for `tinyjax.at`.
      codec: of the features.
      apply: of the model.
      params: of the model.
      images: float32 [n, h, w, c].
      labels: int32 [n].
    """

    def seen(op: Any, site: Any, vars: Any, key: Any, x: Any, w: Any, *more: Any, **kwargs: Any):
        del site, vars, key
        return op(x, w, *more, **kwargs), x

    def moved(op: Any, site: Any, vars: Any, key: Any, x: Any, w: Any, *more: Any, **kwargs: Any):
        del site, key
        return op(x + vars, w, *more, **kwargs), vars

    variables, key = {"params": params}, jax.random.key(0)
    tap = at(cut, Transform(lambda site: (), seen))
    (features,) = rewrite(tap, apply).apply({}, variables, images)[1].values()
    shift = at(cut, Transform(lambda site: jnp.zeros(site.x.shape), moved))
    server = rewrite(chain(at(cut, send(codec)), shift), apply)

    def loss(vars: Any) -> jax.Array:
        return cross_entropy(server.apply(vars, variables, images, key=key)[0], labels)

    gradients = jax.grad(loss)(server.init(variables, images))
    (gradient,) = jax.tree.leaves(gradients)
    return features, gradient


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
