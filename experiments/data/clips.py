"""The bundled clip: 240 frames of a fixed camera in a room, 768x432 at 10 frames per second.

It is cut from Intel's sample video "one-by-one person detection" (CC BY 4.0); what was changed is
in ``one_by_one_person/README.md``.
"""

from pathlib import Path

from experiments.data.files import checked

__all__ = ["CLIP", "SHA256", "clip"]

CLIP = Path(__file__).parent / "one_by_one_person" / "one_by_one_person.mp4"

SHA256 = "6aeb3114b9766e3b30fc5365f40ded4461fd86dffef0ef8bab22f14c3c5b1797"


def clip() -> Path:
    """The path of the bundled clip, after its checksum was checked.

    Raises:
      UserError: if it is missing or damaged.
    """
    checked(CLIP, SHA256, "restore it from the repository")
    return CLIP
