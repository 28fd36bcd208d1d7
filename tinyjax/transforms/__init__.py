"""The methods, one per file."""

from tinyjax.transforms.compensate import bias, compensate, penalty, spatial
from tinyjax.transforms.int8_frozen import int8_frozen
from tinyjax.transforms.int8_qat import int8_qat
from tinyjax.transforms.link import link, send
from tinyjax.transforms.pass_skip import pass_skip
from tinyjax.transforms.quantizers import global_step, stripe_groups
from tinyjax.transforms.sgq import sgq, sgq_decode, sgq_encode
from tinyjax.transforms.stripe_gains import stripe_gains
from tinyjax.transforms.zero_point import shifted, zero_point

__all__ = [
    "bias",
    "compensate",
    "global_step",
    "int8_frozen",
    "int8_qat",
    "link",
    "pass_skip",
    "penalty",
    "send",
    "sgq",
    "sgq_decode",
    "sgq_encode",
    "shifted",
    "spatial",
    "stripe_gains",
    "stripe_groups",
    "zero_point",
]
