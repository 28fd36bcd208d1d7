"""tinyjax: TinyML training methods as composable, pure function transforms in JAX."""

from tinyjax import numerics, transforms
from tinyjax.audit import count_macs
from tinyjax.base import (
    BlockTransform,
    Epilogue,
    Op,
    Pattern,
    Rewritten,
    Site,
    Sited,
    TrainStep,
    Transform,
)
from tinyjax.combine import at, chain, identity, where
from tinyjax.gates import exact, static, threshold
from tinyjax.rewrite import rewrite, sites
from tinyjax.step import attach, detach, over_step
from tinyjax.transforms import SkipState, int8_qat, pass_skip

__all__ = [
    "BlockTransform",
    "Epilogue",
    "Op",
    "Pattern",
    "Rewritten",
    "Site",
    "Sited",
    "SkipState",
    "TrainStep",
    "Transform",
    "at",
    "attach",
    "chain",
    "count_macs",
    "detach",
    "exact",
    "identity",
    "int8_qat",
    "numerics",
    "over_step",
    "pass_skip",
    "rewrite",
    "sites",
    "static",
    "threshold",
    "transforms",
    "where",
]
