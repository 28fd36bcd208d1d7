"""Other ways to train in int8, each as a policy over the same pieces, for one leaderboard.

What is known of each is said with it. Of UI8 and DAI8 abstract and introduction were read, of DAI8
also the caption of its data flow; their formulas come from third-party notes, so they are *as far
as known*. SwitchBack is after its abstract, row-wise after torchao's pull request 748. All run on
the same integer products, so that accuracies differ by the rules alone; of times nothing follows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tinyjax import (
    Epilogue,
    Transform,
    chain,
    compensate,
    int8_qat,
    numerics,
    per_row,
    spatial,
)

__all__ = ["RIVALS", "dai8", "octo", "per_tensor", "row_wise", "switchback", "ui8"]

Array = jax.Array
_least_angle = numerics.least_angle(of=numerics.coarse)


def per_tensor() -> Transform:
    """Plain int8: one scale per tensor everywhere, of gradients too; all to nearest."""
    return int8_qat(
        gradient_rounding=numerics.nearest,
        weight_range=numerics.per_tensor,
        gradient_range=numerics.coarse,
    )


# --- Octo ----------------------------------------------------------------------------------------


def octo() -> Transform:
    """Octo (Zhou et al., USENIX ATC 2021) with its defects mended: LAC, and PRC 0.95.

    As released, a scale per tensor and gradients to nearest; but symmetric in 8 bits, and with
    compensation per position instead of per slot of the batch.
    """
    clipped = int8_qat(
        gradient_rounding=numerics.nearest,
        weight_range=numerics.per_tensor,
        gradient_range=numerics.shrunk(0.95, of=numerics.coarse),
    )
    return chain(compensate(spatial()), clipped)


# --- UI8 -----------------------------------------------------------------------------------------


def ui8() -> Transform:
    """UI8 (Zhu et al., arXiv 1912.12607): clip where a gradient turns least, and then slow down.

    With ``d = 1 - cos(g, Q(g))`` at its least, a layer's rate is scaled by ``max(exp(-20 d),
    0.1)``; here its weight's gradient, which is the same for SGD. Adam follows only how it varies.
    """
    clipped = int8_qat(weight_range=numerics.per_tensor, gradient_range=_least_angle)
    return chain(Transform(lambda site: (), _slowed), clipped)


def _slowed(
    op: Any, site: Any, vars: Any, key: Any, x: Array, w: Array, epilogue: Epilogue, **more: Any
) -> tuple[Any, Any]:
    del site, key
    w, ticket = _pay(w, jnp.float32(0))

    def fn(z: Array, ticket: Array, *captured: Array) -> tuple[Array, ...]:
        return epilogue.fn(_tell(z, ticket), *captured)

    told = Epilogue(fn, (ticket, *epilogue.captured), ("custom_vjp_call", *epilogue.prims))
    y = op(x, w, told, **more)
    return (y if isinstance(y, tuple) else told.fn(y, *told.captured)), vars


# The backward pass meets the output first: what it finds there reaches the weight as the gradient
# of a ticket, a number that is 0 and changes nothing.


@jax.custom_vjp
def _tell(z: Array, ticket: Array) -> Array:
    del ticket
    return z


def _deviation(kept: None, g: Array) -> tuple[Array, Array]:
    del kept
    rows = g.reshape(-1, g.shape[-1])
    _, largest = _least_angle(rows, jnp.ones(g.shape[-1], jnp.float32))
    scale = numerics.symmetric_scale(largest)
    found = numerics.dequantize(numerics.quantize(rows, scale), scale)
    norms = jnp.linalg.norm(rows) * jnp.linalg.norm(found)
    cosine = jnp.vdot(rows, found) / jnp.where(norms > 0, norms, jnp.float32(1))
    return g, jnp.where(norms > 0, jnp.float32(1) - cosine, jnp.float32(0))


_tell.defvjp(lambda z, ticket: (z, None), _deviation)


@jax.custom_vjp
def _pay(w: Array, ticket: Array) -> tuple[Array, Array]:
    return w, ticket


def _paid(kept: None, cotangents: tuple[Array, Array]) -> tuple[Array, Array]:
    del kept
    dw, deviation = cotangents
    factor = jnp.maximum(jnp.exp(jnp.float32(-20) * deviation), jnp.float32(0.1))
    return dw * factor, jnp.float32(0)


_pay.defvjp(lambda w, ticket: ((w, ticket), None), _paid)


# --- DAI8 ----------------------------------------------------------------------------------------


def dai8() -> Transform:
    """DAI8 (Zhao et al., arXiv 2102.04782): weight gradients per channel, long tails cut.

    Activations, weights and input gradients per tensor. Of a channel in which a share of at most
    0.3 is larger than sigma, the range is ``(1 - kA) s + A max|g|``, k = 1, A = 0.8, with ``s`` the
    one before. A gradient's range has no memory here, so ``s`` is left out: 0.8 of the largest.
    """
    return int8_qat(weight_range=numerics.per_tensor, gradient_range=_by_tails)


def _by_tails(g: Array, s_w: Array) -> tuple[Array, Array]:
    rows, _ = numerics.coarse(g, s_w)
    axes = tuple(range(g.ndim - 1))
    magnitudes = jnp.abs(g)
    sigma = jnp.sqrt(jnp.mean(jnp.square(g), axis=axes, keepdims=True))
    long_tailed = jnp.mean((magnitudes > sigma).astype(jnp.float32), axis=axes) <= 0.3
    largest = numerics.abs_max(g, axes).reshape(-1)  # NaN where there is one
    return rows, jnp.where(long_tailed, jnp.float32(0.8), jnp.float32(1)) * largest


# --- products in float, and rows -----------------------------------------------------------------


def switchback() -> Transform:
    """SwitchBack (Wortsman et al., arXiv 2304.13013): the weight gradient in float.

    Activations and gradients per row, weights per tensor, all to nearest. The original's 16 bits
    of the weight gradient are 32 here.
    """
    return int8_qat(
        gradient_rounding=numerics.nearest,
        products=("y", "dx"),
        scaling=per_row,
        weight_range=numerics.per_tensor,
    )


def row_wise() -> Transform:
    """Row-wise mixed precision (torchao, pytorch/ao#748): a scale per row of every operand.

    All three products in int8, to nearest; of a convolution a row is a sample.
    """
    return int8_qat(gradient_rounding=numerics.nearest, scaling=per_row)


RIVALS: dict[str, Callable[[], Transform]] = {
    "per_tensor": per_tensor,
    "octo": octo,
    "ui8": ui8,
    "dai8": dai8,
    "switchback": switchback,
    "row_wise": row_wise,
}
