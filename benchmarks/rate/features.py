"""The codecs of features at their settings, and what they reach."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.rate import codecs, rivals
from benchmarks.rate.codecs import Codec
from benchmarks.rate.curves import Point
from tinyjax import global_step

__all__ = ["BD_RIVALS", "DEFAULT", "every_codec", "joined", "sgq", "zstd_forms"]

DEFAULT = 0.5  # root mean squares: the step of the default codec
BD_RIVALS = ("zstd", "zstd, our codes", "order 0", "order 0, our codes", "order 0, per channel")
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
_BANDS = (0.4, 0.6, 0.9, 1.3)
_BOOKS = {1.0: (8, 256), 1.5: (4, 64), 2.0: (4, 256), 3.0: (2, 64)}  # by bits of an element


def every_codec(calibration: np.ndarray, steps: Sequence[float]) -> dict[str, dict[float, Codec]]:
    """All codecs by name and setting.

    Args:
      calibration: training features that states, tables and codebooks come from.
      steps: in root mean squares, of the codecs that have one step.
    """
    found = {
        "sgq": {step: sgq(step, calibration) for step in steps},
        "sgq, masked": {DEFAULT: sgq(DEFAULT, calibration, exact=True)},
        "sgq, packed": {DEFAULT: codecs.stepped(codecs.packed, step=DEFAULT)},
    }
    for name, size in (("zstd", codecs.zstd), ("order 0", codecs.order0)):
        # Clipped to four bits or not at all, whichever is better at a rate.
        found[name] = {step: codecs.plain(size, step=step) for step in steps}
        found[f"{name}, 8 bits"] = {step: codecs.plain(size, step=step, bits=8) for step in steps}
        found[f"{name}, our codes"] = {step: codecs.stepped(size, step=step) for step in steps}
    found["order 0, per channel"] = {
        step: codecs.plain(codecs.by_channel(_nearest(step), calibration), step=step)
        for step in steps
    }
    return {**found, **_single(calibration), **_others(calibration)}


def sgq(step: float, calibration: np.ndarray, *, exact: bool = False) -> Codec:
    """The library's codec, with a state of its own."""
    state = codecs.state_for(global_step(step=step, exact=exact), calibration)
    return codecs.stepped(codecs.by_context(state), step=step, exact=exact)


def _nearest(step: float) -> Any:
    return global_step(step=step, offset=0.5)


def _single(calibration: np.ndarray) -> dict[str, dict[float, Codec]]:
    """Codecs of one setting: their bits."""
    return {
        "float32": {32: rivals.floats("float32")},
        "float16": {16: rivals.floats("float16")},
        "int8": {8: codecs.per_tensor(codecs.packed, 8)},
        "int8, per channel": {8: codecs.per_channel(codecs.packed, 8)},
        "int8 + zstd": {8: codecs.per_tensor(codecs.zstd, 8)},
        "int4": {4: codecs.per_tensor(codecs.packed, 4)},
        "int4, per channel": {4: codecs.per_channel(codecs.packed, 4)},
        "int4 + zstd": {4: codecs.per_tensor(codecs.zstd, 4)},
        "int4 + order 0": {4: codecs.per_tensor(codecs.order0, 4)},
        "int2, clipped": {2: codecs.two_bits(codecs.packed, calibration)},
    }


def _others(calibration: np.ndarray) -> dict[str, dict[float, Codec]]:
    """Codecs that are not uniform codes."""
    return {
        "top-k": {share: rivals.largest(share) for share in _SHARES},
        "RandTopK": {share: rivals.largest(share, 0.1) for share in _SHARES},
        "DCT": {step: rivals.dct(step) for step in _BANDS},
        "product quantization": {
            bits: rivals.product_quantized(*shape, calibration) for bits, shape in _BOOKS.items()
        },
    }


def zstd_forms(x: np.ndarray) -> dict[str, Any]:
    """The form in which zstandard is strongest on uniform codes at the default step.

    Returns:
      ``form``; and ``level_19``: bytes at level 19 of codes packed with channels last, over those.
    """
    q = codecs.codes_of(_nearest(DEFAULT)(jnp.asarray(x)))
    size, form = codecs.strongest_zstd(q)
    return {"form": form, "level_19": codecs.zstd_of(q, 4, 19) / size}


def joined(found: Mapping[str, Sequence[Point]]) -> dict[str, list[Point]]:
    """The curves of `BD_RIVALS`, those of four and of eight bits taken together."""
    return {name: [*found[name], *found.get(f"{name}, 8 bits", ())] for name in BD_RIVALS}
