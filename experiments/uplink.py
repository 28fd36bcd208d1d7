"""PASS and SGQ together: bytes of a frame where only what changed crosses the cut.

A device runs an encoder over a clip with `pass_skip` and sends its features to a cloud, as key
frames and differences (`delta_uplink`); beside it every frame is sent whole, with the same
quantizer and lossless coder. Both coders of whole frames have contexts, fitted to the first frame::

    python -m experiments uplink --out experiments/results
    python -m experiments uplink --config mobilenet --set key_every=100

Definitions. *Active* is the share of the last block's cells that were recomputed, *sent* the share
of positions in the cells that are sent, *ratio* the bytes of differences over active x the bytes of
the same frames whole, *largest* that of the worst frame, without its header (54 bytes and a bit for
each cell); both are 0 where nothing was active. Key frames are not in these rows. The cloud's
features are compared with the device's bit for bit in every frame. The weights are random: only
relative figures mean anything.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, video
from experiments.encoders import MobileNetEncoder, ResNetEncoder
from experiments.errors import UserError
from experiments.progress import Follow, unfollowed
from tinyjax import (
    delta_uplink,
    entropy,
    pass_skip,
    rewrite,
    sgq_decode,
    sgq_encode,
    threshold,
    wire,
)

__all__ = ["CONFIGS", "Config", "Results", "markdown", "run", "smoke"]

_ENCODERS = {"resnet": ResNetEncoder, "mobilenet": MobileNetEncoder}
_HEADER = 24 + 4 * 4 + 10 + 4  # of a difference in which nothing is sent
_EDGES = (0.0, 0.2, 0.3, 0.45, 1.0)  # of the active share


@dataclass(frozen=True)
class Config:
    """A clip, an encoder, and when key frames are sent."""

    encoder: str = "resnet"
    video: str = ""  # path of a video file; empty: the bundled clip
    patch: int = 16  # of pass_skip, in pixels
    threshold: float = 12 / 255  # largest change of a pixel, of 0..1, that is let pass
    key_every: int = 30  # frames
    cell: int = 4  # of what is sent, in positions of the features
    frames: int = 0  # run over so many first frames only; 0: over all
    seed: int = 0  # of the random weights

    def __post_init__(self) -> None:
        if self.encoder not in _ENCODERS:
            raise UserError(f"encoder={self.encoder!r} is unknown: choose {' or '.join(_ENCODERS)}")
        for key, least in (("key_every", 1), ("cell", 1), ("frames", 0), ("seed", 0)):
            if (given := getattr(self, key)) < least:
                raise UserError(f"{key}={given} is too small: choose {least} or more")


CONFIGS: dict[str, Config] = {name: Config(encoder=name) for name in _ENCODERS}


def smoke(config: Config) -> Config:
    """The same on so few frames that it takes seconds."""
    return replace(config, frames=4)


class Results(NamedTuple):
    """Bytes and shares, frame by frame."""

    shape: list[int]  # of the features
    key: list[bool]
    active: list[float]
    sent: list[float]
    bytes: list[int]  # as sent
    whole: list[int]  # of the frame sent whole
    equal: bool  # the cloud's features were the device's, bit for bit, in every frame
    by_activity: list[dict[str, float]]  # of the differences


def run(config: Config, out: Path | None = None, follow: Follow = unfollowed) -> Results:
    """Sends a clip's features, in differences and whole.

    Args:
      config: of the run.
      out: unused; it takes a minute or two, so nothing is kept of an unfinished run.
      follow: shows the progress.

    Raises:
      UserError: if the video cannot be read.
    """
    del out
    path = Path(config.video) if config.video else data.clip()
    encoder, count = _ENCODERS[config.encoder](), config.frames or video.about(path).frames
    frames = islice(video.frames(path), count)
    first = _floats(next(iter(video.frames(path))))
    params = jax.jit(encoder.init)(jax.random.key(config.seed, impl="rbg"), first)
    gate = threshold(config.threshold)
    skipping = rewrite(pass_skip(patch=config.patch, gate=gate), encoder.apply)
    step = jax.jit(lambda *args: skipping.apply(*args)[::-1], donate_argnums=0)
    contexts = entropy.fit(sgq_encode(jnp.asarray(encoder.apply(params, first))))
    compress = jax.jit(partial(_whole, contexts))
    uplink = delta_uplink(cell=config.cell, contexts=contexts)
    key, delta, receive = (jax.jit(f) for f in uplink[1:])
    state = skipping.init(params, first)
    device = cloud = uplink.init(jax.eval_shape(encoder.apply, params, first))
    rows: list[tuple] = []
    equal = True
    with follow("uplink", count) as watch:
        for t, image in enumerate(frames):
            state, x = step(state, params, _floats(image))
            is_key = t % config.key_every == 0
            device, code = (key if is_key else delta)(device, x)
            frame = wire.pack(code)
            cloud, valid = receive(cloud, wire.unpack(frame))
            here, there = (np.asarray(sgq_decode(end.features)) for end in (device, cloud))
            equal = equal and bool(valid) and here.tobytes() == there.tobytes()
            sent = 1.0 if is_key else _share(np.asarray(code.cells), config.cell, x.shape)
            active = float(np.asarray(state.active[-1]).mean())
            head = _HEADER if is_key or not sent else _HEADER + -(-code.cells.size // 8)
            rows.append((is_key, active, sent, len(frame), len(wire.pack(compress(x))), head))
            watch(t + 1, f"{len(frame)} bytes")
    key_frames, actives, shares, sizes, whole, _ = ([*c] for c in zip(*rows, strict=True))
    shape, means = list(device.features.shape), _by_activity(rows)
    return Results(shape, key_frames, actives, shares, sizes, whole, equal, means)


def markdown(record: Any) -> list[str]:
    """The rows of a table in Markdown, from a record of a run."""
    metrics = record["metrics"]
    rows = [
        "| active share | frames | active | sent | bytes a frame | whole frame | ratio | largest |"
    ]
    rows.append("|---|---|---|---|---|---|---|---|")
    for row in metrics["by_activity"]:
        rows.append(
            f"| {row['from']:g} to {row['to']:g} | {row['frames']} | {row['active']:.2f} | "
            f"{row['sent']:.3f} | {row['bytes']:.0f} | {row['whole']:.0f} | {row['ratio']:.2f} | "
            f"{row['largest_ratio']:.2f} |"
        )
    return rows


def _floats(image: np.ndarray) -> jax.Array:
    return jnp.asarray(image)[None].astype(jnp.float32) / 255


def _whole(contexts: Any, x: jax.Array) -> Any:
    return entropy.compress(sgq_encode(x), contexts)


def _share(cells: np.ndarray, cell: int, shape: tuple[int, ...]) -> float:
    """The share of positions that cells cover."""
    wide = np.repeat(np.repeat(cells, cell, axis=0), cell, axis=1)
    return float(wide[: shape[1], : shape[2]].mean())


def _by_activity(rows: list[tuple]) -> list[dict[str, float]]:
    """Means over the differences, by the share that was recomputed, and over all of them."""
    found = []
    spans = [*pairwise(_EDGES), (0.0, 1.0)]
    for low, high in spans:
        # The first span has its lower edge too.
        inside = [r[1:] for r in rows if not r[0] and (low < r[1] <= high or r[1] == low == 0)]
        if inside:
            active, sent, size, whole, _ = np.asarray(inside).T
            found.append(
                {
                    "from": low,
                    "to": high,
                    "frames": len(inside),
                    "active": float(active.mean()),
                    "sent": float(sent.mean()),
                    "bytes": float(size.mean()),
                    "whole": float(whole.mean()),
                    "ratio": float(size.sum() / (active * whole).sum()) if active.any() else 0.0,
                    "largest_ratio": max(
                        ((s - h) / (a * w) for a, _, s, w, h in inside if a), default=0.0
                    ),
                }
            )
    return found
