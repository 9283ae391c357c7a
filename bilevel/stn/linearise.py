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

from ._convert import set_offset


class Linearised(eqx.Module):
    """A model bound to e = `offset` whose calls, and those of its methods, are to first order in e.

    Other attributes are the bound model's: weights, which are affine in e, and submodules. A submodule that a loss
    calls by itself responds, but is not linearised: write a method of the model that calls it.
    """

    model: PyTree
    offset: Float[Array, "H"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._first_order(lambda model: model(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in self.__dict__:
            raise AttributeError(name)
        attribute = getattr(self.model, name)
        if isinstance(attribute, MethodType):
            return lambda *args, **kwargs: self._first_order(lambda model: getattr(model, name)(*args, **kwargs))
        return attribute

    def _first_order(self, call):
        def prediction(e):
            y = call(set_offset(self.model, e, linear=True))
            return eqx.partition(y, eqx.is_inexact_array)

        y, dy, others = jax.jvp(prediction, (jnp.zeros_like(self.offset),), (self.offset,), has_aux=True)
        return eqx.combine(jax.tree.map(jnp.add, y, dy), others)
