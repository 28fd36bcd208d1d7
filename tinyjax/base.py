"""The types everything else speaks: sites, ops, epilogues, transforms and their variables.

A *site* is a place in the forward function where an activation meets a weight. A *transform* is a
pair of pure functions that computes sites differently. The work after the op that only the op
feeds (bias, norm, activation, pooling) travels with it as an *epilogue*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax

from tinyjax.compat import macs

__all__ = [
    "BlockTransform",
    "Codec",
    "Epilogue",
    "Op",
    "Pattern",
    "Rewritten",
    "Site",
    "Sited",
    "TrainStep",
    "Transform",
    "Vars",
    "unchanged",
]

Array = jax.Array
Vars = Any  # a pytree: the variables a transform keeps for one site; () if none


class Site(NamedTuple):
    """Where an activation meets a weight; static and hashable.

    Attributes:
      path: key path of the weight in the model's parameters, ``"params/Conv_0/kernel"``; a weight
        that is used again gets ``"...#2"``.
      kind: ``"conv"`` (``lax.conv_general_dilated``) or ``"dot"`` (``lax.dot_general``).
      x: shape and dtype of the activation.
      w: shape and dtype of the weight, as it meets the activation.
      out: shape and dtype of the op's output.
      params: the op's own parameters (strides, dimension numbers, ...) as sorted pairs.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> apply = lambda params, x: x @ params["w"]
      >>> site, = tinyjax.sites(apply, {"w": jnp.ones((3, 5))}, jnp.ones((2, 3)))
      >>> site.path, site.kind, site.out.shape, site.macs
      ('w', 'dot', (2, 5), 30)
    """

    path: str
    kind: str
    x: jax.ShapeDtypeStruct
    w: jax.ShapeDtypeStruct
    out: jax.ShapeDtypeStruct
    params: tuple[tuple[str, Any], ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward op."""
        return macs(self.kind, dict(self.params), self.x, self.w, self.out)


class Epilogue(NamedTuple):
    """The work after an op that only the op feeds, as a function; nothing is closed over.

    Attributes:
      fn: ``fn(z, *captured) -> exits``: from the op's output ``z`` to the tuple of every value
        that is read outside, running averages included.
      captured: the other values ``fn`` reads (bias, scale, batch statistics, constants).
      prims: names of its primitives in order, for audits and cheap predicates.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> relu = tinyjax.Epilogue(lambda z, b: (jnp.maximum(z + b, 0),), (1.0,), ("add", "max"))
      >>> relu.fn(jnp.array([-3.0, 2.0]), *relu.captured)[0].tolist()
      [0.0, 3.0]
    """

    fn: Callable[..., tuple[Array, ...]]
    captured: tuple[Array, ...]
    prims: tuple[str, ...]


_LAX = {"conv": lax.conv_general_dilated, "dot": lax.dot_general}


@dataclasses.dataclass(frozen=True)
class Op:
    """The op of a site as a function of activation and weight, in that order.

    ``op(x, w)`` is the op's output ``z``; keywords override the op's own parameters, as in
    ``op(x_q, w_q, preferred_element_type=jnp.int32)``. Given an epilogue, the result is the tuple
    of its exits instead.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> params, x = {"w": jnp.ones((3, 5))}, jnp.ones((2, 3))
      >>> site, = tinyjax.sites(lambda p, x: x @ p["w"], params, x)
      >>> tinyjax.Op(site)(x, params["w"]).shape
      (2, 5)
    """

    site: Site

    def __call__(
        self, x: Array, w: Array, epilogue: Epilogue | None = None, **overrides: Any
    ) -> Any:
        z = _LAX[self.site.kind](x, w, **{**dict(self.site.params), **overrides})
        return z if epilogue is None else epilogue.fn(z, *epilogue.captured)


class Pattern(NamedTuple):
    """A named predicate of sites. One that holds nowhere is an error, so that no typo is silent.

    Attributes:
      name: how it is called in messages, ``"at('Conv_0')"``.
      holds: whether a site is meant.

    Example:
      >>> import tinyjax
      >>> tinyjax.at("Conv_0", tinyjax.identity()).patterns[0].name
      "at('Conv_0')"
    """

    name: str
    holds: Callable[[Site], bool]


EVERYWHERE = Pattern("every site", lambda site: True)


class Transform(NamedTuple):
    """Computes sites differently: a pair of pure functions, and which sites it is for.

    Attributes:
      init: ``init(site) -> vars``: the variables of one site; ``()`` if there are none.
      call: ``call(op, site, vars, key, x, w, epilogue, **overrides) -> (y, vars)``. ``y`` is the
        op's output ``op(x, w, **overrides)`` computed this transform's way; or, from a transform
        that takes the epilogue over (or hands it on: ``op(x, w, epilogue, **overrides)``), the
        tuple of the epilogue's exits. ``key`` is a PRNG key of this site and step, or ``None``.
      patterns: the sites it is for are those for which any of these holds.

    A transform is itself callable: ``transform(step)`` lifts it onto a train step
    (:func:`tinyjax.over_step`).

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> def call(op, site, vars, key, x, w, epilogue, **overrides):
      ...   return 2 * op(x, w, **overrides), vars
      >>> double = tinyjax.Transform(lambda site: (), call)
      >>> doubled = tinyjax.rewrite(double, lambda params, x: x @ params["w"])
      >>> out, _ = doubled.apply({}, {"w": jnp.ones((3, 1))}, jnp.ones((1, 3)))
      >>> float(out[0, 0])
      6.0

    References:
      The pair of functions follows ``optax.GradientTransformation``.
    """

    init: Callable[[Site], Vars]
    call: Callable[..., tuple[Any, Vars]]
    patterns: tuple[Pattern, ...] = (EVERYWHERE,)

    def selects(self, site: Site) -> bool:
        """Whether this transform is for a site."""
        return any(pattern.holds(site) for pattern in self.patterns)

    def __call__(self, step: TrainStep) -> TrainStep:
        from tinyjax.step import over_step

        return over_step(self, step)


class BlockTransform(NamedTuple):
    """Computes runs of sites over a sequence of frames differently; carries state between frames.

    :func:`tinyjax.rewrite` takes it as it takes a :class:`Transform`. Blocks: ``tinyjax.blocks``.

    Attributes:
      patch: side of a frame's square patches, and about that of the cells of blocks.
      init: ``init(blocks) -> vars``: the state before the first frame.
      call: ``call(blocks, vars, values) -> (outs, vars)``: outputs from the values of inputs.
      fuse: whether several products may share a block.

    Example:
      >>> import tinyjax
      >>> tinyjax.pass_skip(patch=8).patch
      8
    """

    patch: int
    init: Callable[[Any], Vars]
    call: Callable[[Any, Vars, Sequence[Any]], tuple[list[Any], Vars]]
    fuse: bool = True

    def __call__(self, step: TrainStep) -> TrainStep:
        raise ValueError(
            "this transform carries state from frame to frame, which a train step cannot return: "
            "use rewrite(tx, apply) in your own loop"
        )


class Rewritten(NamedTuple):
    """A forward function under a transform; both functions are pure.

    Attributes:
      init: ``init(params, *args, **kwargs) -> vars``: variables by site path; from a transform of
        blocks, its state before the first frame.
      apply: ``apply(vars, params, *args, key=None, **kwargs) -> (out, vars)``; a transform of
        blocks takes no key.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> same = tinyjax.rewrite(tinyjax.identity(), lambda params, x: x @ params["w"])
      >>> same.init({"w": jnp.ones((3, 5))}, jnp.ones((2, 3)))
      {'w': ()}
    """

    init: Callable[..., Any]
    apply: Callable[..., tuple[Any, Any]]


class Codec(NamedTuple):
    """How features cross a cut in a network, and gradients cross it back: four pure functions.

    Codes are pytrees of arrays with shapes that follow from those of what is encoded, so that all
    four work inside ``jit`` and ``vmap``; ``tinyjax.wire`` turns those of SGQ into bytes.

    Attributes:
      encode: ``encode(x) -> code``.
      decode: ``decode(code) -> x``, approximately; shape and dtype as they were.
      encode_gradient: ``encode_gradient(g, seed, code) -> code``, with a uint32 seed for random
        rounding and the code of the features whose gradient ``g`` is, which both sides have.
      decode_gradient: ``decode_gradient(code) -> g``, likewise.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> half = lambda x, *seed_and_code: x.astype(jnp.bfloat16)
      >>> whole = lambda code: code.astype(jnp.float32)
      >>> codec = tinyjax.Codec(half, whole, half, whole)
      >>> codec.decode(codec.encode(jnp.float32(1.001))).item()
      1.0
    """

    encode: Callable[[Array], Any]
    decode: Callable[[Any], Array]
    encode_gradient: Callable[[Array, Array, Any], Any]
    decode_gradient: Callable[[Any], Array]


class TrainStep(Protocol):
    """What users already have: ``step(state, *batch) -> state`` or ``-> (state, ...)``.

    ``state`` offers ``apply_fn``, ``params``, ``step``, ``tx``, ``opt_state`` and ``replace``, as
    ``flax.training.train_state.TrainState`` does.

    Example:
      >>> def step(state, images, labels):  # doctest: +SKIP
      ...   grads = jax.grad(lambda p: loss(state.apply_fn({"params": p}, images), labels))
      ...   return state.apply_gradients(grads=grads(state.params))
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Sited(NamedTuple):
    """Model parameters with the transforms' variables beside them.

    So one optimizer, one checkpoint and one gradient hold both.

    Attributes:
      model: the model's own parameters, untouched.
      sites: variables by site path.
      tick: the step, set before each step, from which random keys are folded: float32 ``[4]``, its
        bytes times ``2**-120``. Floats, because everything under ``jax.grad`` must be; so small
        that no norm or penalty over all parameters sees them; exact in bfloat16 too.

    Example:
      >>> import jax.numpy as jnp, tinyjax
      >>> tinyjax.Sited({"w": jnp.ones(3)}, {}, jnp.zeros(4)).model["w"].shape
      (3,)
    """

    model: Any
    sites: dict[str, Vars]
    tick: Array


def unchanged(new: Vars, old: Vars) -> bool:
    """Whether variables are the very ones that were given, not merely equal ones."""
    news, olds = jax.tree.leaves(new), jax.tree.leaves(old)
    return len(news) == len(olds) and all(a is b for a, b in zip(news, olds, strict=True))
