"""Split training over processes that are killed with signal 9, against one that is not."""

import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import split
from tests.hostile import BEHAVIOURS
from tinyjax import collab

pytest.importorskip("grpc", reason="grpcio, of the extra collab, is not installed")
pytest.importorskip("cryptography", reason="cryptography, of the extra collab, is not installed")

ROOT = Path(__file__).parents[1]
STEPS = 24
_LONG = 300  # seconds: of a machine that is busy with other things


class Process:
    """A side in a process, which tells its steps on standard output."""

    def __init__(self, *words):
        self.words, self.said = [str(word) for word in words], queue.SimpleQueue()
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.split_process", *self.words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def _listen(self, stdout):
        for line in stdout:
            self.said.put(line.split())
        self.said.put(None)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.communicate()

    def comes_to(self, step):
        """Waits until it tells of this step or a later one."""
        while True:
            said = self.said.get(timeout=_LONG)
            if said is None and self.process.poll() is not None:
                raise AssertionError(self.process.communicate(timeout=_LONG)[1])
            if said is not None and int(said[1]) >= step:
                return

    def end(self):
        out, err = self.process.communicate(timeout=_LONG)
        del out
        assert self.process.returncode == 0, err


def undisturbed(devices, average_every):
    """Parameters of every side, in one process and without a network."""
    cloud = collab.Cloud(
        split.upper(), split.ways(), devices=devices, averaged=split.AVERAGED, patience=_LONG
    )

    def trained(number):
        dial = collab.within(cloud)
        settings = {"device": number, "average_every": average_every}
        device = collab.Device(split.lower(number), split.ways(), dial, **settings)
        for step in range(STEPS):
            device.step(*split.batch(number, step))
        device.finish()
        return device.params

    with ThreadPoolExecutor(devices) as pool:
        lowers = list(pool.map(trained, range(devices)))
    return {"cloud": cloud.params} | {f"device-{n}": lower for n, lower in enumerate(lowers)}


def disturbed(folder, devices, average_every, kills):
    """The same in a process for each side, of which some are killed after some steps have begun."""
    rng = np.random.default_rng()  # to be killed anywhere in a step
    collab.make_credentials(folder / "keys", devices)
    port, sides = split.free_port(), {}
    try:
        sides["cloud"] = Process("cloud", folder, port, devices, "fixed")
        for n in range(devices):
            words = ("devices", folder, port, n, n, STEPS, average_every)
            sides[f"device-{n}"] = Process(*words)
        for step, killed in kills:
            sides["device-0"].comes_to(step)
            time.sleep(rng.uniform(0, 0.05))
            for side in killed:
                sides[side].kill()
            for side in killed:
                sides[side].start()
        for n in range(devices):
            sides[f"device-{n}"].end()
        sides["cloud"].end()
    finally:
        for side in sides.values():
            if side.process.poll() is None:
                side.kill()


def equal(folder, wanted):
    for side, params in wanted.items():
        with np.load(folder / f"{side}.npz") as found:
            leaves = [found[name] for name in found.files]
        for got, right in zip(leaves, jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(got, right, err_msg=side)


def test_killed_and_cut_training_ends_bit_for_bit_as_undisturbed(tmp_path):
    disturbed(tmp_path, 2, 5, [(4, ["device-1"]), (12, ["cloud", "device-0"])])
    equal(tmp_path, undisturbed(2, 5))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_many_kills_at_random(tmp_path, devices, seed):
    rng = np.random.default_rng(seed)
    names = ["cloud", *(f"device-{n}" for n in range(devices))]
    at = np.sort(rng.choice(np.arange(1, STEPS - 1), 4, replace=False))
    some = lambda: rng.choice(names, rng.integers(1, len(names) + 1), replace=False).tolist()
    kills = [(int(step), some()) for step in at]
    average_every = int(rng.choice([0, 4]))
    disturbed(tmp_path, devices, average_every, kills)
    equal(tmp_path, undisturbed(devices, average_every))


@pytest.mark.slow
def test_28_devices_finish_beside_4_hostile_ones(tmp_path):
    """32 clients in 4 processes: the cloud, two of 14 honest devices each, and this one."""
    collab.make_credentials(tmp_path / "keys", 32)
    port, stop = split.free_port(), threading.Event()
    cloud = Process("cloud", tmp_path, port, 32, "free")
    sides = [cloud]
    with ThreadPoolExecutor(4) as pool:
        try:
            assert cloud.said.get(timeout=_LONG) == ["serving"]
            ill = [
                pool.submit(behave, f"127.0.0.1:{port}", tmp_path / "keys", 28 + i, stop)
                for i, behave in enumerate(BEHAVIOURS)
            ]
            honest = [
                Process("devices", tmp_path, port, first, first + 13, STEPS, 0) for first in (0, 14)
            ]
            sides += honest
            for side in honest:
                side.end()
            assert cloud.process.poll() is None
            stop.set()
            for each in ill:
                each.result(_LONG)
        finally:
            stop.set()
            for side in sides:
                if side.process.poll() is None:
                    side.kill()
    assert len(list(tmp_path.glob("device-*.npz"))) == 28
