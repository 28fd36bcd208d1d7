"""One of two processes that share a batch: ``python -m tests.two_processes PORT FILE RANK NET``.

Started by ``test_sharding.py``. Every process writes what it found, gathered, into its file.
"""

import sys

import jax
import numpy as np
from jax.sharding import PartitionSpec

from tests import sharded


def main(port: str, file: str, rank: str, net: str) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"localhost:{port}", num_processes=2, process_id=int(rank), initialization_timeout=40
    )
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 2, 1)
    mesh, whole = sharded.mesh_of(), PartitionSpec()
    step, state, batch = sharded.case(net)
    form, (x, w, g) = sharded.layer(net)

    def run(state, w, batch, x, g):
        # Sums come out whole in every process anyway; codes are gathered, to be looked at.
        found = sharded.whole(step(state, *batch), sharded.integers(form, x, w, g))
        return jax.lax.with_sharding_constraint(found, jax.sharding.NamedSharding(mesh, whole))

    args = (
        *sharded.placed(mesh, (state, w), whole),
        *sharded.placed(mesh, (batch, x, g), sharded.BATCH),
    )
    found = jax.block_until_ready(jax.jit(run)(*args))
    np.savez(file, **{name: np.asarray(value.addressable_data(0)) for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
