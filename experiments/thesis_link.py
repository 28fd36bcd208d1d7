"""SGQ's delta uplink and its gradients as the two ways of a `tinyjax.collab` link."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinyjax import Codec, UplinkState, collab, delta_uplink, entropy, global_step, sgq, wire

__all__ = ["End", "delta_ways", "restarted"]


class End(NamedTuple):
    """The state of either end."""

    uplink: UplinkState
    sent: int  # frames since the last key frame that was asked for; of the device's end


def delta_ways(features: jax.ShapeDtypeStruct, every: int, contexts: Any = None) -> collab.Ways:
    """A link that sends what changed between frames, and gradients of the frame last sent.

    Args:
      features: shape and dtype of a frame's features, ``[1, h, w, c]``.
      every: frames from one key frame to the next.
      contexts: of key frames; the same at both ends.

    Returns:
      Both ways. The device's end after `restarted` sends a key frame next. A frame that the uplink
      refuses, and a gradient that is none of the features last sent, is a ValueError.
    """
    uplink = delta_uplink(exact=True, contexts=contexts)
    codec = sgq(quantizer=global_step(exact=True))
    key, delta, receive = map(jax.jit, uplink[1:])
    decode = jax.jit(lambda code: codec.decode(code).reshape(features.shape))
    first = End(uplink.init(features), 0)

    def send(x: jax.Array, end: End, seed: int) -> tuple[bytes, End]:
        del seed
        state, code = (delta if end.sent % every else key)(end.uplink, x)
        return wire.pack(code), End(state, end.sent + 1)

    def take(frame: bytes, end: End) -> tuple[jax.Array, End]:
        code = wire.unpack(frame, most=features.size)
        state, valid = receive(end.uplink, code)
        if not valid:
            raise ValueError(
                f"a frame of {len(frame)} bytes is not the uplink's next one: send a key frame"
            )
        return decode(state.features), End(state, end.sent + 1)

    return collab.Ways(collab.Way(send, take), _down(codec, features), features, first, first)


def restarted(end: End) -> End:
    """A device's end that sends a key frame next."""
    return end._replace(sent=0)


def _down(codec: Codec, features: jax.ShapeDtypeStruct) -> collab.Way:
    """Gradients, coded where the features last sent are not 0."""

    @jax.jit
    def compress(g: jax.Array, seed: jax.Array, code: Any) -> Any:
        return entropy.compress(codec.encode_gradient(g, seed, code), features=code)

    @jax.jit
    def expand(small: Any, code: Any) -> tuple[jax.Array, jax.Array]:
        gradient, valid = entropy.expand(small, features=code)
        return codec.decode_gradient(gradient).reshape(features.shape), valid

    def encode(g: jax.Array, end: End, seed: int) -> tuple[bytes, End]:
        code = end.uplink.features
        return wire.pack(compress(g, jnp.uint32(seed), code), code), end

    def decode(frame: bytes, end: End) -> tuple[jax.Array, End]:
        code = end.uplink.features
        g, valid = expand(wire.unpack(frame, code, most=features.size), code)
        if not valid:
            raise ValueError(
                f"a gradient of {len(frame)} bytes is not one of the features last sent: ask again"
            )
        return g, end

    return collab.Way(encode, decode)
