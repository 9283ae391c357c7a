"""Weight decay of a responding network, for each example's own weights, which are never formed.

    ||W + diag(s) W'||^2 = ||W||^2 + 2 <s, r> + <s, Q s>,   r_ik = <W_i, W'_ik>,  Q_ikl = <W'_ik, W'_il>
    (i: output unit, k, l: its gates, of which most layers have one)

Under vmap over examples r and Q are computed once; what remains for each example is a product of two short vectors.
"""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._bind import is_raw, is_response, responds
from .layers import parameters, stack
from .linearise import unwrapped


def squared_norm(model: PyTree) -> Float[Array, ""]:
    """The sum of squares of all weights and biases that `model`, or a part of it, has at its hyperparameters.

    For `train_loss`: `cross_entropy + hyper["decay"] * stn.squared_norm(model)`; an ordinary model works as well.
    """
    nodes = jax.tree.leaves(unwrapped(model), is_leaf=responds)
    return jnp.asarray(sum(_squares(node) for node in nodes))


def _squares(node):
    node = node.base if is_raw(node) else node
    if not is_response(node):
        return jnp.sum(node**2) if eqx.is_inexact_array(node) else 0
    if node.offset is None:
        return sum(jnp.sum(getattr(node.base, name) ** 2) for name in parameters(node.base))
    total = 0
    for name, kind in parameters(node.base).items():
        squares = partial(_squares_at, kind)
        for _ in stack(node.base):
            squares = jax.vmap(squares)
        total += jnp.sum(squares(getattr(node.base, name), node.weights.get(name), node.s(name)))
    return total


def _squares_at(kind, W, response, s):
    if kind == "plain":
        return jnp.sum((W + s) ** 2)
    if kind == "columns":
        W, response = W.T, response.T
    own = response.reshape(len(W), -1, math.prod(W.shape[1:]))  # (units, gates of one, weights)
    r = jnp.sum(W.reshape(len(W), 1, -1) * own, 2)
    Q = jnp.sum(own[:, :, None] * own[:, None], 3)
    s = s.reshape(r.shape)
    return jnp.sum(W**2) + 2 * jnp.sum(s * r) + jnp.sum(s[:, :, None] * s[:, None] * Q)
