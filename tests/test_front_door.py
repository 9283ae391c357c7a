"""`bilevel.solve(problem, theta0)` and nothing else: "converged" is true, and what it ends with is as good as SciPy's.

    converged   =>   ||P(theta - grad f) - theta|| <= tol <= 1e-3 ||grad f(theta0)||   and   value <= 1.01 SciPy's best

SciPy's L-BFGS-B has the same start and the objective that front_door_objectives.py has written a second time.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import RESULTS
from bilevel.problems import LogisticRegression
from bilevel.problems.quadratic import uniform_data
from experiments.benchmarks.front_door_cases import CASES, MAX_COST, Ended, projected, run

SHORT = [name for name in CASES if name.startswith(("ridge", "quadratic"))] + ["TV from (-2, -6)", "wine, scaled, 1"]
METHODS = {
    "maid": bilevel.maid(),
    "hoag": bilevel.hoag(),
    "self-tuning": bilevel.self_tuning(),
    **{f"fixed {eps:g}": bilevel.fixed_accuracy(eps) for eps in (1e-3, 1e-4, 1e-5, 1e-6)},
}


def long(names, short):
    return [name if name in short else pytest.param(name, marks=pytest.mark.full) for name in names]


def check(ended: Ended) -> None:
    """What holds however a run without `tol` ends: its interval, and what "converged" means."""
    solution, tol = ended.solution, ended.solution.tol
    assert abs(solution.value - ended.after) <= solution.value_error + 1e-9 * abs(
        ended.after
    )  # the reference's rounding
    if solution.converged:
        assert solution.gradient_norm + solution.gradient_error <= tol
        assert ended.last <= tol
        assert tol <= 1e-3 * ended.first
        assert "gradient" in solution.message  # what was met


@pytest.mark.parametrize("name", ["ridge from 0", "quadratic, seed 0", "TV from (-2, -6)", "wine, scaled, 13"])
def test_the_references_have_the_right_gradients(name):
    """Central differences along a random direction."""
    F, theta = CASES[name].objective(CASES[name].problem()), CASES[name].theta0
    d = 1e-5 * np.random.default_rng(0).normal(size=theta.shape)
    slope = (F(theta + d)[0] - F(theta - d)[0]) / 2
    np.testing.assert_allclose(np.sum(F(theta)[1] * d), slope, rtol=1e-6)


@pytest.mark.parametrize("name", long(CASES, SHORT))
def test_the_default_is_as_good_as_scipy_or_says_that_it_is_not_there(name):
    ended = run(CASES[name])
    solution = ended.solution
    check(ended)
    if solution.converged:
        assert ended.gap <= 0.01
        assert "decrease" in solution.message  # it has pairs, and asks what they predict
    elif solution.result == RESULTS.max_cost_reached:
        assert 0.9 * MAX_COST < solution.cost <= MAX_COST
    else:
        assert solution.result == RESULTS.accuracy_floor
    assert solution.converged or not CASES[name].converges


@pytest.mark.parametrize("method", long(METHODS, ["maid", "hoag", "fixed 0.001", "fixed 1e-06"]))
@pytest.mark.parametrize("name", long(["wine, scaled, 1", "ridge from 3", "TV from (-3, -3)"], ["wine, scaled, 1"]))
def test_every_method_means_the_same_by_converged(name, method):
    """Steepest descent at a fixed accuracy may never get there; MAID does, on all three."""
    ended = run(CASES[name], METHODS[method], max_cost=20_000)
    check(ended)
    assert ended.solution.converged or method != "maid"


def zero_features(rows: int, features: int, labels: np.ndarray) -> LogisticRegression:
    """Nothing to learn from: xhat = 0 and f = log 3 whatever theta."""
    A = np.zeros((rows, features))
    return LogisticRegression(A, labels, A, labels)


@pytest.mark.parametrize("rows, features", [(89, 13), pytest.param(10, 1, marks=pytest.mark.full)])
def test_a_start_that_is_stationary_is_called_so(rows, features):
    """xhat = 0 is known without any error, and so is the gradient: zero."""
    solution = bilevel.solve(zero_features(rows, features, np.arange(rows) % 3), np.array(-3.0), progress=False)
    assert solution.converged and solution.gradient_norm == solution.gradient_error == 0
    assert "The gradient is zero" in solution.message
    assert solution.theta == -3.0
    assert abs(solution.value - np.log(3)) <= solution.value_error <= 1e-12


def quadratic_in_a_box(below: np.ndarray | float, above: np.ndarray | float):
    """The paper's quadratic, seed 0, in theta0 - below <= theta <= theta0 + above: the problem, theta0 and the box."""
    theta0 = np.ones(10)
    return uniform_data(0), theta0, (theta0 - below, theta0 + above)


def test_a_box_that_is_tiny_beside_the_gradient_is_searched():
    """||P(theta - z) - theta|| <= 0.005 everywhere in it and ||grad f|| = 5e3: 1e-3 of that norm would say nothing.

    f is as good as linear in the box, so that its least value lies in a corner: 0.3 % below the start's, more than the
    decrease that may be left.
    """
    problem, theta0, box = quadratic_in_a_box(1e-3, 1e-3)
    solution = bilevel.solve(problem, theta0, bounds=box, max_cost=MAX_COST, progress=False)
    gradient = problem.closed_form(jnp.asarray(theta0)).gradient
    corner = theta0 - 1e-3 * np.sign(gradient)
    corner_gradient = problem.closed_form(jnp.asarray(corner)).gradient
    assert projected(corner, corner_gradient, box) == 0
    assert solution.converged
    np.testing.assert_allclose(solution.theta, corner, atol=1e-12)


def test_a_start_in_the_corner_that_the_gradient_points_to_is_converged():
    problem, theta0, _ = quadratic_in_a_box(0.0, 0.0)
    pushed = problem.closed_form(jnp.asarray(theta0)).gradient > 0  # towards smaller theta
    _, _, box = quadratic_in_a_box(np.where(pushed, 0.0, 5.0), np.where(pushed, 5.0, 0.0))
    solution = bilevel.solve(problem, theta0, bounds=box, max_cost=MAX_COST, progress=False)
    assert solution.converged
    np.testing.assert_array_equal(solution.theta, theta0)
    assert solution.gradient_norm == 0
    exact = problem.closed_form(jnp.asarray(theta0))
    assert abs(solution.value - exact.value) <= solution.value_error + 1e-12 * exact.value
    tol, first = solution.tol, np.linalg.norm(exact.gradient)
    assert solution.gradient_error <= tol <= 1e-3 * first
