"""A gate that is learned: a small network on the grid of patches decides which are skipped.

With ``m`` the largest, ``a`` the mean and ``q`` the mean square of ``|x - r|`` in a patch, for each
group of channels, and ``d`` the unit in which a frame counts::

    z  =  log(1 + (m / d, a / d, q / d^2))
    l  =  w3 . relu(conv3x3(relu(conv3x3(z))))        skipped where l >= 0

Two rules stand around it: a patch that did not change at all is skipped, and one with a value that
moved by more than a limit is taken, whatever the network says.

References:
  Zhou et al., `PASS <https://doi.org/10.1609/aaai.v37i3.25491>`_, AAAI 2023: gates are learned,
  before a network's convolutions. Its released gate is another one, and costs more than most of
  the convolutions that it guards (``experiments.maskgate``); this one is ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax.gates import VariableGate
from tinyjax.numerics.patch_statistics import channel_groups, patch_statistics

__all__ = [
    "GateWeights",
    "decided",
    "gate_logits",
    "gate_weights",
    "guarded",
    "learned",
    "statistics_for",
]

Array = jax.Array
FEATURES = 16  # of both hidden layers
UNIT = 1 / 255  # of frames 0..1, the step of a byte


class GateWeights(NamedTuple):
    """Weights of a learned gate, float32.

    Attributes:
      first: ``[3, 3, 3 * groups, 16]``.
      first_bias: ``[16]``.
      second: ``[3, 3, 16, 16]``.
      second_bias: ``[16]``.
      last: ``[16]``.
      bias: ``[]``: larger skips more.

    Example:
      >>> import jax, tinyjax
      >>> tinyjax.gate_weights(jax.random.key(0), channels=3).first.shape
      (3, 3, 9, 16)
    """

    first: Array
    first_bias: Array
    second: Array
    second_bias: Array
    last: Array
    bias: Array


def gate_weights(key: Array, channels: int) -> GateWeights:
    """Weights to begin training a gate with: He-normal, biases 0.

    Args:
      key: of jax.random.
      channels: of the frames.

    Raises:
      ValueError: if ``channels`` is no number of channels.

    Example:
      >>> import jax, tinyjax
      >>> tinyjax.gate_weights(jax.random.key(0), channels=1).second.shape
      (3, 3, 16, 16)

    References:
      He et al., Delving Deep into Rectifiers, ICCV 2015 (the scale of the weights).
    """
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels is {channels!r}: use the number of channels of a frame")
    keys = jax.random.split(key, 3)
    statistics = 3 * len(channel_groups(channels))
    normal = lambda key, *shape: (
        jax.random.normal(key, shape) * math.sqrt(2 / math.prod(shape[:-1]))
    )
    zeros = jnp.zeros(FEATURES)
    return GateWeights(
        normal(keys[0], 3, 3, statistics, FEATURES),
        zeros,
        normal(keys[1], 3, 3, FEATURES, FEATURES),
        zeros,
        normal(keys[2], FEATURES, 1)[:, 0],
        jnp.float32(0),
    )


def gate_logits(
    weights: GateWeights, x: Array, ref: Array, patch: int, unit: float = UNIT
) -> Array:
    """What a learned gate makes of a frame, before the two rules.

    Args:
      weights: of the gate.
      x: the frame ``[h, w, c]``.
      ref: the effective input of the frame before, likewise.
      patch: side of a patch.
      unit: a small step of the frame's values.

    Returns:
      float32 ``[rows, cols]``: 0 and more is to skip, NaN where a frame near holds NaN.

    Raises:
      ValueError: if the weights are for another number of channels.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> weights = tinyjax.gate_weights(jax.random.key(0), channels=3)
      >>> x = jnp.zeros((32, 48, 3))
      >>> tinyjax.gate_logits(weights, x, x, 16).tolist()
      [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return decided(weights, statistics_for(weights, x, ref, patch), unit)


def statistics_for(weights: GateWeights, x: Array, ref: Array, patch: int) -> Array:
    """The statistics of a frame's patches, if a gate's weights are for so many.

    Raises:
      ValueError: if they are not.
    """
    wanted = 3 * len(channel_groups(x.shape[-1]))
    if weights.first.shape[2] != wanted:
        raise ValueError(
            f"the gate's weights are for {weights.first.shape[2]} statistics, and frames "
            f"{x.shape} have {wanted}: make weights with channels={x.shape[-1]}"
        )
    return patch_statistics(x, ref, patch)


def decided(weights: GateWeights, statistics: Array, unit: float) -> Array:
    """The network on the grid of patches: float32 ``[rows, cols]``."""
    units = np.repeat(np.array([unit, unit, unit**2]), statistics.shape[2] // 3)
    z = jnp.log1p(statistics / jnp.asarray(units, jnp.float32))[None]
    for kernel, bias in (
        (weights.first, weights.first_bias),
        (weights.second, weights.second_bias),
    ):
        z = jax.nn.relu(_conv(z, kernel) + bias)
    return z[0] @ weights.last + weights.bias


def _conv(x: Array, kernel: Array) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def guarded(statistics: Array, always: Array | float) -> tuple[Array, Array]:
    """The two rules: patches that changed at all, and patches that must be taken.

    Args:
      statistics: of :func:`tinyjax.numerics.patch_statistics`.
      always: how far a value may move, before its patch is taken in any case.

    Returns:
      bool ``[rows, cols]`` both; NaN is a change, and must be taken.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.0, 2.0, 9.0]])[..., None]
      >>> [found.tolist() for found in guarded(patch_statistics(x, jnp.zeros_like(x), 1), 5.0)]
      [[[False, True, True]], [[False, False, True]]]
    """
    largest, mean, _ = jnp.split(statistics, 3, axis=2)
    largest = jnp.where(jnp.isnan(mean), jnp.nan, largest)  # XLA's own may pass over NaN on CPUs
    return ~(largest <= 0).all(2), ~(largest <= always).all(2)


def learned(weights: GateWeights, *, unit: float = UNIT, always: float = math.inf) -> VariableGate:
    """The gate that a small network decides, from how far each patch and its neighbours moved.

    Its weights come from training, :func:`tinyjax.gate_loss`. They are in the state, so that a
    gate may be trained or adjusted while frames come: ``state._replace(gate=(weights, always))``.
    On the grid of patches it takes 3,600 multiply-accumulates a patch of three channels, and reads
    the frame and the effective input once.

    Args:
      weights: of the gate.
      unit: a small step of the frame's values, as in training.
      always: patches with a value that moved by more are always taken; so the effective input
        never differs from the frame by more. inf leaves it to the network.

    Returns:
      A gate, whose variables are the weights and ``always``.

    Raises:
      ValueError: if ``unit`` or ``always`` is out of range; on use, if the weights are for another
        number of channels.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> gate = tinyjax.learned(tinyjax.gate_weights(jax.random.key(0), channels=3), always=0.5)
      >>> x = jnp.zeros((32, 48, 3))
      >>> gate(x.at[0, 0].set(0.9), x, 16).tolist()[1]  # a neighbour did not change at all
      [False, False, False]

    References:
      Zhou et al., PASS, AAAI 2023 (see the module).
    """
    if not (math.isfinite(unit) and unit > 0):
        raise ValueError(f"unit is {unit}: use a step of the frame's values, above 0")
    if not always >= 0:
        raise ValueError(f"always is {always}: use a limit from 0 up, in units of the frame")

    def call(variables: tuple[GateWeights, Array], x: Array, ref: Array, patch: int) -> Array:
        weights, limit = variables
        statistics = statistics_for(weights, x, ref, patch)
        changed, must = guarded(statistics, limit)
        return changed & (must | ~(decided(weights, statistics, unit) >= 0))

    return VariableGate((weights, np.float32(always)), call)
