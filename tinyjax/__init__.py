"""tinyjax: TinyML training methods as composable, pure function transforms in JAX."""

from tinyjax import entropy, numerics, transforms, wire
from tinyjax.advice import Advice, Audit
from tinyjax.auditing import audit
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
from tinyjax.blocks import SkipState
from tinyjax.calibration import calibrate
from tinyjax.codes import DeltaCode, GainCode, GroupCode, KeyCode, SGQGradient, StepCode
from tinyjax.combine import at, chain, identity, where
from tinyjax.counting import count_macs
from tinyjax.describing import BlockAdvice, Description, describe
from tinyjax.drifting import Drift, drift
from tinyjax.gate_training import GateTerms, gate_loss
from tinyjax.gates import VariableGate, exact, root_mean_square, static, threshold, top_k
from tinyjax.gating import GateWeights, gate_logits, gate_weights, learned
from tinyjax.limits import inner_limits
from tinyjax.portable import portable
from tinyjax.rewrite import rewrite, sites
from tinyjax.scaling import Scaling, delayed, frozen, per_row, per_tensor
from tinyjax.several import cameras
from tinyjax.step import attach, detach, over_step
from tinyjax.transforms import (
    bias,
    compensate,
    global_step,
    int8_frozen,
    int8_qat,
    link,
    pass_skip,
    penalty,
    send,
    sgq,
    sgq_decode,
    sgq_encode,
    shifted,
    spatial,
    stripe_gains,
    stripe_groups,
    zero_point,
)
from tinyjax.uplink import Uplink, UplinkState, delta_uplink

__all__ = [
    "Advice",
    "Audit",
    "BlockAdvice",
    "BlockTransform",
    "Codec",
    "DeltaCode",
    "Description",
    "Drift",
    "Epilogue",
    "GainCode",
    "GateTerms",
    "GateWeights",
    "GroupCode",
    "KeyCode",
    "Op",
    "Pattern",
    "Rewritten",
    "SGQGradient",
    "Scaling",
    "Site",
    "Sited",
    "SkipState",
    "StepCode",
    "TrainStep",
    "Transform",
    "Uplink",
    "UplinkState",
    "VariableGate",
    "at",
    "attach",
    "audit",
    "bias",
    "calibrate",
    "cameras",
    "chain",
    "compensate",
    "count_macs",
    "delayed",
    "delta_uplink",
    "describe",
    "detach",
    "drift",
    "entropy",
    "exact",
    "frozen",
    "gate_logits",
    "gate_loss",
    "gate_weights",
    "global_step",
    "identity",
    "inner_limits",
    "int8_frozen",
    "int8_qat",
    "learned",
    "link",
    "numerics",
    "over_step",
    "pass_skip",
    "penalty",
    "per_row",
    "per_tensor",
    "portable",
    "rewrite",
    "root_mean_square",
    "send",
    "sgq",
    "sgq_decode",
    "sgq_encode",
    "shifted",
    "sites",
    "spatial",
    "static",
    "stripe_gains",
    "stripe_groups",
    "threshold",
    "top_k",
    "transforms",
    "where",
    "wire",
    "zero_point",
]
