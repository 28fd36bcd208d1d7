"""What is measured at a cut: features in every codec, ablations, gradients."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.rate import ablation, codecs, curves, features, gradients, networks
from benchmarks.rate.networks import Cut, Trained
from experiments import data
from tinyjax import entropy, global_step, sgq_decode, wire

__all__ = ["PARTS", "Size"]


class Size(NamedTuple):
    """How much is measured."""

    calibration: int = 128  # training images
    batches: int = 4  # of test images
    agreement: int = 512  # test images
    agreement_default: int = 2048
    gradients: int = 6  # training batches
    batch: int = 32
    steps: tuple[float, ...] = (0.33, 0.41, 0.5, 0.62, 0.8, 1.0, 1.3)
    ablated: tuple[float, ...] = (0.33, 0.5, 0.8, 1.3)
    levels: tuple[float, ...] = (5, 7, 10, 15)


def _tensors(found: Trained, cut: Cut, size: Size) -> tuple[np.ndarray, list[np.ndarray]]:
    """Features of calibration images and of batches of test images."""
    known = np.asarray(cut.features(data.pixels(found.learned.images[: size.calibration])))
    return known, [np.asarray(cut.features(x)) for x in _tested(found, size, size.batches)]


def _tested(found: Trained, size: Size, batches: int) -> list[np.ndarray]:
    images = data.pixels(found.test.images[: batches * size.batch])
    return list(images.reshape(batches, size.batch, *images.shape[1:]))


def _taught(found: Trained, size: Size) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training batches, without the images of the calibration."""
    rest = data.Split(*(part[size.calibration :] for part in found.learned))
    batches = data.epoch_batches(rest, size.batch, seed=1, epoch=0)
    return list(itertools.islice(batches, size.gradients))


def _features(found: Trained, name: str, size: Size) -> dict[str, Any]:
    """Every codec of features, late in training, and what the default one comes to."""
    cut = networks.at_cut(found.config, found.late, name)
    calibration, batches = _tensors(found, cut, size)
    known = features.every_codec(calibration, size.steps)
    points = {
        codec: {setting: curves.measured(setting, each, batches) for setting, each in some.items()}
        for codec, some in known.items()
    }
    taught = gradients.batches_of(cut, _taught(found, size))
    closer = _closer(found, cut, size, taught)
    shown = {codec: setting for codec, setting in _SHOWN.items() if setting in known[codec]}
    extra = {codec: closer(known[codec][setting]) for codec, setting in shown.items()}
    described = {
        codec: [
            {**point._asdict(), **(extra[codec] if shown.get(codec) == setting else {})}
            for setting, point in some.items()
        ]
        for codec, some in points.items()
    }
    lists = {codec: list(some.values()) for codec, some in points.items()}
    others = {k: v for k, v in lists.items() if k in ("DCT", "top-k", "product quantization")}
    return {
        "accuracy": found.accuracy,
        "shape": list(batches[0].shape[1:]),
        "zeros": float(np.mean(batches[0] == 0)),
        "repeated": _repeated(batches[0]),
        "zstd": features.zstd_forms(batches[0]),
        "state_bytes": _proven(calibration, batches[0]),
        "features": described,
        "bd": curves.saving({"sgq": lists["sgq"]}, {**features.joined(lists), **others})["sgq"],
    }


# Which points are looked at more closely.
_SHOWN = {
    "sgq": features.DEFAULT,
    "sgq, masked": features.DEFAULT,
    "zstd": features.DEFAULT,
    "float16": 16,
    "int8": 8,
    "int8, per channel": 8,
    "int4": 4,
    "int4, per channel": 4,
    "int2, clipped": 2,
    "top-k": 0.2,
    "RandTopK": 0.2,
    "DCT": 0.6,
    "product quantization": 2.0,
}


def _closer(
    found: Trained, cut: Cut, size: Size, taught: Sequence[gradients.Batch]
) -> Callable[[codecs.Codec], dict[str, float]]:
    """What predictions and the device's gradient make of a codec's features."""
    tested = _tested(found, size, size.agreement // size.batch)
    pairs = [(x := np.asarray(cut.features(images)), _classes(cut, x)) for images in tested]

    def closer(codec: codecs.Codec) -> dict[str, float]:
        same = [np.mean(_classes(cut, codec(x).decoded) == classes) for x, classes in pairs]
        return {"agreement": float(np.mean(same)), "cosine": gradients.through(cut, codec, taught)}

    return closer


def _classes(cut: Cut, x: Any) -> np.ndarray:
    return np.asarray(cut.logits(jnp.asarray(x))).argmax(-1)


def _repeated(x: np.ndarray) -> float:
    """The share of places whose codes another place has too, but for those all 0: flat parts."""
    q = codecs.codes_of(global_step()(jnp.asarray(x))).reshape(-1, x.shape[-1])
    _, first, count = np.unique(q, axis=0, return_index=True, return_counts=True)
    return float(count[(count > 1) & q[first].any(axis=1)].sum() / len(q))


def _proven(calibration: np.ndarray, x: np.ndarray) -> int:
    """Bytes of the default codec's state, after its frame has been read back bit for bit."""
    quantizer = global_step(step=features.DEFAULT)
    state = codecs.state_for(quantizer, calibration)
    code: Any = quantizer(jnp.asarray(x))
    compressed: Any = wire.unpack(wire.pack(entropy.compress(code, state)))
    arrived, valid = entropy.expand(compressed, state)
    same = np.array_equal(sgq_decode(arrived), sgq_decode(code))
    if not (valid and same):
        raise AssertionError("a frame did not come back as it was sent")
    return len(wire.pack(state))


_CLOSER = 0.4  # root mean squares: a step that keeps more predictions as they were


def _rounding(found: Trained, name: str, size: Size) -> dict[str, Any]:
    """What the offset of rounding and the exact 0 mean to predictions and gradients."""
    cut = networks.at_cut(found.config, found.late, name)
    calibration, batches = _tensors(found, cut, size)
    more = size._replace(agreement=size.agreement_default)
    closer = _closer(found, cut, more, gradients.batches_of(cut, _taught(found, size)))
    quantizers = {
        "offset 0.4": global_step(),
        "offset 0.5": global_step(offset=0.5),
        "masked": global_step(exact=True),
        "masked, offset 0.5": global_step(exact=True, offset=0.5),
        "step 0.4, offset 0.5": global_step(step=_CLOSER, offset=0.5),
        "masked, step 0.4, offset 0.5": global_step(step=_CLOSER, offset=0.5, exact=True),
    }
    rows = {}
    for label, quantizer in quantizers.items():
        codec = codecs.quantized(
            codecs.by_context(codecs.state_for(quantizer, calibration)), quantizer
        )
        setting = _CLOSER if "step" in label else features.DEFAULT
        rows[label] = {**curves.measured(setting, codec, batches)._asdict(), **closer(codec)}
    return {"rounding": rows}


def _ablation(found: Trained, name: str, size: Size) -> dict[str, Any]:
    """BD-rates of the codec without parts of it, against zstandard and order 0."""
    cut = networks.at_cut(found.config, found.late, name)
    calibration, batches = _tensors(found, cut, size)
    batches = batches[:2]
    variants = {
        **{k: _curve(v, size.ablated, calibration, batches) for k, v in ablation.VARIANTS.items()},
        **{k: _curve(v, size.levels, calibration, batches) for k, v in ablation.GROUPINGS.items()},
    }
    rivals = {
        "zstd": _curve(
            lambda step, _: codecs.plain(codecs.zstd, step=step), size.ablated, calibration, batches
        ),
        "order 0": _curve(
            lambda step, _: codecs.plain(codecs.order0, step=step),
            size.ablated,
            calibration,
            batches,
        ),
        "default": variants["default"],
    }
    return {"ablation": curves.saving(variants, rivals)}


def _curve(
    variant: Callable[[float, np.ndarray], codecs.Codec],
    settings: Sequence[float],
    calibration: np.ndarray,
    batches: Sequence[np.ndarray],
) -> list[curves.Point]:
    return [curves.measured(s, variant(s, calibration), batches) for s in settings]


_FINER = 0.25  # root mean squares: a step of features that leaves more of the gradient


def _gradients(found: Trained, name: str, size: Size) -> dict[str, Any]:
    """Gradients early and late, and the features of then in the default codec."""
    row: dict[str, Any] = {"gradients": {}, "gradients_finer": {}}
    for when, variables in (("early", found.early), ("late", found.late)):
        cut = networks.at_cut(found.config, variables, name)
        taught = gradients.batches_of(cut, _taught(found, size))
        row["gradients"][when] = gradients.by_step(cut, taught)
        row["gradients_finer"][when] = gradients.by_step(cut, taught, _FINER)
        if when == "early":
            calibration, batches = _tensors(found, cut, size)
            codec = features.sgq(features.DEFAULT, calibration)
            point = curves.measured(features.DEFAULT, codec, batches)
            row["features_early"] = point._asdict()
        else:
            row["gradient_curves"] = gradients.curves(cut, taught[:3])
    return row


PARTS: Mapping[str, Callable[[Trained, str, Size], dict[str, Any]]] = {
    "features": _features,
    "rounding": _rounding,
    "ablation": _ablation,
    "gradients": _gradients,
}
