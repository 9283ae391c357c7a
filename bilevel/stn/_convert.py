"""Turn a model into one that responds to the hyperparameters, bind it to a point of the space, and turn it back.

    convert(model, space, key=key)         every layer that can respond gets a response, zero at the start
    bind(model, offset, values)            the gates see e = offset, the layers that drop their rates
    materialise(model, offset, values)     an ordinary model with the weights W + diag(V e) W', b + (C e) * b'

The model's own code runs unchanged, `model(x, key=key)`: binding fills fields of its layers inside the traced function.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PRNGKeyArray, PyTree

from .dropout import AbstractDrop, Dropout
from .layers import PARAMETERS, Response, parameters, stack
from .space import Space

REFUSED = {
    eqx.nn.BatchNorm: "each example of a batch has hyperparameters of its own, so statistics over the batch would mix "
    "the responses of all; use equinox.nn.GroupNorm or equinox.nn.LayerNorm",
    eqx.nn.SpectralNorm: "it rescales the weights of the layer inside, response and all; use that layer alone",
    eqx.nn.WeightNorm: "it rescales the weights of the layer inside, response and all; use that layer alone",
}


def convert(
    model: PyTree,
    space: Space,
    *,
    key: PRNGKeyArray,
    where: Callable[[str, Any], bool] = lambda path, layer: True,
    dropout: str | Callable[[str], str] | None = None,
) -> PyTree:
    """The same model, with responses; its output does not change.

    **Arguments**

    - `model`: any pytree of Equinox layers. Linear, Conv and ConvTranspose, Embedding, LSTMCell, GRUCell, LayerNorm,
      GroupNorm and RMSNorm get a response wherever they are, in MLP, Sequential, MultiheadAttention and modules of your
      own, and also when made under vmap to be scanned over. - `key`: W' and b' are random, of the size of W and b.
    - `where(path, layer)`: False leaves that layer, or that array outside any layer, as it is: trained, without a
      response. `path` reads like ".layers[0].weight".
    - `dropout`: the hyperparameter that every `equinox.nn.Dropout` gets as its rate, or a function of its path that
      says which; left out, these keep their fixed rates. `stn.Dropout("name")` is in the model by itself.

    Raises ValueError that names what cannot be converted and what to do, and names that the space does not have.
    """
    if not isinstance(space, Space):
        raise TypeError(f"convert needs a stn.Space as its second argument, not {type(space).__name__}")
    nodes, structure = jtu.tree_flatten_with_path(model, is_leaf=_whole)
    keys, converted, wrong = jax.random.split(key, max(1, len(nodes))), [], []
    for (path, node), own_key in zip(nodes, keys, strict=False):
        name = jtu.keystr(path)
        wanted = (eqx.is_inexact_array(node) or isinstance(node, eqx.Module)) and where(name, node)
        if isinstance(node, Response):
            wrong.append(f"{name} responds already: convert the original model")
        elif type(node) in REFUSED:  # one with a state that changes in training cannot even be left out
            if wanted or isinstance(node, eqx.nn.StatefulLayer):
                wrong.append(f"{name} is a {type(node).__name__}: {REFUSED[type(node)]}")
        elif type(node) in PARAMETERS and parameters(node) and wanted:
            node = _respond(node, len(space), own_key)
        elif isinstance(node, eqx.nn.Dropout) and dropout is not None:
            node = Dropout(dropout if isinstance(dropout, str) else dropout(name), inference=node.inference)
        elif eqx.is_inexact_array(node) and wanted:
            wrong.append(f"{name} is an array of shape {node.shape} outside the layers that stn knows")
        converted.append(node)
    if wrong:
        raise ValueError(
            "this model cannot be converted as a whole:\n  " + "\n  ".join(wrong) + "\nWhat shall be trained without a "
            "response can be left out, as in stn.convert(..., where=lambda path, layer: path != "
            f"{wrong[0].split(' ')[0]!r})"
        )
    new = jtu.tree_unflatten(structure, converted)
    if not any(isinstance(node, Response) for node in jax.tree.leaves(new, is_leaf=_is_response)):
        raise ValueError("no layer of this model got a response: it has none that stn knows, or `where` refused all")
    new = _stacked(new, ())
    unknown = sorted({node.name for node in _drops(new)} - set(space))
    if unknown:
        raise ValueError(
            f"the model drops with {', '.join(map(repr, unknown))}, but the space has only "
            f"{', '.join(map(repr, space))}: name the layer after one of these, or add {unknown[0]}=stn.Rate(...)"
        )
    return new


def bind(model: PyTree, offset: Array | None = None, values: dict[str, Any] | None = None) -> PyTree:
    """`model` with e = `offset`, (H,), in its gates (None: no response, the weights at e = 0 and their cost) and the
    rates of its dropping layers taken from `values` (None: they have none, and may only run in inference).

    Differentiable in `offset`; to be called inside the traced function. Raises ValueError for a rate not in `values`.
    """
    return set_rates(set_offset(model, offset), values)


def set_offset(model: PyTree, offset: Array | None, linear: bool = False) -> PyTree:
    """The first half of `bind`; `linear`: to first order at e = 0, for `jax.jvp` there."""

    def fill(node):
        if not isinstance(node, Response):
            return node
        e = offset
        if e is not None:
            e = jnp.asarray(e, next(iter(node.gates.values())).dtype)
            e = jnp.broadcast_to(e, (*stack(node.base), *e.shape))
        return dataclasses.replace(node, offset=e, linear=linear)

    return jax.tree.map(fill, model, is_leaf=_is_response)


def set_rates(model: PyTree, values: dict[str, Any] | None) -> PyTree:
    """The second half of `bind`."""

    def fill(node):
        if not isinstance(node, AbstractDrop):
            return node
        if values is not None and node.name not in values:
            raise ValueError(f"the model drops with {node.name!r}, which is not among {', '.join(values)}")
        rate = None if values is None else jnp.broadcast_to(values[node.name], node.stack)
        inside = {"layer": set_rates(node.layer, values)} if hasattr(node, "layer") else {}
        return dataclasses.replace(node, rate=rate, **inside)

    return jax.tree.map(fill, model, is_leaf=_is_drop)


def materialise(model: PyTree, offset: Array | None = None, values: dict[str, Any] | None = None) -> PyTree:
    """An ordinary Equinox model: every response at e = `offset` (None: e = 0) put into the weights, and, where `values`
    are given, `equinox.nn.Dropout` with its rate as a number in place of `Dropout` (one with `shared` axes, and the
    other layers that drop, stay what they are and hold their rate)."""

    def settle(node):
        if isinstance(node, Dropout) and node.rate is not None and not node.shared:
            return eqx.nn.Dropout(float(node.rate.reshape(-1)[0]), node.inference)
        return node.materialise() if isinstance(node, Response) else node

    return jax.tree.map(settle, bind(model, offset, values), is_leaf=lambda node: isinstance(node, Response | Dropout))


def responses(model: PyTree) -> PyTree:
    """A tree of booleans like `model`: True for W', b', V and C, the weights of the response."""

    def leaves(tree):
        found = [node for node in jax.tree.leaves(tree, is_leaf=_is_response) if _is_response(node)]
        return [leaf for node in found for leaf in (*node.weights.values(), *node.gates.values())]

    nothing = jax.tree.map(lambda _: False, model)
    return eqx.tree_at(leaves, nothing, replace_fn=lambda _: True) if leaves(model) else nothing


def _is_response(node):
    return isinstance(node, Response)


def _is_drop(node):
    return isinstance(node, AbstractDrop)


def _whole(node):
    return _is_response(node) or type(node) in PARAMETERS or type(node) in REFUSED or isinstance(node, eqx.nn.Dropout)


def _drops(model):
    """Every layer that drops, those inside others too."""
    for node in filter(_is_drop, jax.tree.leaves(model, is_leaf=_is_drop)):
        yield node
        yield from _drops(getattr(node, "layer", None))


def _respond(layer, size, key):
    """V = C = 0: no change yet. W' and b' random, so that V and C get a gradient, and as large as W and b are. As many
    gates as hyperparameters in all, or one for each unit, whichever is more; a unit has no use for more than inputs."""
    weights, gates, leading = {}, {}, stack(layer)
    for name, kind in parameters(layer).items():
        parameter = getattr(layer, name)
        units, *inputs = parameter.shape[len(leading) :][:: -1 if kind == "columns" else 1]
        r = min(-(-size // units), math.prod(inputs)) if inputs else 1
        if kind == "plain":
            shape = parameter.shape
        else:
            shape = (*leading, units * r)
            key, own = jax.random.split(key)
            rms = jnp.sqrt(jnp.mean(parameter**2))
            # where W is zero, W' = 0 with V = 0 would be a saddle that no gradient leaves
            rms = jnp.where(rms > 0, rms, math.prod(inputs or [units]) ** -0.5)
            full = (
                *leading,
                *(inputs[::-1] if kind == "columns" else ()),
                units * r,
                *(inputs if kind != "columns" else ()),
            )
            weights[name] = (rms * jax.random.normal(own, full, parameter.dtype)).astype(parameter.dtype)
        gates[name] = jnp.zeros((*shape, size), parameter.dtype)
    return Response(layer, weights, gates)


def _stacked(model, leading):
    """Tells the layers that drop the leading axes of the layers beside them: those that all of these have in common."""
    shapes = [stack(node.base) for node in jax.tree.leaves(model, is_leaf=_is_response) if _is_response(node)]
    if shapes:
        common = itertools.takewhile(lambda sizes: len(set(sizes)) == 1, zip(*shapes, strict=False))
        leading = tuple(sizes[0] for sizes in common)
    if isinstance(model, AbstractDrop):
        model = dataclasses.replace(model, stack=leading)
    children, structure = jax.tree.flatten(model, is_leaf=lambda node: node is not model)
    if _is_response(model) or jax.tree_util.treedef_is_leaf(structure):
        return model
    return jax.tree.unflatten(structure, [_stacked(child, leading) for child in children])
