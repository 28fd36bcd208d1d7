"""Everything tinyjax needs to know about jaxprs, and the only importer of ``jax.extend``.

``jax.extend`` promises nothing between releases, so its use is confined to this page: primitives
are recognised by name, and every other module handles equations through these few functions. The
test suite runs on jax 0.10.2 and on the newest release.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun, jaxprs_in_params
from jax.extend.core import Jaxpr as _Jaxpr

__all__ = [
    "CALLS",
    "CONSTRAINT",
    "CONV",
    "CUSTOM",
    "DOT",
    "KINDS",
    "LAYOUT",
    "LOOPS",
    "REMAT",
    "Eqn",
    "Jaxpr",
    "abstractly",
    "bind",
    "bodies",
    "body",
    "checkpointed",
    "custom",
    "entering",
    "equations",
    "inner_jaxprs",
    "inside",
    "is_array",
    "is_literal",
    "macs",
    "needed",
    "read",
    "replaced",
    "trace",
]

Jaxpr = Any
Eqn = Any

CONV = "conv_general_dilated"
DOT = "dot_general"
KINDS = {CONV: "conv", DOT: "dot"}
CONSTRAINT = "layout_constraint"
CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"})  # entered: they only group equations
CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
_MARK = "custom_derivative:"  # in the name stack of what was inside
REMAT = frozenset({"remat2", "checkpoint", "remat"})  # kept: they carry the user's memory policy
LOOPS = frozenset({"scan", "while", "cond"})  # one body, many or conditional executions
# Primitives through which an array stays the same weight: laid out, placed or named differently,
# or a part of it.
LAYOUT = frozenset(
    {
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "copy_p",
        "name",
        "pcast",
        "pvary",
        "reshape",
        "sharding_constraint",
        "slice",
        "squeeze",
        "transpose",
    }
)


def trace(fun: Callable[..., Any], *args: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """Returns the jaxpr of ``fun(*args)`` and the values of its constants."""
    closed = jax.make_jaxpr(fun)(*args)
    return closed.jaxpr, closed.consts


def replaced(fun: Callable[..., Any], name: str, by: Callable[[Any], Any], *args: Any) -> list[Any]:
    """``fun(*args)``, a list, with every equation ``name``, however deep, computed by ``by(x)``.

    Calls, checkpointed regions, loops and branches are entered and stay what they are.
    """
    return jaxpr_as_fun(_with_replaced(jax.make_jaxpr(fun)(*args), name, jax.jit(by)))(*args)


def _with_replaced(jaxpr: Jaxpr, name: str, by: Callable[[Any], Any]) -> Jaxpr:
    def inside(value: Any) -> Any:
        if isinstance(value, (_Jaxpr, ClosedJaxpr)):
            return _with_replaced(value, name, by)
        return tuple(map(inside, value)) if type(value) is tuple else value

    def equation(eqn: Eqn) -> Eqn:
        if eqn.primitive.name != name:
            return eqn.replace(params={key: inside(value) for key, value in eqn.params.items()})
        aval = eqn.invars[0].aval
        (call,) = trace(by, jax.ShapeDtypeStruct(aval.shape, aval.dtype))[0].eqns
        return call.replace(invars=eqn.invars, outvars=eqn.outvars, ctx=eqn.ctx)

    opened = getattr(jaxpr, "jaxpr", jaxpr)
    opened_new = opened.replace(eqns=[equation(eqn) for eqn in opened.eqns])
    return opened_new if opened is jaxpr else jaxpr.replace(jaxpr=opened_new)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced (arrays, their shapes) rather than static (all else)."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, type)


def abstractly(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Jaxpr:
    """The jaxpr of ``fun(*args, **kwargs)``; what is not an array among them is static."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    dynamic = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def run(*values: Any) -> list[Any]:
        full = list(leaves)
        for i, value in zip(dynamic, values, strict=True):
            full[i] = value
        args, kwargs = jax.tree.unflatten(tree, full)
        return [leaf for leaf in jax.tree.leaves(fun(*args, **kwargs)) if is_array(leaf)]

    return trace(run, *(leaves[i] for i in dynamic))[0]


def inner_jaxprs(eqn: Eqn) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters: loop bodies, branches, called functions."""
    return list(jaxprs_in_params(eqn.params))


def bodies(eqn: Eqn) -> list[tuple[Jaxpr, Sequence[Any]]]:
    """The inner jaxprs of an equation, opened, each with the values of its constants."""
    return [(getattr(j, "jaxpr", j), getattr(j, "consts", ())) for j in inner_jaxprs(eqn)]


def body(eqn: Eqn) -> tuple[Jaxpr, Sequence[Any]]:
    """The one inner jaxpr of a call, opened, with the values of its constants."""
    (only,) = bodies(eqn)
    return only


def entering(eqn: Eqn) -> Any:
    """A context in which the equations of a call are bound that is entered; see :func:`custom`."""
    if eqn.primitive.name not in CUSTOM:
        return contextlib.nullcontext()
    source = body(eqn)[0].debug_info.func_src_info or "a function without a name"
    name, _, place = source.partition(" at ")
    own = place.startswith(str(pathlib.Path(jax.__file__).parent))
    return jax.named_scope(f"{_MARK}{'jax.' if own else ''}{name}")


def custom(eqn: Eqn) -> str | None:
    """The function whose custom derivative was lost when it was entered; jax's own as ``jax.f``."""
    found = [part for part in str(eqn.source_info.name_stack).split("/") if part.startswith(_MARK)]
    return found[0].removeprefix(_MARK) if found else None


def checkpointed(eqn: Eqn, fun: Callable[..., Any]) -> Callable[..., Any]:
    """``fun`` under the checkpoint policy of a ``jax.checkpoint`` equation."""
    kept = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(fun, **kept)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant written into it, not a variable."""
    return isinstance(atom, Literal)


def read(env: Mapping[Any, Any], atom: Any) -> Any:
    """The value of an operand: its own if it is a literal, else from ``env``."""
    return atom.val if is_literal(atom) else env[atom]


def bind(eqn: Eqn, args: Sequence[Any], **overrides: Any) -> list[Any]:
    """Evaluates one equation on ``args``, with other parameters if given; always returns a list."""
    with eqn.ctx.manager:
        params = eqn.primitive.get_bind_params({**eqn.params, **overrides})
        out = eqn.primitive.bind(*args, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def equations(jaxpr: Jaxpr, times: int = 1) -> Iterator[tuple[Eqn, int]]:
    """All equations of a jaxpr and of what it calls, each with how often it runs.

    A scan body counts ``length`` times; a while body, whose count is unknown, once; of a ``cond``
    every branch is listed.
    """
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn, times
        inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for body in inner_jaxprs(eqn):
            yield from equations(body, inner)


def needed(jaxpr: Jaxpr, atom: Any) -> list[Eqn]:
    """The equations that one variable of a jaxpr is computed from, in order."""
    wanted, found = {atom} if not is_literal(atom) else set(), []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            wanted.update(v for v in eqn.invars if not is_literal(v))
            found.append(eqn)
    return found[::-1]


def inside(eqn: Eqn) -> list[Eqn]:
    """All equations within an equation: of loop bodies, branches, called functions."""
    return [inner for jaxpr in inner_jaxprs(eqn) for inner, _ in equations(jaxpr)]


def macs(kind: str, params: dict[str, Any], x: Any, w: Any, out: Any) -> int:
    """Multiply-accumulates of a convolution or dot product from its shapes."""
    if kind == "conv":
        features = w.shape[params["dimension_numbers"].rhs_spec[0]]
        return out.size * (w.size // max(features, 1))
    (contracted, _), _ = params["dimension_numbers"]
    return out.size * math.prod(x.shape[axis] for axis in contracted)
