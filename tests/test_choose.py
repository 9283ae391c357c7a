"""Which solver a lower level gets where none is named, and that it is what runs and what is remembered."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import Undeclared

import bilevel
from bilevel import LBFGS, Nesterov
from bilevel._lower.choose import choose, operations
from bilevel.problems import FieldsOfExperts, LogisticRegression, TotalVariation
from bilevel.problems.foe import initial

IMAGES = np.random.default_rng(0).uniform(size=(2, 96, 96))
TV = TotalVariation(IMAGES, IMAGES)
THETA = jnp.full(2, -3.0)


def logistic():
    A = np.random.default_rng(1).standard_normal((60, 500))
    return LogisticRegression(A, np.arange(60) % 40, A, np.arange(60) % 40), jnp.full((500, 1), -2.0)


@pytest.mark.parametrize("problem, theta, solver", [
    (TV, THETA, Nesterov), (TotalVariation(IMAGES[:, :48, :48], IMAGES[:, :48, :48]), THETA, LBFGS),
    (TotalVariation(IMAGES, IMAGES, isotropic=True, elastic=True), jnp.full(3, -3.0), Nesterov),
    (FieldsOfExperts(IMAGES, IMAGES), initial(0, filters=8, size=3), LBFGS), (*logistic(), LBFGS),
    (Undeclared(TV), THETA, LBFGS), (Undeclared(TV, ("mu", "L")), THETA, Nesterov),
], ids=["TV", "small TV", "isotropic TV", "FoE", "logistic", "undeclared", "mu and L alone"])  # fmt: skip
def test_nesterov_where_moving_arrays_rules(problem, theta, solver):
    """Large x, a gradient that is cheap for each of its numbers, mu and L declared; L-BFGS everywhere else."""
    assert type(choose(problem, theta, problem.guess(theta))) is solver


def test_operations_are_counted_for_each_number():
    """The same for each pixel whatever the size: total variation has 30 to 40."""
    for images in (IMAGES, IMAGES[:, :32, :32]):
        problem = TotalVariation(images, images)
        assert 25 < operations(problem, THETA, problem.guess(THETA)) / images.size < 50


def test_the_method_that_is_left_open_is_settled_and_a_named_solver_stays():
    x = TV.guess(THETA)
    assert bilevel.quasi_newton().solver is None
    assert bilevel.quasi_newton().settle(TV, THETA, x) == bilevel.quasi_newton(solver=Nesterov())
    named = bilevel.quasi_newton(solver=LBFGS(5))
    assert named.settle(TV, THETA, x) is named


def test_the_solver_that_was_chosen_is_told():
    solution = bilevel.solve(TV, THETA, max_steps=0, max_cost=20)
    assert solution.method.solver == Nesterov()
