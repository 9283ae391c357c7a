"""Which solver a lower level gets where none is named, and that it is what runs and what is remembered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import Undeclared

import bilevel
from bilevel import LBFGS, Nesterov
from bilevel._lower.choose import choose
from bilevel._lower.operations import TRANSCENDENTAL, operations
from bilevel._problem import lower_gradient
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
        assert 25 < operations(lower_gradient, problem, problem.guess(THETA), THETA) / images.size < 50


@pytest.mark.parametrize("problem, theta", [
    (TV, THETA), (TotalVariation(IMAGES, IMAGES, isotropic=True, elastic=True), jnp.full(3, -3.0)),
    (FieldsOfExperts(IMAGES, IMAGES), initial(0, filters=8, size=3)), logistic(),
], ids=["TV", "isotropic TV", "FoE", "logistic"])  # fmt: skip
def test_operations_are_those_that_xla_counts_for_a_cpu(problem, theta):
    """On GPUs it has no count, and `solve` ended there in an error."""
    args = problem, problem.guess(theta), theta
    counts = jax.jit(lower_gradient).lower(*args).cost_analysis()
    if counts is None:
        pytest.skip("this backend has no count")
    told = counts["flops"] + TRANSCENDENTAL * counts.get("transcendentals", 0.0)
    assert operations(lower_gradient, *args) == pytest.approx(told, rel=0.03)


def test_operations_of_loops_branches_and_transforms():
    """What repeats counts once, of branches all, and what no result needs not at all."""
    x = jnp.ones(100)

    def function(x):
        unused = jnp.sum(jnp.exp(x))
        looped = jax.lax.fori_loop(0, 5, lambda _, v: v + 1, x)
        del unused
        return jax.lax.cond(x[0] > 0, lambda v: v * v, jnp.sqrt, looped)

    assert operations(function, x) == pytest.approx(100 + 100 + 1000, abs=10)
    assert operations(jnp.fft.fft, jnp.ones((3, 64), complex)) == 5 * 3 * 64 * 6


def test_the_method_that_is_left_open_is_settled_and_a_named_solver_stays():
    x = TV.guess(THETA)
    assert bilevel.quasi_newton().solver is None
    assert bilevel.quasi_newton().settle(TV, THETA, x) == bilevel.quasi_newton(solver=Nesterov())
    named = bilevel.quasi_newton(solver=LBFGS(5))
    assert named.settle(TV, THETA, x) is named


def test_the_solver_that_was_chosen_is_told():
    solution = bilevel.solve(TV, THETA, max_steps=0, max_cost=20)
    assert solution.method.solver == Nesterov()
