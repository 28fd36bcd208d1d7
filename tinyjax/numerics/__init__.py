"""Array to array: quantization and integer arithmetic. Knows no models and no sites."""

from tinyjax.numerics.axes import Axes, column_sums, conv_axes, dot_axes
from tinyjax.numerics.conv_taps import ConvSpec
from tinyjax.numerics.forms import Form, conv_form, dot_form
from tinyjax.numerics.gain_quantize import gain_dequantize, gain_quantize
from tinyjax.numerics.group_quantize import (
    beside_zero,
    group_dequantize,
    group_quantize,
    upper_half,
    widened,
)
from tinyjax.numerics.grouping import (
    at_random,
    by_cosine,
    by_range,
    channel_reach,
    fixed,
    in_order,
)
from tinyjax.numerics.integer_conv import conv, conv_dw, conv_dx
from tinyjax.numerics.integer_ops import (
    MAX_CONTRACTION,
    dot,
    dot_dw,
    dot_dx,
    total,
    zero_point_term,
)
from tinyjax.numerics.layout import keep, late, materialized, row_major
from tinyjax.numerics.middle import middle, through_codes
from tinyjax.numerics.packing import (
    levels_per_byte,
    look_up_bits,
    pack_bits,
    pack_inner,
    pack_levels,
    per_byte,
    unpack_bits,
    unpack_inner,
    unpack_levels,
)
from tinyjax.numerics.patch_statistics import asleep, patch_statistics
from tinyjax.numerics.patches import differs, spread, tiles, window_any
from tinyjax.numerics.pool import max_pool
from tinyjax.numerics.quantize import (
    abs_max,
    affine_range,
    bounded_step,
    dequantize,
    finite_or_nan,
    qmax,
    quantize,
    symmetric_scale,
)
from tinyjax.numerics.ranges import (
    coarse,
    fine,
    gaussian,
    least_angle,
    per_feature,
    per_tensor,
    shrunk,
)
from tinyjax.numerics.rounding import fold_key, hash_bits, nearest, seed_of, stochastic
from tinyjax.numerics.solved_step import expected_error, solved_step
from tinyjax.numerics.step_quantize import (
    MAX_STEP,
    step_codes,
    step_dequantize,
    step_quantize,
    step_values,
)

__all__ = [
    "MAX_CONTRACTION",
    "MAX_STEP",
    "Axes",
    "ConvSpec",
    "Form",
    "abs_max",
    "affine_range",
    "asleep",
    "at_random",
    "beside_zero",
    "bounded_step",
    "by_cosine",
    "by_range",
    "channel_reach",
    "coarse",
    "column_sums",
    "conv",
    "conv_axes",
    "conv_dw",
    "conv_dx",
    "conv_form",
    "dequantize",
    "differs",
    "dot",
    "dot_axes",
    "dot_dw",
    "dot_dx",
    "dot_form",
    "expected_error",
    "fine",
    "finite_or_nan",
    "fixed",
    "fold_key",
    "gain_dequantize",
    "gain_quantize",
    "gaussian",
    "group_dequantize",
    "group_quantize",
    "hash_bits",
    "in_order",
    "keep",
    "late",
    "least_angle",
    "levels_per_byte",
    "look_up_bits",
    "materialized",
    "max_pool",
    "middle",
    "nearest",
    "pack_bits",
    "pack_inner",
    "pack_levels",
    "patch_statistics",
    "per_byte",
    "per_feature",
    "per_tensor",
    "qmax",
    "quantize",
    "row_major",
    "seed_of",
    "shrunk",
    "solved_step",
    "spread",
    "step_codes",
    "step_dequantize",
    "step_quantize",
    "step_values",
    "stochastic",
    "symmetric_scale",
    "through_codes",
    "tiles",
    "total",
    "unpack_bits",
    "unpack_inner",
    "unpack_levels",
    "upper_half",
    "widened",
    "window_any",
    "zero_point_term",
]
