"""``python -m tests.second_process FOLDER``: decodes the frames that another process wrote there.

Each case is three files, ``N.frame``, ``N.state`` and ``N.features``, the last two perhaps empty;
``N.values`` is added, the decoded values as they are in memory.
"""

import sys
from pathlib import Path

import numpy as np

from tinyjax import SGQGradient, entropy, sgq, sgq_decode, wire
from tinyjax.streams import Stream


def values(frame, state, features):
    """The decoded values of a frame."""
    state, features = (wire.unpack(data) if data else None for data in (state, features))
    code = wire.unpack(frame, features)
    gradient = isinstance(code, SGQGradient)
    if isinstance(code.codes if gradient else code.packed, Stream):
        code, valid = entropy.expand(code, state, features)
        assert valid
    return np.asarray(sgq().decode_gradient(code) if gradient else sgq_decode(code))


def main(folder):
    for file in sorted(folder.glob("*.frame")):
        parts = [file.with_suffix(end).read_bytes() for end in (".frame", ".state", ".features")]
        file.with_suffix(".values").write_bytes(values(*parts).tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
