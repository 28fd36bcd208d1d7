"""Files that are checked against their sha256 before anything reads them."""

import hashlib
import os
from pathlib import Path

from experiments.errors import UserError

__all__ = ["checked", "originals"]


def originals(name: str) -> Path:
    """The folder of this name among the data sets; it need not be there.

    They are in ``$TINYJAX_DATA`` or in ``../shared/data`` beside the repository.
    """
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    return Path(os.environ.get("TINYJAX_DATA") or beside) / name


def checked(path: Path, sha256: str, cure: str) -> bytes:
    """The bytes of a file, if they are the ones that its checksum promises.

    Args:
      path: of the file.
      sha256: 64 hexadecimal digits.
      cure: what to do if the file is missing or another one, as the end of a sentence.

    Raises:
      UserError: if it is missing or has another checksum.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {cure}")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(f"{path} has sha256 {found[:12]}..., expected {sha256[:12]}...: {cure}")
    return data
