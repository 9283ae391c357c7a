"""Models with one log penalty, fitted with the package's own layers, losses and steps, and their exact minima."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import stn
from bilevel.stn._tune import start
from bilevel.stn.train import Losses, train_step
from experiments.networks.optima_cases import Unbounded

jax.config.update("jax_enable_x64", True)

KEY = jax.random.key(0)
RATE, LARGE = 3e-3, 5e-2  # of Adam; the large one for ridge only
CURVE = np.linspace(-6, 4, 41)  # log penalties of the curves drawn
METHODS = {"STN": stn.stn, "Delta-STN": stn.delta_stn}
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)


class Gated(eqx.Module):
    """sum_i sigmoid(c_i + v_i lambda) q_i x_i, started from weights w, every gate half open; `gate` alone responds."""

    gate: eqx.nn.Linear
    q: jax.Array

    def __init__(self, w: np.ndarray):
        gate = eqx.nn.Linear(1, len(w), use_bias=False, key=KEY)
        self.gate, self.q = eqx.tree_at(lambda g: g.weight, gate, jnp.zeros((len(w), 1))), 2 * jnp.asarray(w)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.sigmoid(self.gate(jnp.ones(1))) * self.q * x, keepdims=True)


def linear(features: int) -> eqx.nn.Linear:
    return eqx.nn.Linear(features, 1, use_bias=False, key=KEY)


def squared_error(model, batch):
    return jnp.mean((jax.vmap(model)(batch[0])[:, 0] - batch[1]) ** 2) / 2


def ridge(model, batch, hyper, key):
    return squared_error(model, batch) + hyper["penalty"] * stn.squared_norm(model) / 2


def jacobian_penalty(model, batch, hyper, key):
    y, slope = jax.vmap(jax.value_and_grad(lambda x: model(x)[0]))(batch[0])
    return jnp.mean((y - batch[1]) ** 2 + hyper["penalty"] * jnp.sum(slope**2, axis=1)) / 2


class Fit:
    """A method on a model with one log penalty; u and sigma, scalars, are traced."""

    def __init__(
        self, method, model, train_loss, batch, steps, rate=RATE, draws="batch", where=lambda path, layer: True
    ):
        space = Unbounded(penalty=stn.Positive(1.0, draws=draws))
        method = METHODS[method](optax.adam(optax.cosine_decay_schedule(rate, steps)), learn_scales=False)
        model = stn.convert(model, space, key=KEY, where=where)
        static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
        self.losses, self.state = Losses(method, space, static, train_loss, squared_error), start(model, space, method)
        self.batch, self.params = batch, eqx.combine(self.state.weights, self.state.responses)
        self.keys = jax.random.split(KEY, steps)

    def steps(self, u, sigma):
        """The parameters after all training steps."""
        rho = jnp.log(jnp.expm1(sigma))
        state = eqx.tree_at(lambda s: (s.u, s.rho), self.state, (jnp.reshape(u, 1), jnp.reshape(rho, 1)))
        state, _ = jax.lax.scan(lambda s, key: (train_step(self.losses, s, self.batch, key)[0], None), state, self.keys)
        return eqx.combine(state.weights, state.responses)

    def expected(self, params, u, sigma):
        """E_e of the perturbed training loss."""
        u, e = jnp.reshape(u, 1), sigma * jnp.asarray(NODES)[:, None]
        each = jax.vmap(lambda e: self.losses.perturbed(params, u, e, self.batch, KEY))(e)
        return jnp.asarray(WEIGHTS / WEIGHTS.sum()) @ each

    def place(self, w, r):
        """The parameters of a linear model with weights w and response r, each (features,)."""
        places = lambda m: (m.base.weight, m.weights["weight"], m.gates["weight"])  # noqa: E731
        return eqx.tree_at(places, self.params, (w[None], r[None], jnp.ones((1, 1))))

    def best(self, u, sigma):
        """The parameters of a linear model at the minimum of the expected losses, which are quadratic in w and r."""
        n = self.batch[0].shape[1]
        if not self.losses.method.decoupled:
            return self.place(*jnp.split(newton(lambda p: self.expected(self.place(p[:n], p[n:]), u, sigma), 2 * n), 2))
        w = newton(lambda w: self.losses.unperturbed(self.place(w, w), jnp.reshape(u, 1), self.batch, KEY), n)
        return self.place(w, newton(lambda r: self.expected(self.place(w, r), u, sigma), n))

    def weights(self, params, offset):
        """The linear function that the model is where its gates see `offset`, (1,)."""
        model = stn.bind(eqx.combine(params, self.losses.static), offset)
        return jax.vmap(model)(jnp.eye(self.batch[0].shape[1]))[:, 0]

    def about(self, params, u, valid):
        """(w, dw/du, hypergradient, validation loss along CURVE) of the fitted response about u."""
        u = jnp.reshape(u, 1)
        offset = jnp.zeros(1) if self.losses.method.centred else u  # the start is zero
        w, jacobian = jax.jvp(lambda e: self.weights(params, e), (offset,), (jnp.ones(1),))
        slope = jax.grad(self.losses.validation)((u, self.state.rho), params, valid, KEY)[0][0]
        curve = jax.vmap(lambda e: self.losses.response(params, offset + e - u, valid))(jnp.asarray(CURVE)[:, None])
        return w, jacobian, slope, curve


def newton(f, size):
    """The minimiser of a quadratic."""
    zero = jnp.zeros(size)
    return -jnp.linalg.solve(jax.hessian(f)(zero), jax.grad(f)(zero))
