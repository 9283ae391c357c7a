"""Layers that drop, with a rate that is a hyperparameter of the space, by name.

    Dropout           y = m * x / (1 - p),         m ~ Bernoulli(1 - p), one for each entry of x
    DropConnect       W becomes m * W / (1 - p),   m one for each weight
    EmbeddingDropout  W[i] becomes m_i W[i] / (1 - p), m_i one for each word and key

p is bound while a training loss is traced (`bind`); it may differ from example to example. Nothing is dropped in
inference, so the validation loss never reads a rate.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .layers import Held, Response


class AbstractDrop(eqx.Module):
    """A layer with a `rate` that `bind` sets. `name`: the hyperparameter it is."""

    name: eqx.AbstractVar[str]
    inference: eqx.AbstractVar[bool]
    rate: eqx.AbstractVar[Held | None]

    def keep(
        self, key: PRNGKeyArray | None, shape: tuple[int, ...], inference: bool | None = None
    ) -> tuple[Bool[Array, "..."], Float[Array, ""]] | None:
        """(mask, keep rate), or None where nothing is dropped. Raises RuntimeError without a rate or a key."""
        if self.inference if inference is None else inference:
            return None
        if self.rate is None:
            raise RuntimeError(
                f"the layer that drops with {self.name!r} has no rate here. Rates exist in train_loss only; elsewhere "
                "use stn.bind(model, values=...), or equinox.nn.inference_mode(model) to drop nothing"
            )
        if key is None:
            raise RuntimeError(f"the layer that drops with {self.name!r} needs a key: call the model with key=...")
        q = 1 - jax.lax.stop_gradient(self.rate.value)
        return jax.random.bernoulli(key, q, shape), q


class Dropout(AbstractDrop):
    """Dropout in place of `equinox.nn.Dropout`. `shared`: axes of x along which the mask is the same; `shared=(0,)` for
    (time, features) is the dropout of a recurrent network that keeps its mask (arXiv 1512.05287). Code that asks
    whether it is an `equinox.nn.Dropout` is told yes."""

    name: str = eqx.field(static=True)
    shared: tuple[int, ...] = eqx.field(static=True, default=())
    inference: bool = False
    rate: Held | None = eqx.field(static=True, default=None)

    @property
    def __class__(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return eqx.nn.Dropout

    @property
    def p(self) -> Any:
        """The rate where the layer is bound, else None."""
        return None if self.rate is None else self.rate.value

    def __call__(
        self, x: Float[Array, "..."], *, key: PRNGKeyArray | None = None, inference: bool | None = None
    ) -> Float[Array, "..."]:
        shared = [axis % x.ndim for axis in self.shared]
        kept = self.keep(key, tuple(1 if k in shared else n for k, n in enumerate(x.shape)), inference)
        return x if kept is None else jnp.where(kept[0], x / kept[1].astype(x.dtype), 0)


class DropConnect(AbstractDrop):
    """`self(key=key)` is `layer` with some of its weights dropped, to be called as often as wanted, so that an LSTM
    keeps one mask for a whole sequence: `where` names the field, such as "weight_hh" (arXiv 1708.02182).

    With a rate for each example there is a mask, hence a matrix, for each example: this one costs memory.
    """

    layer: Any
    name: str = eqx.field(static=True)
    where: str = eqx.field(static=True, default="weight")
    inference: bool = False
    rate: Held | None = eqx.field(static=True, default=None)

    def __call__(self, *, key: PRNGKeyArray | None = None) -> Callable:
        ordinary = self.layer.base if type(self.layer) is Response else self.layer
        kept = self.keep(key, getattr(ordinary, self.where).shape)
        if kept is None:
            return self.layer

        def fields(layer):  # m * (W + diag(s) W') = m * W + diag(s) (m * W')
            if type(layer) is Response:
                return [getattr(layer.base, self.where), layer.weights[self.where]]
            return [getattr(layer, self.where)]

        def drop(w):  # a unit's rows of W' have its row of the mask
            mask = jnp.repeat(kept[0], len(w) // len(kept[0]), axis=0)
            return jnp.where(mask, w / kept[1].astype(w.dtype), 0)

        dropped = [drop(w) for w in fields(self.layer)]
        return eqx.tree_at(fields, self.layer, dropped)


class EmbeddingDropout(AbstractDrop):
    """An embedding that drops whole words: calls with the same key drop the same ones (arXiv 1512.05287).

    `self(i, key=key)`, i a scalar integer; under vmap over a sequence give every word the sequence's key.
    """

    layer: Any
    name: str = eqx.field(static=True)
    inference: bool = False
    rate: Held | None = eqx.field(static=True, default=None)

    def __call__(self, i: Array, *, key: PRNGKeyArray | None = None) -> Float[Array, "size"]:
        row = self.layer(i)
        kept = self.keep(None if key is None else jax.random.fold_in(key, i), ())
        return row if kept is None else jnp.where(kept[0], row / kept[1].astype(row.dtype), 0)
