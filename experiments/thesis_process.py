"""One side of `experiments.thesis` in a process of its own.

``python -m experiments.thesis_process cloud FOLDER`` or ``... device FOLDER ADDRESS``. The folder
holds ``job.json``, keys, and in the end ``cloud.json`` and ``device.json``. The cloud tells its
address on standard output. A device confines itself before it touches an array, if the job says so.
"""

import json
import os
import resource
import sys
from pathlib import Path

from experiments.results import plain, write
from experiments.thesis_setup import Config, Setup, read
from experiments.thesis_sides import Answering, Camera, ways
from tinyjax import collab

__all__ = ["cloud", "confine", "device"]


def cloud(folder: Path) -> None:
    """Answers until the device has finished."""
    config, setup, _ = _job(folder)
    answering = Answering(config, setup, ways(config, setup))
    shown = collab.read_credentials(folder / "keys", "cloud")
    with collab.serve(answering, credentials=shown) as server:
        print(server.address, flush=True)
        answering.done.wait()
    found = {name: getattr(answering, name) for name in ("counts", "losses", "seconds")}
    write(folder / "cloud.json", {**found, "peak_bytes": _peak()})


def device(folder: Path, address: str) -> None:
    """Watches all frames, or as many as the job says, and finishes."""
    config, setup, count = _job(folder)
    confine(config.cores, config.memory)
    camera = Camera(config, setup, ways(config, setup))
    shown = collab.read_credentials(folder / "keys", "device-0")
    link = collab.parse_link(config.link) if config.link else None
    with collab.Dial(address, credentials=shown, link=link) as dial:
        line = dial()
        camera.greet(line)
        before = dial.traffic
        frames = [plain(camera.watch(line, image)) for image in setup.frames[:count]]
        after = dial.traffic
        line.ask(collab.Message(collab.Kind.FINISH, sequence=count + 1))
        line.close()
    up, down = (b - a for a, b in zip(before, after, strict=True))
    found = {"frames": frames, "up": up, "down": down, "greeting": list(before)}
    write(folder / "device.json", {**found, "peak_bytes": _peak()})


def confine(cores: int, memory: int) -> None:
    """Confines this process to so many cores and MiB of address space; 0 leaves it as it is."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory * 2**20, memory * 2**20))


def _peak() -> int:
    """Most bytes that this process had resident."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    # On Linux this one would be the parent's, if that had more when it started this process.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _job(folder: Path) -> tuple[Config, Setup, int]:
    job = json.loads((folder / "job.json").read_text())
    config = Config(**job["config"])
    setup = read(config, Path(job["prepared"]))
    return config, setup, config.frames or len(setup.frames)


if __name__ == "__main__":
    side, where, *rest = sys.argv[1:]
    {"cloud": cloud, "device": device}[side](Path(where), *rest)
