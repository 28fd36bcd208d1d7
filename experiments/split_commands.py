"""The commands of split training over a socket::

    python -m experiments sgq certs
    python -m experiments sgq serve --keys out/split/keys
    python -m experiments sgq device --number 0 --keys out/split/keys --link 20Mbit/s,30ms
    python -m experiments sgq score

and of comparing codecs, which start both sides by themselves (`links`)::

    python -m experiments sgq accuracy
    python -m experiments sgq link

Each of them continues where it was, with the same command. Settings are those of `split.Config`,
and the same ones have to be given on all sides: ``--set devices=2 codec=int8``. Bytes are those
of the device's socket, all that is above TCP, in each direction.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import flax.serialization

from experiments import links, plots, settings, split, split_scores, tables
from experiments.errors import UserError
from experiments.extras import imported
from tinyjax import collab

_TOLD_EVERY = 20  # steps
_WIDTH = 150  # characters of a table

__all__ = ["COMMANDS", "accuracy", "certs", "device", "link", "main", "score", "serve"]


def serve(
    *,
    address: str = "127.0.0.1:5000",
    keys: Path | None = None,
    set: tuple[str, ...] = (),
    out: Path = Path("out/split"),
    linger: float = 10.0,
    smoke: bool = False,
) -> None:
    """The cloud: serves until every device has finished.

    Args:
      address: to listen on, host:port.
      keys: folder that `certs` has filled; without it in the clear, for this machine only.
      set: settings, key=value, the same on all sides.
      out: folder of checkpoints and results.
      linger: seconds to stay for a device that missed hearing that it has finished.
      smoke: on so little that it takes seconds.
    """
    config = _config(set, smoke)
    shown = _credentials(keys, "cloud")
    taken: list[split.Span] = []
    cloud = split.cloud_of(config, out, taken=taken)
    with collab.serve(cloud, address, credentials=shown) as server:
        print(f"serving {config.devices} device(s) on {server.address}", flush=True)
        cloud.wait()
        time.sleep(linger)
    _write(out / "cloud.msgpack", flax.serialization.to_bytes(cloud.params))
    both = list(zip(taken[::2], taken[1::2], strict=False))  # decoding, encoding
    codec = [sum(end - start for start, end in calls) for calls in both]
    busy = [encoded[1] - decoded[0] for decoded, encoded in both]
    record = {"config": asdict(config), "codec_seconds": codec, "busy_seconds": busy}
    _write(out / "cloud.json", json.dumps(record, indent=2).encode())
    print(f"all have finished: {cloud.taken} messages")


def device(
    *,
    address: str = "127.0.0.1:5000",
    number: int = 0,
    keys: Path | None = None,
    link: str | None = None,
    set: tuple[str, ...] = (),
    out: Path = Path("out/split"),
    smoke: bool = False,
) -> None:
    """A device: trains on its share of the images until all its steps are done.

    Args:
      address: of the cloud, host:port.
      number: of this device, from 0.
      keys: folder that `certs` has filled; without it in the clear, on this machine only.
      link: how fast the link is to be, as 20Mbit/s or 20Mbit/s,30ms.
      set: settings, key=value, the same on all sides.
      out: folder of checkpoints and results.
      smoke: on so little that it takes seconds.
    """
    config = _config(set, smoke)
    shown = _credentials(keys, f"device-{number}")
    each: list[list[float]] = []
    with collab.Dial(address, device=number, credentials=shown, link=_link(link)) as dial:

        def tell(step: split.Step) -> None:
            each.append([step.seconds, step.codec, step.waited, *dial.traffic])
            if step.done % _TOLD_EVERY and step.done != step.steps:
                return
            up, down = (count / 1e6 for count in dial.traffic)
            rate = config.batch / median(seconds for seconds, *_ in each[-_TOLD_EVERY:])
            print(
                f"device {number}  step {step.done}/{step.steps}  loss {step.loss:.4f}  "
                f"{rate:.0f} images/s  up {up:.2f} MB  down {down:.2f} MB",
                flush=True,
            )

        found = split.run(config, number, dial, out, tell)
        traffic = dial.traffic._asdict()
    record = {
        "config": asdict(config),
        "device": number,
        "link": link,
        "socket_bytes": traffic,
        **{name: getattr(found, name) for name in split.Run._fields if name != "params"},
        "each": each,  # step: seconds, the codec's here, waiting, bytes up and down so far
    }
    _write(out / f"device-{number}.msgpack", flax.serialization.to_bytes(found.params))
    _write(out / f"device-{number}.json", json.dumps(record, indent=2).encode())


def score(*, set: tuple[str, ...] = (), out: Path = Path("out/split"), smoke: bool = False) -> None:
    """Prints the test accuracy of every device's half with the cloud's.

    Args:
      set: settings, key=value, the same as in training.
      out: folder of the results.
      smoke: the same as in training.
    """
    config = _config(set, smoke)
    parts, _ = split.prepared(config)
    read = flax.serialization.from_bytes
    try:
        upper = flax.serialization.from_bytes(
            parts.upper.params, (out / "cloud.msgpack").read_bytes()
        )
        for number in range(config.devices):
            file = out / f"device-{number}.msgpack"
            lower = read(parts.lower.params, file.read_bytes())
            right = split_scores.accuracy(config, lower, upper)
            print(f"device {number}: {right:.2%} of the test images")
    except FileNotFoundError as error:
        raise UserError(f"there is no {error.filename}: let that side finish first") from error


def certs(
    *,
    devices: int = 1,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    days: int = 30,
    out: Path = Path("out/split/keys"),
) -> None:
    """Makes an authority for tests, and the certificates, keys and tokens of all sides.

    Args:
      devices: how many there will be.
      hosts: names and addresses under which devices reach the cloud.
      days: for which certificates hold.
      out: folder that holds no such set yet.
    """
    collab.make_credentials(out, devices, hosts, days)
    print(f"credentials of the cloud and {devices} device(s) are in {out}")


def accuracy(
    *,
    set: tuple[str, ...] = (),
    out: Path = Path("out/split_accuracy"),
    seeds: int = 3,
    smoke: bool = False,
) -> None:
    """Trains with every codec and seed, each in two processes; accuracy and traffic.

    Args:
      set: settings of all trainings, key=value.
      out: folder of a record for each training, and of the summary.
      seeds: how many trainings of each codec.
      smoke: on so little that it takes seconds.
    """
    config = settings.change(links.ACCURACY, set)
    config = links.smoke(config) if smoke else config
    command = _command("accuracy", set, f"--seeds {seeds}")
    _print(tables.split_accuracy(links.accuracy(config, out, command, seeds)))


def link(
    *,
    set: tuple[str, ...] = (),
    out: Path = Path("out/split_link"),
    rho: tuple[float, ...] = (5.0, 10.0, 25.0),
    smoke: bool = False,
) -> None:
    """Measures every codec without a link and on slow ones, next to what a formula predicts.

    Args:
      set: settings of all trainings, key=value.
      out: folder of a record for each training, and of the summary and its figure.
      rho: of each link: seconds that float32 takes on it, over those of a step without it.
      smoke: on so little that it takes seconds.
    """
    config = settings.change(links.LINK, set)
    config = links.smoke(config) if smoke else config
    found = links.link(config, out, _command("link", set, f"--rho {' '.join(map(str, rho))}"), rho)
    (out / "speedup.svg").write_text(plots.speedups(found), encoding="utf-8")
    _print(tables.split_link(found))


def _command(name: str, set: Sequence[str], rest: str) -> str:
    return f"python -m experiments sgq {name} {' '.join(['--set', *set, rest] if set else [rest])}"


def _print(table: object) -> None:
    imported("rich.console").Console(width=_WIDTH).print(table)


COMMANDS: dict[str, Callable[..., None]] = {
    "serve": serve,
    "device": device,
    "score": score,
    "certs": certs,
    "accuracy": accuracy,
    "link": link,
}


def main(argv: Sequence[str]) -> None:
    """Runs ``sgq serve``, ``device``, ``score``, ``certs``, ``accuracy`` or ``link``.

    Raises:
      UserError: for what the user can put right.
    """
    tyro = imported("tyro")
    marks = (tyro.conf.FlagCreatePairsOff,)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="python -m experiments sgq", args=list(argv), config=marks
        )
    except (ValueError, ConnectionError) as error:
        raise UserError(str(error)) from error


def _credentials(keys: Path | None, name: str) -> collab.Credentials | None:
    return None if keys is None else collab.read_credentials(keys, name)


def _link(text: str | None) -> collab.Link | None:
    return None if text is None else collab.parse_link(text)


def _config(changes: Sequence[str], smoke: bool) -> split.Config:
    config = settings.change(split.Config(), changes)
    return split.smoke(config) if smoke else config


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    beside.replace(path)
