"""What features and gradients of split training go through, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax

from experiments.carriers import compress, uniform
from experiments.extras import imported
from tinyjax import Codec, collab, global_step, sgq, stripe_gains, stripe_groups, wire

__all__ = ["CODECS", "Settings"]


class Settings(Protocol):
    """What codecs depend on, of `split.Config`."""

    @property
    def bits(self) -> int: ...

    @property
    def error(self) -> float: ...

    @property
    def group_size(self) -> int: ...


def _through(codec: Callable[[Settings], Codec]) -> Callable[..., collab.Ways]:
    return lambda config, features: collab.coded(codec(config), features)


def _zstd(codec: Callable[[Settings], Codec]) -> Callable[..., collab.Ways]:
    """A codec whose frames are compressed as well, and decompressed up to a size."""

    def ways(config: Settings, features: jax.ShapeDtypeStruct) -> collab.Ways:
        zstandard = imported("zstandard")
        most = 8 * features.size + 65536

        def unpack(frame: bytes, known: Any) -> Any:
            try:
                if not 0 <= zstandard.get_frame_parameters(frame).content_size <= most:
                    raise ValueError(f"a compressed frame says it holds more than {most} bytes")
                whole = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
                return wire.unpack(whole, known, most=features.size)
            except zstandard.ZstdError as error:
                raise ValueError(f"a frame cannot be decompressed: {error}") from error

        pack = lambda code, known: compress(wire.pack(code, known))
        return collab.coded(codec(config), features, pack, unpack)

    return ways


def _learning(codec: Callable[[Settings], Codec]) -> Callable[..., collab.Ways]:
    return lambda config, features: collab.compressed(codec(config), features)


def _sgq(config: Settings, *, exact: bool = False) -> Codec:
    return sgq(quantizer=global_step(bits=config.bits, exact=exact), error=config.error)


def _sgq_groups(config: Settings) -> Codec:
    groups = stripe_groups(group_size=config.group_size, bits=config.bits)
    return sgq(quantizer=groups, error=config.error)


def _sgq_gains(config: Settings) -> Codec:
    return sgq(quantizer=stripe_gains(group_size=config.group_size), error=config.error)


CODECS: dict[str, Callable[[Settings, jax.ShapeDtypeStruct], collab.Ways]] = {
    "float32": lambda config, features: collab.plain(features),
    "int8": _through(lambda config: uniform(8)),
    "int4": _through(lambda config: uniform(4)),
    "int4_zstd": _zstd(lambda config: uniform(4)),
    "sgq": _through(_sgq),
    "sgq_groups": _through(_sgq_groups),
    "sgq_gains": _through(_sgq_gains),
    "sgq_entropy": _learning(_sgq),
    "sgq_masked": _learning(partial(_sgq, exact=True)),
}
