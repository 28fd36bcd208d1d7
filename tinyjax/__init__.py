"""tinyjax: TinyML training methods as composable, pure function transforms in JAX."""

from tinyjax import numerics, transforms
from tinyjax.audit import count_macs
from tinyjax.base import Epilogue, Op, Pattern, Site, Sited, TrainStep, Transform
from tinyjax.combine import at, chain, identity, where
from tinyjax.rewrite import Rewritten, rewrite, sites
from tinyjax.step import attach, detach, over_step
from tinyjax.transforms import int8_qat

__all__ = [
    "Epilogue",
    "Op",
    "Pattern",
    "Rewritten",
    "Site",
    "Sited",
    "TrainStep",
    "Transform",
    "at",
    "attach",
    "chain",
    "count_macs",
    "detach",
    "identity",
    "int8_qat",
    "numerics",
    "over_step",
    "rewrite",
    "sites",
    "transforms",
    "where",
]
