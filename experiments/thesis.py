"""The thesis end to end: a camera that skips, in int8, and sends what changed to a cloud.

A network of `experiments.tasks` is cut behind its first stage. The device's half skips patches
(PASS, ``pass_skip``) and computes in int8 (Octo, ``int8_frozen``; gradients by ``int8_qat`` at the
same scales); its features go to the cloud by a delta uplink and gradients come back in SGQ's code
(``delta_uplink``, ``sgq``). The cloud is a process of its own behind a socket with TLS. Each method
is switched off in turn, and all of them::

    python -m experiments thesis
    python -m experiments thesis --config tiny
    python -m experiments thesis --smoke

Two modes: streaming, in which nothing is learned, and learning with one update of both halves every
``every`` frames. An update moves all features, so the frame after it is computed whole and sent as
a key frame. Labels are the cloud's, which stand for an annotator or a large teacher there; they do
not cross the link. The device differentiates its half at the input that its features were of.

Definitions. ``device_ms`` of a frame is all that the device computes: from the uint8 frame in
memory to features (``half_ms``), from there to the bytes of the message (``coding_ms``), and where
it learns the update (``learning_ms``). ``whole_ms`` adds the wait for the cloud's answer: one frame
is under way at a time, and both processes share a machine and its loopback, or a link that the
device's proxy slows down. Bytes are those of the device's socket, all that is above TCP, without
the greeting. F1 is that of foreground pixels over the fold, as in `experiments.tasks`; each frame
counts before the update by it. All settings are found on frames of the training folds.

Energy is an estimate: multiply-accumulates by operand at 45 nm (Horowitz), and bytes at the slopes
of a Wi-Fi radio's power (Huang et al.). What memory, the gate, the quantizer and the coder take is
not in it, nor the cloud.

References:
  Horowitz, *Computing's energy problem (and what we can do about it)*, ISSCC 2014, figure 1.1.9.
  Huang et al., *A close examination of performance and power characteristics of 4G LTE networks*,
  MobiSys 2012, table 4.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import segmenter
from experiments.errors import UserError
from experiments.progress import Follow, unfollowed
from experiments.thesis_setup import FOLDS, OFF, Config, prepared
from tinyjax import collab

__all__ = [
    "CONFIGS",
    "DOWN_NJ",
    "MAC_PJ",
    "OFF",
    "UP_NJ",
    "Config",
    "Results",
    "energy",
    "run",
    "smoke",
]

# Picojoules of a multiply-accumulate: int8 times int8 (0.2) into int32 (0.1), float32 (3.7 + 0.9).
MAC_PJ = {"int8": 0.3, "float32": 4.6}
# Nanojoules of a bit: milliwatts per Mbit/s of Wi-Fi, above its base power.
UP_NJ, DOWN_NJ = 283.17, 137.01

_ROOT = Path(__file__).parents[1]
_SECONDS = 600  # that a side may take


def _modes(**settings: Any) -> list[Config]:
    return [Config(every=every, off=off, **settings) for every in (0, 30) for off in OFF]


CONFIGS: dict[str, list[Config]] = {
    "highway": [config for fold in range(FOLDS) for config in _modes(fold=fold)],
    "link": [Config(fold=1, off=off, link="20Mbit/s,5ms") for off in OFF],
    "tiny": [Config(fold=1, off=off, cores=1, memory=3072) for off in OFF],
}


def smoke(configs: Sequence[Config]) -> list[Config]:
    """The same on a scene that is made here, with a network so small that it takes seconds."""
    tiny: dict[str, Any] = {"scene": "squares", "width": 8, "crop": 48, "epochs": 1, "batch": 2}
    less: dict[str, Any] = {"fold": 0, "tries": 1, "calibration": 8, "key_every": 4}
    few = {replace(config, **tiny, **less, every=min(config.every, 3)) for config in configs}
    return sorted(few, key=lambda config: (config.every, OFF.index(config.off)))


class Results(NamedTuple):
    """One run; means are over its frames."""

    f1: float  # 0..1
    counts: list[int]  # pixels over all frames: hits, false, missed
    half_ms: float
    coding_ms: float
    waiting_ms: float
    learning_ms: float
    device_ms: float  # half, coding and learning
    whole_ms: float
    cloud_ms: float  # of `waiting_ms`, what the cloud computed
    up: float  # bytes per frame at the socket
    down: float
    code: float  # bytes per frame of the codec alone, up
    gradient: float  # and of a gradient, each
    greeting: list[int]  # bytes of the handshake and the greeting, up and down
    active: float  # share of the patches recomputed
    macs: dict[str, float]  # per frame, of the device, by operand
    compute_mj: float  # per frame
    radio_mj: float  # per frame
    losses: list[float]  # of the updates
    peak_bytes: int  # resident in the device's process
    cloud_peak_bytes: int
    frame_ms: list[float]  # device_ms of each frame
    frame_bytes: list[int]  # of the codec, up


def run(
    config: Config,
    out: Path | None = None,
    follow: Follow = unfollowed,
    kept: Path | None = None,
) -> Results:
    """Prepares, if that is not done yet, and measures one run in two processes.

    Args:
      config: of the run.
      out: folder for what the two processes write.
      follow: shows the progress.
      kept: folder in which preparations stay, to be measured again; by default beside `out`.

    Raises:
      UserError: if the scene cannot be read, or a process does not get to its end.
    """
    out = out or Path("out/thesis/run")
    shutil.rmtree(out, ignore_errors=True)  # of a run that was cut off; preparations stay
    ready = prepared(config, kept or out.parent / "prepared", follow)
    collab.make_credentials(out / "keys", 1)
    job = {"config": asdict(config), "prepared": str(ready.absolute())}
    (out / "job.json").write_text(json.dumps(job))
    with follow("two processes", 1) as watch:
        _both(out)
        watch(1, "done")
    read = lambda side: json.loads((out / f"{side}.json").read_text())
    return _results(read("device"), read("cloud"))


def _both(folder: Path) -> None:
    """Runs cloud and device to their ends."""
    cloud = _started("cloud", folder)
    try:
        address = cloud.stdout.readline().strip() if cloud.stdout else ""
        if not address:
            raise UserError(f"the cloud did not start: see {folder / 'cloud.log'}")
        device = _started("device", folder, address)
        for side, process in (("device", device), ("cloud", cloud)):
            try:
                code = process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                device.kill()
                raise UserError(
                    f"the {side} took more than {_SECONDS} s: use fewer frames"
                ) from None
            if code:
                raise UserError(f"the {side} ended with {code}: see {folder / side}.log")
    finally:
        cloud.kill()
        cloud.wait()


def _started(side: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.thesis_process", side, str(folder.absolute())]
    with open(folder / f"{side}.log", "w") as log:
        return subprocess.Popen(
            [*command, *words], cwd=_ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        )


def energy(macs: dict[str, float], up: float, down: float) -> tuple[float, float]:
    """Millijoules of computing and of the radio.

    Args:
      macs: multiply-accumulates by operand.
      up: bytes sent.
      down: bytes received.

    >>> [round(value, 3) for value in energy({"int8": 1e9}, 1000, 0)]
    [0.3, 2.265]
    """
    compute = sum(MAC_PJ[kind] * count for kind, count in macs.items()) * 1e-9
    return compute, 8e-6 * (UP_NJ * up + DOWN_NJ * down)


def _results(device: dict[str, Any], cloud: dict[str, Any]) -> Results:
    frames = device["frames"]
    mean = lambda key: float(np.mean([frame[key] for frame in frames]))
    each = [frame["half_ms"] + frame["coding_ms"] + frame["learning_ms"] for frame in frames]
    kinds = {kind for frame in frames for kind in frame["macs"]}
    spent = {k: sum(frame["macs"].get(k, 0) for frame in frames) / len(frames) for k in kinds}
    up, down = device["up"] / len(frames), device["down"] / len(frames)
    gradients = [frame["gradient_bytes"] for frame in frames if frame["gradient_bytes"]]
    compute, radio = energy(spent, up, down)
    tally = segmenter.Counts(*np.sum(cloud["counts"], 0).tolist())
    return Results(
        f1=float(segmenter.f1(tally)),
        counts=list(tally),
        half_ms=mean("half_ms"),
        coding_ms=mean("coding_ms"),
        waiting_ms=mean("waiting_ms"),
        learning_ms=mean("learning_ms"),
        device_ms=float(np.mean(each)),
        whole_ms=float(np.mean(each)) + mean("waiting_ms"),
        cloud_ms=1e3 * float(np.mean(cloud["seconds"])),
        up=up,
        down=down,
        code=mean("bytes"),
        gradient=float(np.mean(gradients)) if gradients else 0.0,
        greeting=device["greeting"],
        active=mean("active"),
        macs=spent,
        compute_mj=compute,
        radio_mj=radio,
        losses=cloud["losses"],
        peak_bytes=device["peak_bytes"],
        cloud_peak_bytes=cloud["peak_bytes"],
        frame_ms=[round(ms, 3) for ms in each],
        frame_bytes=[frame["bytes"] for frame in frames],
    )
