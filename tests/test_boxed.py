"""Boxes on x: nonnegative least squares by SciPy, restorations by L-BFGS-B, certificates and descent."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import random_robust
from scipy.optimize import minimize, nnls

import bilevel
from bilevel import RESULTS
from bilevel.problems import TV, Boxed, Identity, Lasso, Mask, Restoration


class Ridge(bilevel.AbstractProblem):
    """h = 1/2 ||A x - b||^2 + e^theta/2 ||x||^2, g = 1/2 ||V x - v||^2."""

    A: jax.Array
    b: jax.Array
    V: jax.Array
    v: jax.Array
    declared: bool = eqx.field(static=True, default=True)

    def lower(self, x, theta):
        return jnp.sum((self.A @ x - self.b) ** 2) / 2 + jnp.exp(theta) / 2 * jnp.sum(x**2)

    def upper(self, x, theta):
        return jnp.sum((self.V @ x - self.v) ** 2) / 2

    def guess(self, theta):
        return jnp.full(self.A.shape[1], 0.1)

    def constants(self, theta):
        L = jnp.linalg.norm(self.A, 2) ** 2 + jnp.exp(theta)
        L_upper = jnp.linalg.norm(self.V, 2) ** 2
        return bilevel.Constants(mu=jnp.exp(theta), L=L if self.declared else None, L_upper=L_upper, convex_upper=True)


@pytest.fixture(scope="module")
def positive():
    """A lower level with x >= 0: 30 rows, 8 columns."""
    rng = np.random.default_rng(0)
    A, x = rng.normal(size=(30, 8)), np.maximum(rng.normal(size=8), 0)
    b = A @ x + 0.5 * rng.normal(size=30)
    V = rng.normal(size=(30, 8))
    return tuple(map(jnp.asarray, (A, b, V, V @ x + 0.5 * rng.normal(size=30))))


def best(problem, theta):
    A, b, *_ = map(np.asarray, (problem.A, problem.b))
    return nnls(np.r_[A, np.exp(theta / 2) * np.eye(8)], np.r_[b, np.zeros(8)])[0]


def f(problem, theta):
    return float(np.sum((np.asarray(problem.V) @ best(problem, theta) - np.asarray(problem.v)) ** 2) / 2)


def test_nonnegative_least_squares(positive):
    problem = Ridge(*positive)
    for theta in (-4.0, -1.0, 2.0):
        for eps in (1e-2, 1e-6):
            hg = bilevel.hypergradient(Boxed(problem), theta, eps=eps)
            assert np.linalg.norm(hg.x - best(problem, theta)) <= hg.error + 1e-12 and hg.error <= eps
            assert abs(hg.value - f(problem, theta)) <= hg.value_error + 1e-12
        difference = (f(problem, theta + 1e-5) - f(problem, theta - 1e-5)) / 2e-5
        np.testing.assert_allclose(hg.gradient, difference, rtol=1e-3, atol=1e-5)


def test_its_penalty_is_learnt(positive):
    problem = Ridge(*positive)
    solution = bilevel.solve(Boxed(problem), 0.0, bounds=(-6.0, 6.0))
    grid = min(f(problem, theta) for theta in np.linspace(-6, 6, 241))
    assert solution.value <= grid * (1 + 1e-4) and abs(solution.value - 3.748) < 1e-3
    assert solution.result == RESULTS.settled and solution.certified
    assert abs(solution.value - f(problem, float(solution.theta))) <= solution.value_error + 1e-12


def test_an_L_that_is_not_declared_is_an_estimate(positive):
    lower = bilevel.solve_lower(Boxed(Ridge(*positive, declared=False)), -1.0, eps=1e-6)
    assert lower.result == RESULTS.converged and not lower.certified
    np.testing.assert_allclose(lower.x, best(Ridge(*positive), -1.0), atol=1e-6)


@pytest.mark.parametrize("operator", [Identity(), Mask(np.arange(48).reshape(8, 6) % 5 > 0)], ids=["identity", "mask"])
def test_a_restoration_within_its_range(operator):
    rng = np.random.default_rng(1)
    clean = (rng.random((1, 8, 6)) > 0.5).astype(float)
    data = np.asarray(operator.apply(jnp.asarray(clean)))
    data = data + 0.2 * rng.normal(size=data.shape)
    free = Restoration(clean, data, TV(isotropic=True), operator, elastic=True)
    theta = {"weight": np.array(-2.0), "smoothing": np.array(-2.0), "elastic": np.array(-3.0)}
    lower = bilevel.solve_lower(Boxed(free, 0.0, 1.0), theta, eps=1e-4)
    assert lower.result == RESULTS.converged and lower.certified == operator.proven
    assert np.min(lower.x) == 0 and np.max(lower.x) == 1

    h = jax.jit(jax.value_and_grad(lambda x: free.lower(x.reshape(clean.shape), jax.tree.map(jnp.asarray, theta))))
    options = dict(method="L-BFGS-B", jac=True, bounds=[(0, 1)] * clean.size, options=dict(ftol=1e-15, gtol=1e-9))
    truth = minimize(lambda x: tuple(map(np.asarray, h(x))), np.full(clean.size, 0.5), **options)
    assert np.linalg.norm(np.ravel(lower.x) - truth.x) <= lower.error + 1e-5


def test_certificates_hold_for_many_boxes():
    """Against a solve of its own that is a million times as accurate."""
    rng, found = np.random.default_rng(2), 0
    for _ in range(10):
        problem, theta = random_robust(rng, np.float64)
        boxed = Boxed(problem, -0.1, 0.2)
        tight = bilevel.solve_lower(boxed, theta, eps=1e-9)
        eps = 10 ** rng.uniform(-3, 0)
        hg = bilevel.hypergradient(boxed, theta, eps=eps)
        found += np.linalg.norm(hg.x - tight.x) > hg.error + tight.error
        found += abs(hg.value - problem.upper(tight.x, theta)) > hg.value_error + 1e-6
    assert found == 0


def test_inputs(positive):
    with pytest.raises(ValueError, match="low must be less"):
        Boxed(Ridge(*positive), 1.0, 1.0)
    with pytest.raises(TypeError, match="smooth h"):
        Boxed(Lasso(*map(np.asarray, positive)))

    class Unknown(Ridge):
        def constants(self, theta):
            return bilevel.Constants()

    with pytest.raises(ValueError, match="declares no mu"):
        bilevel.solve(Boxed(Unknown(*positive)), 0.0)
