"""tinyjax: TinyML training methods as composable, pure function transforms in JAX."""

from tinyjax import numerics, transforms, wire
from tinyjax.audit import count_macs
from tinyjax.base import Codec, Epilogue, Op, Pattern, Site, Sited, TrainStep, Transform
from tinyjax.codes import SGQCode, SGQGradient
from tinyjax.combine import at, chain, identity, where
from tinyjax.rewrite import Rewritten, rewrite, sites
from tinyjax.step import attach, detach, over_step
from tinyjax.transforms import (
    int8_qat,
    link,
    send,
    sgq,
    sgq_decode,
    sgq_encode,
)

__all__ = [
    "Codec",
    "Epilogue",
    "Op",
    "Pattern",
    "Rewritten",
    "SGQCode",
    "SGQGradient",
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
    "link",
    "numerics",
    "over_step",
    "rewrite",
    "send",
    "sgq",
    "sgq_decode",
    "sgq_encode",
    "sites",
    "transforms",
    "where",
    "wire",
]
