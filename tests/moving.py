"""Video that moves, and a transform of blocks followed over it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tinyjax import pass_skip, rewrite


def conv(x, w, stride=1, padding="SAME", dilation=1, groups=1):
    return lax.conv_general_dilated(
        x,
        w,
        stride if isinstance(stride, tuple) else (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def mean_pool(x, window, strides, padding):
    shape = [(1, *pair, 1) for pair in (window, strides)]
    return lax.reduce_window(x, 0.0, lax.add, *shape, padding) / math.prod(window)


def video(rng, shape, frames=8):
    """Frames [1, h, w, c] with moving squares that cross the borders, corners, and a cut."""
    h, w, c = shape
    background = rng.normal(size=shape).astype(np.float32)
    found = [background, background]
    for t in range(frames - 2):
        x = background.copy()
        if t % 3 != 2:
            row, col = rng.integers(-4, h), rng.integers(-4, w)
            x[max(0, row) : row + 6, max(0, col) : col + 6] = rng.normal(size=c)
        else:
            x[rng.choice([0, h - 1]), rng.choice([0, w - 1])] += 1.0  # one corner
        found.append(x)
    found[-2] = rng.normal(size=shape).astype(np.float32)  # a cut
    return [jnp.asarray(x)[None] for x in found]


def follow(apply, params, frames, **options):
    """Runs a video; yields frame, output, the dense output of the effective input, state."""
    skipping = rewrite(pass_skip(**options), apply)
    step, dense = jax.jit(skipping.apply), jax.jit(apply)
    state = skipping.init(params, frames[0])
    for x in frames:
        out, state = step(state, params, x)
        yield x, out, dense(params, state.ref), state


def close(got, want, limit):
    scale = float(np.abs(want).max())
    return float(np.abs(np.asarray(got) - np.asarray(want)).max()) <= limit * scale


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert not text.endswith(".")
    return text
