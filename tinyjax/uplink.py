"""Features of a video across a cut: only what changed is sent, and both ends hold the same codes.

Device and cloud keep the codes ``q`` of the frame before, at the step ``D`` of the last key frame.
With ``Q`` for the quantizer of :func:`tinyjax.global_step` at that step, and ``b`` bits::

    e  =  Q(x / D) - q  mod 2^b        in the cells where it is not 0 everywhere
    q  <-  q + e  mod 2^b              at either end

What :func:`tinyjax.pass_skip` reuses is what it was, bit for bit, and so are its codes. So what is
sent was recomputed, wherever in the network the cut is, and nobody has to say where that was. What
moved without leaving its code is not sent either, and does not add up: codes are always those of
the present features.

The residual is coded with one table, made from it: nearly all of it is 0. (A table for each old
code took 2 to 8 % less of it on the bundled clip, and the tables would have to be sent.) Where what
was there before says little of what is there now, it is larger than the codes themselves: with
contexts, these are coded by them instead if that is smaller, their neighbours that are not sent
being known at either end. Frames are numbered and carry a tag of the codes
that they lead to. After a lost frame, or one of another sender, all are refused until the next key
frame: nothing is approximated unseen.

References:
  Mounts, A video encoding system with conditional picture-element replenishment, Bell System
  Technical Journal 48(7), 1969: only what changed is sent. Cavigelli, Benini, `CBinfer
  <https://arxiv.org/abs/1808.05488>`_, 2018, and Habibian et al., `Skip-convolutions
  <https://arxiv.org/abs/2104.11487>`_, CVPR 2021, for features that change where the video does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tinyjax import entropy
from tinyjax.base import Array
from tinyjax.codes import DeltaCode, KeyCode, StepCode
from tinyjax.contexts import State
from tinyjax.delta_streams import changed_cells, chosen, code_tag, coded_delta, decoded_delta
from tinyjax.numerics import pack_bits, step_codes
from tinyjax.numerics.patches import tiles
from tinyjax.streams import Stream
from tinyjax.transforms.quantizers import global_step, symbols

__all__ = ["Uplink", "UplinkState", "delta_uplink"]

_NAN = 0x7FC0  # a scale


class UplinkState(NamedTuple):
    """What either end carries from frame to frame.

    Attributes:
      features: the code of the last frame, for :func:`tinyjax.sgq_decode` and for the gradient that
        comes back; NaN before the first key frame.
      sequence: the number of that frame, uint32 scalar; 0 before the first.
      synced: whether the next frame may be a difference, bool scalar.

    Example:
      >>> import tinyjax
      >>> tinyjax.UplinkState._fields
      ('features', 'sequence', 'synced')
    """

    features: StepCode
    sequence: Array
    synced: Array


class Uplink(NamedTuple):
    """Both ends of an uplink: four pure functions, for ``jit`` each.

    Attributes:
      init: ``init(x) -> state`` of either end, from features or their ``jax.ShapeDtypeStruct``.
      key: ``key(state, x) -> (state, code)``: a frame that needs no other, with a new step.
      delta: ``delta(state, x) -> (state, code)``: the difference from the frame before.
      receive: ``receive(state, code) -> (state, valid)``, with a code of either kind from
        ``tinyjax.wire.unpack``. ``valid`` is a bool scalar; where it is False the features are
        still those before.

    Example:
      >>> import tinyjax
      >>> tinyjax.Uplink._fields
      ('init', 'key', 'delta', 'receive')
    """

    init: Callable[[Any], UplinkState]
    key: Callable[[UplinkState, Array], tuple[UplinkState, KeyCode]]
    delta: Callable[[UplinkState, Array], tuple[UplinkState, DeltaCode]]
    receive: Callable[[UplinkState, Any], tuple[UplinkState, Array]]


def delta_uplink(
    *,
    step: float = 0.5,
    bits: int = 4,
    offset: float = 0.4,
    exact: bool = False,
    cell: int = 4,
    contexts: State | None = None,
) -> Uplink:
    """Sends features of a video as what changed since the frame before, losslessly coded.

    The device calls ``key`` for the first frame, then ``delta``, and ``key`` again every so many
    frames, and after whatever moves all features, as an update of the parameters does. A step is
    kept until the next key frame: features that have grown beyond its codes take the last of them.

    A frame that is not the next one makes the cloud refuse all until the next key frame; one that
    it has had is passed over. A key frame is always taken, so that a device may begin anew.

    Args:
      step: as of :func:`tinyjax.global_step`.
      bits: likewise.
      offset: likewise.
      exact: likewise: a gradient may be masked by ``state.features``.
      cell: side of the cells that are sent, in positions of the features.
      contexts: from :func:`tinyjax.entropy.fit`; both ends need the same. None codes every frame
        with one table of its own.

    Returns:
      Both ends. Features are ``[1, h, w, c]`` in float32, float16 or bfloat16.

    Raises:
      ValueError: if a setting is out of range; on use, if features or a code are of another shape,
        dtype or setting than the state, or ``key`` or ``delta`` is differentiated.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> x = jax.random.normal(jax.random.key(0), (1, 16, 16, 8))
      >>> uplink = tinyjax.delta_uplink()
      >>> device, cloud = uplink.init(x), uplink.init(x)
      >>> device, code = uplink.key(device, x)
      >>> cloud, valid = uplink.receive(cloud, tinyjax.wire.unpack(tinyjax.wire.pack(code)))
      >>> device, code = uplink.delta(device, x.at[0, 3, 5].add(1.0))
      >>> frame = tinyjax.wire.pack(code)
      >>> cloud, valid = uplink.receive(cloud, tinyjax.wire.unpack(frame))
      >>> bool(valid), len(frame) < 150
      (True, True)
      >>> there, here = (tinyjax.sgq_decode(end.features) for end in (cloud, device))
      >>> bool((there == here).all())
      True

    References:
      Mounts, Bell System Technical Journal 48(7), 1969 (see the module).
    """
    quantizer = global_step(step=step, bits=bits, offset=offset, exact=exact)
    if isinstance(cell, bool) or not isinstance(cell, int) or not 1 <= cell < 2**16:
        raise ValueError(f"cell is {cell!r}: use an int from 1 up to 65535")
    if contexts is not None and contexts.frequencies.shape[1] != 2**bits:
        raise ValueError(
            f"contexts for {contexts.frequencies.shape[1]} symbols were given to an uplink of "
            f"{bits} bits: fit them to such codes, or give none"
        )

    def init(x: Any) -> UplinkState:
        if len(x.shape) != 4 or x.shape[0] != 1:
            raise ValueError(
                f"an uplink was given features {list(x.shape)}: give those of one frame, "
                "[1, h, w, c], and vmap over several cameras"
            )
        shapes = jax.eval_shape(quantizer, jax.ShapeDtypeStruct(x.shape, x.dtype))
        none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        none = dataclasses.replace(none, scale=jnp.uint16(_NAN))
        return UplinkState(none, jnp.uint32(0), jnp.bool_(False))

    def key(state: UplinkState, x: Array) -> tuple[UplinkState, KeyCode]:
        _fits(state, x)
        features: Any = quantizer(_final(x))
        sequence = state.sequence + jnp.uint32(1)
        code = KeyCode(entropy.compress(features, contexts), sequence)
        return UplinkState(features, sequence, jnp.bool_(True)), code

    def delta(state: UplinkState, x: Array) -> tuple[UplinkState, DeltaCode]:
        _fits(state, x)
        before, shape = state.features, tuple(x.shape)
        old = symbols(before).reshape(shape)
        flat, known = (
            _final(x).astype(jnp.float32).reshape(-1, shape[-1]),
            (before.scale, before.zero_point),
        )
        q, scale = step_codes(flat, *known, bits, offset=offset, exact=exact)
        q = q.reshape(shape)
        residual = (q - old) & jnp.uint8(2**bits - 1)
        cells = changed_cells(residual, cell)
        coded = coded_delta(q, residual, cells, cell, bits, contexts)
        packed = pack_bits(q.reshape(flat.shape), bits)
        features = dataclasses.replace(before, packed=packed, scale=scale)
        sequence = state.sequence + jnp.uint32(1)
        code = DeltaCode(
            coded, cells, scale, code_tag(q), sequence, shape, bits, before.dtype, cell
        )
        return UplinkState(features, sequence, state.synced), code

    def receive(state: UplinkState, code: KeyCode | DeltaCode) -> tuple[UplinkState, Array]:
        if isinstance(code, KeyCode):
            return _begun(state, code, contexts)
        if not isinstance(code, DeltaCode):
            raise ValueError(
                f"an uplink received {type(code).__name__}: give it what key or delta returned"
            )
        return _advanced(state, code, cell, contexts)

    return Uplink(init, key, delta, receive)


def _begun(state: UplinkState, code: KeyCode, contexts: State | None) -> tuple[UplinkState, Array]:
    """The state after a key frame, if it can be decoded."""
    features, valid = code.features, jnp.bool_(True)
    _agrees(state, features)
    if isinstance(features.packed, Stream):
        features, valid = entropy.expand(features, contexts)
    new = UplinkState(features, jnp.asarray(code.sequence), jnp.bool_(True))
    kept = chosen(valid, new, state)
    return kept._replace(synced=valid), valid


def _advanced(
    state: UplinkState, code: DeltaCode, cell: int, contexts: State | None
) -> tuple[UplinkState, Array]:
    """The state after a difference, if it is the next one and leads to the codes that it says."""
    before, shape = state.features, code.shape
    _agrees(state, code)
    if code.cell != cell or jnp.shape(code.cells) != tiles(shape[1:3], (code.cell, code.cell)):
        raise ValueError(
            f"an uplink with cells of {cell} received one of {code.cell}: make both ends alike"
        )
    cells, scale = jnp.asarray(code.cells), jnp.asarray(code.scale)
    none = ~cells.any()
    old = symbols(before).reshape(shape)
    q, whole = decoded_delta(code, old, contexts)
    q = jnp.where(none, old, q)
    ahead = lax.bitcast_convert_type(jnp.asarray(code.sequence) - state.sequence, jnp.int32)
    sound = (whole | none) & (jnp.asarray(code.check) == code_tag(q))
    sound = sound & ((scale == before.scale) | (scale == jnp.uint16(_NAN)))
    valid = state.synced & (ahead == 1) & sound
    packed = pack_bits(q.reshape(-1, shape[-1]), code.bits)
    features = dataclasses.replace(before, packed=packed, scale=scale)
    new = UplinkState(features, jnp.asarray(code.sequence), state.synced)
    kept = chosen(valid, new, state)
    return kept._replace(synced=state.synced & (valid | (ahead <= 0))), valid


def _fits(state: UplinkState, x: Array) -> None:
    """Refuses features of another shape or dtype than the state's."""
    known = state.features
    if (tuple(x.shape), x.dtype.name) != (known.shape, known.dtype):
        raise ValueError(
            f"features {x.dtype.name} {list(x.shape)} came to an uplink of {known.dtype} "
            f"{list(known.shape)}: begin again with init"
        )


@jax.custom_jvp
def _final(x: Array) -> Array:
    """The features, not to be differentiated: gradients of codes would be 0, unseen."""
    return x


@_final.defjvp
def _refused(*ignored: Any) -> Any:
    del ignored
    raise ValueError(
        "an uplink was differentiated, and codes have no derivative: train through "
        "link(sgq(), x, key), or give the gradient that comes back to the vjp of what made x"
    )


def _agrees(state: UplinkState, code: StepCode | DeltaCode) -> None:
    """Refuses a code of another shape, dtype or bits than the state's."""
    known = state.features
    if (code.shape, code.dtype, code.bits) != (known.shape, known.dtype, known.bits):
        raise ValueError(
            f"an uplink of {known.bits} bits {known.dtype} {list(known.shape)} received "
            f"{code.bits} bits {code.dtype} {list(code.shape)}: make both ends alike"
        )
