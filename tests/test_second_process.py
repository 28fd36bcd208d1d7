"""Frames decoded by another process have the values that this one has, bit for bit."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyjax import entropy, global_step, numerics, sgq, sgq_decode, stripe_groups, wire

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(3, 5, 4, 8), (2, 7, 7, 12)]  # of those that are coded by context, which compiles long


def case(rng, contexts):
    """Frames of some features and of their gradient, with their values."""
    bits = int(rng.choice([2, 4] if contexts else [2, 4, 8]))
    if contexts:
        shape = SHAPES[rng.integers(len(SHAPES))]
    else:
        space = rng.integers(1, 7, rng.integers(0, 3))
        shape = (int(rng.integers(1, 5)), *map(int, space), int(rng.integers(1, 25)))
    sizes = [g for g in range(1, shape[-1] + 1) if shape[-1] % g == 0]
    exact, dtype = bool(rng.integers(2)), rng.choice(["float32", "float16", "bfloat16"])
    groups = stripe_groups(group_size=int(rng.choice(sizes)), bits=bits, exact=exact)
    quantizer = groups if rng.integers(2) else global_step(bits=bits, exact=exact)
    codec = sgq(quantizer=quantizer, gradient_step=numerics.bounded_step)
    x = rng.normal(size=shape) * 10 ** rng.uniform(-2, 2)
    x = jnp.asarray(np.maximum(x, 0) if rng.integers(2) else x, jnp.float32).astype(str(dtype))
    code = jax.jit(codec.encode)(x)
    gradient = jax.jit(codec.encode_gradient)(x, jnp.uint32(rng.integers(2**32)), code)
    state = entropy.fit(code) if contexts else None
    known = wire.pack(jax.device_get(code))
    wanted = [np.asarray(sgq_decode(code)), np.asarray(codec.decode_gradient(gradient))]
    if contexts or rng.integers(2):
        code, gradient = entropy.compress(code, state), entropy.compress(gradient, None, code)
    named = b"" if state is None else wire.pack(state)
    frame = wire.pack(jax.device_get(code))
    yield frame, named, b"", wanted[0]
    features = wire.unpack(known) if exact else None
    yield wire.pack(jax.device_get(gradient), features), b"", known if exact else b"", wanted[1]


@pytest.mark.parametrize(
    ("count", "by_context"), [(2, 1), pytest.param(100, 20, marks=pytest.mark.slow)]
)
def test_another_process_decodes_the_same_bits(count, by_context, rng, tmp_path):
    cases = [one for i in range(count) for one in case(rng, i < by_context)]
    for number, (*parts, _) in enumerate(cases):
        for end, data in zip(("frame", "state", "features"), parts, strict=True):
            (tmp_path / f"{number}.{end}").write_bytes(data)
    command = [sys.executable, "-m", "tests.second_process", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=1200)
    for number, (*_, wanted) in enumerate(cases):
        assert (tmp_path / f"{number}.values").read_bytes() == wanted.tobytes()
