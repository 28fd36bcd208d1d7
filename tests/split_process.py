"""One side of split training in a process of its own, for the tests that kill it.

``python -m tests.split_process cloud FOLDER PORT DEVICES TURNS`` or
``... devices FOLDER PORT FIRST LAST STEPS AVERAGE_EVERY``. A device tells its steps, a line each,
and breaks its own line now and then.
"""

import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from tests import split
from tinyjax import collab


def keep(file, params):
    """Writes parameters, whole or not at all."""
    leaves, _ = jax.tree.flatten(params)
    beside = file.with_suffix(".part.npz")
    np.savez(beside, *leaves)
    beside.rename(file)


def cloud(folder, port, devices, turns):
    serving = collab.Cloud(
        split.upper(),
        split.ways(),
        devices=int(devices),
        fixed=turns == "fixed",
        averaged=split.AVERAGED,
        folder=folder / "cloud",
        save_every=7,
        patience=5,
    )
    shown = collab.read_credentials(folder / "keys", "cloud")
    with collab.serve(serving, f"127.0.0.1:{port}", credentials=shown, idle=10):
        print("serving", flush=True)
        sys.stdin.read()  # until the test has seen enough
        assert serving.wait(0)
    keep(folder / "cloud.npz", serving.params)


def device(folder, port, number, steps, average_every):
    shown = collab.read_credentials(folder / "keys", f"device-{number}")
    with collab.Dial(f"127.0.0.1:{port}", device=number, credentials=shown, timeout=60) as dial:
        training = collab.Device(
            split.lower(number),
            split.ways(),
            dial,
            device=number,
            average_every=average_every,
            folder=folder / f"device-{number}",
            save_every=3,
            patience=300,
        )
        for step in range(training.steps, steps):
            print(number, step, flush=True)
            if random.random() < 0.2:
                threading.Timer(random.uniform(0, 0.02), dial.cut).start()
            training.step(*split.batch(number, step))
            time.sleep(0.01)  # or it is done before it can be killed
        training.finish()
    keep(folder / f"device-{number}.npz", training.params)


def devices(folder, port, first, last, steps, average_every):
    numbers = range(int(first), int(last) + 1)
    with ThreadPoolExecutor(len(numbers)) as pool:
        work = lambda number: device(folder, port, number, int(steps), int(average_every))
        list(pool.map(work, numbers))


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_platforms", "cpu")
    side, where, *rest = sys.argv[1:]
    {"cloud": cloud, "devices": devices}[side](Path(where), *rest)
