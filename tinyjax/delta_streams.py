"""What of some codes is sent as a difference, as a stream, and back: inside XLA.

A stream is of the smaller of two things: the residual, with one table made from it, or the codes
themselves, by contexts. What is not sent is known at either end.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax.base import Array
from tinyjax.codes import DeltaCode
from tinyjax.contexts import State
from tinyjax.lossless import decode, encode
from tinyjax.numerics.patches import spread, tiles
from tinyjax.order0 import decode_order0, encode_order0, mask_tag, place_hash
from tinyjax.streams import Stream, coded_bits, nothing, sparse_lanes

__all__ = ["changed_cells", "chosen", "code_tag", "coded_delta", "decoded_delta"]


def changed_cells(residual: Array, cell: int) -> Array:
    """The cells in which something changed.

    Args:
      residual: uint8 ``[1, h, w, c]``.
      cell: side of a cell in positions.

    Returns:
      bool ``[ceil(h / cell), ceil(w / cell)]``.

    Example:
      >>> changed_cells(jnp.zeros((1, 3, 4, 2), jnp.uint8).at[0, 2, 1, 1].set(5), 2).tolist()
      [[False, False], [True, False]]
    """
    changed = residual[0].any(axis=2)
    rows, cols = tiles(changed.shape, (cell, cell))
    beyond = [(0, n * cell - size) for n, size in zip((rows, cols), changed.shape, strict=True)]
    return jnp.pad(changed, beyond).reshape(rows, cell, cols, cell).any(axis=(1, 3))


def coded_delta(
    q: Array, residual: Array, cells: Array, cell: int, bits: int, contexts: State | None
) -> Stream:
    """The smaller stream, of the residual or of the codes by context.

    It is of one form if nothing is sent, as there is none in its frame.

    Args:
      q: uint8 ``[1, h, w, c]``, all codes.
      residual: of the same shape: ``q`` less the codes before, modulo ``2**bits``.
      cells: bool, from :func:`changed_cells`.
      cell: side of a cell in positions.
      bits: of a code.
      contexts: for such codes, if the decoder has them too.

    Returns:
      A stream for :func:`decoded_delta`; of codes if it names the contexts by its ``state``.

    Example:
      >>> q = jnp.zeros((1, 4, 4, 2), jnp.uint8).at[0, 2, 1, 1].set(5)
      >>> stream = coded_delta(q, q, changed_cells(q, 2), 2, 4, None)
      >>> int(stream.state), len(stream.words)
      (0, 8)
    """
    mask, lanes = _mask(cells, cell, q.shape), sparse_lanes(q.size, 2**bits)
    stream = encode_order0(residual, mask, symbols=2**bits, lanes=lanes)
    # The tag of all codes says more than that of the mask.
    stream = dataclasses.replace(stream, state=jnp.uint32(0))
    if contexts is not None:
        # Raw it is no smaller, so what is taken of it always names the contexts.
        whole = encode(contexts, q, mask, lanes=lanes)
        stream = chosen(coded_bits(whole) < coded_bits(stream), whole, stream)
    return chosen(cells.any(), stream, nothing(q.size, 2**bits, lanes))


def decoded_delta(code: DeltaCode, old: Array, contexts: State | None) -> tuple[Array, Array]:
    """The codes after a difference.

    Args:
      code: from anywhere, with cells of the right shape.
      old: uint8 ``[1, h, w, c]``, the codes before.
      contexts: as the encoder had them.

    Returns:
      ``(q, valid)``: all codes, and whether the stream is one, bool.

    Example:
      >>> import tinyjax
      >>> uplink, x = tinyjax.delta_uplink(), jnp.zeros((1, 8, 8, 4)).at[0, 3, 3].set(1.0)
      >>> state, _ = uplink.key(uplink.init(x), x)
      >>> _, code = uplink.delta(state, x.at[0, 1, 6].set(1.0))
      >>> q, valid = decoded_delta(code, jnp.zeros(x.shape, jnp.uint8), None)
      >>> bool(valid), int(code_tag(q)) != int(code.check)  # of other codes than the device's
      (True, True)
    """
    stream, shape = code.stream, code.shape
    mask = _mask(jnp.asarray(code.cells), code.cell, shape)

    def of_residual() -> tuple[Array, Array]:
        named = dataclasses.replace(stream, state=mask_tag(mask))
        residual, whole = decode_order0(named, shape, "uint8", mask)
        return (old + residual) & jnp.uint8(2**code.bits - 1), whole

    if contexts is None:
        q, whole = of_residual()
        return q, whole & (stream.state == 0)
    by_context = lambda: decode(contexts, stream, shape, mask, old)
    return lax.cond(stream.state == 0, of_residual, by_context)


def code_tag(q: Array) -> Array:
    """The tag of codes: uint32 scalar. Wherever a single one differs, so does the tag.

    Example:
      >>> int(code_tag(jnp.uint8([0, 1]))), int(code_tag(jnp.uint8([0, 2])))
      (3573156909, 2851346522)
    """
    weight = place_hash(q.size) | jnp.uint32(1)
    return jnp.sum(weight * q.reshape(-1).astype(jnp.uint32), dtype=jnp.uint32)


def chosen(first: Array, a: Any, b: Any) -> Any:
    """The one tree or the other, by a bool scalar.

    Example:
      >>> chosen(jnp.bool_(False), {"a": jnp.int32(1)}, {"a": jnp.int32(2)})["a"].tolist()
      2
    """
    return jax.tree.map(lambda a, b: jnp.where(first, a, jnp.asarray(b)), a, b)


def _mask(cells: Array, cell: int, shape: tuple[int, ...]) -> Array:
    """Where codes are sent: bool ``[1, h, w, c]``."""
    places = spread(cells, (cell, cell), (shape[1], shape[2]))
    return jnp.broadcast_to(places[None, :, :, None], shape)
