"""What the cloud computes: one step after another, with no idea of who is how far."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyjax.collab.halves import Upper, upper_step
from tinyjax.collab.ledger import Refused
from tinyjax.collab.messages import Kind, Message
from tinyjax.collab.seeds import seed_for
from tinyjax.collab.ways import Ways

__all__ = ["Training"]


class Training:
    """The upper half, the cloud's ends of every link, and parameters waiting for their average.

    Args:
      half: apply function, parameters, optimizer and loss.
      ways: both directions of the link.
      devices: how many take part.
      averaged: float32 parameters in a lower half, 0 if they are not averaged.
      seed: of the gradients' rounding.
    """

    def __init__(self, half: Upper, ways: Ways, devices: int, averaged: int, seed: int) -> None:
        self._ways, self._averaged, self._seed = ways, averaged, seed
        self._step = upper_step(half)
        moments = half.optimizer.init(half.params)
        self.state: Any = (half.params, moments, (ways.cloud,) * devices)
        self.given: dict[int, np.ndarray] = {}  # parameters to be averaged, by device

    def step(self, message: Message) -> Message:
        """Trains on a step and answers it.

        Raises:
          Refused: if it does not fit or its loss or gradients are not finite; nothing has changed.
        """
        device, shape = message.device, list(self._ways.features.shape)
        params, moments, ends = self.state
        if len(message.labels) != shape[0]:
            raise Refused(f"{len(message.labels)} labels came with features {shape}: send each one")
        try:
            x, end = self._ways.up.decode(message.frame, ends[device])
        except ValueError as error:
            raise Refused(str(error)) from error
        params, moments, g, loss, sound = self._step(params, moments, x, message.labels)
        if not sound:
            raise Refused(f"step {message.sequence} of device {device} is not finite: left out")
        frame, end = self._ways.down.encode(g, end, seed_for(self._seed, message))
        answer = Message(Kind.GRADIENT, device, message.sequence, loss=float(loss), frame=frame)
        self.state = (params, moments, (*ends[:device], end, *ends[device + 1 :]))
        return answer

    def give(self, message: Message) -> None:
        """Takes a lower half's parameters.

        Raises:
          Refused: if they are not as many finite float32 as a lower half has.
        """
        fits = len(message.frame) == 4 * self._averaged > 0
        given = np.frombuffer(message.frame, "<f4") if fits else np.full(1, np.nan, "<f4")
        if not np.isfinite(given).all():
            raise Refused(
                f"device {message.device} gives {len(message.frame)} bytes to be averaged where "
                f"{self._averaged} finite float32 are averaged"
            )
        self.given[message.device] = given

    def average(self) -> dict[int, bytes]:
        """The mean of what was given, for each that gave; the order they came in is no matter."""
        given = [self.given[device] for device in sorted(self.given)]
        mean = np.mean(np.stack(given), 0, np.float64).astype("<f4").tobytes()
        devices, self.given = list(self.given), {}
        return dict.fromkeys(devices, mean)
