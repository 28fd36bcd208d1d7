"""Where int8 pays: what every site of a model costs in float and in int8, measured here.

A site is timed by itself, its forward product and the gradients that training needs, quantization
included. In a whole step it costs something else: quantization fuses with what stands before it,
the epilogue with what comes after, and caches are shared. The advice is as good as that.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyjax import alone, graph, timing
from tinyjax.advice import Advice, Audit
from tinyjax.alone import Products
from tinyjax.base import Site, Transform
from tinyjax.combine import where
from tinyjax.counting import count_macs
from tinyjax.rewrite import reached
from tinyjax.timing import CACHE, Options, Timing
from tinyjax.transforms import int8_qat

__all__ = ["audit"]


def audit(
    apply: Callable[..., Any],
    params: Any,
    /,
    *args: Any,
    tx: Transform | None = None,
    measure: bool = True,
    cache: Path | None = CACHE,
    compiler_options: Options = None,
    **kwargs: Any,
) -> Audit:
    """Measures what int8 costs and saves at every site of ``apply(params, *args, **kwargs)``.

    A site is timed alone: forward and the gradients that training needs, quantization included,
    on random operands, in turn with the float op. In a whole step it costs something else (see
    the module), so an audit of a step's parts is advice and not a proof about the step. Sites of
    the same shapes are measured once; times are kept per machine, and measured anew when the
    transform computes anything differently. The model is traced and not run.

    Args:
      apply: the forward function, as the train step calls it, so that paths agree.
      params: pytree that holds the weights, arrays or ``jax.ShapeDtypeStruct``.
      *args: its other arguments, likewise; batch sizes matter.
      tx: the transform; ``int8_qat()`` if none is given.
      measure: whether to measure what is not in the cache; those times are ``None`` otherwise.
      cache: folder of the times, by default ``tinyjax`` in ``$XDG_CACHE_HOME`` or ``~/.cache``;
        ``None`` keeps none.
      compiler_options: those your step is compiled with, as ``jax.stages.Lowered.compile`` takes
        them, for they can change float times threefold.
      **kwargs: its keywords.

    Returns:
      An :class:`Audit`; ``audit(...).choose(int8_qat())`` is int8 where that is faster, as is
      ``where(audit(...).policy, int8_qat())`` where there is such a site.

    Raises:
      ValueError: if no weight meets an activation, if the transform is for none of the sites, if
        a site has an empty axis, or if ``apply`` has an argument of the same name as one of ours
        that is given.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
      >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
      >>> report = tinyjax.audit(apply, params, jnp.ones((8, 3)), measure=False, cache=None)
      >>> for row in report.rows:
      ...   print(row.site.path, row.first, row.macs, row.float_bytes, row.int8_bytes)
      a True Products(y=96, dx=0, dw=96) 0 32
      b False Products(y=64, dx=64, dw=64) 128 40
    """
    ours = {
        "tx": tx is not None,
        "measure": not measure,
        "cache": cache is not CACHE,
        "compiler_options": compiler_options is not None,
    }
    for name in inspect.signature(apply).parameters:
        if ours.get(name):
            raise ValueError(
                f"{name}=... is the audit's, but the function has a {name} too: hand over one "
                "that takes it by another name"
            )
    tx = int8_qat() if tx is None else tx
    flat = graph.flatten(apply, params, args, kwargs)
    found = graph.find(flat)
    paths, firsts = {site.path for site in found.sites}, graph.firsts(flat, found)

    def reachable(site: Site) -> bool:
        return site.path in paths

    selected = reached(where(reachable, tx), apply, params, args, kwargs)
    times = _times(tx, selected, firsts, measure, cache, compiler_options)
    rows = tuple(
        _advice(tx if site in selected else None, site, site.path in firsts, times.get(site.path))
        for site in found.sites
    )
    counted = sum(count_macs(apply, params, *args, **kwargs).values())
    outside = max(0, counted - sum(site.macs for site in found.sites))
    return Audit(rows, 3 * outside + sum(sum(row.macs) for row in rows))


def _times(
    tx: Transform,
    sites: list[Site],
    firsts: frozenset[str],
    measure: bool,
    cache: Path | None,
    options: Options,
) -> dict[str, Timing]:
    """Times by path: those that are known, and where wanted those that are measured for it."""
    known, found = timing.load(cache), {}
    for site in sites if measure or known else ():
        case = (tx, site, site.path in firsts, options)
        key = timing.key_of(*case)
        if key not in known and measure:
            known[key] = timing.measure(*case)
            try:
                timing.remember(cache, key, known[key])
            except OSError as error:
                warnings.warn(f"times are not kept ({error}): pass cache=None", stacklevel=3)
                cache = None
        if key in known:
            found[site.path] = known[key]
    return found


def _advice(tx: Transform | None, site: Site, first: bool, times: Timing | None) -> Advice:
    float_ms, int8_ms = times or (None, None)
    return Advice(
        site,
        first,
        Products(site.macs, 0 if first else site.macs, site.macs),
        alone.in_int8(tx, site, first),
        alone.kept_bytes(None, site, first),
        alone.kept_bytes(tx, site, first),
        float_ms,
        int8_ms,
        *alone.sums(site),
    )
