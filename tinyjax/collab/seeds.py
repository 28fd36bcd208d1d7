"""Numbers that both sides, and every repetition, derive alike."""

from __future__ import annotations

import hashlib
import zlib

from tinyjax.collab.messages import Message

__all__ = ["digest", "seed_for"]


def digest(job: str) -> bytes:
    """32 bytes of the settings, as text, that both sides must have in common."""
    return hashlib.sha256(job.encode()).digest()


def seed_for(seed: int, message: Message) -> int:
    """The uint32 that rounding in the answer to a message is drawn from."""
    return zlib.crc32(f"{seed} {message.device} {message.sequence}".encode())
