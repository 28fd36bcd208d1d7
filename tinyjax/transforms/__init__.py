"""The methods, one per file."""

from tinyjax.transforms.int8_qat import int8_qat
from tinyjax.transforms.pass_skip import SkipState, pass_skip

__all__ = ["SkipState", "int8_qat", "pass_skip"]
