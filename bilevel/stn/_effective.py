"""A responding model as an ordinary one.

effective(model)                       the weights W + diag(V e) W', b + (C e) * b' of a model that is bound
materialise(model, offset, values)     these weights, and the rates as numbers
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ._bind import bind, is_raw, is_response, responds
from .dropout import Dropout
from .linearise import unwrapped


def effective(model: PyTree) -> PyTree:
    """The model that a loss was given, with the weights that it has at the hyperparameters, as leaves of ordinary
    layers; differentiable. An ordinary model is returned as it is.

    For what a loss does with weights one by one: `optax.tree.norm(eqx.filter(stn.effective(model), eqx.is_array))`.
    With draws for each example these are weights for each example, so this costs memory; `stn.squared_norm` does not.
    """

    def settle(node):
        if is_raw(node):
            return node.formed(None)
        return node.materialise() if is_response(node) else node

    return jax.tree.map(settle, unwrapped(model), is_leaf=responds)


def materialise(model: PyTree, offset: Array | None = None, values: dict[str, Any] | None = None) -> PyTree:
    """An ordinary Equinox model: every response at e = `offset` (None: e = 0) put into the weights, and, where `values`
    are given, `equinox.nn.Dropout` with its rate as a number in place of `Dropout` (one with `shared` axes, and the
    other layers that drop, stay what they are and hold their rate)."""

    def settle(node):
        if type(node) is Dropout and node.rate is not None and not node.shared:
            return eqx.nn.Dropout(float(node.rate.value), node.inference)
        return node

    return jax.tree.map(settle, effective(bind(model, offset, values)), is_leaf=lambda node: type(node) is Dropout)
