"""What a device needs of a connection, and the one that needs no network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tinyjax.collab.ledger import Busy
from tinyjax.collab.messages import Kind, Message, read, write

__all__ = ["Answers", "Line", "within"]


class Answers(Protocol):
    """What answers devices: a :class:`Cloud` in training, or anything else of this form.

    Attributes:
      devices: how many may talk, numbered from 0.
      largest: bytes of the largest message that a device has reason to send.

    Example:
      >>> from tinyjax import collab
      >>> all(hasattr(collab.Cloud, name) for name in ("hello", "answer"))
      True
    """

    devices: int
    largest: int

    def hello(self, message: Message) -> Message:
        """The answer to a device's first message on a line.

        Raises:
          Refused: if it may not go on.
        """
        ...

    def answer(self, message: Message, here: Callable[[], bool] = ...) -> Message:
        """The answer to any later message; ``here`` says whether the device still waits.

        Raises:
          Refused: if it will never be answered otherwise; the line ends.
        """
        ...


class Line(Protocol):
    """An open connection to the cloud.

    Example:
      >>> from tinyjax import collab
      >>> hasattr(collab.Line, "ask")
      True
    """

    def ask(self, message: Message) -> Message:
        """The answer to a message.

        Raises:
          ConnectionError: if the line is gone, or no answer came in time.
          Refused: if the cloud will never take the message.
        """

    def close(self) -> None:
        """Hangs up."""


def within(cloud: Answers) -> Callable[[], Line]:
    """Lines to a cloud in the same process, through bytes but without a network.

    Args:
      cloud: what to ask.

    Returns:
      ``dial() -> line``, for a :class:`Device`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from tinyjax import collab
      >>> half = collab.Upper(lambda w, x: x * w, jnp.ones(2), optax.sgd(0.1), lambda y, _: y.sum())
      >>> cloud = collab.Cloud(half, collab.plain(jax.ShapeDtypeStruct((1, 2), jnp.float32)))
      >>> collab.within(cloud)().ask(collab.Message(collab.Kind.FINISH, sequence=1)).kind.name
      'DURABLE'
    """

    class Direct:
        def ask(self, message: Message) -> Message:
            message = read(write(message))
            reply = cloud.hello if message.kind is Kind.HELLO else cloud.answer
            try:
                return read(write(reply(message)))
            except Busy as error:
                raise ConnectionError(str(error)) from error

        def close(self) -> None:
            pass

    return Direct
