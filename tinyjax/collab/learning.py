"""A link whose coder learns: features coded by contexts that the device fits as it goes.

The device keeps the codes of its last samples. As soon as there are enough it fits contexts to
them, and sends what it fitted in front of the features, in the same frame, so that it is counted
like everything else and cannot be lost alone. Features change while the network learns, and a
state that no longer fits them can cost more than none. So the device counts the bits that are lost
since the state was new, and fits another once they are as many as the state itself took: later
states never take more than was lost without them. Before the first one, and for gradients, there
is one table for each frame.

Everything is a function of what was sent: an end that is killed and resumed goes on with the same
states at the same steps. A frame of features is::

    length  u32     of the state, 0 if none comes with these features
    state           a frame of tinyjax.wire
    features        a frame of tinyjax.wire

and a frame of gradients is one of tinyjax.wire.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax import entropy, wire
from tinyjax.base import Array, Codec
from tinyjax.codes import GroupCode, StepCode, plain
from tinyjax.collab.ways import Way, Ways, demand_alike, unread
from tinyjax.contexts import State, fit_contexts
from tinyjax.streams import coded_bits, order0_bits
from tinyjax.transforms.quantizers import symbols

__all__ = ["compressed"]

_LENGTH = struct.Struct("<I")
_ROOM = 32 * 1024  # bytes of a message beside those that features may take, for a state
_NOISE = np.float32(1.02)  # of the usual bits: what batches differ by, and is not lost


class _Watch(NamedTuple):
    """Whether it is time for another state."""

    batches: np.ndarray  # int32: kept, up to all that there is room for
    cost: np.ndarray  # float32: bits that the state took; 0 before the first
    usual: np.ndarray  # float32: coded bits over those of order 0 when it was new; 0 before
    lost: np.ndarray  # float32: coded bits above the usual since then


class _Device(NamedTuple):
    """The device's end."""

    code: StepCode | GroupCode  # of the features last sent, which a gradient is masked by
    state: State
    watch: _Watch
    recent: np.ndarray  # uint8 [batches, ...]: packed codes, the newest last


class _Cloud(NamedTuple):
    """The cloud's end."""

    code: StepCode | GroupCode
    state: State


def compressed(codec: Codec, features: jax.ShapeDtypeStruct, *, samples: int = 128) -> Ways:
    """A link through SGQ and an entropy coder that learns what the features are like.

    Args:
      codec: :func:`tinyjax.sgq` with features in 2 or 4 bits.
      features: shape and dtype of every batch of features, ``[n, *space, c]``.
      samples: that contexts are fitted to, of which the device keeps the codes.

    Returns:
      Both ways. The state of either end is a pytree of arrays of fixed shapes and an argument of
      what is compiled, so that nothing compiles again when it changes.

    Raises:
      ValueError: if the codec refuses ``features`` or is no such SGQ, or if a state is too large
        for the messages of such features.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> from tinyjax import collab
      >>> ways = collab.compressed(tinyjax.sgq(), jax.ShapeDtypeStruct((2, 8, 8, 8), jnp.float32))
      >>> frame, _ = ways.up.encode(jnp.ones((2, 8, 8, 8)), ways.device, 0)
      >>> x, _ = ways.up.decode(frame, ways.cloud)
      >>> bool((x == 1).all()), len(frame) < 2 * 8 * 8 * 8 / 2
      (True, True)
    """
    code = unread(jax.eval_shape(codec.encode, features))
    if not isinstance(code, StepCode | GroupCode) or code.shape != features.shape or code.bits > 4:
        raise ValueError(
            "only codes of SGQ in 2 or 4 bits have contexts to be learned: give compressed a "
            "tinyjax.sgq() of such bits, or use coded"
        )
    if samples < 1:
        raise ValueError(f"samples is {samples!r}: use 1 or more")
    # Fits no features at all, so that each frame has a table of its own until there is another.
    none = fit_contexts(np.zeros((1, code.shape[-1]), np.uint8), symbols=2**code.bits)
    if (size := len(wire.pack(none))) > _ROOM + 4 * features.size:
        raise ValueError(
            f"a state of {code.shape[-1]} channels takes {size} bytes, much more than the features "
            f"{list(features.shape)}: use larger batches, or coded"
        )
    watch = _Watch(np.zeros((), np.int32), *[np.zeros((), np.float32)] * 3)
    recent = np.zeros((-(-samples // code.shape[0]), *plain(code.packed).shape), np.uint8)
    device, cloud = _Device(code, none, watch, recent), _Cloud(code, none)
    up, down = _up(codec, features, device, samples), _down(codec, features, code)
    return Ways(up, down, features, device, cloud)


def _up(codec: Codec, features: jax.ShapeDtypeStruct, first: _Device, samples: int) -> Way:
    """Features, from the device to the cloud."""
    quantize = jax.jit(codec.encode)

    @jax.jit
    def compress(code: Any, state: State) -> tuple[Any, Array, Array]:
        small = entropy.compress(code, state)
        bits = coded_bits(small.packed).astype(jnp.float32)
        return small, bits, order0_bits(symbols(code), 2**code.bits)

    @jax.jit
    def expand(small: Any, state: State) -> tuple[Any, Array, Array]:
        code, valid = entropy.expand(small, state)
        return code, codec.decode(code), valid

    like = jax.eval_shape(compress, first.code, first.state)[0]

    def encode(x: Array, end: _Device, seed: int) -> tuple[bytes, _Device]:
        del seed
        end, news = _learned(_remembered(end, quantize(x)), samples)
        small, bits, order0 = compress(end.code, end.state)
        if not news:
            watch = _watched(end.watch, np.asarray(bits), np.asarray(order0))
            end = end._replace(watch=watch)
        return _LENGTH.pack(len(news)) + news + wire.pack(small), end

    def decode(frame: bytes, end: _Cloud) -> tuple[Array, _Cloud]:
        news, rest = _parts(frame)
        if news:
            state: Any = wire.unpack(news, most=features.size)
            demand_alike(state, first.state, frame, features)
            end = end._replace(state=state)
        small = wire.unpack(rest, most=features.size)
        demand_alike(small, like, frame, features)
        code, x, valid = expand(small, end.state)
        _demand_valid(valid, frame)
        return x, end._replace(code=code)

    return Way(encode, decode)


def _down(codec: Codec, features: jax.ShapeDtypeStruct, first: StepCode | GroupCode) -> Way:
    """Gradients, from the cloud to the device."""

    @jax.jit
    def compress(g: Array, seed: Array, code: StepCode | GroupCode) -> Any:
        return entropy.compress(codec.encode_gradient(g, seed, code), features=code)

    @jax.jit
    def expand(small: Any, code: StepCode | GroupCode) -> tuple[Array, Array]:
        gradient, valid = entropy.expand(small, features=code)
        return codec.decode_gradient(gradient), valid

    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    like = jax.eval_shape(compress, features, seed, first)

    def encode(g: Array, end: Any, seed: int) -> tuple[bytes, Any]:
        return wire.pack(compress(g, jnp.uint32(seed), end.code), end.code), end

    def decode(frame: bytes, end: Any) -> tuple[Array, Any]:
        small = wire.unpack(frame, end.code, most=features.size)
        demand_alike(small, like, frame, features)
        g, valid = expand(small, end.code)
        _demand_valid(valid, frame)
        return g, end

    return Way(encode, decode)


def _remembered(end: _Device, code: StepCode | GroupCode) -> _Device:
    """The end with the code of another batch."""
    recent = np.concatenate([end.recent[1:], np.asarray(code.packed)[None]])
    batches = np.minimum(end.watch.batches + np.int32(1), np.int32(len(recent)))
    return end._replace(code=code, recent=recent, watch=end.watch._replace(batches=batches))


def _learned(end: _Device, samples: int) -> tuple[_Device, bytes]:
    """The end with another state and that state's frame, if it is time for one."""
    watch = end.watch
    if watch.batches < len(end.recent) or (watch.cost > 0 and watch.lost <= watch.cost):
        return end, b""
    codes = [
        np.asarray(symbols(dataclasses.replace(end.code, packed=packed))) for packed in end.recent
    ]
    q = np.concatenate([each.reshape(end.code.shape) for each in codes])[-samples:]
    state = fit_contexts(q, symbols=2**end.code.bits)
    news = wire.pack(state)
    none = np.zeros((), np.float32)
    watch = watch._replace(cost=np.asarray(8 * len(news), np.float32), usual=none, lost=none)
    return end._replace(state=state, watch=watch), news


def _watched(watch: _Watch, bits: np.ndarray, order0: np.ndarray) -> _Watch:
    """The watch after a frame that took ``bits``, where one table would have taken ``order0``."""
    if watch.usual == 0:
        return watch._replace(usual=np.asarray(bits / order0, np.float32))
    lost = watch.lost + bits - _NOISE * watch.usual * order0
    return watch._replace(lost=np.asarray(np.maximum(lost, 0), np.float32))


def _parts(frame: bytes) -> tuple[bytes, bytes]:
    """The frames of a state, if there is one, and of features."""
    start = _LENGTH.size
    length = _LENGTH.unpack_from(frame)[0] if len(frame) >= start else len(frame)
    if length > len(frame) - start:
        raise ValueError(
            f"a frame of {len(frame)} bytes holds less than it says: have the features sent again"
        )
    return frame[start : start + length], frame[start + length :]


def _demand_valid(valid: Array, frame: bytes) -> None:
    if not valid:
        raise ValueError(
            f"a frame of {len(frame)} bytes holds a stream that does not end as it should: have "
            "the code compressed and sent again"
        )
