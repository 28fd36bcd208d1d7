"""Uniform codes of features or gradients, and the entropy coders behind them, as bytes.

A *codec* here is a function from an array ``[n, h, w, c]`` to how many bytes its frame has and what
comes out of it. The rate is of real bytes: header, shape, checksum, scales and tables are in it,
and a state that both sides need beforehand counts with a 200th of its own frame, since it is sent
every 200 steps.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.extras import imported
from tinyjax import entropy, global_step, numerics, sgq_decode, stripe_groups, wire
from tinyjax.choice import smallest, steps_of
from tinyjax.contexts import State
from tinyjax.numerics import tables
from tinyjax.numerics.step_quantize import widened
from tinyjax.streams import coded_bits, lanes_for
from tinyjax.transforms.quantizers import Quantizer, symbols

__all__ = [
    "AMORTISED",
    "Codec",
    "Coded",
    "by_channel",
    "by_context",
    "codes_of",
    "framed",
    "order0",
    "packed",
    "per_channel",
    "per_tensor",
    "plain",
    "quantized",
    "state_for",
    "stepped",
    "strongest_zstd",
    "two_bits",
    "zstd",
    "zstd_of",
]

Array = jax.Array

AMORTISED = 200  # steps between two states


class Coded(NamedTuple):
    """What is sent of an array, and what arrives."""

    size: float  # bytes
    decoded: np.ndarray


Codec = Callable[[np.ndarray], Coded]
Size = Callable[[Any], float]  # of a code, in bytes


def stepped(size: Size, *, step: float, bits: int = 4, exact: bool = False) -> Codec:
    """The library's quantizer with one step, offset 0.4 and centroids, before some coder."""
    return quantized(size, global_step(step=step, bits=bits, exact=exact))


def quantized(size: Size, quantizer: Quantizer) -> Codec:
    """A quantizer of the library before some coder."""
    return functools.partial(_through, quantizer, sgq_decode, size)


def plain(size: Size, *, step: float, bits: int = 4) -> Codec:
    """Uniform codes, rounded to nearest and decoded at their middles, before some coder."""
    return functools.partial(_through, _nearest(step, bits), _middles, size)


def _through(quantizer: Any, decode: Callable[[Any], Array], size: Size, x: np.ndarray) -> Coded:
    code = quantizer(jnp.asarray(x))
    return Coded(size(code), np.asarray(decode(code)))


def _nearest(step: float, bits: int) -> Any:
    return global_step(step=step, bits=bits, offset=0.5)


def _middles(code: Any) -> Array:
    q = symbols(code).astype(jnp.float32) - code.zero_point.astype(jnp.float32)
    return (q * widened(code.scale)).reshape(code.shape)


def codes_of(code: Any) -> np.ndarray:
    """The codes one by one: uint8 ``[n, h, w, c]``."""
    return np.asarray(symbols(code)).reshape(code.shape)


def framed(payload: float) -> float:
    """Bytes of a frame around a payload: header, shape of four axes and checksum."""
    tiny = wire.pack(global_step(bits=2)(jnp.zeros((1, 1, 1, 1))))
    return payload + len(tiny) - (1 + 1 + 2 + 2 * 2**2)  # packed, zero point, scale, centroids


# --- coders: from a code to bytes ----------------------------------------------------------------


def packed(code: Any) -> float:
    """As it is, codes of few bits packed."""
    return len(wire.pack(code))


def order0(code: Any) -> float:
    """Entropy coded with one table, made from the codes and sent along."""
    return len(wire.pack(entropy.compress(code)))


def by_context(state: State) -> Size:
    """Entropy coded with the tables of a state."""
    share = len(wire.pack(state)) / AMORTISED
    return lambda code: len(wire.pack(entropy.compress(code, state))) + share


def state_for(quantizer: Any, calibration: np.ndarray) -> State:
    """The state fitted to the codes of calibration features."""
    return entropy.fit(quantizer(jnp.asarray(calibration)))


def by_channel(quantizer: Any, calibration: np.ndarray, bits: int = 4) -> Size:
    """Entropy coded with a table for each channel, fitted to calibration features."""
    q = codes_of(quantizer(jnp.asarray(calibration)))
    counts = [np.bincount(channel.ravel(), minlength=2**bits) for channel in np.moveaxis(q, -1, 0)]
    shares = tables.frequencies(jnp.asarray(np.stack(counts), jnp.int32))
    state = shares.size * 2 / AMORTISED

    def size(code: Any) -> float:
        q = jnp.moveaxis(jnp.asarray(codes_of(code)), -1, 0)
        channel = jnp.broadcast_to(jnp.arange(len(q))[:, None, None, None], q.shape)
        lanes = lanes_for(q.size, 2**bits)
        stream = _by_rows(q.reshape(1, -1), channel.reshape(1, -1), shares, lanes)
        return framed(_side(code) + int(coded_bits(stream)) / 8) + state

    return size


@functools.partial(jax.jit, static_argnums=3)
def _by_rows(q: Array, row: Array, shares: Array, lanes: int) -> Any:
    """The stream of codes, each with the table that a row says."""
    turn = steps_of(row, lanes, len(shares) + 1), steps_of(q, lanes, 0)
    return smallest(lambda: q, [turn], q.size, shares)


def zstd(code: Any) -> float:
    """By zstandard in its strongest form."""
    return framed(_side(code) + strongest_zstd(codes_of(code))[0])


def strongest_zstd(q: np.ndarray) -> tuple[int, str]:
    """Bytes of codes by zstandard, and the form in which they are fewest.

    Forms are levels 1 and 9, of bytes and, where codes fit, of two or four codes to a byte, with
    channels last (so that neighbouring channels share a byte) and as planes.
    """
    fit = math.ceil(math.log2(max(int(q.max()), 3) + 1))
    widths = [bits for bits in (2, 4, 8) if bits >= fit]
    layouts = {"channels last": q.ravel(), "planes": np.moveaxis(q, -1, 0).ravel()}
    return min(
        (zstd_of(flat, bits, level), f"{name}, {bits} bits, level {level}")
        for name, flat in layouts.items()
        for bits in widths
        for level in (1, 9)
    )


def zstd_of(flat: np.ndarray, bits: int, level: int) -> int:
    """Bytes of codes by zstandard at a level, neighbours in order in each byte."""
    compressor = imported("zstandard").ZstdCompressor(level=level)
    return len(compressor.compress(_packed(flat.ravel(), bits)))


def _packed(flat: np.ndarray, bits: int) -> bytes:
    """Neighbouring codes in a byte, the first in its low bits."""
    each = 8 // bits
    rows = np.pad(flat, (0, -len(flat) % each)).reshape(-1, each)
    shifted = rows << np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(shifted, axis=1).tobytes()


def _side(code: Any) -> int:
    """Bytes of what stands beside the codes."""
    parts = (getattr(code, name, None) for name in ("scale", "zero_point", "centroids", "ids"))
    return sum(np.asarray(part).nbytes for part in parts if part is not None)


# --- quantizers with other scales ----------------------------------------------------------------


def per_tensor(size: Size, bits: int) -> Codec:
    """One scale for everything, the range over the codes: INT8, INT4."""
    return functools.partial(_scaled, size, bits, None)


def per_channel(size: Size, bits: int) -> Codec:
    """A scale for each channel."""
    return functools.partial(_scaled, size, bits, 1)


def _scaled(size: Size, bits: int, group_size: int | None, x: np.ndarray) -> Coded:
    c = x.shape[-1]
    quantizer = stripe_groups(group_size=group_size or c, bits=bits, grouping=numerics.in_order)
    code = quantizer(jnp.asarray(x).reshape(1, -1, c))
    return Coded(size(code), np.asarray(sgq_decode(code)).reshape(x.shape))


def two_bits(size: Size, calibration: np.ndarray) -> Codec:
    """Two bits, clipped where the squared error of calibration features is least."""
    x = jnp.asarray(calibration)
    error = lambda step: float(jnp.sum(jnp.square(_middles(_nearest(step, 2)(x)) - x)))
    return plain(size, step=min(np.linspace(0.3, 3, 28).tolist(), key=error), bits=2)
