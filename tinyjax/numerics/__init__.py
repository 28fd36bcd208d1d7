"""Array to array: quantization and integer arithmetic. Knows no models and no sites."""

from tinyjax.numerics.conv_taps import ConvSpec
from tinyjax.numerics.forms import Form, conv_form, dot_form
from tinyjax.numerics.integer_conv import conv, conv_dw, conv_dx
from tinyjax.numerics.integer_ops import (
    MAX_CONTRACTION,
    dot,
    dot_dw,
    dot_dx,
    total,
    zero_point_term,
)
from tinyjax.numerics.layout import keep, row_major
from tinyjax.numerics.patches import differs, read_window, spread, tiles, window_any
from tinyjax.numerics.pool import max_pool
from tinyjax.numerics.quantize import (
    abs_max,
    affine_range,
    dequantize,
    finite_or_nan,
    gradient_scales,
    qmax,
    quantize,
    symmetric_scale,
)
from tinyjax.numerics.rounding import fold_key, hash_bits, nearest, seed_of, stochastic

__all__ = [
    "MAX_CONTRACTION",
    "ConvSpec",
    "Form",
    "abs_max",
    "affine_range",
    "conv",
    "conv_dw",
    "conv_dx",
    "conv_form",
    "dequantize",
    "differs",
    "dot",
    "dot_dw",
    "dot_dx",
    "dot_form",
    "finite_or_nan",
    "fold_key",
    "gradient_scales",
    "hash_bits",
    "keep",
    "max_pool",
    "nearest",
    "qmax",
    "quantize",
    "read_window",
    "row_major",
    "seed_of",
    "spread",
    "stochastic",
    "symmetric_scale",
    "tiles",
    "total",
    "window_any",
    "zero_point_term",
]
