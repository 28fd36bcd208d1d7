"""The two sides of `experiments.thesis`: a camera's device, and the cloud that answers it.

Nothing here knows of processes or sockets: the device asks a `tinyjax.collab` line, and the cloud
is what `tinyjax.collab.serve` serves, or `within` for a test.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import patchwork, segmenter, turns
from experiments.thesis_link import delta_ways, restarted
from experiments.thesis_setup import Config, Setup, in_int8, lower, upper
from tinyjax import collab, count_macs, frozen, int8_qat, pass_skip, rewrite, threshold

__all__ = ["Answering", "Camera", "Frame", "digest", "learns", "ways"]

Array = jax.Array
Kind, Message = collab.Kind, collab.Message


class Frame(NamedTuple):
    """What a device did for one frame."""

    half_ms: float  # from the uint8 frame in memory to its features
    coding_ms: float  # from there to the bytes of the message's frame
    waiting_ms: float  # until the answer was there
    learning_ms: float  # decoding of the gradient, and the update
    bytes: int  # of features, as a frame of the codec
    gradient_bytes: int
    active: float  # share of the patches recomputed, blocks weighed by what they cost
    macs: dict[str, int]  # multiply-accumulates by operand


def digest(config: Config) -> bytes:
    """What a device shows of its settings."""
    return hashlib.sha256(repr(config).encode()).digest()


def learns(config: Config, index: int) -> bool:
    """Whether both halves are updated after the frame of this index, from 0."""
    return config.every > 0 and (index + 1) % config.every == 0


def _uses(config: Config, method: str) -> bool:
    return config.off not in (method, "all")


def _features(config: Config, setup: Setup) -> jax.ShapeDtypeStruct:
    frame = jax.ShapeDtypeStruct((1, *setup.background.shape[:2], 6), jnp.uint8)
    return jax.eval_shape(lower(config), setup.lower, frame)


def ways(config: Config, setup: Setup) -> collab.Ways:
    """The link: SGQ's, or float32 as it is."""
    features = _features(config, setup)
    if _uses(config, "sgq"):
        return delta_ways(features, config.key_every, setup.contexts)
    return collab.plain(features)


# --- the device ----------------------------------------------------------------------------------


class Camera:
    """A device: its half, its end of the link, and what it has asked.

    Args:
      config: of the run.
      setup: what was prepared.
      link: of `ways`.
    """

    def __init__(self, config: Config, setup: Setup, link: collab.Ways) -> None:
        self._config, self._background = config, jnp.asarray(setup.background)
        self._ways, self._variables = link, setup.lower
        self._seen = jax.ShapeDtypeStruct((1, *setup.background.shape[:2], 6), jnp.uint8)
        apply = lower(config)
        infer = in_int8(apply, setup.table) if _uses(config, "int8") else apply
        self._update = jax.jit(_update(config, setup, apply))
        self._macs = count_macs(infer, self._variables, self._seen)
        g = self._ways.features
        self._update_macs = count_macs(self._update, self._variables, self._seen, g, jnp.uint32(0))
        self._skipping = None
        if _uses(config, "pass"):
            gate, numbers = threshold(setup.level), "int8" if _uses(config, "int8") else "float"
            held = setup.limits[numbers] or 0.0
            tx = pass_skip(patch=config.patch, gate=gate, inner=held, key_every=config.key_every)
            self._skipping = rewrite(tx, infer)
            self._costs = self._costs_of(apply, tx)

        def step(state: Any, variables: Any, image: Array) -> tuple[Any, Array]:
            x = segmenter.beside(image, self._background)[None]
            if self._skipping is None:
                return state, infer(variables, x)
            out, state = self._skipping.apply(state, variables, x)
            return state, out

        self._step = jax.jit(step, donate_argnums=0)
        self._warm()
        self._state, self._end, self._sequence = self._begun(), self._ways.device, 0

    def _begun(self) -> Any:
        """A state before the first frame."""
        return self._skipping.init(self._variables, self._seen) if self._skipping else ()

    def _costs_of(self, apply: Any, tx: Any) -> patchwork.Costs:
        """Of the float network, whose blocks are those of the int8 one."""
        skipping = rewrite(tx, apply)
        fresh = lambda: skipping.init(self._variables, self._seen)
        costs = turns.costs(skipping, fresh, self._variables, self._seen)
        grids = lambda init: [a.shape for a in jax.eval_shape(init).active]
        if grids(fresh) != grids(self._begun):
            raise ValueError("blocks in int8 are others than in float32: count them in another way")
        return costs

    def _warm(self) -> None:
        """Calls everything once, so that no frame pays for a compilation."""
        image = np.asarray(self._background)
        state, end = self._begun(), self._ways.device
        for _ in range(2):  # a key frame and a difference
            state, x = self._step(state, self._variables, image)
            _, end = self._ways.up.encode(x, end, 0)
        if self._config.every:
            there = self._ways.up.decode(self._ways.up.encode(x, self._ways.device, 0)[0], end)[1]
            g, _ = self._ways.down.decode(self._ways.down.encode(x, there, 0)[0], there)
            jax.block_until_ready(
                self._update(self._variables, self._input(state, image), g, np.uint32(0))
            )

    def greet(self, line: collab.Line) -> None:
        """Says hello."""
        line.ask(Message(Kind.HELLO, frame=digest(self._config)))

    def watch(self, line: collab.Line, image: np.ndarray) -> Frame:
        """One frame of the camera: features to the cloud, and an update if it is time for one.

        Args:
          line: to the cloud, that has been greeted.
          image: uint8 [h, w, 3].
        """
        index, image = self._sequence, np.ascontiguousarray(image)
        times = [time.perf_counter()]
        self._state, x = jax.block_until_ready(self._step(self._state, self._variables, image))
        times.append(time.perf_counter())
        frame, self._end = self._ways.up.encode(x, self._end, 0)
        times.append(time.perf_counter())
        labels = np.array([index], np.int32)
        answer = line.ask(Message(Kind.STEP, sequence=index + 1, labels=labels, frame=frame))
        times.append(time.perf_counter())
        if learns(self._config, index):
            g, self._end = self._ways.down.decode(answer.frame, self._end)
            seen = self._input(self._state, image)
            self._variables = jax.block_until_ready(
                self._update(self._variables, seen, g, np.uint32(index))
            )
            if _uses(self._config, "sgq"):  # all features move
                self._end = restarted(self._end)
        times.append(time.perf_counter())
        active = [np.asarray(cells) for cells in self._state.active] if self._skipping else None
        self._sequence += 1
        half, coding, waiting, learning = (1e3 * (b - a) for a, b in pairwise(times))
        share, macs = self._spent(active, learns(self._config, index))
        sizes = len(frame), len(answer.frame)
        return Frame(half, coding, waiting, learning, *sizes, share, macs)

    def _input(self, state: Any, image: np.ndarray) -> Array:
        """What the features are of: where patches were skipped, the effective input."""
        if self._skipping is not None:
            return jnp.array(state.ref)  # a copy: the state is given away with the next frame
        return segmenter.beside(image, np.asarray(self._background))[None]

    def _spent(self, active: Any, learned: bool) -> tuple[float, dict[str, int]]:
        """Share of the patches that were recomputed, and multiply-accumulates by operand."""
        share, part = 1.0, 1.0
        if active is not None:
            share = patchwork.recomputed(self._costs, active)
            part = patchwork.macs(self._costs, active) / self._costs.dense()
        spent = {kind: round(part * count) for kind, count in self._macs.items()}
        if learned:
            for kind, count in self._update_macs.items():
                spent[kind] = spent.get(kind, 0) + count
        return share, spent


def _update(config: Config, setup: Setup, apply: Any) -> Callable[..., Any]:
    """``(variables, x, g, seed) -> variables`` after a step by the gradient of the features.

    In int8 it is that of `int8_qat` with the scales of `int8_frozen`, whose integers are the same.
    """
    sgd = optax.sgd(config.rate)

    def forward(variables: Any, x: Array, seed: Array) -> Array:
        if not _uses(config, "int8"):
            return apply(variables, x)
        int8 = rewrite(int8_qat(scaling=frozen(setup.table)), apply)
        vars = int8.init(variables, x)
        return int8.apply(vars, variables, x, key=jax.random.key(seed))[0]

    def update(variables: Any, x: Array, g: Array, seed: Array) -> Any:
        whole = lambda params: forward({**variables, "params": params}, x, seed)
        (grads,) = jax.vjp(whole, variables["params"])[1](g)
        changes, _ = sgd.update(grads, sgd.init(variables["params"]))
        return {**variables, "params": optax.apply_updates(variables["params"], changes)}

    return update


# --- the cloud -----------------------------------------------------------------------------------


class Answering:
    """The cloud: the upper half, and the labels, which stand for an annotator or a large teacher.

    It answers features with the share of pixels that are foreground, and where both halves learn,
    with a gradient too. One device, one line: a message out of order is refused.

    Args:
      config: of the run.
      setup: what was prepared.
      link: of `ways`.

    Attributes:
      counts: of each frame, hits, false and missed pixels, before any update by that frame.
      losses: of each update.
      seconds: of each frame, without the line.
      done: set once the device has finished.
    """

    def __init__(self, config: Config, setup: Setup, link: collab.Ways) -> None:
        self.devices = 1
        self._config, self._labels, self._variables = config, setup.labels, setup.upper
        self._ways = link
        self.largest = 8 * self._ways.features.size + 64 * 1024
        self._end, self._next = self._ways.cloud, 1
        self.counts: list[list[int]] = []
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.done = threading.Event()
        whole, sgd = upper(config), optax.sgd(config.rate)

        def found(variables: Any, x: Array, label: Array) -> tuple[Array, Any]:
            logits = whole(variables, x)
            return (logits > 0).mean(), segmenter.counts(logits > 0, label)

        def learned(variables: Any, x: Array, label: Array) -> tuple[Any, ...]:
            def loss(params: Any, x: Array) -> tuple[Array, Any]:
                logits = whole({**variables, "params": params}, x)
                tally = segmenter.counts(logits > 0, label)
                return segmenter.losses(logits, label)["loss"], tally

            differentiated = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            (value, tally), (grads, g) = differentiated(variables["params"], x)
            changes, _ = sgd.update(grads, sgd.init(variables["params"]))
            params = optax.apply_updates(variables["params"], changes)
            leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((value, g, grads))]
            return {**variables, "params": params}, g, value, tally, jnp.stack(leaves).all()

        self._found, self._learned = jax.jit(found), jax.jit(learned)
        self._warm()

    def _warm(self) -> None:
        """Calls everything once, so that no frame waits for a compilation."""
        x, end = jnp.zeros(self._ways.features.shape), self._ways.device
        for _ in range(2):  # a key frame and a difference
            frame, end = self._ways.up.encode(x, end, 0)
            x_there, self._end = self._ways.up.decode(frame, self._end)
        label = np.asarray(self._labels[:1])
        jax.block_until_ready(self._found(self._variables, x_there, label))
        if self._config.every:
            g = jax.block_until_ready(self._learned(self._variables, x_there, label))[1]
            self._ways.down.encode(g, self._end, 0)
        self._end = self._ways.cloud

    def hello(self, message: Message) -> Message:
        """The answer to a device of the same settings."""
        if message.kind is not Kind.HELLO or message.frame != digest(self._config):
            raise collab.Refused("this device has other settings than the cloud: use the same")
        return Message(Kind.HELLO)

    def answer(self, message: Message, here: Callable[[], bool] = lambda: True) -> Message:
        """The answer to features, or to a finish.

        Raises:
          Refused: if the message is out of order, or does not fit.
        """
        del here
        if message.kind is Kind.FINISH:
            self.done.set()
            return Message(Kind.DURABLE, sequence=message.sequence)
        index = int(message.labels[0]) if len(message.labels) == 1 else -1
        if message.kind is not Kind.STEP or message.sequence != self._next:
            raise collab.Refused(f"step {message.sequence} came where {self._next} is next")
        if index != message.sequence - 1 or index >= len(self._labels):
            raise collab.Refused(f"there is no label {index} of {len(self._labels)} for this step")
        start = time.perf_counter()
        try:
            x, self._end = self._ways.up.decode(message.frame, self._end)
        except ValueError as error:
            raise collab.Refused(str(error)) from error
        label = np.asarray(self._labels[index])[None]
        if learns(self._config, index):
            value, tally, frame = self._step(x, label, index)
            self.losses.append(value)
        else:
            share, tally = self._found(self._variables, x, label)
            value, frame = float(share), b""
        self.counts.append([int(count) for count in tally])
        self.seconds.append(time.perf_counter() - start)
        self._next += 1
        return Message(Kind.GRADIENT, sequence=message.sequence, loss=value, frame=frame)

    def _step(self, x: Array, label: np.ndarray, index: int) -> tuple[float, Any, bytes]:
        """Updates the upper half: the loss, the pixels before it, and the gradient's frame."""
        variables, g, value, tally, sound = self._learned(self._variables, x, label)
        if not sound:
            raise collab.Refused(f"the loss or a gradient of frame {index} is not finite")
        frame, self._end = self._ways.down.encode(g, self._end, index)
        self._variables = variables
        return float(value), tally, frame
