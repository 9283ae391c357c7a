"""The two methods, as steps on a mini-batch.

STN (arXiv 1903.03088, algorithm 1), e ~ N(0, sigma^2), gates fed with u + e:
    (w, phi)   -=  gradient of  E_e L_train(y(w, phi, u + e), u + e)
    (u, rho)   -=  gradient of  E_e L_valid(y(w, phi, u + e))  -  tau |L_valid| entropy(rho)

Delta-STN (arXiv 2010.13514, algorithm 1), gates fed with e, the offset from u:
    (a) w      -=  gradient of  L_train(y(w), u)                                      unperturbed: no bias in w
    (b) phi    -=  gradient of  E_e L_train(y(w) + dy/de (w, phi) e, u + e)           to first order: the Jacobian
    (c) (u, rho) -= gradient of E_e L_valid(y(w, phi, u + e - [u held]))  -  tau |L_valid| entropy(rho)

w: the weights of the network, phi: those of its response, L(prediction, hyperparameter values). Values reach the
training loss only, so (u, rho) feel it only through the response; the loss need not be differentiable in them.

What (b) fits is of second order in e, and a draw's first-order part, e times the loss's own gradient, is noise that
hides it where sigma is small. So draws come in pairs e and -e for one example and one key, on half of the examples: the
noise cancels, and the cost stays. |L_valid| is held: it makes tau a number without units, and no gradient.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._convert import bind
from .linearise import Linearised
from .method import Method
from .space import Space


class State(eqx.Module):
    """What the next step needs: w and phi (trees like the model with None elsewhere), u and rho, (H,), the states of
    the four optimisers, and how many training steps were made."""

    weights: PyTree
    responses: PyTree
    u: Float[Array, "H"]
    rho: Float[Array, "H"]
    optimisers: tuple[Any, Any, Any, Any]
    steps: Int[Array, ""]


class Losses(eqx.Module):
    """The losses of the equations above. `static`: the model less w and phi; `train_loss(model, batch, hyper, key)` and
    `valid_loss(model, batch)` are the user's, means over the batch."""

    method: Method
    space: Space
    static: PyTree
    train_loss: Callable = eqx.field(static=True)
    valid_loss: Callable = eqx.field(static=True)

    # What hands on a loss of the user's promises no scalar: `tune` checks it first, with words that help.
    def unperturbed(self, params: PyTree, u: Array, batch: PyTree, key: PRNGKeyArray) -> Array:
        """(a): L_train(y(w), u), at the cost of the ordinary network. `params`: w and phi, of which phi is not used."""
        values = self.space.values(u)
        return self.train_loss(bind(eqx.combine(params, self.static), None, values), batch, values, key)

    def perturbed(self, params: PyTree, u: Array, e: Array, batch: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        """L_train of one draw e, (H,), on `batch`: (b) for Delta-STN."""
        values, offset = self.space.values(u + e), e if self.method.centred else u + e
        model = bind(eqx.combine(params, self.static), offset, values)
        model = Linearised(model, offset) if self.method.linearised else model
        return self.train_loss(model, batch, values, key)

    def training(self, params: PyTree, u: Array, rho: Array, batch: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        """E_e of `perturbed`, one draw for each example, which then is a batch of one; or one for the batch, which then
        stays whole: its loss may be of the batch as a whole, and antithetic draws cost twice."""
        key, own = jax.random.split(key)
        if self.method.antithetic and not self.space.shared:
            batch = _half(batch, key)
        e = self.space.draw(rho, own, _size(batch))

        def loss(e, batch, key):
            signs = (1, -1) if self.method.antithetic else (1,)
            return sum(self.perturbed(params, u, sign * e, batch, key) for sign in signs) / len(signs)

        if self.space.shared:
            return loss(e[0], batch, key)
        return jnp.mean(jax.vmap(loss)(e, _singles(batch), jax.random.split(key, len(e))))

    def validation(self, hyper: tuple, params: PyTree, batch: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        """(c): E_e L_valid - tau |L_valid| entropy, a function of hyper = (u, rho) by way of the gates alone."""
        u, rho = hyper
        # the offset is zero and its derivative in u is one: e is measured from where w was trained
        centre = u - jax.lax.stop_gradient(u) if self.method.centred else u
        if not self.method.learn_scales:
            return self.response(params, centre, batch)
        e = self.space.draw(rho, key, _size(batch))
        if self.space.shared:
            loss = self.response(params, centre + e[0], batch)
        else:
            loss = jnp.mean(jax.vmap(lambda e, one: self.response(params, centre + e, one))(e, _singles(batch)))
        return loss - self.method.entropy * jax.lax.stop_gradient(jnp.abs(loss)) * self.space.entropy(rho)

    def response(self, params: PyTree, offset: Array | None, batch: PyTree) -> Array:
        """L_valid of the network at `offset`, (H,), in inference: nothing is dropped, no value is read."""
        model = bind(eqx.combine(params, self.static), offset, None)
        return self.valid_loss(eqx.nn.inference_mode(model), batch)

    def current(self, state: State, batch: PyTree) -> Array:
        """L_valid at the current hyperparameters."""
        params = eqx.combine(state.weights, state.responses)
        return self.response(params, None if self.method.centred else state.u, batch)


def train_step(losses: Losses, state: State, batch: PyTree, key: PRNGKeyArray) -> tuple[State, Float[Array, ""]]:
    """One step of w and phi; and the training loss before it, of w's own equation."""
    method, (one, two) = losses.method, jax.random.split(key)
    w_state, phi_state, *others = state.optimisers

    def general(weights):
        return losses.unperturbed(eqx.combine(weights, state.responses), state.u, batch, one)

    def both(weights, responses):
        return losses.training(eqx.combine(weights, responses), state.u, state.rho, batch, two)

    if method.decoupled:
        loss, dw = jax.value_and_grad(general)(state.weights)
        weights, w_state = _descend(method.weights, dw, w_state, state.weights)
        dphi = jax.grad(both, 1)(weights, state.responses)
    else:
        loss, (dw, dphi) = jax.value_and_grad(both, (0, 1))(state.weights, state.responses)
        weights, w_state = _descend(method.weights, dw, w_state, state.weights)
    responses, phi_state = _descend(method.responses, dphi, phi_state, state.responses)
    return State(weights, responses, state.u, state.rho, (w_state, phi_state, *others), state.steps + 1), loss


def valid_step(losses: Losses, state: State, batch: PyTree, key: PRNGKeyArray) -> State:
    """One step of u, and of rho where scales are learned."""
    method, params = losses.method, eqx.combine(state.weights, state.responses)
    du, drho = jax.grad(losses.validation)((state.u, state.rho), params, batch, key)
    *others, u_state, rho_state = state.optimisers
    u, u_state = _descend(method.hyper, du, u_state, state.u)
    rho = state.rho
    if method.learn_scales:
        rho, rho_state = _descend(method.scales, drho, rho_state, rho)
    return State(state.weights, state.responses, u, rho, (*others, u_state, rho_state), state.steps)


def _descend(optimiser, gradient, state, params):
    updates, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _size(batch):
    return jax.tree.leaves(batch)[0].shape[0]


def _half(batch, key):
    """Half of the examples, by chance: loaders may sort them."""
    n = _size(batch)
    chosen = jax.random.permutation(jax.random.fold_in(key, 1), n)[: (n + 1) // 2]
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def _singles(batch):
    return jax.tree.map(lambda leaf: leaf[:, None], batch)
