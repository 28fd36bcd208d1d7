"""How arrays become frames at one end of a link and arrays again at the other.

A *way* leads in one direction; a link has two, up for features and down for gradients. Each end
of a link has a state, a pytree of arrays with a fixed structure, which both of its ways read and
write: what a gradient is of, and the tables of a codec that learns what it sends. Only this
package knows how codes are packed, here and in :mod:`tinyjax.collab.learning`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax import wire
from tinyjax.base import Array, Codec

__all__ = ["Way", "Ways", "coded", "demand_alike", "plain", "unread"]


class Way(NamedTuple):
    """One direction of a link.

    Attributes:
      encode: ``encode(x, end, seed) -> (frame, end)``; ``end`` is the state of the end that sends,
        ``seed`` a uint32, for rounding.
      decode: ``decode(frame, end) -> (x, end)``, of the end that receives; a ValueError for every
        frame that ``encode`` does not make, in time and memory of the order of an array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from tinyjax import collab
      >>> up = collab.plain(jax.ShapeDtypeStruct((1, 2), jnp.float32)).up
      >>> frame, end = up.encode(jnp.ones((1, 2)), (), 0)
      >>> len(frame)
      8
    """

    encode: Callable[[Array, Any, int], tuple[bytes, Any]]
    decode: Callable[[bytes, Any], tuple[Array, Any]]


class Ways(NamedTuple):
    """Both directions of a link.

    Attributes:
      up: features, from a device to the cloud.
      down: gradients of the features last sent, from the cloud to the device.
      features: shape and dtype of what crosses, either way.
      device: state of the device's end before the first array.
      cloud: state of the cloud's end before the first array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from tinyjax import collab
      >>> collab.plain(jax.ShapeDtypeStruct((1, 2), jnp.float32)).features.shape
      (1, 2)
    """

    up: Way
    down: Way
    features: jax.ShapeDtypeStruct
    device: Any = ()
    cloud: Any = ()


def coded(
    codec: Codec,
    features: jax.ShapeDtypeStruct,
    pack: Callable[[Any, Any], bytes] = wire.pack,
    unpack: Callable[[bytes, Any], Any] | None = None,
) -> Ways:
    """A link through a codec. Its ends keep the code of the features last sent.

    Args:
      codec: :func:`tinyjax.sgq`, say.
      features: shape and dtype of every batch of features.
      pack: ``pack(code, known) -> bytes``; ``known`` is the code of the features that a gradient
        is of, and None for features.
      unpack: ``unpack(bytes, known) -> code``, a ValueError for bytes that ``pack`` does not make;
        ``tinyjax.wire.unpack`` if it is None.

    Returns:
      Both ways. A frame whose code would not be one of ``features`` is refused before decoding, so
      no frame makes anything compile.

    Raises:
      ValueError: if the codec refuses ``features``.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> from tinyjax import collab
      >>> ways = collab.coded(tinyjax.sgq(), jax.ShapeDtypeStruct((1, 2), jnp.float32))
      >>> frame, _ = ways.up.encode(jnp.array([[0.0, 15.0]]), ways.device, 0)
      >>> x, _ = ways.up.decode(frame, ways.cloud)
      >>> [round(value, 1) for value in x[0].tolist()]
      [0.0, 15.0]
    """
    read = unpack or partial(wire.unpack, most=features.size)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    up = jax.eval_shape(codec.encode, features)
    down = jax.eval_shape(codec.encode_gradient, features, seed, up)
    encode, encode_gradient = jax.jit(codec.encode), jax.jit(codec.encode_gradient)
    whole = lambda decode: jax.jit(lambda code: decode(code).reshape(features.shape))
    decode, decode_gradient = whole(codec.decode), whole(codec.decode_gradient)

    def send(x: Array, end: Any, seed: int) -> tuple[bytes, Any]:
        del end, seed
        code = encode(x)
        return pack(code, None), code

    def receive(frame: bytes, end: Any) -> tuple[Array, Any]:
        del end
        code = read(frame, None)
        demand_alike(code, up, frame, features)
        return decode(code), code

    def send_back(g: Array, end: Any, seed: int) -> tuple[bytes, Any]:
        return pack(encode_gradient(g, jnp.uint32(seed), end), end), end

    def receive_back(frame: bytes, end: Any) -> tuple[Array, Any]:
        code = read(frame, end)
        demand_alike(code, down, frame, features)
        return decode_gradient(code), end

    first = unread(up)
    return Ways(Way(send, receive), Way(send_back, receive_back), features, first, first)


def plain(features: jax.ShapeDtypeStruct) -> Ways:
    """A link that changes nothing: the elements themselves, little-endian.

    Args:
      features: shape and dtype of every batch of features.

    Returns:
      Both ways, the same.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from tinyjax import collab
      >>> up = collab.plain(jax.ShapeDtypeStruct((1, 2), jnp.float32)).up
      >>> up.decode(up.encode(jnp.array([[0.5, 2.0]]), (), 0)[0], ())[0].tolist()
      [[0.5, 2.0]]
    """
    dtype = np.dtype(features.dtype).newbyteorder("<")
    size = dtype.itemsize * features.size

    def encode(x: Array, end: Any, seed: int) -> tuple[bytes, Any]:
        del seed
        return np.asarray(x).astype(dtype, copy=False).tobytes(), end

    def decode(frame: bytes, end: Any) -> tuple[Array, Any]:
        if len(frame) != size:
            raise ValueError(
                f"a frame has {len(frame)} bytes where {features.dtype.name} "
                f"{list(features.shape)} has {size}: use one codec and batch size"
            )
        x = np.frombuffer(frame, dtype).astype(features.dtype).reshape(features.shape)
        return jnp.asarray(x), end

    way = Way(encode, decode)
    return Ways(way, way, features)


def demand_alike(found: Any, like: Any, frame: bytes, features: jax.ShapeDtypeStruct) -> None:
    """Refuses what came in a frame if it has not the structure, shapes and dtypes of ``like``."""
    if _outline(found) != _outline(like):
        raise ValueError(
            f"a frame of {len(frame)} bytes holds another code than one of "
            f"{features.dtype.name} {list(features.shape)}: use one codec and batch size"
        )


def unread(like: Any) -> Any:
    """Zeros of these shapes and dtypes, in the place of what has not come yet."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)


def _outline(code: Any) -> Any:
    """Structure, shapes and dtypes of a code; hashable."""
    leaves, structure = jax.tree.flatten(code)
    return structure, tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)
