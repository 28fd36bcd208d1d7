"""The methods, one per file."""

from tinyjax.transforms.int8_qat import int8_qat

__all__ = ["int8_qat"]
