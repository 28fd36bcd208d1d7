"""What a transform does to each site of a trained network: errors, and values before and after.

Every site is looked at by itself, on the activation and the gradient that the *float* network has
there, so that an error is a layer's own and not what came down to it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.carriers import relative_error
from experiments.train import cross_entropy
from tinyjax import Epilogue, Op, Site, Transform, rewrite, sites

__all__ = ["Counts", "Layer", "layers"]

Array = jax.Array
BINS = 64


class Counts(NamedTuple):
    """How often values fall into `BINS` equal bins from -largest to largest."""

    largest: float
    before: tuple[int, ...]
    after: tuple[int, ...]  # quantized by the default scales, and back


class Layer(NamedTuple):
    """One site."""

    forward_error: float  # of the output, relative
    dx_cosine: float  # of the gradients with the exact ones
    dw_cosine: float
    activation: Counts
    gradient: Counts


def layers(
    tx: Transform,
    vars: dict[str, Any],
    apply: Callable[[Any, Any], Array],
    variables: Any,
    images: Any,
    labels: Any,
) -> dict[str, Layer]:
    """Each site that a transform is for, under it and in float.

    Args:
      tx: the transform.
      vars: its variables by site; those it lacks are fresh ones.
      apply: ``(variables, images) -> logits``.
      variables: of the model, trained.
      images: float32 [n, h, w, c].
      labels: int32 [n].
    """
    found = {site.path: site for site in sites(apply, variables, images) if tx.selects(site)}
    tap = Transform(lambda site: jnp.zeros(site.out.shape, site.out.dtype), _moved)
    tapped = rewrite(tap, apply)
    zeros = tapped.init(variables, images)

    def loss(shift: Any, variables: Any, images: Any) -> tuple[Array, Any]:
        logits, seen = tapped.apply(shift, variables, images)
        return cross_entropy(logits, labels), seen

    # Arguments rather than constants, which a compiler would compute with.
    gradients, taken = jax.jit(jax.grad(loss, has_aux=True))(zeros, variables, images)
    return {
        path: _layer(tx, site, vars, taken[path], gradients[path]) for path, site in found.items()
    }


def _moved(
    op: Any, site: Any, vars: Any, key: Any, x: Array, w: Array, *more: Any, **kwargs: Any
) -> tuple[Any, Any]:
    del site, key, more
    return op(x, w, **kwargs) + vars, (x, w)


def _layer(
    tx: Transform, site: Site, vars: dict[str, Any], met: tuple[Array, Array], g: Array
) -> Layer:
    own = vars[site.path] if site.path in vars else tx.init(site)
    x, w = met
    both = _both(tx, site._replace(path=""))
    (exact, (dx, dw)), (found, (dx_q, dw_q)) = both(own, x, w, g)
    counts = _counts(x, None), _counts(g, tuple(range(g.ndim - 1)))
    return Layer(relative_error(found, exact), _cosine(dx_q, dx), _cosine(dw_q, dw), *counts)


@functools.lru_cache(maxsize=64)  # sites of one shape are compiled once
def _both(tx: Transform, site: Site) -> Callable[..., Any]:
    """Output and gradients of a site in float and under a transform, at ``(vars, x, w, g)``."""
    op = Op(site)

    def both(own: Any, x: Array, w: Array, g: Array) -> Any:
        def under(x: Array, w: Array) -> Array:
            nothing = Epilogue(lambda z: (z,), (), ())
            y, _ = tx.call(op, site, own, jax.random.key(0), x, w, nothing)
            return y[0] if isinstance(y, tuple) else y

        return [(y, pull(g)) for y, pull in (jax.vjp(f, x, w) for f in (op, under))]

    return jax.jit(both)


def _cosine(found: Any, exact: Any) -> float:
    a, b = np.ravel(np.asarray(found, np.float64)), np.ravel(np.asarray(exact, np.float64))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 1.0


def _counts(t: Array, axis: tuple[int, ...] | None) -> Counts:
    """Of a tensor with a scale for all of it, or one for each feature."""
    before = np.asarray(t, np.float32)
    scale = np.maximum(np.abs(before).max(axis, keepdims=True), np.float32(1e-30)) / 127
    after = np.rint(before / scale) * scale
    largest = max(float(np.abs(before).max()), 1e-30)
    count = lambda t: tuple(np.histogram(t, BINS, (-largest, largest))[0].tolist())
    return Counts(largest, count(before), count(after))
