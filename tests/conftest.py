"""Settings every test runs under: strict dtype promotion, two CPU devices, fixed seeds."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

# Times of an audit that are measured beside other tests are nobody's: set before tinyjax is there.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tinyjax-tests-")

import hypothesis
import jax
import numpy as np
import pytest

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# What one process of a run has compiled the others load: the same compiler, with the same options.
# The first of them makes the folder, which ends with the run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="tinyjax-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, value in {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)

# int8 silently meeting float32 is an error here, and tests of sharding have two devices to use.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 2)

# The first example of a property compiles, so no deadline; the same examples on every run.
hypothesis.settings.register_profile("tinyjax", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("tinyjax")


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator with the same seed in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For optimizers that mix dtypes themselves, such as optax.adam."""
    with jax.numpy_dtype_promotion("standard"):
        yield
