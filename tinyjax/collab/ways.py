"""How arrays become frames at one end of a link and arrays again at the other.

A *way* leads in one direction; a link has two, up for features and down for gradients. Each end
of each way has a state of its own, a pytree of arrays with a fixed structure, which a codec that
learns what it sends keeps its tables in; those here have none. Only this module knows how codes
are packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax import wire
from tinyjax.base import Array, Codec

__all__ = ["Way", "Ways", "coded", "plain"]


class Way(NamedTuple):
    """One direction of a link.

    Attributes:
      init: ``init() -> state``: of either end, before the first array.
      encode: ``encode(x, state, seed) -> (frame, state)``; ``seed`` is a uint32, for rounding.
      decode: ``decode(frame, state) -> (x, state)``; a ValueError for every frame that ``encode``
        does not make, in time and memory of the order of an array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from tinyjax import collab
      >>> up = collab.plain(jax.ShapeDtypeStruct((1, 2), jnp.float32)).up
      >>> frame, state = up.encode(jnp.ones((1, 2)), up.init(), 0)
      >>> len(frame)
      8
    """

    init: Callable[[], Any]
    encode: Callable[[Array, Any, int], tuple[bytes, Any]]
    decode: Callable[[bytes, Any], tuple[Array, Any]]


class Ways(NamedTuple):
    """Both directions of a link.

    Attributes:
      up: features, from a device to the cloud.
      down: gradients, from the cloud to a device.
      features: shape and dtype of what crosses, either way.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from tinyjax import collab
      >>> collab.plain(jax.ShapeDtypeStruct((1, 2), jnp.float32)).features.shape
      (1, 2)
    """

    up: Way
    down: Way
    features: jax.ShapeDtypeStruct


def coded(
    codec: Codec,
    features: jax.ShapeDtypeStruct,
    pack: Callable[[Any], bytes] = wire.pack,
    unpack: Callable[[bytes], Any] = wire.unpack,
) -> Ways:
    """A link through a codec.

    Args:
      codec: :func:`tinyjax.sgq`, say.
      features: shape and dtype of every batch of features.
      pack: ``pack(code) -> bytes``.
      unpack: ``unpack(bytes) -> code``, a ValueError for bytes that ``pack`` does not make.

    Returns:
      Both ways. A frame whose code would not be one of ``features`` is refused before decoding, so
      no frame makes anything compile.

    Raises:
      ValueError: if the codec refuses ``features``, or masks gradients.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> from tinyjax import collab
      >>> shape = jax.ShapeDtypeStruct((1, 2), jnp.float32)
      >>> up = collab.coded(tinyjax.sgq(), shape).up
      >>> frame, state = up.encode(jnp.array([[0.0, 15.0]]), up.init(), 0)
      >>> [round(value, 1) for value in up.decode(frame, state)[0][0].tolist()]
      [0.0, 15.0]
    """
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    up = jax.eval_shape(codec.encode, features)
    down = jax.eval_shape(codec.encode_gradient, features, seed, up)
    if getattr(down, "masked", False):
        raise ValueError(
            "the codec masks gradients by the codes of features, which the ends of a link do not "
            "keep: give it a quantizer that is not exact"
        )
    encode, encode_gradient = jax.jit(codec.encode), jax.jit(codec.encode_gradient)
    unread = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), up)

    def way(send: Callable[..., Any], like: Any, decode: Callable[[Any], Array]) -> Way:
        back = jax.jit(lambda code: decode(code).reshape(features.shape))
        wanted = _outline(like)

        def received(frame: bytes, state: Any) -> tuple[Array, Any]:
            code = unpack(frame)
            if _outline(code) != wanted:
                raise ValueError(
                    f"a frame of {len(frame)} bytes holds another code than one of "
                    f"{features.dtype.name} {list(features.shape)}: use one codec and batch size"
                )
            return back(code), state

        return Way(tuple, lambda x, state, seed: (pack(send(x, seed)), state), received)

    return Ways(
        way(lambda x, seed: encode(x), up, codec.decode),
        way(
            lambda g, seed: encode_gradient(g, jnp.uint32(seed), unread),
            down,
            codec.decode_gradient,
        ),
        features,
    )


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

    def encode(x: Array, state: Any, seed: int) -> tuple[bytes, Any]:
        del seed
        return np.asarray(x).astype(dtype, copy=False).tobytes(), state

    def decode(frame: bytes, state: Any) -> tuple[Array, Any]:
        if len(frame) != size:
            raise ValueError(
                f"a frame has {len(frame)} bytes where {features.dtype.name} "
                f"{list(features.shape)} has {size}: use one codec and batch size"
            )
        x = np.frombuffer(frame, dtype).astype(features.dtype).reshape(features.shape)
        return jnp.asarray(x), state

    way = Way(tuple, encode, decode)
    return Ways(way, way, features)


def _outline(code: Any) -> Any:
    """Structure, shapes and dtypes of a code; hashable."""
    leaves, structure = jax.tree.flatten(code)
    return structure, tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)
