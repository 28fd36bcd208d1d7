"""What crosses a cut: codes as pytrees of arrays with static metadata."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from tinyjax.base import Array
from tinyjax.streams import Stream

__all__ = [
    "DTYPES",
    "MAX_GROUPS",
    "DeltaCode",
    "FeatureCode",
    "GainCode",
    "GroupCode",
    "KeyCode",
    "SGQGradient",
    "StepCode",
    "plain",
]

DTYPES = ("float32", "float16", "bfloat16")  # of what is encoded
MAX_GROUPS = 256  # an id is a byte


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepCode:
    """Features as they cross the cut, with one step for all: see ``tinyjax.global_step``.

    Attributes:
      packed: uint8 ``[ceil(rows * bits / 8), c]``, a row being a place in a sample: the codes.
        From ``tinyjax.entropy.compress``, a stream instead.
      scale: uint16 scalar, bits of a bfloat16: the step; NaN where the features are.
      zero_point: uint8 scalar: the code of 0.0.
      centroids: uint16 ``[2**bits]``, bits of float16: what each code stands for, in steps.
      shape: of the features, static.
      bits: of a code, static.
      dtype: name of the features' dtype, static.
      exact: whether only 0.0 has the code of 0.0, static.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> code = tinyjax.sgq_encode(jnp.ones((2, 4, 4, 8)))
      >>> code.packed.shape, code.centroids.shape, code.shape
      ((16, 8), (16,), (2, 4, 4, 8))
    """

    packed: Array | Stream
    scale: Array
    zero_point: Array
    centroids: Array
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    bits: int = dataclasses.field(metadata=dict(static=True))
    dtype: str = dataclasses.field(metadata=dict(static=True))
    exact: bool = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupCode:
    """Features with a scale per sample and group of channels: see ``tinyjax.stripe_groups``.

    Attributes:
      packed: uint8 ``[ceil(rows * bits / 8), c]``, a row being a place in a sample: the codes.
        From ``tinyjax.entropy.compress``, a stream instead.
      scale: uint16 ``[n, groups]``, bits of a bfloat16; NaN where the group is.
      zero_point: uint8 ``[n, groups]``: the code of 0.0.
      ids: uint8 ``[c]``: the group of each channel.
      shape: of the features, static.
      bits: of a code, static.
      dtype: name of the features' dtype, static.
      exact: whether only 0.0 has the code of 0.0, static.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> code = tinyjax.stripe_groups(group_size=4)(jnp.ones((2, 4, 4, 8)))
      >>> code.packed.shape, code.scale.shape, code.shape
      ((16, 8), (2, 2), (2, 4, 4, 8))
    """

    packed: Array | Stream
    scale: Array
    zero_point: Array
    ids: Array
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    bits: int = dataclasses.field(metadata=dict(static=True))
    dtype: str = dataclasses.field(metadata=dict(static=True))
    exact: bool = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GainCode:
    """Features with a gain per place and group of channels: see ``tinyjax.stripe_gains``.

    Attributes:
      packed: uint8 ``[ceil(rows / per_byte), c]``, a row being a place in a sample: the codes, five
        of three levels in a byte, or four of four. They have no entropy coder.
      gains: uint8 ``[ceil(rows / 2), groups]``: of 4 bits each.
      scale: uint16 ``[n, groups]``, bits of a bfloat16; NaN where the group is.
      ids: uint8 ``[c]``: the group of each channel.
      shape: of the features, static.
      levels: of a feature, static.
      dtype: name of the features' dtype, static.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> code = tinyjax.stripe_gains(group_size=4)(jnp.ones((2, 4, 4, 8)))
      >>> code.packed.shape, code.gains.shape, code.scale.shape
      ((7, 8), (16, 2), (2, 2))
    """

    exact: ClassVar[bool] = False  # what is small has the code of 0.0, too

    packed: Array
    gains: Array
    scale: Array
    ids: Array
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    levels: int = dataclasses.field(metadata=dict(static=True))
    dtype: str = dataclasses.field(metadata=dict(static=True))


FeatureCode = StepCode | GroupCode | GainCode


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SGQGradient:
    """A gradient as it crosses the cut, the other way.

    Attributes:
      codes: int8, of the gradient's shape; 0 wherever it is masked. From
        ``tinyjax.entropy.compress``, a stream instead.
      step: float32 scalar; NaN or Inf if the gradient has one.
      shape: of the gradient, static.
      dtype: name of the gradient's dtype, static.
      masked: whether only the places of non-zero features are sent, static.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> codec, x = tinyjax.sgq(), jnp.array([[0.0, 1.0]])
      >>> code = codec.encode_gradient(jnp.array([[0.0, 2.0]]), jnp.uint32(0), codec.encode(x))
      >>> code.codes.dtype.name, int(code.codes[0, 0]), code.masked
      ('int8', 0, False)
    """

    codes: Array | Stream
    step: Array
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    dtype: str = dataclasses.field(metadata=dict(static=True))
    masked: bool = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyCode:
    """All features of a video's frame, which a receiver can begin with: see ``delta_uplink``.

    Attributes:
      features: their code, compressed or not.
      sequence: uint32 scalar: the number of the frame.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> uplink, x = tinyjax.delta_uplink(), jnp.ones((1, 8, 8, 4))
      >>> _, code = uplink.key(uplink.init(x), x)
      >>> int(code.sequence), code.features.shape
      (1, (1, 8, 8, 4))
    """

    features: StepCode
    sequence: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeltaCode:
    """Features of a video's frame as their difference from those before: see ``delta_uplink``.

    Attributes:
      stream: in the cells that are sent, what has to be added to the codes of the frame before,
        modulo ``2**bits``; or, if it names contexts by its ``state``, the codes themselves.
      cells: bool ``[ceil(h / cell), ceil(w / cell)]``: those in which a code changed.
      scale: uint16 scalar, bits of a bfloat16: the step of the key frame; NaN where a feature is.
      check: uint32 scalar: the tag of all codes, sent or not.
      sequence: uint32 scalar: the number of the frame.
      shape: of the features ``[1, h, w, c]``, static.
      bits: of a code, static.
      dtype: name of the features' dtype, static.
      cell: side of a cell in positions, static.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> uplink, x = tinyjax.delta_uplink(), jnp.ones((1, 8, 8, 4))
      >>> state, _ = uplink.key(uplink.init(x), x)
      >>> _, code = uplink.delta(state, x.at[0, 1, 6].set(0.0))
      >>> code.cells.tolist(), int(code.sequence)
      ([[False, True], [False, False]], 2)
    """

    stream: Stream
    cells: Array
    scale: Array
    check: Array
    sequence: Array
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    bits: int = dataclasses.field(metadata=dict(static=True))
    dtype: str = dataclasses.field(metadata=dict(static=True))
    cell: int = dataclasses.field(metadata=dict(static=True))


def plain(codes: Array | Stream) -> Array:
    """Codes one by one or packed; refuses a stream.

    Raises:
      ValueError: if they have to be expanded first.

    Example:
      >>> import jax.numpy as jnp
      >>> plain(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    if isinstance(codes, Stream):
        raise ValueError(
            "a compressed code was given where a plain one is read: give it to "
            "tinyjax.entropy.expand first"
        )
    return codes
