"""Where the scale of an activation comes from: the tensor at hand, its rows, the past, a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from tinyjax.base import Array, Site, Vars
from tinyjax.numerics import abs_max

__all__ = ["Scaling", "delayed", "frozen", "per_row", "per_tensor"]


class Scaling(NamedTuple):
    """How far the codes of a site's activation reach: a pair of pure functions.

    Attributes:
      init: ``init(site) -> vars``: what it remembers; ``()`` for most.
      largest: ``largest(vars, x, site) -> (magnitude, vars)``, of a canonical activation ``[rows,
        ..., channels]``: float32 ``[]``, or ``[rows, 1.., 1]``. Larger values are clipped.

    Example:
      >>> import jax.numpy as jnp
      >>> per_tensor.largest((), jnp.array([[1.0, -3.0]]), None)
      (Array(3., dtype=float32), ())
    """

    init: Callable[[Site], Vars]
    largest: Callable[[Vars, Array, Site], tuple[Array, Vars]]


def _nothing(site: Site) -> Vars:
    del site
    return ()


def _of_tensor(vars: Vars, x: Array, site: Site) -> tuple[Array, Vars]:
    del site
    return abs_max(x).reshape(()), vars


def _of_rows(vars: Vars, x: Array, site: Site) -> tuple[Array, Vars]:
    del site
    return abs_max(x, range(1, x.ndim)), vars


per_tensor = Scaling(_nothing, _of_tensor)
"""Just in time, one scale for the tensor: the default."""

per_row = Scaling(_nothing, _of_rows)
"""Just in time, a scale per row: a sample of a convolution, a row (a token) of a matrix."""


def frozen(table: Mapping[str, float]) -> Scaling:
    """Scales that were measured before (:func:`tinyjax.calibrate`): the same for every batch.

    So an output does not depend on its neighbours in the batch, and the pass for the largest
    magnitude is saved. Larger values are clipped.

    Args:
      table: site path -> largest magnitude, above 0 and finite.

    Raises:
      ValueError: if a magnitude is not above 0 and finite; on use, if a site is missing.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> tx = tinyjax.int8_qat(scaling=frozen({"w": 127.0}))
      >>> int8 = tinyjax.rewrite(tx, lambda p, x: x @ p["w"])
      >>> int8.apply({}, {"w": jnp.eye(2)}, jnp.array([[3.2, 500.0]]))[0].round().tolist()
      [[3.0, 127.0]]
    """
    for path, value in table.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"the magnitude of {path!r} is {value!r}: use one above 0 and finite")

    def largest(vars: Vars, x: Array, site: Site) -> tuple[Array, Vars]:
        if site.path not in table:
            raise ValueError(
                f"site {site.path!r} has no frozen scale among {sorted(table)}: calibrate with the "
                "function that is rewritten, or leave the site out with where(...)"
            )
        unknown = jnp.float32(0) * jnp.sum(x)  # NaN in is NaN out, here too
        return jnp.float32(table[site.path]) + unknown, vars

    return Scaling(_nothing, largest)


def delayed(decay: float = 0.9) -> Scaling:
    """The scale of the steps before, so that quantizing need not wait for the largest magnitude.

    Remembers one float32 per site, the largest magnitude that was seen, falling by ``decay`` each
    step. The first step uses its own. The new value comes back from ``rewrite(...).apply`` with the
    other variables; a train step that is lifted cannot return it, and says so.

    Args:
      decay: of the remembered magnitude per step, above 0 and at most 1; 1 never forgets.

    Raises:
      ValueError: if the decay is not in ``(0, 1]``.

    Example:
      >>> import jax.numpy as jnp
      >>> seen = jnp.float32(8.0)
      >>> used, seen = delayed(0.5).largest(seen, jnp.array([[1.0, -6.0]]), None)
      >>> float(used), float(seen)
      (8.0, 6.0)

    References:
      Fournarakis, Nagel, `In-Hindsight Quantization Range Estimation for Quantized Training
      <https://arxiv.org/abs/2105.04246>`_, 2021.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay!r}: use one above 0 and at most 1")

    def init(site: Site) -> Vars:
        del site
        return jnp.float32(0)

    def largest(vars: Vars, x: Array, site: Site) -> tuple[Array, Vars]:
        del site
        now = abs_max(x).reshape(())
        used = jnp.where(vars > 0, vars, now) + jnp.float32(0) * now  # NaN in is NaN out
        seen = jnp.maximum(jnp.float32(decay) * vars, now)
        return used, jnp.where(jnp.isfinite(now), seen, vars)

    return Scaling(init, largest)
