"""How a gate learns without labels: a frame with patches of an earlier one should change little.

With ``S`` the patches that are skipped, 1 or 0, ``f`` the network, ``x`` a frame and ``r`` an
earlier one::

    P = f(S r + (1 - S) x)    N = f((1 - S) r + S x)    A = f(x)    Z = f(r)
    p = |A - P|^2 / |A - Z|^2          n = |A - N|^2 / |A - Z|^2
    loss = sum v max(0, p - n + margin) / sum v + weight (rho - budget)^2,  v = |A - Z|^2 / |A|^2

where ``rho`` is the share of patches that are computed. So a pair weighs as much as it changes the
output, and one that differs by noise alone hardly anything. One draw gives ``S`` and its
complement; ``A`` and ``Z`` have no derivative. What is skipped in ``P`` should matter little, what
is skipped in ``N`` much. Without the budget the best is to skip nothing; where patches are equal,
only the budget has a derivative.

References:
  Zhou et al., `PASS <https://doi.org/10.1609/aaai.v37i3.25491>`_, AAAI 2023: anchor, positive and
  negative, a gate trained against a frozen network. Its released loss has no budget, its distances
  are not relative, and it draws twice; that is changed here.
  Jang, Gu, Poole, `Categorical Reparameterization with Gumbel-Softmax
  <https://arxiv.org/abs/1611.01144>`_, ICLR 2017: the straight-through estimator.
  Verelst, Tuytelaars, `Dynamic Convolutions <https://arxiv.org/abs/1912.03203>`_, CVPR 2020: the
  budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinyjax.gating import UNIT, GateWeights, decided, guarded, statistics_for
from tinyjax.numerics.patch_statistics import asleep
from tinyjax.numerics.patches import spread

__all__ = ["GateTerms", "computed_share", "draw_skips", "gate_loss"]

Array = jax.Array


class GateTerms(NamedTuple):
    """What the loss of a gate consists of.

    Attributes:
      positive: of each pair, ``|A - P|^2 / |A - Z|^2``, 0 where A is Z: float32 ``[n]``.
      negative: likewise of N.
      share: of the patches that are computed, over all pairs: float32 ``[]``.

    Example:
      >>> import tinyjax
      >>> tinyjax.GateTerms._fields
      ('positive', 'negative', 'share')
    """

    positive: Array
    negative: Array
    share: Array


def computed_share(skips: Array) -> Array:
    """The share of patches that a frame computes, if each taken one wakes its neighbours.

    Args:
      skips: float32 ``[n, rows, cols]``, 1 where a patch is skipped.

    Returns:
      float32 ``[]``, 0 to 1.

    Example:
      >>> import jax.numpy as jnp
      >>> computed_share(jnp.ones((1, 4, 4)).at[0, 0, 0].set(0.0)).item()
      0.25
    """
    return 1 - asleep(skips).mean()


def draw_skips(key: Array, logits: Array, temperature: float | Array) -> Array:
    """1 where a patch is skipped, at random, with the derivative of a soft decision.

    Args:
      key: of jax.random.
      logits: float32, of skipping.
      temperature: of the soft decision, above 0.

    Returns:
      float32 of the same shape, 0 or 1: 1 with the probability ``sigmoid(logits)``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> draw_skips(jax.random.key(0), jnp.array([-50.0, 50.0]), 1.0).tolist()
      [0.0, 1.0]
    """
    noise = jax.random.logistic(key, logits.shape)  # the difference of two Gumbel variables
    soft = jax.nn.sigmoid((logits + noise) / temperature)
    hard = (logits + noise >= 0).astype(jnp.float32)
    return hard + (soft - jax.lax.stop_gradient(soft))  # exactly 0 or 1


def gate_loss(
    weights: GateWeights,
    key: Array,
    apply: Callable[[Array], Any],
    x: Array,
    ref: Array,
    *,
    patch: int,
    budget: float,
    unit: float = UNIT,
    always: float = math.inf,
    temperature: float | Array = 1.0,
    margin: float = 1.0,
    weight: float = 3.0,
    share: Callable[[Array], Array] = computed_share,
) -> tuple[Array, GateTerms]:
    """The loss that trains a learned gate on pairs of frames, without labels.

    Differentiate it by the weights, ``jax.value_and_grad(..., has_aux=True)``; the network stays
    as it is. Pairs are frames of one camera some steps apart, with the noise of a sensor on both,
    and some that are equal.

    Args:
      weights: of the gate.
      key: of jax.random, for the draw of skips.
      apply: the network, parameters bound: frames ``[n, h, w, c]`` to an array or a tree of arrays
        with ``n`` first.
      x: frames ``[n, h, w, c]``.
      ref: an earlier frame for each.
      patch: side of a patch.
      budget: share of the patches to be computed, over all pairs, 0 to 1.
      unit: as for :func:`tinyjax.learned`.
      always: likewise.
      temperature: of the derivative; it may fall from 1 to 0.3 in training.
      margin: of the comparison.
      weight: of the budget.
      share: ``skips [n, rows, cols] -> []``: the share that is computed. By default a patch that is
        taken wakes its eight neighbours.

    Returns:
      The loss, float32 ``[]``, and what it consists of.

    Raises:
      ValueError: if frames do not match, or an option is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, tinyjax
      >>> weights = tinyjax.gate_weights(jax.random.key(0), channels=1)
      >>> x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1))
      >>> loss, terms = tinyjax.gate_loss(
      ...   weights, jax.random.key(2), jnp.tanh, x, x[::-1], patch=8, budget=0.1
      ... )
      >>> terms.positive.shape, (terms.positive + terms.negative).round(3).tolist()
      ((2,), [1.0, 1.0])

    References:
      Zhou et al., PASS, AAAI 2023 (see the module).
    """
    given = [f"{a.dtype} {a.shape}" for a in (x, ref)]
    if x.ndim != 4 or given[0] != given[1] or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"frames are {' and '.join(given)}: give pairs [n, h, w, c] of floats")
    if not 0 <= budget <= 1:
        raise ValueError(f"budget is {budget}: use a share of the patches, 0 to 1")
    plain = isinstance(temperature, int | float)  # what is traced cannot be looked at
    if plain and not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}: use a number above 0, 1 to begin with")
    statistics = jax.vmap(lambda x, ref: statistics_for(weights, x, ref, patch))(x, ref)
    logits = jax.vmap(lambda found: decided(weights, found, unit))(statistics)
    changed, must = jax.vmap(lambda found: guarded(found, always))(statistics)
    drawn = draw_skips(key, logits, temperature)
    skips = jnp.where(must, 0.0, jnp.where(changed, drawn, 1.0))
    wide = jax.vmap(lambda skips: spread(skips, (patch, patch), x.shape[1:3]))(skips)[..., None]
    anchor, whole = jax.lax.stop_gradient((apply(x), apply(ref)))
    positive = _energy(anchor, apply(wide * ref + (1 - wide) * x))
    negative = _energy(anchor, apply((1 - wide) * ref + wide * x))
    moved, energy = _energy(anchor, whole), _energy(anchor, jax.tree.map(jnp.zeros_like, anchor))
    over = lambda a, b: jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
    terms = GateTerms(over(positive, moved), over(negative, moved), share(skips))
    hinge = jnp.maximum(terms.positive - terms.negative + margin, 0.0)
    change = over(moved, energy)
    contrast = over((change * hinge).sum(), change.sum())
    loss = contrast + weight * jnp.square(terms.share - budget)
    return loss, terms


def _energy(a: Any, b: Any) -> Array:
    """Sum of squared differences of each sample: float32 ``[n]``."""
    one = lambda a, b: jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))
    sums = [d.reshape(d.shape[0], -1).sum(1) for d in jax.tree.leaves(jax.tree.map(one, a, b))]
    return jnp.stack(sums).sum(0)
