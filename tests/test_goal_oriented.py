"""The first-order estimate of a hypergradient's error is what it says: right to a few per cent, and to second order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems_for_tests import quadratic, random_nested, random_robust, random_tv

import bilevel
from bilevel import LBFGS, NewtonCG


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
    }


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


def test_a_solution_of_another_problem_is_refused():
    solution = bilevel.hypergradient(*EXAMPLES["robust"], eps=1e-2)
    problem, theta = EXAMPLES["quadratic"]
    with pytest.raises(ValueError, match="x0"):
        bilevel.estimate_error(problem, theta, solution)


def test_its_cost_is_counted():
    """As many Hessian products as real ones, by a count of what the systems took."""
    problem, theta = EXAMPLES["quadratic"]
    estimate = bilevel.estimate_error(problem, theta, bilevel.hypergradient(problem, theta, eps=1e-2))
    assert 3 < estimate.counts.hessian_products <= 3 + 2 * 2 * jax.tree.leaves(problem.guess(theta))[0].size
    assert estimate.counts.cost == sum(estimate.counts)
