"""Milliseconds of a site alone on this machine, measured once and kept in a file.

The file is keyed by machine, and in it every time by the site's shapes and a digest of the traced
programs, so that a transform that computes anything differently is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyjax import alone
from tinyjax.base import Site, Transform

__all__ = ["CACHE", "Options", "Timing", "file_of", "key_of", "load", "measure", "remember"]

Options = dict[str, Any] | None  # of the compiler

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "tinyjax")
SECONDS = 1.0  # for the turns of a site, about
TURNS = (5, 50)  # the fewest and the most
HOPELESS = 4.0  # times slower in the first call: not called again


class Timing(NamedTuple):
    """Milliseconds of a site's products: as the op stands, and under a transform.

    Example:
      >>> Timing(float_ms=3.0, int8_ms=1.5).int8_ms
      1.5
    """

    float_ms: float
    int8_ms: float


def measure(tx: Transform, site: Site, first: bool, options: Options = None) -> Timing:
    """Compiles both programs and runs them in turn on random operands; medians of the turns.

    Every turn calls a program twice and counts the second call, which finds caches and heap as
    training finds them. Where one program's first call takes four times the other's, that is all.

    Args:
      tx: the transform.
      site: where.
      first: whether ``dx`` is left out.
      options: compiler options of both programs.
    """
    rng = np.random.default_rng(0)
    *shapes, _ = alone.operands(site)
    arrays = [jnp.asarray(rng.standard_normal(t.shape, np.float32)).astype(t.dtype) for t in shapes]
    arrays.append(jax.random.key(0))
    programs = [
        jax.jit(alone.step(arm, site, first)).lower(*arrays).compile(compiler_options=options)
        for arm in (None, tx)
    ]

    def seconds(program: Any) -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(*arrays))
        return time.perf_counter() - start

    calls = [seconds(program) for program in programs]
    if max(calls) > HOPELESS * min(calls):  # a loop instead of a kernel may take minutes
        return Timing(*(1e3 * t for t in calls))
    once = sum(map(min, calls, map(seconds, programs)))
    fewest, most = TURNS
    turns = min(most, max(fewest, round(SECONDS / (2 * once))))
    taken = [
        [(seconds(program), seconds(program))[1] for program in programs] for _ in range(turns)
    ]
    return Timing(*(1e3 * median(column) for column in zip(*taken, strict=True)))


def key_of(tx: Transform, site: Site, first: bool, options: Options = None) -> str:
    """What a time depends on besides the machine: shapes to read, and a digest of the programs."""
    texts = [str(alone.traced(arm, site, first)) for arm in (None, tx)]
    programs = re.sub("0x[0-9a-f]+", "", "\n".join(texts))  # addresses say nothing
    settings = json.dumps(options or {}, sort_keys=True, default=str)
    w, x = (f"{t.dtype}{list(t.shape)}" for t in (site.w, site.x))
    products = "y, dw" if first else "y, dx, dw"
    return f"{site.kind} of {x} and {w}: {products}: {_digest(programs + settings)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _machine() -> dict[str, Any]:
    """What every time depends on: processor, cores, versions, backend, flags of the compiler."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        **{name: version(name) for name in ("jax", "jaxlib")},
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def _cpu() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def file_of(folder: Path) -> Path:
    """The file of this machine's times in a folder."""
    return folder / f"audit-{_digest(json.dumps(_machine(), sort_keys=True))}.json"


def load(folder: Path | None) -> dict[str, Timing]:
    """The times of this machine, by :func:`key_of`; what is missing or damaged is left out."""
    if folder is None:
        return {}
    try:
        found = json.loads(file_of(folder).read_text(encoding="utf-8"))["timings"]
        return {key: Timing(*times) for key, times in found.items() if _whole(times)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # to be measured, and written anew


def _whole(times: Any) -> bool:
    return (
        isinstance(times, list)
        and len(times) == len(Timing._fields)
        and all(isinstance(t, float) and math.isfinite(t) and t > 0 for t in times)
    )


def remember(folder: Path | None, key: str, times: Timing) -> None:
    """Writes a time beside those in the file, whole or not at all; makes the folder if missing.

    Raises:
      OSError: if the folder cannot be written to.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": _machine(), "timings": {**load(folder), key: times}}
    handle, beside = tempfile.mkstemp(dir=folder, suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
        os.replace(beside, file_of(folder))
    except BaseException:
        os.unlink(beside)
        raise
