"""The network's prediction to first order in the hyperparameters' offset e, by one forward derivative.

    y(e) ~ y(0) + dy/de (0) e         (Delta-STN, arXiv 2010.13514, section 4.3)

The prediction is what the model's own call returns. A training loss that calls this model instead of the original one
sees the linearised prediction, so that fitting its response weights fits the response *Jacobian*: what is bent beyond
first order cannot leak into it.
"""

from types import MethodType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._bind import set_offset
from .layers import Held


class Linearised(eqx.Module):
    """A converted model whose calls, and those of its methods, are to first order in the offset e; its rates are bound.

    Other attributes are those of the model bound to e: weights, which are affine in e, and submodules. A submodule that
    a loss calls by itself responds, but is not linearised: write a method of the model that calls it.
    """

    _converted: PyTree
    _offset: Held = eqx.field(static=True)

    @property
    def __class__(self):  # pyright: ignore[reportIncompatibleMethodOverride]  # what `isinstance` asks, too
        return type(self._converted) if "_converted" in self.__dict__ else Linearised

    def _bound(self) -> PyTree:
        return set_offset(self._converted, self._offset.value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._first_order(lambda model: model(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_converted" not in self.__dict__:
            raise AttributeError(name)
        attribute = getattr(self._bound(), name)
        if isinstance(attribute, MethodType):
            return lambda *args, **kwargs: self._first_order(lambda model: getattr(model, name)(*args, **kwargs))
        return attribute

    def _first_order(self, call):
        def prediction(e):
            y = call(set_offset(self._converted, e, linear=True))
            return eqx.partition(y, eqx.is_inexact_array)

        e = self._offset.value
        y, dy, others = jax.jvp(prediction, (jnp.zeros_like(e),), (e,), has_aux=True)
        return eqx.combine(jax.tree.map(jnp.add, y, dy), others)


def linearised(model: PyTree, offset: Float[Array, "H"]) -> PyTree:
    """`Linearised` in place of a model, or of each one in a tuple, list or dict of models."""

    held = Held(offset)

    def wrap(node):
        return Linearised(node, held) if isinstance(node, eqx.Module) and callable(node) else set_offset(node, offset)

    return jax.tree.map(wrap, model, is_leaf=lambda node: not isinstance(node, tuple | list | dict))


def unwrapped(model: PyTree) -> PyTree:
    """The bound models inside."""

    def is_linearised(node):
        return type(node) is Linearised

    return jax.tree.map(lambda node: node._bound() if is_linearised(node) else node, model, is_leaf=is_linearised)
