"""Carries a transform of blocks into a forward function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from tinyjax import compat, graph
from tinyjax.base import BlockTransform, Rewritten, Vars
from tinyjax.blocks.divide import Blocks, divide

__all__ = ["divided", "over_blocks"]


def divided(
    tx: BlockTransform, apply: Callable[..., Any], params: Any, *args: Any, **kwargs: Any
) -> tuple[graph.Flat, Blocks]:
    """``apply(params, *args, **kwargs)``, traced, and divided as a transform of blocks has it."""
    flat = graph.flatten(apply, params, args, kwargs, compat.CALLS | compat.CUSTOM)
    return flat, divide(flat, tx.patch, tx.fuse)


def over_blocks(tx: BlockTransform, apply: Callable[..., Any]) -> Rewritten:
    """``rewrite`` for what works on blocks: functions with custom derivatives are entered."""

    def init(params: Any, *args: Any, **kwargs: Any) -> Vars:
        return tx.init(divided(tx, apply, params, *args, **kwargs)[1])

    # Nothing here is random, so a key, if there is one, is the function's own.
    def transformed(vars: Vars, params: Any, /, *args: Any, **kwargs: Any) -> tuple[Any, Vars]:
        flat, parts = divided(tx, apply, params, *args, **kwargs)
        outs, vars = tx.call(parts, vars, flat.values)
        return jax.tree.unflatten(flat.out_tree, outs), vars

    return Rewritten(init, transformed)
