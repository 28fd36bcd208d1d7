"""tinyjax: TinyML training methods as composable, pure function transforms in JAX."""

from tinyjax import numerics, transforms, wire
from tinyjax.audit import count_macs
from tinyjax.base import (
    BlockTransform,
    Codec,
    Epilogue,
    Op,
    Pattern,
    Rewritten,
    Site,
    Sited,
    TrainStep,
    Transform,
)
from tinyjax.codes import SGQCode, SGQGradient
from tinyjax.combine import at, chain, identity, where
from tinyjax.gates import exact, static, threshold
from tinyjax.portable import portable
from tinyjax.rewrite import rewrite, sites
from tinyjax.step import attach, detach, over_step
from tinyjax.transforms import (
    int8_qat,
    link,
    pass_skip,
    send,
    sgq,
    sgq_decode,
    sgq_encode,
)
from tinyjax.transforms.pass_skip import SkipState

__all__ = [
    "BlockTransform",
    "Codec",
    "Epilogue",
    "Op",
    "Pattern",
    "Rewritten",
    "SGQCode",
    "SGQGradient",
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
    "link",
    "numerics",
    "over_step",
    "pass_skip",
    "portable",
    "rewrite",
    "send",
    "sgq",
    "sgq_decode",
    "sgq_encode",
    "sites",
    "static",
    "threshold",
    "transforms",
    "where",
    "wire",
]
