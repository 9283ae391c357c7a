"""Layers whose parameters respond to the hyperparameters.

    y = W x + b  +  s * (W' x) + s' * b',     s = V e,  s' = C e        (arXiv 1903.03088, section 3.2)

e is the gates' input: the hyperparameters' offset from their current value (Delta-STN, arXiv 2010.13514), or from their
start, u - u_0 + e (STN). s and s' have one entry per output unit, channel or LSTM gate unit. V = C = 0 at the start, so
a converted layer computes what it did before. Under vmap only x, s and s' carry the batch: the matrix W + diag(s) W',
which differs from example to example, is never formed.

A layer that is most of the network may have the rows of W' in common instead: B, r rows of inputs, and r gates for each
unit, y = W x + b + sum_k s_ik <B_k, x>, a response of rank r for each draw, which costs little.

Where there are fewer units than hyperparameters, one gate a unit could not tell these apart: each unit i then has
r > 1 gates and rows, s * (W' x) is sum_k s_ik <W'_ik, x>, and s and W' hold all r entries of a unit side by side.

A layer after a normalisation has no matrix; there gamma + V e and beta + C e are the response.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .gates import fold, gated, in_common, respond

CONVOLUTIONS = (
    eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d,
    eqx.nn.ConvTranspose, eqx.nn.ConvTranspose1d, eqx.nn.ConvTranspose2d, eqx.nn.ConvTranspose3d,
)  # fmt: skip
NORMS = (eqx.nn.LayerNorm, eqx.nn.GroupNorm, eqx.nn.RMSNorm)
# What each parameter of a layer does: "rows" W of W @ x, "columns" a table of rows W[i], "kernel" of a convolution,
# "bias" added with a response b' of its own, "plain" elementwise with its gate as the response.
PARAMETERS: dict[type, dict[str, str]] = {
    eqx.nn.Linear: {"weight": "rows", "bias": "bias"},
    eqx.nn.LSTMCell: {"weight_ih": "rows", "weight_hh": "rows", "bias": "bias"},
    eqx.nn.GRUCell: {"weight_ih": "rows", "weight_hh": "rows", "bias": "bias", "bias_n": "bias"},
    eqx.nn.Embedding: {"weight": "columns"},
    **{layer: {"weight": "kernel", "bias": "bias"} for layer in CONVOLUTIONS},
    eqx.nn.LayerNorm: {"weight": "plain", "bias": "plain"},
    eqx.nn.GroupNorm: {"weight": "plain", "bias": "plain"},
    eqx.nn.RMSNorm: {"weight": "plain", "bias": "plain"},
}


def known(layer: Any) -> type | None:
    """The kind of layer that this one is, itself or by inheritance, of those that have a response."""
    return next((kind for kind in type(layer).__mro__ if kind in PARAMETERS), None)


def parameters(layer: eqx.Module) -> dict[str, str]:
    """The parameters that this layer has, by field, and what they do; empty when it has none."""
    kinds = PARAMETERS[known(layer)]
    return {name: kind for name, kind in kinds.items() if getattr(layer, name) is not None}


def stack(layer: eqx.Module) -> tuple[int, ...]:
    """The leading axes of a layer made under vmap, as in a scan over depth; () for a single one."""
    name, kind = next(iter(parameters(layer).items()))
    shape = getattr(layer, name).shape
    if kind == "plain":
        own = 1 if isinstance(layer, eqx.nn.GroupNorm) else len(layer.shape)
    elif isinstance(layer, CONVOLUTIONS):
        own = layer.num_spatial_dims + (2 if kind == "kernel" else 1)
    else:
        own = 1 if kind == "bias" else 2
    return shape[: len(shape) - own]


class Held:
    """A traced value that is part of a module's structure: scans, vmaps, filters and whoever walks over leaves pass it
    by, so that it may stand in a stack of layers as in one."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value


class Raw(eqx.Module):
    """An array outside the layers known here, with a response; `bind` puts the array W + sum_k diag(V_k e) W'_k, or
    p + V e, in its place, so that whatever reads it sees an array. Under vmap there is one for each example.

    `base`: (units, ...); `weight`: (units, ..., r), `gate`: (units, r, H); or None and (..., H). All keep the leading
    axis, so that an ensemble of such may be mapped over.
    """

    base: Float[Array, "..."]
    weight: Float[Array, "..."] | None
    gate: Float[Array, "..."]

    def formed(self, offset: Array | None) -> Float[Array, "..."]:
        if offset is None:
            return self.base
        s = self.gate @ offset.astype(self.gate.dtype)
        if self.weight is None:
            return self.base + s
        s = s.reshape(*s.shape[:-1], *(1,) * (self.weight.ndim - s.ndim), s.shape[-1])
        return self.base + jnp.sum(s * self.weight, axis=-1)


class Response(eqx.Module):
    """A layer of Equinox with a response, called as that layer is, and an instance of its class. `convert` makes it.

    **Attributes**

    - `base`: the ordinary layer, with W and b.
    - `weights`: W' and b', by the name of the field they belong to.
    - `gates`: V and C, by the same names, of shape (..., units * r, H).
    - `offset`: holds e, (H,), or is None.
    - `linear`: to first order in e at e = 0, for use under `jax.jvp`.
    """

    base: eqx.Module
    weights: dict[str, Float[Array, "..."]]
    gates: dict[str, Float[Array, "..."]]
    offset: Held | None = eqx.field(static=True, default=None)
    linear: bool = eqx.field(static=True, default=False)

    @property
    def __class__(self):  # pyright: ignore[reportIncompatibleMethodOverride]  # what `isinstance` asks, too
        return type(self.__dict__["base"]) if "base" in self.__dict__ else Response

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.offset is None:
            return self.base(*args, **kwargs)
        if isinstance(self.base, eqx.nn.Embedding):
            return self.base(*args, **kwargs) + self._gate("weight", self.weights["weight"][args[0]])
        if isinstance(self.base, NORMS):
            return replace(self.base, self.formed())(*args, **kwargs)
        return replace(self.base, {**self._biases(*args), "use_bias": True})(*args, **kwargs)

    def _gate(self, name, z):
        """s * z, s along the first axis of z, folded."""
        parameter, kind = getattr(self.base, name), parameters(self.base)[name]
        gate, weight = self.gates[name], self.weights[name]
        common = kind == "rows" and in_common(weight, gate)
        y = gated(gate, z, self.offset.value.astype(gate.dtype), common, self.linear)
        return y if common else fold(y, parameter.shape[-1 if kind == "columns" else 0])

    def _biases(self, x, hidden=None):
        """All of the response enters as part of the bias: y = W x + (b + s' * b' + s * (W' x)).

        In this order the base is computed as without a response, and where s = 0 the sum has the same bits.
        """
        formed = {name: self._form(name) for name, kind in parameters(self.base).items() if kind == "bias"}
        bias, bias_n = formed.get("bias", 0), formed.get("bias_n", 0)
        if isinstance(self.base, CONVOLUTIONS):
            product = replace(self.base, {"weight": self.weights["weight"], "bias": None, "use_bias": False})(x)
            return {"bias": bias + self._gate("weight", product)}
        if isinstance(self.base, eqx.nn.Linear):
            return {"bias": bias + self._gate("weight", self.weights["weight"] @ jnp.atleast_1d(x))}
        by_input = self._gate("weight_ih", self.weights["weight_ih"] @ x)
        if isinstance(self.base, eqx.nn.LSTMCell):
            return {"bias": bias + (by_input + self._gate("weight_hh", self.weights["weight_hh"] @ hidden[0]))}
        reset, update, new = jnp.split(self._gate("weight_hh", self.weights["weight_hh"] @ hidden), 3)
        by_hidden = jnp.concatenate([reset, update, jnp.zeros_like(new)])  # the third part is added inside the reset
        return {"bias": bias + (by_input + by_hidden), "bias_n": bias_n + new}

    def formed(self) -> dict[str, Float[Array, "..."]]:
        """The parameters at e as arrays, W + diag(s) W' and so on, by name."""
        return {name: self._form(name) for name in parameters(self.base)}

    def _form(self, name):
        kind = parameters(self.base)[name]
        form = lambda parameter, weight, gate: respond(parameter, weight, gate, self.offset.value, kind)  # noqa: E731
        for _ in stack(self.base):
            form = jax.vmap(form)
        return form(getattr(self.base, name), self.weights.get(name), self.gates[name])

    def materialise(self) -> Any:
        """An ordinary layer with the parameters at e as arrays; of a stack, the stack of them."""
        return self.base if self.offset is None else replace(self.base, self.formed())

    def __getattr__(self, name: str) -> Any:
        # Sizes and the like are the ordinary layer's; so are its parameters, as they are at e.
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(name)
        attribute = getattr(self.base, name)
        return self._form(name) if self.offset is not None and name in parameters(self.base) else attribute


def replace(module: Any, changed: dict[str, Any]) -> Any:
    """A copy with other values in the fields named, static ones too; of its own type, whatever it passes for."""
    new = object.__new__(type(module))
    for name, value in {**vars(module), **changed}.items():
        object.__setattr__(new, name, value)
    return new
