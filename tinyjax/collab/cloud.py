"""The cloud's side of split training: who is how far, and what was answered.

A state machine without any network. Devices are numbered from 0, and what each one asks is numbered
from 1. A number is trained on once: asked again, it is answered again from what is kept, until the
device says that it has saved the step. In a fixed order the devices take turns, so the parameters
are a function of what was asked alone; that is what makes a run that was killed and resumed equal,
bit for bit, one that was not.
"""

from __future__ import annotations

import hmac
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinyjax.collab.halves import Upper
from tinyjax.collab.ledger import ANSWERS, Busy, Client, Refused, reading, writing
from tinyjax.collab.messages import Kind, Message
from tinyjax.collab.saving import Store
from tinyjax.collab.seeds import digest
from tinyjax.collab.training import Training
from tinyjax.collab.ways import Ways

__all__ = ["Cloud"]

_PAUSE = 0.2  # seconds between looks at whether who asked is still there


class Cloud:
    """The upper half in training. Safe to ask from many threads; it computes one step at a time.

    Args:
      half: apply function, parameters, optimizer and loss.
      ways: both directions of the link, as every device has them.
      devices: how many take part.
      fixed: whether they take turns in the order of their numbers. It makes training reproducible,
        and one that stays away holds up the others.
      averaged: float32 parameters in a lower half, if lower halves are averaged; 0 if not.
      folder: of its checkpoints, continued from if there are any; None keeps none.
      save_every: messages taken between two checkpoints.
      keep: answers kept for a device that has not saved, at most.
      patience: seconds that a device is held to wait for others before it is told to ask again.
      seed: of the gradients' rounding.
      job: settings as text; a device that names others is refused.

    Raises:
      ValueError: if a number is out of range or a checkpoint is not of this training.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, optax
      >>> from tinyjax import collab
      >>> loss = lambda y, labels: ((y[:, 0] - labels.astype(y.dtype)) ** 2).mean()
      >>> upper = collab.Upper(lambda w, x: x @ w, jnp.ones((2, 1)), optax.sgd(0.1), loss)
      >>> lower = collab.Lower(lambda w, x: x * w, jnp.ones(2), optax.sgd(0.1))
      >>> ways = collab.plain(jax.ShapeDtypeStruct((1, 2), jnp.float32))
      >>> cloud = collab.Cloud(upper, ways)
      >>> device = collab.Device(lower, ways, collab.within(cloud))
      >>> x, labels = jnp.ones((1, 2)), np.array([3], np.int32)
      >>> device.step(x, labels), device.step(x, labels) < 1
      (1.0, True)
    """

    def __init__(
        self,
        half: Upper,
        ways: Ways,
        *,
        devices: int = 1,
        fixed: bool = True,
        averaged: int = 0,
        folder: Path | None = None,
        save_every: int = 10,
        keep: int = 64,
        patience: float = 20.0,
        seed: int = 0,
        job: str = "",
    ) -> None:
        if min(devices, save_every, keep) < 1 or averaged < 0:
            raise ValueError(
                f"devices={devices}, save_every={save_every}, keep={keep}, averaged={averaged}: "
                "use 1 or more, and 0 or more for averaged"
            )
        self.devices = devices
        #: bytes of the largest message that a device has reason to send
        self.largest = 8 * ways.features.size + 4 * averaged + 64 * 1024
        self._fixed, self._save_every, self._keep = fixed, save_every, keep
        self._patience, self._digest = patience, digest(job)
        self._training = Training(half, ways, devices, averaged, seed)
        self._clients = [Client() for _ in range(devices)]
        self._turn = self._taken = 0
        self._changed = threading.Condition()
        self._store = Store(folder, {"job": self._digest.hex(), "devices": devices})
        self._saved = [0] * devices
        self._resume()

    @property
    def params(self) -> Any:
        """The upper half's parameters as they are now."""
        return self._training.state[0]

    @property
    def taken(self) -> int:
        """Messages taken so far, of all devices together."""
        return self._taken

    def hello(self, message: Message) -> Message:
        """How far a device is, in answer to its first message.

        Raises:
          Refused: if it is none of ours, or of another training.
        """
        if message.kind is not Kind.HELLO or message.device >= self.devices:
            raise Refused(f"device {message.device} of {self.devices} does not say hello")
        if not hmac.compare_digest(message.frame, self._digest):
            raise Refused(
                f"device {message.device} has other settings than the cloud: use the same"
            )
        with self._changed:
            sequence = self._clients[message.device].sequence
            return Message(Kind.HELLO, message.device, sequence, self._durable(message.device))

    def answer(self, message: Message, here: Callable[[], bool] = lambda: True) -> Message:
        """Takes a step, an average or a finish, once, and answers it.

        Args:
          message: of a device that has said hello.
          here: whether it is still there to be answered.

        Raises:
          Refused: if it is out of order, not of this training, or would spoil the parameters.
          Busy: if it is not this device's turn for too long.
        """
        kind, device, number = message.kind, message.device, message.sequence
        if kind not in ANSWERS or device >= self.devices:
            raise Refused(f"a {kind.name.lower()} of device {device} has no answer")
        content = zlib.crc32(message.frame, zlib.crc32(message.labels.tobytes(), kind))
        client, until = self._clients[device], time.monotonic() + self._patience
        with self._changed:
            if client.is_next(message, self._keep):
                self._wait(lambda: self._may(device) or number <= client.sequence, until, here)
            if client.is_next(message, self._keep):  # still, after waiting
                self._take(client, message, content)
            elif client.asked[number] != content:
                raise Refused(f"step {number} of device {device} was another one before")
            self._wait(lambda: number in client.answers or number <= client.durable, until, here)
            client.is_next(message, self._keep)  # refused if it has been forgotten meanwhile
            return client.answers[number]._replace(durable=self._durable(device))

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until every device has finished; whether they have."""
        with self._changed:
            everyone = lambda: all(client.finished for client in self._clients)
            return self._changed.wait_for(everyone, timeout)

    def close(self) -> None:
        """Lets go of the folder; what has not been saved is asked again of who asked it."""
        with self._changed:
            self._store.close()

    def _durable(self, device: int) -> int:
        kept = self._store.folder is not None
        return self._saved[device] if kept else self._clients[device].sequence

    def _may(self, device: int) -> bool:
        return not self._fixed or self._turn == device

    def _wait(self, ready: Callable[[], bool], until: float, here: Callable[[], bool]) -> None:
        while not ready():
            if time.monotonic() > until or not here():
                raise Busy("another device's turn has not ended")
            self._changed.wait(_PAUSE)

    def _take(self, client: Client, message: Message, content: int) -> None:
        """Trains on a message and writes down that it was taken."""
        device, number = message.device, message.sequence
        if device in self._training.given:
            raise Refused(f"device {device} has not had its average yet: wait for it")
        answer = self._taken_in(message)  # refuses before anything has changed
        client.take(message, content)
        if answer is not None:
            client.answers[number] = answer
        client.finished = message.kind is Kind.FINISH
        self._taken += 1
        order = [(self._turn + i) % self.devices for i in range(1, self.devices + 1)]
        self._turn = next((d for d in order if not self._clients[d].finished), 0)
        self._average()
        if self._taken % self._save_every == 0 or client.finished:
            self._save()
        self._changed.notify_all()

    def _taken_in(self, message: Message) -> Message | None:
        """The answer to a message, as far as there is one already."""
        if message.kind is Kind.STEP:
            return self._training.step(message)
        if message.kind is Kind.AVERAGE:
            return self._training.give(message)
        return Message(Kind.DURABLE, message.device, message.sequence)

    def _average(self) -> None:
        """Answers those who gave parameters, once all that have not finished did."""
        active = {d for d, client in enumerate(self._clients) if not client.finished}
        if not self._training.given or not active <= self._training.given.keys():
            return
        for device, mean in self._training.average().items():
            client = self._clients[device]
            answer = Message(Kind.AVERAGE, device, client.sequence, frame=mean)
            client.answers[client.sequence] = answer

    def _save(self) -> None:
        clients, answers = writing(self._clients)
        given = self._training.given
        ledger = {
            "turn": self._turn,
            "taken": self._taken,
            "clients": clients,
            "given": list(given),
        }
        blobs = [*answers, *(values.tobytes() for values in given.values())]
        self._store.save(self._taken, self._training.state, ledger, blobs)
        self._saved = [client.sequence for client in self._clients]

    def _resume(self) -> None:
        saved = self._store.restore(self._training.state)
        if saved is None:
            return
        ledger = saved.ledger
        self._training.state = saved.state
        self._turn, self._taken = ledger["turn"], ledger["taken"]
        answers = len(saved.blobs) - len(ledger["given"])
        self._clients = reading(ledger["clients"], saved.blobs[:answers])
        given = [np.frombuffer(blob, "<f4") for blob in saved.blobs[answers:]]
        self._training.given = dict(zip(ledger["given"], given, strict=True))
        self._saved = [client.sequence for client in self._clients]
