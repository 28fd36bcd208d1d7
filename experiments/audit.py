"""Audit: what every site of a model costs in float32 and in int8 on this machine, and where to
use int8.

Every site is timed alone, with quantization, on random operands; no data are needed, and the model
does not run::

    python -m experiments audit --config vgg6
    python -m experiments audit --config mlp --set batch=32 fusion=off
    python -m experiments audit --set model=my_package.models:MyNet size=96

A policy holds for the settings of the compiler that it was measured under. XLA's library fusion on
CPUs makes int8 fast and some float32 convolutions slow, so `fusion` is a setting.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import tinyjax
from experiments import own
from experiments.errors import UserError
from experiments.models import MODELS
from experiments.progress import Follow, unfollowed

__all__ = ["CONFIGS", "Config", "Results", "run", "smoke"]

_FUSION = {"on": None, "off": {"xla_cpu_experimental_ynn_fusion_type": ""}}


@dataclass(frozen=True)
class Config:
    """A model and its batch."""

    model: str = "vgg6"  # a key of models.MODELS, or package.module:Name
    batch: int = 64
    size: int = 32  # height and width of an image
    channels: int = 3
    fusion: str = "on"  # XLA's CPU library fusion: on, as is the default, or off

    def __post_init__(self) -> None:
        own.check(model=self.model)
        if self.fusion not in _FUSION:
            raise UserError(f"fusion={self.fusion!r} is unknown: choose {' or '.join(_FUSION)}")
        for key in ("batch", "size", "channels"):
            if (given := getattr(self, key)) < 1:
                raise UserError(f"{key}={given} is too small: choose 1 or more")


_GRAY = dict(size=28, channels=1)
_OTHERWISE: dict[str, dict[str, Any]] = {
    "mlp": dict(batch=256),
    "small_cnn": _GRAY,
    "simple_cnn": _GRAY,
}
CONFIGS = {name: Config(name, **_OTHERWISE.get(name, {})) for name in MODELS}


def smoke(config: Config) -> Config:
    """The same model on so little that it takes seconds."""
    return replace(config, batch=2, size=8)


class Results(NamedTuple):
    """What the audit found."""

    sites: tuple[dict[str, Any], ...]  # tinyjax.Advice: MACs, int8 or not, bytes, ms, int32 sums
    int8_share: float  # of the multiply-accumulates of training, 0..1
    faster: tuple[str, ...]  # paths of the sites that the policy takes
    macs: int  # multiply-accumulates of training, those outside of sites included
    table: str


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Audits a model.

    Args:
      config: what to audit.
      out: folder for the times, from which an interrupted run continues; None keeps none.
      follow: not used.
    """
    del follow
    model = own.model(config.model)
    images = jax.ShapeDtypeStruct(
        (config.batch, config.size, config.size, config.channels), jnp.float32
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    training: dict[str, Any] = {"mutable": ["batch_stats"]} if "batch_stats" in variables else {}
    found = tinyjax.audit(
        model.apply,
        variables,
        images,
        cache=out,
        compiler_options=_FUSION[config.fusion],
        **training,
    )
    return Results(
        sites=tuple(map(_plain, found.rows)),
        int8_share=found.int8_share,
        faster=tuple(row.site.path for row in found.rows if row.faster),
        macs=found.macs,
        table=str(found),
    )


def _plain(row: tinyjax.Advice) -> dict[str, Any]:
    """A row as JSON holds it."""
    shapes = {name: list(getattr(row.site, name).shape) for name in ("x", "w", "out")}
    site = {"path": row.site.path, "kind": row.site.kind, **shapes}
    return {**site, **{k: v for k, v in row._asdict().items() if k != "site"}, "faster": row.faster}
