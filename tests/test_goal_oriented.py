"""The first-order estimate of a hypergradient's error is what it says: right to a few per cent, and to second order."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems_for_tests import quadratic, random_nested, random_robust, random_tv

import bilevel
from bilevel import LBFGS, NewtonCG
from bilevel.problems import LogisticRegression


def examples():
    rng = np.random.default_rng(5)
    return {
        "quadratic": (quadratic(rng, 30), jnp.asarray(rng.standard_normal(3))),
        "tv isotropic elastic": (
            random_tv(rng, np.float64, isotropic=True, elastic=True)[0],
            jnp.array([-2, -2.5, -3]),
        ),
        "robust": random_robust(rng, np.float64),
        "nested": random_nested(rng, np.float64),
        "logistic": logistic(rng),  # a metric, and a preconditioner that is not its
    }


def logistic(rng):
    A, y = 1e-1 * rng.standard_normal((40, 5)), np.arange(40) % 3
    return LogisticRegression(A[:20], y[:20], A[20:], y[20:]), jnp.asarray(rng.uniform(-9, -3, (5, 3)))


EXAMPLES = examples()
each_example = pytest.mark.parametrize("name", EXAMPLES)


def errors(name, eps):
    """(the true error, what the estimate says, what is left when it is subtracted), norms."""
    problem, theta = EXAMPLES[name]
    exact = bilevel.hypergradient(problem, theta, eps=1e-10, delta=1e-12, solver=NewtonCG()).gradient
    solution = bilevel.hypergradient(problem, theta, eps=eps, delta=eps, solver=LBFGS())
    estimate = bilevel.estimate_error(problem, theta, solution)
    true = optax.tree.sub(solution.gradient, exact)
    return tuple(float(optax.tree.norm(e)) for e in (true, estimate.error, optax.tree.sub(true, estimate.error)))


@each_example
def test_the_estimate_is_the_error_to_a_few_per_cent(name):
    """Once the error is small; the bound is far above both."""
    true, estimated, left = errors(name, 1e-4)
    assert true > 1e-9
    assert left <= 0.05 * true and abs(estimated - true) <= 0.05 * true


def test_what_is_left_is_of_second_order():
    """On a problem whose H moves with x: a tenth of eps leaves a hundredth, down to the digits of the systems."""
    true, _, left = zip(*(errors("robust", eps) for eps in (1e-1, 1e-2, 1e-3)), strict=True)
    for t, r in zip(true, left, strict=True):
        assert r <= 10 * t**2 + 0.01 * t


def test_what_is_no_solution_of_this_problem_at_this_theta_is_refused():
    solution = bilevel.hypergradient(*EXAMPLES["robust"], eps=1e-2)
    problem, theta = EXAMPLES["quadratic"]
    with pytest.raises(ValueError, match=r"solution\.x"):
        bilevel.estimate_error(problem, theta, solution)
    problem, theta = EXAMPLES["robust"]
    with pytest.raises(ValueError, match="another theta"):
        bilevel.estimate_error(problem, theta + 0.1, solution)
    with pytest.raises(TypeError):  # ours, or in these tests the type checker's
        bilevel.estimate_error(problem, theta, bilevel.solve(problem, theta, max_steps=1))


class Saddle(bilevel.AbstractProblem):
    """h curves downwards along its first axis, whatever is declared."""

    def lower(self, x, theta):
        return (x[1] ** 2 - x[0] ** 2) / 2 + jnp.vdot(x, x) * theta

    def upper(self, x, theta):
        return jnp.sum(x)

    def guess(self, theta):
        return jnp.array([1.0, 1.0])

    def constants(self, theta):
        return bilevel.Constants(mu=0.1, L=10.0)


class Slope(Saddle):
    """h is a plane along its first axis: no product with H is below zero there, and none above."""

    def lower(self, x, theta):
        return (x[1] - theta) ** 2 / 2 + theta * x[0]


@pytest.mark.parametrize("problem", [Saddle(), Slope()], ids=["saddle", "plane"])
def test_a_lower_level_that_is_not_convex_is_a_result(problem):
    """Not an estimate of zero."""
    theta = jnp.array(0.1)
    solution = bilevel.hypergradient(problem, theta, eps=1e-2)
    estimate = bilevel.estimate_error(problem, theta, solution)
    assert estimate.result == bilevel.RESULTS.not_strongly_convex


def test_an_ill_conditioned_quadratic_of_many_dimensions():
    """Condition number 1e6, 120 unknowns: never more than twice what it is, and not a tenth of it either."""
    rng = np.random.default_rng(7)
    problem, theta = quadratic(rng, 1e6, n=120), jnp.asarray(rng.standard_normal(3))
    exact = problem.closed_form(theta).gradient
    for eps in (1.0, 1e-2):
        solution = bilevel.hypergradient(problem, theta, eps=eps, delta=eps, solver=LBFGS())
        true = float(optax.tree.norm(solution.gradient - exact))
        estimate = bilevel.estimate_error(problem, theta, solution)
        assert true / 10 <= estimate.norm <= 2 * true


def test_its_cost_is_that_of_two_systems():
    """Conjugate gradients end after as many products as x has entries, but for rounding."""
    problem, theta = EXAMPLES["quadratic"]
    estimate = bilevel.estimate_error(problem, theta, bilevel.hypergradient(problem, theta, eps=1e-2))
    size = problem.guess(theta).size
    assert 2 + 3 < estimate.counts.hessian_products <= 2 * (size + 2) + 3
    assert (estimate.counts.lower_gradients, estimate.counts.cross_products) == (1, 3)
