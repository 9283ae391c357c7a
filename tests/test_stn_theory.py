"""Self-tuning where the best response is known in closed form: scalar, ridge, linear network; expectations over draws
are Gauss-Hermite sums, exact to rounding here, so that what is compared is the method and not its noise."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from bilevel import stn
from bilevel.stn._tune import start
from bilevel.stn.layers import Held, Response, replace
from bilevel.stn.train import Losses

KEY = jax.random.key(0)


def quadrature(sigma, n=40):
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return jnp.asarray(sigma * nodes[:, None]), jnp.asarray(weights / weights.sum())


def expected(losses, params, u, sigma, batch):
    e, weights = quadrature(sigma)
    return weights @ jax.vmap(lambda e: losses.perturbed(params, u, e, batch, KEY))(e)


def setting(method, log_penalty, sigma, train_loss, features=1):
    """(losses, state, params of W (1, features), W', V): a linear model without bias and one hyperparameter."""
    space = stn.Space(penalty=stn.Positive(1.0, scale=sigma))
    model = stn.convert(eqx.nn.Linear(features, 1, use_bias=False, key=KEY), space, key=KEY)
    state = eqx.tree_at(lambda s: s.u, start(model, space, method), jnp.array([log_penalty]))
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)

    def params(w, response, gate):
        model = eqx.combine(state.weights, state.responses)
        places = lambda m: (m.base.weight, m.weights["weight"], m.gates["weight"])  # noqa: E731
        new = (jnp.reshape(w, (1, -1)), jnp.reshape(response, (1, -1)), jnp.reshape(gate, (1, 1)))
        return eqx.tree_at(places, model, new)

    return Losses(method, space, static, train_loss, squared_error), state, params


def squared_error(model, batch):
    x, t = batch
    return jnp.mean((jax.vmap(model)(x)[:, 0] - t) ** 2) / 2


def ridge(model, batch, hyper, key):
    return squared_error(model, batch) + hyper["penalty"] * stn.squared_norm(model) / 2


def minimiser(f, size):
    """Of a quadratic, in one Newton step."""
    matrix, vector = jax.jit(lambda p: (jax.hessian(f)(p), jax.grad(f)(p)))(jnp.zeros(size))
    return -jnp.asarray(np.linalg.solve(matrix, vector))


ONE = (jnp.ones((1, 1)), jnp.ones(1))
joint = lambda **options: stn.delta_stn(decoupled=False, linearised=False, **options)  # noqa: E731


@pytest.mark.parametrize("method", [joint(), stn.stn()], ids=["centred", "uncentred"])
def test_scalar_joint_fit_is_biased_as_computed(method):
    """(w - 1)^2/2 + e^lambda w^2/2 with w + theta e at lambda + e: with m = exp(lambda + sigma^2/2), sigma = 1,
    (1 + m) w + m theta = 1 and m w + (1 + 2 m) theta = 0."""
    losses, state, params = setting(method, -2.0, 1.0, ridge)
    w, theta = minimiser(lambda p: expected(losses, params(p[0], 1.0, p[1]), state.u, 1.0, ONE), 2)
    if not method.centred:
        w = w + theta * state.u[0]  # the gates see u, which has its start at zero
    m = math.exp(-1.5)
    np.testing.assert_allclose(w, 1 / (1 + m - m**2 / (1 + 2 * m)), rtol=1e-9)
    np.testing.assert_allclose(w, 0.8413, atol=5e-5)
    np.testing.assert_allclose(theta, -m * w / (1 + 2 * m), rtol=1e-9)


@pytest.mark.parametrize("linearised", [False, True])
def test_scalar_decoupled_fit_has_the_exact_weight(linearised):
    losses, state, params = setting(stn.delta_stn(linearised=linearised), -2.0, 1.0, ridge)
    w = minimiser(lambda p: losses.unperturbed(params(p, 1.0, 0.0), state.u, ONE, KEY), 1)[0]
    np.testing.assert_allclose(w, 1 / (1 + math.exp(-2)), rtol=1e-12)
    np.testing.assert_allclose(w, 0.8808, atol=5e-5)
    theta = minimiser(lambda p: expected(losses, params(w, 1.0, p), state.u, 1.0, ONE), 1)[0]
    m = math.exp(-1.5)
    np.testing.assert_allclose(theta, -m * w / (1 + 2 * m), rtol=1e-9)


@pytest.mark.parametrize(("u", "sigma"), [(-5.0, 0.5), (-9.2, 0.5), (3.0, 1.0), (0.5, 0.1)])
def test_condition_numbers(u, sigma):
    """The Gauss-Newton matrix of (w, theta) is E (1, g)(1, g)^T, g the gates' input: diag(1, sigma^2) centred, and
    [[1, u], [u, u^2 + sigma^2]] uncentred, u counted from its start."""

    def condition(method):
        losses, state, params = setting(method, u, sigma, lambda model, batch, hyper, key: squared_error(model, batch))
        matrix = jax.jit(jax.hessian(lambda p: expected(losses, params(p[0], 1.0, p[1]), state.u, sigma, ONE)))
        return np.linalg.cond(matrix(jnp.zeros(2)))

    trace, det = 1 + u**2 + sigma**2, sigma**2
    root = math.sqrt(trace**2 - 4 * det)
    np.testing.assert_allclose(condition(joint()), max(sigma**2, sigma**-2), rtol=1e-8)
    np.testing.assert_allclose(condition(stn.stn()), (trace + root) / (trace - root), rtol=1e-7)


@pytest.mark.parametrize("log_penalty", [-3.0, -1.0, 1.0])
def test_ridge_response_and_hypergradient_agree_with_implicit_differentiation(log_penalty):
    """dw/dlambda = -(A + e^lambda I)^-1 e^lambda w, A = X^T X / n; one gate, a response of rank one, has it."""
    rng = np.random.default_rng(3)
    x, x_valid = rng.normal(size=(40, 5)), rng.normal(size=(30, 5))
    truth = rng.normal(size=5)
    batch = (jnp.asarray(x), jnp.asarray(x @ truth + rng.normal(size=40)))
    valid = (jnp.asarray(x_valid), jnp.asarray(x_valid @ truth + rng.normal(size=30)))
    losses, state, params = setting(stn.delta_stn(learn_scales=False), log_penalty, 0.1, ridge, features=5)

    w = minimiser(lambda w: losses.unperturbed(params(w, jnp.zeros(5), 1.0), state.u, batch, KEY), 5)
    response = minimiser(lambda r: expected(losses, params(w, r, 1.0), state.u, 0.1, batch), 5)
    H = x.T @ x / 40 + math.exp(log_penalty) * np.eye(5)
    jacobian = -np.linalg.solve(H, math.exp(log_penalty) * w)
    assert np.linalg.norm(response - jacobian) <= 0.01 * np.linalg.norm(jacobian)

    gradient = jax.jit(lambda hyper: jax.grad(losses.validation)(hyper, params(w, response, 1.0), valid, KEY))
    found = gradient((state.u, state.rho))[0][0]
    implicit = (x_valid.T @ (x_valid @ w - valid[1]) / 30) @ jacobian
    assert abs(found - implicit) <= 0.01 * abs(implicit)


def test_linear_network_with_jacobian_penalty_gates_its_principal_components():
    """y = 1^T Q(lambda) x with |y - t|^2/2 + e^lambda |dy/dx|^2/2: the best Q has the rows
    sigmoid(log d_i - lambda) <v_i, w_0> v_i, where X^T X / n = sum_i d_i v_i v_i^T, w_0 least squares
    (arXiv 1903.03088, section 3.2). Its gates are sigmoids, which the test feeds to the layer as e with V = I."""
    rng = np.random.default_rng(0)
    d = np.exp([-2.5, 0.0, 2.5])
    v = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x = np.sqrt(60 * d)[None] * np.linalg.qr(rng.normal(size=(60, 3)))[0] @ v.T
    t = jnp.asarray(x @ rng.normal(size=3) + 0.3 * rng.normal(size=60))
    least_squares = np.linalg.lstsq(x, t)[0]
    layer = Response(
        eqx.nn.Linear(3, 3, use_bias=False, key=KEY), {"weight": jnp.zeros((3, 3))}, {"weight": jnp.eye(3)}
    )
    layer = eqx.tree_at(lambda one: one.base.weight, layer, jnp.zeros((3, 3)))

    def network(p, penalty):
        gates = jax.nn.sigmoid(p[:3] - penalty)
        bound = replace(layer, {"weights": {"weight": p[3:].reshape(3, 3)}, "offset": Held(gates)})
        return lambda x: jnp.sum(bound(x))

    @jax.jit
    def loss(p):
        def at(penalty):
            y, dy = jax.vmap(jax.value_and_grad(network(p, penalty)))(jnp.asarray(x))
            return jnp.mean((y - t) ** 2 + jnp.exp(penalty) * jnp.sum(dy**2, axis=1)) / 2

        return jnp.mean(jax.vmap(at)(jnp.linspace(-4.0, 4.0, 9)))

    rows = (v.T @ least_squares)[:, None] * v.T
    closed = np.concatenate([np.log(d), rows.ravel()])
    p = jnp.asarray(closed + 0.05 * rng.normal(size=12))
    start_near = closed + 0.05 * rng.normal(size=12)
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    options = {"gtol": 1e-12, "maxiter": 500}
    p = scipy.optimize.minimize(loss, start_near, jac=gradient, hess=hessian, method="trust-exact", options=options).x
    p = jnp.asarray(p - np.linalg.solve(hessian(p), gradient(p)))
    fitted = jax.jit(lambda penalty: jax.grad(network(p, penalty))(jnp.zeros(3)))
    for penalty in (-5.0, -1.3, 0.0, 0.7, 4.4):  # mostly not those that it was fitted at
        best = np.linalg.solve(x.T @ x / 60 + math.exp(penalty) * np.eye(3), x.T @ t / 60)
        np.testing.assert_allclose(fitted(penalty), best, rtol=0, atol=1e-10)
