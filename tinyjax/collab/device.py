"""A device's side of split training: its lower half, what it has asked, and how it asks again.

A step sends features and waits for their gradient, so there is one message under way. Messages are
kept until the cloud says that it has saved them, and sent again when it comes back from before
them; a device that is killed continues from its own checkpoint and is answered from what the cloud
kept. Either way nothing is trained on twice, and nothing is left out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import numpy as np

from tinyjax.base import Array
from tinyjax.collab.halves import Lower, backward, forward
from tinyjax.collab.ledger import ANSWERS, Refused
from tinyjax.collab.lines import Line
from tinyjax.collab.messages import Kind, Message, read, write
from tinyjax.collab.saving import Store
from tinyjax.collab.seeds import digest, seed_for
from tinyjax.collab.ways import Ways

__all__ = ["Device"]


class Device:
    """A lower half in training.

    Args:
      half: apply function, parameters and optimizer.
      ways: both directions of the link, as the cloud has them.
      dial: opens a line to the cloud: :func:`dial`, or :func:`within`.
      device: its number, from 0.
      average_every: steps after which lower halves are averaged, optimizers left as they are; 0
        for never.
      folder: of its checkpoints, continued from if there are any; None keeps none.
      save_every: steps between two checkpoints.
      keep: messages kept for a cloud that has not saved them, at most.
      patience: seconds of asking in vain after which it gives up.
      job: settings as text; a cloud that has others refuses.

    Raises:
      ValueError: if a number is out of range, a checkpoint is not of this training, or lower
        halves to be averaged are not float32.

    Example:
      See :class:`Cloud`.

      >>> from tinyjax import collab
      >>> callable(collab.Device.step)
      True
    """

    def __init__(
        self,
        half: Lower,
        ways: Ways,
        dial: Callable[[], Line],
        *,
        device: int = 0,
        average_every: int = 0,
        folder: Path | None = None,
        save_every: int = 10,
        keep: int = 256,
        patience: float = 120.0,
        job: str = "",
    ) -> None:
        if min(save_every, keep) < 1 or min(average_every, device) < 0:
            raise ValueError(
                f"device={device}, average_every={average_every}, save_every={save_every}, "
                f"keep={keep}: use 0 or more, and 1 or more for the last two"
            )
        flat, self._unflat = jax.flatten_util.ravel_pytree(half.params)
        if average_every and flat.dtype != np.float32:
            raise ValueError(f"parameters are {flat.dtype.name}: average float32 ones, or none")
        self._ways, self._dial, self._number = ways, dial, device
        self._average_every, self._save_every, self._keep = average_every, save_every, keep
        self._patience, self._digest = patience, digest(job)
        self._forward, self._backward = forward(half), backward(half)
        self._state = (half.params, half.optimizer.init(half.params), ways.device)
        self._line: Line | None = None
        self._kept: dict[int, Message] = {}  # what the cloud has not saved
        self._sequence = self._durable = self._steps = 0
        self._finished = False
        self.retries = 0
        self._store = Store(folder, {"job": self._digest.hex(), "device": device})
        self._resume()

    @property
    def params(self) -> Any:
        """The lower half's parameters as they are now."""
        return self._state[0]

    @property
    def steps(self) -> int:
        """Steps trained so far: the next batch is that of this number."""
        return self._steps

    def step(self, x: Any, labels: Any) -> float:
        """Trains both halves on a batch.

        Args:
          x: ``[n, ...]``, for the lower half.
          labels: int32 ``[n]``.

        Returns:
          The loss, before the update.

        Raises:
          Refused: if the cloud will not have it, or this device has finished.
          ConnectionError: if the cloud was not to be had for ``patience`` seconds. The same step
            may then be tried again.
          ValueError: if the lower half makes other features than ``ways`` is for.
        """
        self._settle()
        params, moments, end = self._state
        features, back = self._forward(params, x)
        self._check(features)
        message = self._next(Kind.STEP, labels=np.asarray(labels))
        frame, end = self._ways.up.encode(features, end, seed_for(0, message))
        answer = self._ask(message._replace(frame=frame))
        g, end = self._ways.down.decode(answer.frame, end)
        params, moments = self._backward(params, moments, back, g)
        self._state, self._steps = (params, moments, end), self._steps + 1
        self._settle()
        if self._steps % self._save_every == 0:
            self._save()
        return answer.loss

    def finish(self) -> None:
        """Tells the cloud that there are no more steps; returns when both sides have saved.

        Raises:
          Refused, ConnectionError: as :meth:`step` does.
        """
        if not self._finished:
            self._settle()
            self._save()  # or a device killed here would go on where the cloud has closed
            self._ask(self._next(Kind.FINISH))
            self._finished = True
            self._save()
        self.close()

    def close(self) -> None:
        """Hangs up. A later step dials again."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _settle(self) -> None:
        """Takes part in the average that is due after this many steps, if it has not."""
        every = self._average_every
        if every and self._sequence - self._steps < self._steps // every:
            self._average()

    def _average(self) -> None:
        params, moments, end = self._state
        flat = np.asarray(jax.flatten_util.ravel_pytree(params)[0])
        answer = self._ask(self._next(Kind.AVERAGE, frame=flat.astype("<f4").tobytes()))
        mean = np.frombuffer(answer.frame, "<f4").astype(np.float32)
        if mean.shape != flat.shape:
            raise Refused(f"the cloud's average has {mean.size} parameters, not {flat.size}")
        self._state = (self._unflat(jax.numpy.asarray(mean)), moments, end)

    def _check(self, features: Array) -> None:
        want = self._ways.features
        if (features.shape, features.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"the lower half made {features.dtype.name} {list(features.shape)} where the link "
                f"is for {want.dtype.name} {list(want.shape)}: give it batches of one size"
            )

    def _next(self, kind: Kind, **content: Any) -> Message:
        if self._finished:
            raise Refused(f"device {self._number} has finished: start another training")
        durable = self._durable if self._store.folder is not None else self._sequence
        return Message(kind, self._number, self._sequence + 1, durable, **content)

    def _ask(self, message: Message) -> Message:
        """The answer to the next message, however often the line breaks meanwhile."""
        until, pause = time.monotonic() + self._patience, 0.05
        while True:
            try:
                answer = self._answered(message)
                break
            except ConnectionError as error:
                self.close()
                if time.monotonic() > until:
                    raise ConnectionError(
                        f"the cloud did not answer for {self._patience:g} s: {error}"
                    ) from error
                self.retries += 1
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 2.0)
        self._sequence = message.sequence
        self._kept[message.sequence] = message
        self._forget(answer.durable)
        return answer

    def _answered(self, message: Message) -> Message:
        if self._line is None:
            self._line = self._dial()
            self._greet(self._line, message)
        answer = self._line.ask(message)
        if (answer.kind, answer.sequence) != (ANSWERS[message.kind], message.sequence):
            raise Refused(f"the cloud answered step {message.sequence} with {answer.kind.name}")
        return answer

    def _greet(self, line: Line, message: Message) -> None:
        """Says hello, and repeats what the cloud has lost."""
        hello = Message(
            Kind.HELLO, self._number, self._sequence, message.durable, frame=self._digest
        )
        there = line.ask(hello)
        self._forget(there.durable)
        for number in range(there.sequence + 1, message.sequence):
            if number not in self._kept:
                raise Refused(
                    f"the cloud is at step {there.sequence} and device {self._number} at "
                    f"{self._sequence}, which no longer has what lies between: start both over"
                )
            line.ask(self._kept[number])

    def _forget(self, durable: int) -> None:
        self._kept = {number: kept for number, kept in self._kept.items() if number > durable}
        if len(self._kept) > self._keep:
            raise Refused(f"the cloud has not saved for {self._keep} steps: save more often")

    def _save(self) -> None:
        ledger = {
            "sequence": self._sequence,
            "steps": self._steps,
            "finished": self._finished,
        }
        kept = [write(message) for message in self._kept.values()]
        self._store.save(self._sequence, self._state, ledger, kept)
        self._durable = self._sequence

    def _resume(self) -> None:
        saved = self._store.restore(self._state)
        if saved is None:
            return
        ledger = saved.ledger
        self._state = saved.state
        self._sequence = self._durable = ledger["sequence"]
        self._steps, self._finished = ledger["steps"], ledger["finished"]
        self._kept = {kept.sequence: kept for kept in map(read, saved.blobs)}
