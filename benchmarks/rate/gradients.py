"""What gradients take, and what the device's own gradient is after them.

The reference is float32: the gradient of the device's parameters where features and gradient cross
unchanged. The gradient that is sent is the one that the server has, of the loss at the features
that it decoded.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rate import codecs, rivals
from benchmarks.rate.codecs import Codec, Coded
from benchmarks.rate.curves import summed
from benchmarks.rate.networks import Cut
from experiments.carriers import relative_error
from tinyjax import entropy, global_step, numerics, sgq, sgq_decode, wire
from tinyjax.numerics.solved_step import GradientStep

__all__ = ["Batch", "batches_of", "by_step", "cosine", "curves", "through"]

Array = jax.Array

ERRORS = (0.1, 0.2, 0.3, 0.45, 0.65)
_PLAIN = (0.2, 0.35, 0.6, 1.0, 1.6)  # steps in root mean squares
_SHARES = (0.01, 0.03, 0.1, 0.2)
_BOOKS = {1.0: (8, 256), 2.0: (4, 256), 3.0: (2, 64)}  # by bits of an element
STEPS = {"solved": numerics.solved_step, "closed form": numerics.bounded_step}


class Batch(NamedTuple):
    """A training batch at a cut, in float32."""

    images: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    device: np.ndarray  # gradient of the device's parameters, flat


def batches_of(cut: Cut, sent: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Batch]:
    """Batches with all that float32 makes of them."""
    return [_batch(cut, *each) for each in sent]


def _batch(cut: Cut, images: np.ndarray, labels: np.ndarray) -> Batch:
    x = cut.features(images)
    device = cut.device(images, cut.gradient(x, labels))
    return Batch(images, labels, np.asarray(x), np.asarray(device))


def through(cut: Cut, codec: Codec, batches: Sequence[Batch]) -> float:
    """Mean cosine of the device's gradient with float32's, if features alone go through a codec."""

    def one(batch: Batch) -> float:
        g = cut.gradient(codec(batch.features).decoded, batch.labels)
        return cosine(cut.device(batch.images, g), batch.device)

    return mean(map(one, batches))


def by_step(cut: Cut, batches: Sequence[Batch], step: float = 0.5) -> dict[str, dict[str, float]]:
    """Gradients of error 0.3 with and without a mask, at both steps.

    Args:
      cut: where.
      batches: that are sent.
      step: of the features, in root mean squares.

    Returns:
      For each of ``solved``, ``solved, masked``, ``closed form`` and ``closed form, masked``:
      ``ratio`` to float32, realised ``error``, ``cosine`` of the device's gradient with float32's,
      ``cosine_features`` with the features alone encoded, and ``worst_cosine`` of a batch.
    """
    return {
        f"{name}{', masked' * exact}": _averaged(cut, sgq_codec(exact, 0.3, solve, step), batches)
        for name, solve in STEPS.items()
        for exact in (False, True)
    }


@functools.cache
def sgq_codec(exact: bool, error: float, solve: GradientStep, step: float = 0.5) -> Any:
    """The library's codec, compiled."""
    quantizer = global_step(step=step, exact=exact)
    codec = sgq(quantizer=quantizer, error=error, gradient_step=solve)
    return codec._replace(encode_gradient=jax.jit(codec.encode_gradient))


def _averaged(cut: Cut, codec: Any, batches: Sequence[Batch]) -> dict[str, float]:
    found = [_sent(cut, codec, batch, seed) for seed, batch in enumerate(batches)]
    means = {key: mean(each[key] for each in found) for key in found[0]}
    means["ratio"] = 1 / mean(1 / each["ratio"] for each in found)
    return {**means, "worst_cosine": min(each["cosine"] for each in found)}


def _sent(cut: Cut, codec: Any, batch: Batch, seed: int) -> dict[str, float]:
    """One batch there and its gradient back."""
    code = codec.encode(jnp.asarray(batch.features))
    g = cut.gradient(codec.decode(code), batch.labels)
    sent = codec.encode_gradient(g, jnp.uint32(seed), code)
    frame = wire.pack(entropy.compress(sent, features=code), code)
    arrived = codec.decode_gradient(sent)
    kept = jnp.where(_mask(code), g, 0.0) if code.exact else g
    return {
        "ratio": batch.features.nbytes / len(frame),
        "error": relative_error(arrived, kept),
        "cosine": cosine(cut.device(batch.images, arrived), batch.device),
        "cosine_features": cosine(cut.device(batch.images, g), batch.device),
    }


def _mask(code: Any) -> Array:
    return jnp.asarray(codecs.codes_of(code) != np.asarray(code.zero_point))


def curves(cut: Cut, batches: Sequence[Batch]) -> dict[str, list[dict[str, float]]]:
    """Rates and distortions of gradients in every codec, the device's cosine with them.

    The gradients are those at features in the default codec; here the reference of a cosine is the
    same gradient unencoded, so what it shows is the way back alone. Codebooks are learned from the
    first batch, and all codecs are measured on the others. Where a gradient is masked, what is
    masked is no noise: the relu before the cut would stop it.
    """
    first, *others = [(*_gradient(cut, batch), batch) for batch in batches]
    plain = {name: _each(settings) for name, settings in _rivals(first[0]).items()}
    found: dict[str, list[dict[str, float]]] = {}
    for name, settings in {**_ours(), **plain}.items():
        for setting, codec in settings.items():
            pairs, angles = [], []
            for g, code, batch in others:
                kept, coded = codec(g, code)
                pairs.append((kept, coded))
                pulled = (cut.device(batch.images, each) for each in (coded.decoded, g))
                angles.append(cosine(*pulled))
            point = summed(setting, pairs)._asdict()
            found.setdefault(name, []).append({**point, "cosine": mean(angles)})
    return found


# From a gradient and the exact code of its features to what is kept of it, and its coded form.
_GradientCodec = Callable[[np.ndarray, Any], tuple[np.ndarray, Coded]]


def _gradient(cut: Cut, batch: Batch) -> tuple[np.ndarray, Any]:
    """The gradient at features in the default codec, and those features' exact code."""
    x = jnp.asarray(batch.features)
    arrived = sgq_decode(global_step()(x))
    return np.asarray(cut.gradient(arrived, batch.labels)), global_step(exact=True)(x)


def _each(settings: Mapping[float, Codec]) -> dict[float, _GradientCodec]:
    """Codecs that ignore the features."""
    return {
        setting: lambda g, code, codec=codec: (g, codec(g)) for setting, codec in settings.items()
    }


def _ours() -> dict[str, dict[float, _GradientCodec]]:
    """The library's gradients by their error."""
    solved = numerics.solved_step
    return {
        "sgq" + ", masked" * exact: {
            error: functools.partial(_by_sgq, sgq_codec(exact, error, solved), exact)
            for error in ERRORS
        }
        for exact in (False, True)
    }


def _by_sgq(codec: Any, masked: bool, g: np.ndarray, exact: Any) -> tuple[np.ndarray, Coded]:
    code = dataclasses.replace(exact, exact=masked)
    sent = codec.encode_gradient(jnp.asarray(g), jnp.uint32(0), code)
    frame = wire.pack(entropy.compress(sent, features=code), code)
    kept = np.where(_mask(code), g, np.float32(0)) if masked else g
    return kept, Coded(len(frame), np.asarray(codec.decode_gradient(sent)))


def _rivals(learned: np.ndarray) -> dict[str, dict[float, Codec]]:
    """The other codecs by their setting."""
    return {
        "order 0": {step: codecs.plain(codecs.order0, step=step, bits=8) for step in _PLAIN},
        "zstd": {step: codecs.plain(codecs.zstd, step=step, bits=8) for step in _PLAIN},
        "float16": {16: rivals.floats("float16")},
        "int8": {8: codecs.per_tensor(codecs.packed, 8)},
        "int8 + zstd": {8: codecs.per_tensor(codecs.zstd, 8)},
        "int8, per channel": {8: codecs.per_channel(codecs.packed, 8)},
        "int4": {4: codecs.per_tensor(codecs.packed, 4)},
        "int4 + zstd": {4: codecs.per_tensor(codecs.zstd, 4)},
        "top-k": {share: rivals.largest(share) for share in _SHARES},
        "RandTopK": {share: rivals.largest(share, 0.1) for share in _SHARES},
        "DCT": {step: rivals.dct(step) for step in _PLAIN},
        "product quantization": {
            bits: rivals.product_quantized(*shape, learned) for bits, shape in _BOOKS.items()
        },
    }


def cosine(a: Any, b: Any) -> float:
    """Of the angle between two vectors, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
