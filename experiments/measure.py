"""Measurements: the circumstances, bytes kept for the backward pass, scratch memory, seconds."""

import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jax

__all__ = [
    "compared",
    "compiled",
    "environment",
    "interleaved",
    "ratio",
    "relative",
    "saved_bytes",
    "temp_bytes",
    "timed",
]

_ROOT = Path(__file__).parents[1]


def environment() -> dict[str, Any]:
    """What a reader needs to judge a figure: versions, processor, load (1, 5, 15 minutes), commit.

    `commit` ends in ``-dirty`` where tracked files differ from it; None outside a repository.
    """
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "backend": jax.default_backend(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()]
        if hasattr(os, "getloadavg")
        else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
    }


def _cpu() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the repository that holds this file, None where there is none."""
    command = [
        "git",
        "-C",
        str(_ROOT),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    if not (
        _ROOT / ".git"
    ).exists():  # an unpacked archive may lie inside somebody else's repository
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or no commit yet
        return None


def saved_bytes(loss: Callable[..., jax.Array], params: Any, *args: Any) -> int:
    """Bytes that differentiating `loss` keeps from the forward pass for the backward pass.

    These are the distinct arrays among the leaves of ``jax.vjp(loss, params)[1]``, without `params`
    and `args`, which are alive anyway. The pass is traced, not run, and arrays are told apart as
    variables of that trace: a residual that *is* a parameter or an input does not count, a copy of
    one (a transpose, a cast, int8 codes) does. Run eagerly, the same leaves come out larger, since
    every jitted piece of a model hands out copies.

    This is what the program asks to keep; what a compiler makes of it is `temp_bytes`.

    Args:
      loss: ``loss(params, *args) -> float32 []``.
      params: pytree of arrays, or of their shapes, to differentiate by.
      *args: further arguments of the loss, likewise.
    """

    def kept(params: Any, *args: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda params: loss(params, *args), params)[1])

    traced: Any = jax.make_jaxpr(kept)(params, *args).jaxpr
    variables = {found for found in traced.outvars if not hasattr(found, "val")}  # no literals
    saved = [found.aval for found in variables.difference(traced.invars)]
    return sum(array.size * array.dtype.itemsize for array in saved)


def compiled(
    fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> tuple[jax.stages.Compiled, float]:
    """A function compiled for these arguments, and the seconds that tracing and compiling took.

    Args:
      fn: what to compile.
      *args: arrays, or their shapes.
      donate: positions of arguments whose memory a call may take over.
    """
    start = time.perf_counter()
    program = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    return program, time.perf_counter() - start


def temp_bytes(program: jax.stages.Compiled) -> int:
    """Bytes of scratch memory that a compiled program needs, as the compiler tells it."""
    analysis = program.memory_analysis()
    if analysis is None:
        raise ValueError(
            f"backend {jax.default_backend()!r} tells no memory: measure on a CPU or GPU"
        )
    return analysis.temp_size_in_bytes


def timed(fn: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """The seconds of one call, waited for, and what it gave."""
    start = time.perf_counter()
    out = jax.block_until_ready(fn(*args))
    return time.perf_counter() - start, out


def interleaved(
    fns: Mapping[str, Callable[[], Any]], rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds per call of several functions, called in turn `rounds` times in one process.

    Round robin exposes every function to the same weather: load, frequency, temperature. Each is
    called once unmeasured first (compilation, caches), and every call is waited for.

    Args:
      fns: what to call, by name.
      rounds: turns of each.
      calls: calls in a turn. Of several the first is not counted: it finds caches and heap as
        another function left them, where a training step finds them as it left them itself.

    Returns:
      For each name the seconds of ``rounds * max(1, calls - 1)`` calls.

    Raises:
      ValueError: if there are no rounds or no calls.
    """
    if rounds < 1 or calls < 1:
        raise ValueError(f"rounds={rounds}, calls={calls} measure nothing: choose at least 1")
    for fn in fns.values():
        jax.block_until_ready(fn())
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for _ in range(rounds):
        for name, fn in fns.items():
            turn = []
            for _ in range(calls):
                start = time.perf_counter()
                jax.block_until_ready(fn())
                turn.append(time.perf_counter() - start)
            seconds[name] += turn[1:] or turn
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of `interleaved` of one function's seconds over another's."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


@jax.jit
def compared(right: jax.Array, found: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sum of squares of `right`; that of its difference to `found`, and the largest: scalars."""
    difference = found - right
    return (right**2).sum(), (difference**2).sum(), jax.numpy.abs(difference).max()


def relative(error: float, energy: float) -> float:
    """Root of a ratio of sums of squares; where all that is right is 0, the root of the error."""
    return math.sqrt(error / energy if energy else error)
