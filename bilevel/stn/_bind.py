"""Bind a converted model to a point of the space: its gates see e = offset, the layers that drop their rates.

The model's own code runs unchanged, `model(x, key=key)`: binding fills fields of its layers inside the traced function.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .dropout import AbstractDrop
from .layers import Held, Raw, Response, replace


def bind(model: PyTree, offset: Array | None = None, values: dict[str, Any] | None = None) -> PyTree:
    """`model` with e = `offset`, (H,), in its gates (None: no response, the weights at e = 0 and their cost) and the
    rates of its dropping layers taken from `values` (None: they have none, and may only run in inference).

    Differentiable in `offset`; to be called inside the traced function. Raises ValueError for a rate not in `values`.
    """
    return set_rates(set_offset(model, offset), values)


def set_offset(model: PyTree, offset: Array | None, linear: bool = False) -> PyTree:
    """The first half of `bind`; `linear`: to first order at e = 0, for `jax.jvp` there."""
    held = None if offset is None else Held(offset)

    def fill(node):
        if is_raw(node):
            return node.formed(offset)
        return replace(node, {"offset": held, "linear": linear}) if is_response(node) else node

    return jax.tree.map(fill, model, is_leaf=responds)


def set_rates(model: PyTree, values: dict[str, Any] | None) -> PyTree:
    """The second half of `bind`."""

    def fill(node):
        if not is_drop(node):
            return node
        if values is not None and node.name not in values:
            raise ValueError(f"the model drops with {node.name!r}, which is not among {', '.join(values)}")
        inside = {"layer": set_rates(node.layer, values)} if hasattr(node, "layer") else {}
        return replace(node, {"rate": None if values is None else Held(jnp.asarray(values[node.name])), **inside})

    return jax.tree.map(fill, model, is_leaf=is_drop)


def responses(model: PyTree) -> PyTree:
    """A tree of booleans like `model`: True for W', b', V and C, the weights of the response."""

    def mark(node):
        nothing = jax.tree.map(lambda _: False, node)
        if is_raw(node):
            return replace(jax.tree.map(lambda _: True, node), {"base": False})
        if is_response(node):
            return replace(jax.tree.map(lambda _: True, node), {"base": nothing.base})
        return nothing

    return jax.tree.map(mark, model, is_leaf=responds)


def is_response(node: Any) -> bool:
    return type(node) is Response


def is_raw(node: Any) -> bool:
    return type(node) is Raw


def responds(node: Any) -> bool:
    return type(node) in (Response, Raw)


def is_drop(node: Any) -> bool:
    return issubclass(type(node), AbstractDrop)
