"""The two methods, as steps on a mini-batch.

STN (arXiv 1903.03088, algorithm 1), e ~ N(0, sigma^2), gates fed with u - u_0 + e, u_0 the start:
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

from ._bind import bind, set_offset, set_rates
from .linearise import linearised
from .method import Method
from .space import Space


class Training(eqx.Module):
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
    `valid_loss(model, batch)` are the user's, means over the batch; `dtypes`: those that the model's weights have where
    w and phi are kept in more precise ones; `double`: whether values are float64 where JAX has it."""

    method: Method
    space: Space
    static: PyTree
    train_loss: Callable = eqx.field(static=True)
    valid_loss: Callable = eqx.field(static=True)
    dtypes: tuple[Any, ...] | None = eqx.field(static=True, default=None)
    double: bool = eqx.field(static=True, default=True)

    def model(self, params: PyTree) -> PyTree:
        """The model of w and phi, in its own dtypes."""
        return eqx.combine(lowered(params, self.dtypes), self.static)

    def values(self, u: Array) -> dict[str, Array]:
        """By name, in float32 unless the model's weights are float64."""
        return self.space.values(u.astype(float if self.double else jnp.float32))

    # What hands on a loss of the user's promises no scalar: `tune` checks it first, with words that help.
    def unperturbed(self, params: PyTree, u: Array, batch: PyTree, key: PRNGKeyArray) -> Array:
        """(a): L_train(y(w), u), at the cost of the ordinary network. `params`: w and phi, of which phi is not used."""
        values = self.values(u)
        return self.train_loss(bind(self.model(params), None, values), batch, values, key)

    def perturbed(self, params: PyTree, u: Array, e: Array, batch: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        """L_train of one draw e, (H,), on `batch`: (b) for Delta-STN."""
        values, offset = self.values(u + e), self._gates(u) + e
        model = set_rates(self.model(params), values)
        model = linearised(model, offset) if self.method.linearised else set_offset(model, offset)
        return self.train_loss(model, batch, values, key)

    def training(self, params: PyTree, u: Array, rho: Array, batch: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        """E_e of `perturbed`, one draw for each example, which then is a batch of one; or one for the batch, which then
        stays whole: its loss may be of the batch as a whole, and antithetic draws cost twice."""
        key, own = jax.random.split(key)
        if self.method.antithetic and not self.space.shared:
            batch = _half(batch, key)
        e = self.space.draw(rho, own, _size(batch))

        signs = (1, -1) if self.method.antithetic else (1,)
        if self.space.shared:  # one after the other: a whole batch may fill the memory
            return sum(self.perturbed(params, u, sign * e[0], batch, key) for sign in signs) / len(signs)
        keys = jax.random.split(key, len(e))
        # side by side: one network with twice the examples takes less time than two, to compile above all
        e, batch, keys = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(signs)), (e, _singles(batch), keys))
        e *= jnp.repeat(jnp.asarray(signs, e.dtype), len(e) // len(signs))[:, None]
        return jnp.mean(jax.vmap(lambda *one: self.perturbed(params, u, *one))(e, batch, keys))

    def validation(self, hyper: tuple, params: PyTree, batch: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        """(c): E_e L_valid - tau |L_valid| entropy, a function of hyper = (u, rho) by way of the gates alone."""
        u, rho = hyper
        centre = self._gates(u)
        if not self.method.learn_scales:
            return self.response(params, centre, batch)
        e = self.space.draw(rho, key, _size(batch))
        if self.space.shared:
            loss = self.response(params, centre + e[0], batch)
        else:
            loss = jnp.mean(jax.vmap(lambda e, one: self.response(params, centre + e, one))(e, _singles(batch)))
        return loss - self.method.entropy * jax.lax.stop_gradient(jnp.abs(loss)) * self.space.entropy(rho)

    def response(self, params: PyTree, offset: Array | None, batch: PyTree, measure: Callable | None = None) -> Array:
        """L_valid, or another measure, of the network at `offset`, (H,), in inference: nothing is dropped, no value is
        read."""
        model = eqx.nn.inference_mode(bind(self.model(params), offset, None))
        return (self.valid_loss if measure is None else measure)(model, batch)

    def current(self, state: Training, batch: PyTree, measure: Callable | None = None) -> Array:
        """The same at the current hyperparameters."""
        params = eqx.combine(state.weights, state.responses)
        return self.response(params, self.method.offset(self.space, state.u), batch, measure)

    def _gates(self, u):
        """What the gates see at u where nothing is drawn; its derivative is one where it is zero, too."""
        return u - jax.lax.stop_gradient(u) if self.method.centred else self.method.offset(self.space, u)


def train_step(losses: Losses, state: Training, batch: PyTree, key: PRNGKeyArray) -> tuple[Training, Float[Array, ""]]:
    """One step of w and phi; and the training loss before it, of w's own equation."""
    method, (one, two) = losses.method, jax.random.split(key)
    w_state, phi_state, *others = state.optimisers

    def general(weights):
        return losses.unperturbed(eqx.combine(weights, state.responses), state.u, batch, one)

    def both(weights, responses):
        return losses.training(eqx.combine(weights, responses), state.u, state.rho, batch, two)

    if method.decoupled:
        loss, dw = jax.value_and_grad(general)(state.weights)
        weights, w_state = descend(method.weights, dw, w_state, state.weights, loss)
        fit, dphi = jax.value_and_grad(both, 1)(weights, state.responses)
    else:
        loss, (dw, dphi) = jax.value_and_grad(both, (0, 1))(state.weights, state.responses)
        weights, w_state = descend(method.weights, dw, w_state, state.weights, loss)
        fit = loss
    responses, phi_state = descend(method.responses, dphi, phi_state, state.responses, fit)
    return Training(weights, responses, state.u, state.rho, (w_state, phi_state, *others), state.steps + 1), loss


def valid_step(losses: Losses, state: Training, batch: PyTree, key: PRNGKeyArray) -> Training:
    """One step of u, and of rho where scales are learned."""
    method, params = losses.method, eqx.combine(state.weights, state.responses)
    loss, (du, drho) = jax.value_and_grad(losses.validation)((state.u, state.rho), params, batch, key)
    *others, u_state, rho_state = state.optimisers
    u, u_state = descend(method.hyper, du, u_state, state.u, loss)
    rho = state.rho
    if method.learn_scales:
        rho, rho_state = descend(method.scales, drho, rho_state, rho, loss)
    return Training(state.weights, state.responses, u, rho, (*others, u_state, rho_state), state.steps)


def raised(params: PyTree) -> tuple[PyTree, tuple[Any, ...] | None]:
    """Weights of fewer than 32 bits in float32, and the dtypes they had, or None where there were none: small steps
    are lost in bfloat16, and the squares that Adam keeps in float16."""
    dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(params))
    if all(dtype.itemsize >= 4 for dtype in dtypes):
        return params, None
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), params), dtypes


def lowered(params: PyTree, dtypes: tuple[Any, ...] | None) -> PyTree:
    """The inverse of `raised`."""
    if dtypes is None:
        return params
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)])


def descend(optimiser: Any, gradient: PyTree, state: Any, params: PyTree, loss: Array) -> tuple[PyTree, Any]:
    """One step of optax's; one that looks at the loss, as `optax.contrib.reduce_on_plateau` does, is given it."""
    update = optax.with_extra_args_support(optimiser).update
    updates, state = update(gradient, state, params, value=loss.astype(float), grad=gradient)
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
