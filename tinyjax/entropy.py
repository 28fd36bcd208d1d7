"""The lossless stage behind SGQ's quantizers: codes in fewer bytes, inside XLA.

A code of features or of a gradient becomes one of the same type whose codes are a
:class:`tinyjax.streams.Stream`, and comes back bit for bit. ``tinyjax.wire`` makes bytes of either.
Features are coded by context with what :func:`fit` found beforehand; without it, and for gradients,
one table is made from the codes and sent with them. Whichever it is, the smallest stream is taken.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import jax.numpy as jnp

from tinyjax.base import Array
from tinyjax.codes import FeatureCode, GainCode, SGQGradient, plain
from tinyjax.contexts import State, fit_contexts
from tinyjax.lossless import decode, encode
from tinyjax.numerics import pack_bits
from tinyjax.order0 import decode_order0, encode_order0
from tinyjax.streams import Stream
from tinyjax.transforms.quantizers import nonzero, symbols

__all__ = ["compress", "expand", "fit"]

Code = TypeVar("Code", bound=FeatureCode | SGQGradient)


def fit(code: FeatureCode) -> State:
    """Fits contexts to the codes of some features, on the host.

    Args:
      code: with concrete arrays, of 2 or 4 bits; 128 samples are enough.

    Returns:
      The state, for codes of as many bits and channels. Both sides need it: send
      ``wire.pack(state)``. It stays good while the features change little; when
      :func:`tinyjax.streams.coded_bits` comes near :func:`tinyjax.streams.order0_bits`, fit again.

    Raises:
      ValueError: if the code has 8 bits or gains, or has been compressed.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> state = fit(tinyjax.sgq_encode(jnp.ones((2, 4, 4, 8))))
      >>> state.frequencies.shape
      (126, 16)
    """
    _check_bits(code)
    return fit_contexts(symbols(code).reshape(code.shape), symbols=2 ** _bits(code))


def compress(code: Code, state: State | None = None, features: FeatureCode | None = None) -> Code:
    """Codes as a stream. Pure; works under ``jit`` and ``vmap``.

    Args:
      code: from an encoder of :func:`tinyjax.sgq`.
      state: of features: what they are coded by. None takes one table of their own.
      features: of a masked gradient: the code of the features it belongs to. What is masked costs
        nothing.

    Returns:
      The same with a stream for codes; for :func:`expand` and ``tinyjax.wire.pack``.

    Raises:
      ValueError: if the state is for other codes, the features do not belong to a masked gradient,
        or the code has gains or has been compressed.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> x = jax.nn.relu(jax.random.normal(jax.random.key(0), (8, 8, 8, 16)))
      >>> code = tinyjax.sgq_encode(x)
      >>> small = compress(code, fit(code))
      >>> len(tinyjax.wire.pack(small)) < 0.7 * len(tinyjax.wire.pack(code))
      True
    """
    if isinstance(code, SGQGradient):
        codes = jnp.asarray(plain(code.codes))
        return dataclasses.replace(code, codes=encode_order0(codes, _mask(code, features)))
    q = symbols(code).reshape(code.shape)
    if state is None:
        stream = encode_order0(q, symbols=2 ** _bits(code))
    else:
        _check_state(code, state)
        stream = encode(state, q)
    return dataclasses.replace(code, packed=stream)


def expand(
    code: Code, state: State | None = None, features: FeatureCode | None = None
) -> tuple[Code, Array]:
    """What was compressed, bit for bit. Pure; works under ``jit`` and ``vmap``.

    Args:
      code: from :func:`compress`, or from ``tinyjax.wire.unpack``, with a stream from anywhere.
      state: what features were compressed with, if they were.
      features: of a masked gradient: the code of the features it belongs to, not compressed.

    Returns:
      ``(code, valid)``: ``valid`` is a bool scalar, and the code worth nothing where it is False:
      if the stream was damaged, or was made with another state or mask.

    Raises:
      ValueError: if shapes do not fit each other, or the code was not compressed.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> code = tinyjax.sgq_encode(jnp.ones((2, 4, 4, 8)))
      >>> again, valid = expand(compress(code))
      >>> bool(valid), bool((again.packed == code.packed).all())
      (True, True)
    """
    stream = code.codes if isinstance(code, SGQGradient) else code.packed
    if not isinstance(stream, Stream):
        raise ValueError("a code that is not compressed was to be expanded: use it as it is")
    if isinstance(code, SGQGradient):
        q, valid = decode_order0(stream, code.shape, "int8", _mask(code, features))
        # A gradient has no such code, compressed or not.
        return dataclasses.replace(code, codes=q), valid & ~jnp.any(q == -128)
    if state is None:
        q, valid = decode_order0(stream, code.shape)
    else:
        _check_state(code, state)
        q, valid = decode(state, stream, code.shape)
    q = q.reshape(math.prod(code.shape[:-1]), code.shape[-1])
    return dataclasses.replace(code, packed=pack_bits(q, _bits(code))), valid


def _mask(code: SGQGradient, features: FeatureCode | None) -> Array | None:
    """Where a gradient is sent, if not everywhere."""
    if not code.masked:
        return None
    if not isinstance(features, FeatureCode) or not features.exact or features.shape != code.shape:
        raise ValueError(
            f"a masked gradient of shape {list(code.shape)} was given no exact features of that "
            "shape: give the code of its features too"
        )
    return nonzero(features)


def _bits(code: FeatureCode) -> int:
    """Of a code; refuses those that have none."""
    if isinstance(code, GainCode):
        raise ValueError("a code with gains has one length whatever is in it: send it as it is")
    return code.bits


def _check_bits(code: FeatureCode) -> None:
    if _bits(code) > 4:
        raise ValueError(f"codes of {_bits(code)} bits have no contexts: use 2 or 4, or no state")


def _check_state(code: FeatureCode, state: State) -> None:
    _check_bits(code)
    if state.frequencies.shape[-1] != 2 ** _bits(code):
        raise ValueError(
            f"the state is for {state.frequencies.shape[-1]} symbols where the code has "
            f"{_bits(code)} bits: fit one to such codes"
        )
