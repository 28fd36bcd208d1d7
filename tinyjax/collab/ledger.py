"""What the cloud knows of each device: how far it is, and what it was answered."""

from __future__ import annotations

import dataclasses
from typing import Any

from tinyjax.collab.messages import Kind, Message, read, write

__all__ = ["ANSWERS", "Busy", "Client", "Refused", "reading", "writing"]

ANSWERS = {Kind.STEP: Kind.GRADIENT, Kind.AVERAGE: Kind.AVERAGE, Kind.FINISH: Kind.DURABLE}


class Refused(ValueError):
    """The other side will never take this: asking again is no use.

    Example:
      >>> from tinyjax import collab
      >>> isinstance(collab.Refused("step 3 where step 2 is next"), ValueError)
      True
    """


class Busy(Exception):
    """Not now, since another device's turn has not ended: asking again is of use."""


@dataclasses.dataclass
class Client:
    """One device."""

    sequence: int = 0  # the last number taken
    durable: int = 0  # the last it has saved
    finished: bool = False
    asked: dict[int, int] = dataclasses.field(default_factory=dict)  # number: CRC of the content
    answers: dict[int, Message] = dataclasses.field(default_factory=dict)  # number: answer

    def is_next(self, message: Message, keep: int) -> bool:
        """Whether a message is the next one, rather than one whose answer is kept.

        Raises:
          Refused: if it is neither, or says of itself what cannot be.
        """
        number, device = message.sequence, f"device {message.device}"
        if number <= self.durable:
            raise Refused(
                f"step {number} of {device} is no longer kept: continue from the device's "
                "checkpoint, or start all of this training over"
            )
        if number <= self.sequence:
            return False
        if self.finished or number != self.sequence + 1:
            what = "nothing" if self.finished else f"step {self.sequence + 1}"
            raise Refused(f"{device} asks for step {number} where {what} is next")
        if not self.durable <= message.durable < number:
            raise Refused(f"{device} asks for step {number} and says it saved {message.durable}")
        if number - message.durable > keep:
            raise Refused(f"{device} has not saved for {keep} steps: save more often")
        return True

    def take(self, message: Message, content: int) -> None:
        """Writes down that a message was taken, and forgets what the device has saved."""
        self.sequence, self.durable = message.sequence, message.durable
        self.asked[self.sequence] = content
        for kept in (self.asked, self.answers):
            for number in [number for number in kept if number <= self.durable]:
                del kept[number]


def writing(clients: list[Client]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Clients as JSON and byte strings, for :func:`reading`."""
    plain = [
        {
            "sequence": client.sequence,
            "durable": client.durable,
            "finished": client.finished,
            "asked": [list(pair) for pair in client.asked.items()],
            "answers": len(client.answers),
        }
        for client in clients
    ]
    return plain, [write(answer) for client in clients for answer in client.answers.values()]


def reading(plain: list[dict[str, Any]], blobs: list[bytes]) -> list[Client]:
    """Clients of what :func:`writing` made of them."""
    answers, clients = iter(map(read, blobs)), []
    for record in plain:
        kept = [next(answers) for _ in range(record["answers"])]
        asked = dict(map(tuple, record["asked"]))
        clients.append(
            Client(
                record["sequence"],
                record["durable"],
                record["finished"],
                asked,
                {answer.sequence: answer for answer in kept},
            )
        )
    return clients
