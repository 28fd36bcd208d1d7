"""Tables of static entropy coding: how many of 4096 slots each symbol has.

Integers throughout, so that two machines make the same table of the same counts.

References:
  Duda, `Asymmetric numeral systems <https://arxiv.org/abs/1311.2540>`_, 2013.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "SLOTS",
    "decode_table",
    "encode_table",
    "frequencies",
    "histogram",
    "joint_histogram",
    "table_bits",
]

Array = jax.Array

SLOTS = 4096  # of a table
_BITS = 12
_BLOCK = 1 << 15  # symbols that are counted at a time: where they go stays in the cache
_SUM = 19  # bits of what counts are brought to, so that times SLOTS they fit 32 bits


def histogram(q: Array, symbols: int) -> Array:
    """How often each symbol comes.

    Args:
      q: uint8, or int32 from 0 up; what is not below ``symbols`` is not counted.
      symbols: how many there are.

    Returns:
      int32 ``[symbols]``.

    Example:
      >>> import jax.numpy as jnp
      >>> histogram(jnp.uint8([[2, 0], [2, 7]]), 3).tolist()
      [1, 0, 2]
    """
    place = q.reshape(-1).astype(jnp.int32)
    return jnp.zeros(symbols, jnp.int32).at[place].add(jnp.int32(1), mode="drop")


def joint_histogram(context: Array, code: Array, contexts: int, symbols: int) -> Array:
    """How often each symbol comes in each context.

    Args:
      context: integers, any shape; below ``contexts``.
      code: integers of the same shape, below ``symbols``.
      contexts: how many there are.
      symbols: how many there are.

    Returns:
      int32 ``[contexts, symbols]``.

    Example:
      >>> import jax.numpy as jnp
      >>> joint_histogram(jnp.uint8([0, 1, 1]), jnp.uint8([2, 0, 0]), 2, 3).tolist()
      [[0, 0, 1], [2, 0, 0]]
    """
    blocks = max(-(-context.size // _BLOCK), 1)

    def in_blocks(x: Array, fill: int) -> Array:
        x = x.reshape(-1)
        return jnp.pad(x, (0, -x.size % blocks), constant_values=fill).reshape(blocks, -1)

    def one(counts: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        row, q = (x.astype(jnp.int32) for x in block)
        return counts.at[row * symbols + q].add(jnp.int32(1), mode="drop"), None

    none = jnp.zeros(contexts * symbols, jnp.int32)
    counts, _ = lax.scan(one, none, (in_blocks(context, contexts), in_blocks(code, 0)))
    return counts.reshape(contexts, symbols)


def frequencies(counts: Array, *, unseen: bool = True) -> Array:
    """Counts as shares of 4096: the table of a context.

    What a symbol has above one share is rounded along the running sum, so that the shares add up
    to 4096 whatever the counts are.

    Args:
      counts: int32 ``[..., symbols]``, from 0 up, that add up to less than ``2**31``; 2 to 256
        symbols. Without any count, symbols are taken to be equally frequent.
      unseen: whether symbols without a count get a share, as they must if they may come.

    Returns:
      uint32 ``[..., symbols]`` with sum 4096; at least 1 wherever there is a count, or everywhere.

    Raises:
      ValueError: if there are fewer than 2 or more than 256 symbols.

    Example:
      >>> import jax.numpy as jnp
      >>> frequencies(jnp.array([6, 2, 0])).tolist()
      [3071, 1024, 1]
      >>> frequencies(jnp.array([6, 2, 0]), unseen=False).tolist()
      [3072, 1024, 0]
    """
    if not 2 <= counts.shape[-1] <= 256:
        raise ValueError(f"a table was asked for {counts.shape[-1]} symbols: use 2 to 256")
    counts = counts.astype(jnp.uint32)
    counts = counts + (_total(counts) == 0).astype(jnp.uint32)
    least = (counts > 0).astype(jnp.uint32) if not unseen else jnp.ones_like(counts)
    # Brought to a sum just below 2**_SUM: products with up to 4096 then stay below 2**31.
    spare = lax.clz(_total(counts)).astype(jnp.int32) - (32 - _SUM)
    up, down = (jnp.maximum(s, 0).astype(jnp.uint32) for s in (spare, -spare))
    counts = (counts << up) >> down
    share = (_total(counts) >> jnp.uint32(_BITS)) * least
    above = counts - jnp.minimum(counts, share)
    end = jnp.cumsum(above, axis=-1, dtype=jnp.uint32)
    rest = jnp.uint32(SLOTS) - _total(least)
    cut = end * rest // end[..., -1:]
    return least + jnp.diff(cut, axis=-1, prepend=jnp.zeros_like(cut[..., :1]))


def encode_table(freq: Array) -> Array:
    """What :func:`rans_encode` needs to know of each symbol.

    Args:
      freq: uint32 ``[..., symbols]``, each row of sum 4096.

    Returns:
      uint32 of the same shape: the share of a symbol above 16 bits of where its slots start.

    Example:
      >>> import jax.numpy as jnp
      >>> [hex(e) for e in encode_table(jnp.uint32([4095, 1])).tolist()]
      ['0xfff0000', '0x10fff']
    """
    start = jnp.cumsum(freq, axis=-1, dtype=jnp.uint32) - freq
    return (freq << jnp.uint32(16)) | start


def decode_table(freq: Array) -> Array:
    """What :func:`rans_decode` needs to know of each slot.

    Args:
      freq: uint32 ``[..., symbols]``, each row of sum 4096.

    Returns:
      uint32 ``[..., 4096]``: symbol, share less one, place among the slots of the symbol, in 8, 12
      and 12 bits.

    Example:
      >>> import jax.numpy as jnp
      >>> table = decode_table(jnp.uint32([4095, 1]))
      >>> [hex(e) for e in table[-2:].tolist()]
      ['0xffeffe', '0x1000000']
    """
    freq = freq.astype(jnp.uint32)
    start = (jnp.cumsum(freq, axis=-1, dtype=jnp.uint32) - freq)[..., None]
    slot = lax.iota(jnp.uint32, SLOTS)
    entry = (
        (lax.broadcasted_iota(jnp.uint32, start.shape, start.ndim - 2) << jnp.uint32(24))
        + ((freq[..., None] - jnp.uint32(1)) << jnp.uint32(_BITS))
        + (slot - start)
    )
    mine = (slot >= start) & (slot < start + freq[..., None])
    return jnp.sum(jnp.where(mine, entry, jnp.uint32(0)), axis=-2, dtype=jnp.uint32)


def table_bits(counts: Array, freq: Array) -> Array:
    """About how many bits these symbols take with these tables.

    Args:
      counts: int32 ``[..., symbols]``.
      freq: uint32 of the same shape, each row of sum 4096, above 0 wherever there is a count.

    Returns:
      float32 scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(table_bits(jnp.array([3, 5]), jnp.uint32([1024, 3072]))), 3)
      8.075
    """
    each = jnp.log2(jnp.maximum(freq, jnp.uint32(1)).astype(jnp.float32))
    return jnp.sum(counts.astype(jnp.float32) * (jnp.float32(_BITS) - each))


def _total(x: Array) -> Array:
    return jnp.sum(x, axis=-1, keepdims=True, dtype=jnp.uint32)
