"""Weight decay of a responding network, for each example's own weights, which are never formed.

    ||W + diag(s) W'||^2 = ||W||^2 + 2 <s, r> + <s, Q s>,   r_ik = <W_i, W'_ik>,  Q_ikl = <W'_ik, W'_il>,  s = V e
                         = ||W||^2 + 2 <g, e> + <e, G e>,   g = V^T r,  G = V^T Q V
    (i: output unit, k, l: its gates, of which most layers have one)

Under vmap over examples r and Q are computed once; what remains for each example is a product of two short vectors.
Where units have their rows in common and so many gates, g and G are, and what remains has the size of e.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._bind import is_raw, is_response, responds
from .gates import in_common
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
        squares = partial(_squares_at, kind, node.offset.value)
        for _ in stack(node.base):
            squares = jax.vmap(squares)
        total += jnp.sum(squares(getattr(node.base, name), node.weights.get(name), node.gates[name]))
    return total


def _squares_at(kind, e, W, response, gate):
    """Of one parameter at e."""
    e = e.astype(gate.dtype)
    if kind == "plain":
        return jnp.sum((W + gate @ e) ** 2)
    if kind == "columns":
        W, response = W.T, response.T
    shared = kind == "rows" and in_common(response, gate)
    W, response = W.reshape(len(W), -1), response.reshape(len(response), -1)
    # products of matrices, not sums: XLA merges a sum with what reads it, and makes it anew for each example
    if shared:
        gate = gate.reshape(len(W), -1, len(e))
        r, QV = W @ response.T, jnp.einsum("kl,ilh->ikh", response @ response.T, gate)
        g, G = jnp.einsum("ik,ikh->h", r, gate), jnp.einsum("ikg,ikh->gh", gate, QV)
        return jnp.sum(W**2) + 2 * (g @ e) + e @ G @ e
    own = response.reshape(len(W), -1, W.shape[1])  # (units, gates of one, weights)
    r, Q = jnp.einsum("iw,ikw->ik", W, own), jnp.einsum("ikw,ilw->ikl", own, own)
    s = (gate @ e).reshape(r.shape)
    return jnp.sum(W**2) + 2 * jnp.vdot(s, r) + jnp.vdot(s[:, :, None] * s[:, None], Q)
