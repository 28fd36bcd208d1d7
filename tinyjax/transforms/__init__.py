"""The methods, one per file."""

from tinyjax.transforms.int8_qat import int8_qat
from tinyjax.transforms.link import link, send
from tinyjax.transforms.pass_skip import pass_skip
from tinyjax.transforms.sgq import sgq, sgq_decode, sgq_encode

__all__ = [
    "int8_qat",
    "link",
    "pass_skip",
    "send",
    "sgq",
    "sgq_decode",
    "sgq_encode",
]
