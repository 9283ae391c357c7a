"""Turn a model into one that responds to the hyperparameters: every layer that can gets a response, zero at the start.

Known layers keep their code and get W', b' and gates beside their weights (`layers.py`). Where a layer's code cannot be
known to use its weights as Equinox's does (one of a class of your own, weights shared or normalised by `Shared`,
`WeightNorm`, frozen `SpectralNorm` and `BatchNorm`), its arrays respond instead, and are put in place before it runs.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._bind import is_drop, responds
from .dropout import AbstractDrop, Dropout
from .layers import Raw, Response, known, parameters, stack
from .space import Space

# Layers whose arrays respond, not they themselves.
OUTER = (eqx.nn.Shared, eqx.nn.WeightNorm, eqx.nn.SpectralNorm, eqx.nn.BatchNorm)
TRAINING = (
    "its statistics change while it trains, and a loss hands no state on from one step to the next. Freeze it: "
    "model = eqx.tree_at(lambda m: m{0}.inference, model, True), its state closed over by both losses; or use "
    "equinox.nn.GroupNorm or equinox.nn.LayerNorm, which have no state"
)


def convert(
    model: PyTree,
    space: Space,
    *,
    key: PRNGKeyArray,
    where: Callable[[str, Any], bool] = lambda path, layer: True,
    arrays: bool | Callable[[str, Any], bool] = False,
    dropout: str | Callable[[str], str] | None = None,
    rank: int | Callable[[str, Any], int | None] | None = None,
) -> PyTree:
    """The same model, with responses; its output does not change.

    **Arguments**

    - `model`: any pytree of Equinox layers. Linear, Conv and ConvTranspose, Embedding, LSTMCell, GRUCell, LayerNorm,
      GroupNorm and RMSNorm get a response wherever they are, in MLP, Sequential, MultiheadAttention and modules of your
      own, shared by `eqx.nn.Shared`, and also when made under vmap, to be scanned over or as an ensemble.
    - `key`: W' and b' are random, of the size of W and b.
    - `where(path, layer)`: False leaves that layer, or that array outside any layer, as it is: trained, without a
      response. `path` reads like ".layers[0].weight".
    - `arrays`: True, or a function of path and array that says which, gives arrays outside known layers a response:
      positions, tokens, factors of LoRA. Bind such a model before it is called. Under vmap over examples with draws of
      their own there is one such array for each, and the same goes for layers of your own classes.
    - `rank`: of the responses of linear and recurrent layers, or a function of path and layer that returns one, or
      None. All units of such a layer then share `rank` rows of W', where that is fewer numbers: for layers that are
      most of the network, as a decoder of words, which cost as much again otherwise. None, the default: a row each.
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
        fault = _fault(name, node, wanted, dropout, arrays)
        if fault:
            wrong.append(fault)
        elif _drops_plainly(node) and dropout is not None:
            node = Dropout(dropout if isinstance(dropout, str) else dropout(name), inference=node.inference)
        elif wanted and not issubclass(type(node), AbstractDrop | eqx.nn.Dropout):
            low = _rank(rank, name, node)
            node = _respond(node, len(space), own_key, low) if _plain(node) else _raws(node, len(space), own_key)
        converted.append(node)
    if wrong:
        raise ValueError(
            "this model cannot be converted as a whole:\n  " + "\n  ".join(wrong) + "\nWhat shall be trained without a "
            "response can be left out, as in stn.convert(..., where=lambda path, layer: path != "
            f"{wrong[0].split(' ')[0]!r})"
        )
    return _checked(jtu.tree_unflatten(structure, converted), space)


def _checked(new, space):
    """The converted model, if something in it responds and the space has what it drops with."""
    if not any(map(responds, jax.tree.leaves(new, is_leaf=responds))):
        raise ValueError("no layer of this model got a response: it has none that stn knows, or `where` refused all")
    unknown = sorted({node.name for node in _drops(new)} - set(space))
    if unknown:
        raise ValueError(
            f"the model drops with {', '.join(map(repr, unknown))}, but the space has only "
            f"{', '.join(map(repr, space))}: name the layer after one of these, or add {unknown[0]}=stn.Rate(...)"
        )
    return new


def _fault(name, node, wanted, dropout, arrays):
    """Why this node cannot be converted, or None."""
    if responds(node):
        return f"{name} responds already: convert the original model"
    # one with a state that changes in training cannot even be left out
    if isinstance(node, eqx.nn.BatchNorm | eqx.nn.SpectralNorm) and not node.inference:
        return f"{name} is a {type(node).__name__}: {TRAINING.format(name)}"
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(node) if eqx.is_array(leaf)):
        return f"{name} is complex, and steps and responses are real: keep real and imaginary parts as two real arrays"
    if isinstance(node, eqx.nn.Dropout) and not is_drop(node) and dropout is not None and not _drops_plainly(node):
        return f"{name} is a {type(node).__name__} that drops in its own way: put stn.Dropout(...) in its place"
    if eqx.is_inexact_array(node) and wanted and not (arrays if isinstance(arrays, bool) else arrays(name, node)):
        return (
            f"{name} is an array of shape {node.shape} outside the layers that stn knows: arrays=True gives "
            "such ones a response"
        )
    return None


def _rank(rank, name, node):
    one = rank(name, node) if callable(rank) else rank
    if one is not None and not (type(one) is int and one >= 1):
        raise ValueError(f"rank must be a positive integer or None, or a function that returns one; {name}: {one!r}")
    return one


def _whole(node):
    return responds(node) or known(node) is not None or isinstance(node, (*OUTER, eqx.nn.Dropout))


def _drops_plainly(node):
    return isinstance(node, eqx.nn.Dropout) and not is_drop(node) and type(node).__call__ is eqx.nn.Dropout.__call__


def _plain(node):
    """A known layer, or one that inherits the code of one and has no other arrays."""
    kind = known(node)
    if kind is None or not parameters(node):
        return False
    others = len(jax.tree.leaves(eqx.filter(node, eqx.is_inexact_array))) - len(parameters(node))
    return type(node).__call__ is kind.__call__ and not others


def _drops(model):
    """Every layer that drops, those inside others too."""
    for node in filter(is_drop, jax.tree.leaves(model, is_leaf=is_drop)):
        yield node
        yield from _drops(getattr(node, "layer", None))


def _respond(layer, size, key, rank):
    """V = C = 0: no change yet. W' and b' random, so that V and C get a gradient, and as large as W and b are."""
    weights, gates, leading = {}, {}, stack(layer)
    for name, kind in parameters(layer).items():
        parameter = getattr(layer, name)
        key, own = jax.random.split(key)
        weight, gates[name] = _response(parameter, kind, len(leading), size, own, rank)
        weights |= {} if weight is None else {name: weight}
    return Response(layer, weights, gates)


def _raws(node, size, key):
    """The same with all of its arrays in responses of their own, but for what a state starts from."""
    leaves, structure = jax.tree.flatten(node, is_leaf=lambda leaf: isinstance(leaf, eqx.nn.StateIndex))
    for k, leaf in enumerate(leaves):
        if eqx.is_inexact_array(leaf) and leaf.ndim < 2:
            leaves[k] = Raw(leaf, None, jnp.zeros((*leaf.shape, size), leaf.dtype))
        elif eqx.is_inexact_array(leaf):
            weight, gate = _response(leaf, "rows", 0, size, jax.random.fold_in(key, k))
            r = len(gate) // len(leaf)
            weight = jnp.moveaxis(weight.reshape(len(leaf), r, *leaf.shape[1:]), 1, -1)
            leaves[k] = Raw(leaf, weight, gate.reshape(len(leaf), r, size))
    return jax.tree.unflatten(structure, leaves)


def _response(parameter: Array, kind: str, leading: int, size: int, key: PRNGKeyArray, rank: int | None = None):
    """(W', V) of a parameter, W' None where the gate is the response. As many gates as hyperparameters in all, or one
    for each unit, whichever is more; a unit has no use for more than its inputs. Of a `rank`: so many gates for each
    unit, and as many rows W' for all of them together."""
    if kind == "plain":
        return None, jnp.zeros((*parameter.shape, size), parameter.dtype)
    axis = parameter.ndim - 1 if kind == "columns" else leading
    units, inputs = parameter.shape[axis], math.prod(parameter.shape[leading:]) // parameter.shape[axis]
    r = 1 if kind == "bias" else min(-(-size // units), inputs)
    shape = [*parameter.shape]
    if kind == "rows" and rank is not None and rank * (inputs + units * size) < units * (r * inputs + r * size):
        r = shape[axis] = rank
    else:
        shape[axis] *= r
    rms = jnp.sqrt(jnp.mean(parameter**2))
    # where W is zero, W' = 0 with V = 0 would be a saddle that no gradient leaves
    rms = jnp.where(rms > 0, rms, (units if kind == "bias" else inputs) ** -0.5)
    weight = (rms * jax.random.normal(key, shape, parameter.dtype)).astype(parameter.dtype)
    return weight, jnp.zeros((*parameter.shape[:leading], units * r, size), parameter.dtype)
