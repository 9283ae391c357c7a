"""Certified quasi-Newton descent and its parts: corrected values, secant pairs, affine prediction, the limit."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_descent import ONES, check_truth, denoising, quadratic, quadratic_truth, run, tv_truth

import bilevel
from bilevel import RESULTS
from bilevel._certificate.value import correct, evaluate
from bilevel._linalg import lbfgs_pairs
from bilevel._outer.balanced import Balanced, Shares
from bilevel._outer.base import Base
from bilevel._outer.bfgs import descend
from bilevel._outer.predict import Secants
from bilevel._outer.programs import Stop
from bilevel._outer.region import keep_certifiable
from bilevel.problems import LogisticRegression, Quadratic


@pytest.mark.parametrize("theta0", [3.0, -100.0, 1e5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_decreases_the_true_f_and_converges_certified(theta0, seed):
    """Quadratic, against the closed form: every interval holds, no step goes up, and the tolerance met is true."""
    problem = quadratic(seed)
    thetas, infos = run(problem, theta0 * ONES, bilevel.quasi_newton(), tol=1e-5, max_steps=100)
    check_truth(problem, quadratic_truth, thetas, infos)
    assert infos[-1].result == RESULTS.converged
    assert np.linalg.norm(quadratic_truth(problem, thetas[-1])[1]) <= 1e-5


def test_it_needs_far_fewer_steps_than_steepest_descent():
    """An upper level of condition number 3e4 in eight dimensions, where -z takes thousands of steps."""
    rng = np.random.default_rng(0)
    A3 = np.linalg.qr(rng.standard_normal((8, 8)))[0] * np.logspace(0, 2.25, 8)
    b1, b2 = rng.standard_normal((2, 8))
    problem = Quadratic(np.eye(8), np.eye(8), A3, b1, b2)
    best = problem.closed_form(jnp.linalg.solve(A3, b2 - b1)).value
    solution = bilevel.solve(problem, np.ones(8), bilevel.quasi_newton(), tol=0.0, max_steps=60)
    assert problem.closed_form(solution.theta).value - best < 1e-8
    slow = bilevel.solve(problem, np.ones(8), bilevel.maid(), tol=0.0, max_steps=60)
    assert problem.closed_form(slow.theta).value - best > 1e-2


@pytest.mark.parametrize("predictor", [bilevel.Previous(), bilevel.Secants()])
@pytest.mark.parametrize("solver", [bilevel.Nesterov(), bilevel.LBFGS(), bilevel.NewtonCG()])
def test_total_variation_converges_certified(solver, predictor):
    """To the gradient that a dense Newton solve finds zero."""
    problem, method = denoising(), replace(bilevel.quasi_newton(solver=solver), predictor=predictor)
    solution = bilevel.solve(problem, np.array([-3.0, -2.0]), method, tol=1e-4, max_steps=60)
    value, gradient = tv_truth(problem, np.asarray(solution.theta))
    assert solution.converged and solution.certified and np.linalg.norm(gradient) <= 1e-4
    assert abs(value - solution.value) <= solution.value_error <= 1e-9


def intervals(problem, theta, eps, q):
    """(f by the plain value, its error; f by the corrected one, its error) at an x of error about eps."""
    theta = jnp.asarray(theta)
    cost = jnp.asarray(10_000, jnp.int32)
    point = evaluate(problem, bilevel.Nesterov(), theta, problem.guess(theta), jnp.asarray(eps), cost)
    fixed = correct(problem, theta, point, q)
    return [float(v) for v in (point.value, point.value_error, fixed.value, fixed.value_error)]


@pytest.mark.parametrize("adjoint", ["solved", "zero", "wrong"])
@pytest.mark.parametrize("problem, truth, theta", [
    (quadratic(), quadratic_truth, [0.3, -0.2, 1.0]), (denoising(), tv_truth, [-2.0, -2.0]),
])  # fmt: skip
def test_the_corrected_interval_holds_for_any_q(problem, truth, theta, adjoint):
    """And it is never wider than the plain one, and of second order in eps for the adjoint."""
    f, _ = truth(problem, np.asarray(theta))
    q = bilevel.hypergradient(problem, jnp.asarray(theta), eps=1e-10, delta=1e-10).q
    q = {"solved": q, "zero": 0 * q, "wrong": q + np.random.default_rng(0).standard_normal(q.shape)}[adjoint]
    errors = []
    for eps in (1e-1, 1e-2, 1e-3, 1e-4):
        plain, plain_error, value, error = intervals(problem, theta, eps, q)
        assert abs(plain - f) <= plain_error and abs(value - f) <= error <= plain_error * (1 + 1e-12)
        errors.append(error)
    slope = np.polyfit(np.log([1e-1, 1e-2, 1e-3, 1e-4]), np.log(errors), 1)[0]
    assert slope > 1.7 if adjoint == "solved" else 0.8 < slope < 1.3


def dense_inverse(pairs, gamma, size):
    """BFGS's inverse by its recursion on matrices, from gamma times the identity."""
    B = gamma * np.eye(size)
    for s, y in pairs:
        V = np.eye(size) - np.outer(y, s) / (s @ y)
        B = V.T @ B @ V + np.outer(s, s) / (s @ y)
    return B


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_pairs_are_the_last_ones_of_the_dense_recursion(count):
    """Seven pairs in five slots, one of them of negative curvature, which must not enter."""
    rng, slots = np.random.default_rng(count), 5
    H = np.diag([1.0, 2.0, 5.0, 9.0])
    pushed, held = lbfgs_pairs.empty(jnp.zeros(4), slots), []
    for k in range(count):
        s = rng.standard_normal(4)
        y = (-1 if k == 2 else 1) * H @ s
        pushed = lbfgs_pairs.push(pushed, jnp.asarray(s), jnp.asarray(y))
        held += [(s, y)] if k != 2 else []
    gamma = held[-1][0] @ held[-1][1] / (held[-1][1] @ held[-1][1])
    v = rng.standard_normal(4)
    expected = dense_inverse(held[-slots:], gamma, 4) @ v
    np.testing.assert_allclose(lbfgs_pairs.apply(pushed, jnp.asarray(v)), expected, rtol=1e-12)


def test_pairs_of_trees_with_a_preconditioner_are_those_of_the_dense_recursion():
    """Leaves of several shapes, P^{-1} = 1/W; what is pushed with when=False, or is not finite, does not enter."""
    rng, slots, W = np.random.default_rng(9), 3, np.array([1.0, 4.0, 2.0, 0.5, 3.0])

    def tree(v):
        return {"a": jnp.asarray(v[:4].reshape(2, 2)), "b": jnp.asarray(v[4])}

    def P(v):
        return jax.tree.map(jnp.divide, v, tree(W))

    pushed, held = lbfgs_pairs.empty(tree(np.zeros(5)), slots), []
    for k in range(6):
        s = rng.standard_normal(5)
        y = np.array([1.0, 2.0, 5.0, 9.0, 4.0]) * s
        enters = k not in (1, 4)
        y[0] = np.nan if k == 4 else y[0]
        pushed = lbfgs_pairs.push(pushed, tree(s), tree(y), P, when=jnp.asarray(k != 1))
        held += [(s, y)] if enters else []
    s, y = held[-1]
    B = np.diag(s @ y / (y @ (y / W)) / W)
    for s, y in held[-slots:]:
        V = np.eye(5) - np.outer(y, s) / (s @ y)
        B = V.T @ B @ V + np.outer(s, s) / (s @ y)
    v = rng.standard_normal(5)
    found = lbfgs_pairs.apply(pushed, tree(v), P)
    np.testing.assert_allclose([*found["a"].ravel(), found["b"]], B @ v, rtol=1e-12)


def test_a_pair_that_curves_downwards_among_the_free_entries_drops_out():
    """The middle one of three, positive as a whole; the slots have wrapped."""
    rng, free = np.random.default_rng(2), jnp.asarray([False, True, True])
    pairs, held = lbfgs_pairs.empty(jnp.zeros(3), 3), []
    for k in range(4):
        s = rng.standard_normal(3)
        y = np.array([1.0, 4.0, 9.0]) * s
        if k == 2:
            s, y = np.array([1.0, 1.0, 0.5]), np.array([9.0, -1.0, 0.5])
        pairs, held = lbfgs_pairs.push(pairs, jnp.asarray(s), jnp.asarray(y)), [*held, (s[1:], y[1:])]
    del held[2]
    gamma = float(pairs.gamma)
    v = np.array([0.0, 1.0, -2.0])
    found = lbfgs_pairs.apply(lbfgs_pairs.restrict(pairs, free), jnp.where(free, v, 0), free=free)
    np.testing.assert_allclose(found[1:], dense_inverse(held[1:], gamma, 2) @ v[1:], rtol=1e-12)


def test_held_entries_do_not_move_and_their_pairs_do_not_count():
    """Restricted to the free entries B is BFGS there; the direction is zero where z pushes out of the box."""
    rng, theta, z = np.random.default_rng(0), jnp.asarray([0.0, 1.0, 0.5]), jnp.asarray([2.0, -1.0, 0.3])
    box = jnp.zeros(3), jnp.ones(3)
    pairs, held = lbfgs_pairs.empty(theta, 4), []
    for _ in range(2):
        s = rng.standard_normal(3)
        y = np.array([1.0, 4.0, 9.0]) * s
        pairs, held = lbfgs_pairs.push(pairs, jnp.asarray(s), jnp.asarray(y)), [*held, (s[2:], y[2:])]
    d, used = descend(pairs, theta, z, box)
    np.testing.assert_allclose(d, [0.0, 0.0, -0.3 / 9], rtol=1e-12)
    assert used


def test_the_affine_response_is_exact_where_the_response_is():
    """On a quadratic xhat is affine in theta: d + 1 solved points give it everywhere."""
    problem, predictor = quadratic(), Secants(points=4, tau=0.0)
    rng = np.random.default_rng(0)
    thetas = rng.standard_normal((4, 3))
    x = [jnp.asarray(problem.closed_form(jnp.asarray(t)).x) for t in thetas]
    memory = predictor.init(jnp.zeros(3), x[0])
    for theta, solved in zip(thetas, x, strict=True):
        memory = predictor.observe(memory, jnp.asarray(theta), solved)
    trial = jnp.asarray([0.5, 2.0, -1.0])
    guess = predictor.guess(memory, jnp.asarray(thetas[-1]), x[-1], trial)
    np.testing.assert_allclose(guess, problem.closed_form(trial).x, atol=1e-6)


def test_a_prediction_beats_the_last_point():
    """On TV, from points along a path, at a step like the last."""
    problem, predictor = denoising(), Secants()
    path = jnp.asarray([[-3.0, -2.0], [-2.9, -2.1], [-2.75, -2.15], [-2.6, -2.3], [-2.5, -2.35]])
    x = [bilevel.solve_lower(problem, theta, eps=1e-9).x for theta in path]
    memory = predictor.init(path[0], x[0])
    for k in range(4):
        memory = predictor.observe(memory, path[k], x[k])
    guess = predictor.guess(memory, path[3], x[3], path[4])
    assert jnp.linalg.norm(guess - x[4]) < 0.3 * jnp.linalg.norm(x[3] - x[4])


def logistic(seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((60, 4))
    return LogisticRegression(A[:40], rng.integers(0, 3, 40), A[40:], rng.integers(0, 3, 20))


def test_the_limit_lifts_what_is_too_low_and_nothing_else():
    problem, theta = logistic(), jnp.asarray([-30.0, -9.0, -25.0, -20.0])[:, None]
    limit = jnp.log(problem.constants(theta).L) + 22.0
    kept = keep_certifiable(problem, theta, limit)
    np.testing.assert_allclose(kept[:, 0], [-22.0, -9.0, -22.0, -20.0], atol=1e-2)
    np.testing.assert_array_equal(keep_certifiable(problem, kept, limit + 1), kept)
    # nothing declared: nothing to do
    unknown = jnp.asarray([-30.0, 0.0])
    np.testing.assert_array_equal(keep_certifiable(Undeclared(), unknown, jnp.asarray(0.0)), unknown)


class Undeclared(bilevel.AbstractProblem):
    """Nothing is known of it; f = sum tanh(theta)^2 / 2."""

    def lower(self, x, theta):
        return jnp.sum((x - jnp.tanh(theta)) ** 2) / 2

    def upper(self, x, theta):
        return jnp.sum(x**2) / 2

    def guess(self, theta):
        return jnp.ones_like(theta)


def test_estimated_constants_are_labelled_and_the_optimum_found():
    solution = bilevel.solve(Undeclared(), np.array([1.5, -0.7]), bilevel.quasi_newton(), tol=1e-6)
    assert solution.converged and not solution.certified
    np.testing.assert_allclose(solution.theta, 0, atol=1e-6)


@pytest.mark.parametrize("bounds", [(-0.5, 0.5), (jnp.array([-1.0, 0.0, -9.0]), jnp.array([1.0, 0.0, 9.0]))])
def test_a_box_is_never_left_and_stops_by_the_projected_gradient(bounds):
    problem, (lo, hi) = quadratic(), (jnp.broadcast_to(bound, 3) for bound in bounds)
    theta0 = jnp.clip(jnp.asarray([0.4, -0.4, 0.1]), lo, hi)
    thetas, infos = run(problem, theta0, bilevel.quasi_newton(), bounds=bounds, tol=1e-5, max_steps=60)
    assert all(jnp.all((lo <= theta) & (theta <= hi)) for theta in thetas)
    _, gradient = quadratic_truth(problem, thetas[-1])
    stationarity = jnp.clip(thetas[-1] - gradient, lo, hi) - thetas[-1]
    assert infos[-1].result == RESULTS.converged and jnp.linalg.norm(stationarity) <= 1e-5


@pytest.mark.parametrize("first", [None, 1.0, 1e3])
def test_a_bound_of_second_order_alone_is_tightened(first):
    """At x = 0 no weight feels its penalty, J = 0 and q = 0: omega = L_J eps eta_q has no part linear in eps."""
    method = bilevel.quasi_newton(first, first)
    solution = bilevel.solve(logistic(), np.zeros((4, 3)), method, max_cost=3000, tol=1e-3, bounds=(-4.0, 4.0))
    assert solution.result == RESULTS.converged and solution.steps > 0


class Solved(bilevel.AbstractProblem):
    """xhat = 0 is where the lower level starts, and f hardly varies: rounding is all of the base's interval."""

    k: jax.Array

    def lower(self, x, theta):
        return jnp.exp(theta[0]) * jnp.sum(x**2) / 2

    def upper(self, x, theta):
        return jnp.sum((x - 1) ** 2) / 2 + self.k * jnp.sum((theta - 2) ** 2)

    def guess(self, theta):
        return jnp.zeros(3)

    def constants(self, theta):
        e = jnp.exp(theta[0])
        return bilevel.Constants(
            mu=e, L=e, L_upper=1.0, L_upper_theta=0.0, L_hessian=0.0, L_cross=e, convex_upper=True
        )  # fmt: skip


@pytest.mark.parametrize("k", [1e-10, 1e-12, 1e-14])
def test_a_base_without_error_is_not_refined_for_ever(k):
    solution = bilevel.solve(Solved(jnp.asarray(k)), np.array([0.3, -0.7]), tol=0.0, max_cost=20_000)
    assert solution.result == RESULTS.accuracy_floor and solution.cost < 10_000


def test_rounding_is_named_where_it_keeps_trials_from_being_judged():
    """At the floor a trial can be cut off before it is as accurate as was asked: no looser rule would have helped."""
    for floor, judged, result in (
        (True, False, RESULTS.accuracy_floor), (False, True, RESULTS.accuracy_floor),
        (False, False, RESULTS.no_decrease),
    ):  # fmt: skip
        assert Balanced().harder(Shares(1e-9, 1e-9, 3.0), floor, judged).C == 0.5
        with pytest.raises(Stop) as stop:
            Balanced().harder(Shares(1e-9, 1e-9, 0.5), floor, judged)
        assert stop.value.result == result
        assert Base.stuck(SimpleNamespace(norm=1.0, x_floor=floor, judged=judged)) == result


@pytest.mark.parametrize("low", [-6.0, -1.0])
def test_the_preconditioner_is_near_the_hessian(low):
    """Symmetric, positive, and P^{-1} H within a factor that conjugate gradients do not notice."""
    problem = logistic()
    theta = jnp.asarray(np.random.default_rng(1).uniform(low, 0, (4, 3)))
    x = bilevel.solve_lower(problem, theta, eps=1e-8).x
    size = x.size

    def matrix(product):
        return np.stack([np.asarray(product(e.reshape(4, 3))).ravel() for e in jnp.eye(size)])

    inverse = matrix(problem.preconditioner(x, theta))
    H = matrix(lambda v: jax.jvp(lambda x: jax.grad(problem.lower)(x, theta), (x,), (v,))[1])
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-12 * np.abs(inverse).max())
    root = np.linalg.cholesky(inverse)
    eigenvalues = np.linalg.eigvalsh(root.T @ H @ root)
    plain = np.linalg.eigvalsh(H)
    assert eigenvalues[0] > 0 and eigenvalues[-1] / eigenvalues[0] < min(50, plain[-1] / plain[0])


def test_entries_held_by_the_box_do_not_shorten_the_step():
    """f = 1/2 sum of a (theta - b)^2; three entries sit on a bound that -z pushes against, 180 times as hard as
    it pulls on the fourth. Counted in ||d||, they would make each first step a fraction of the one before."""
    problem = Quadratic(np.eye(4), np.eye(4), np.diag([1.0, 1, 1, 0.05]), np.zeros(4), np.array([-9.0, -9, -9, 1]))
    method = replace(bilevel.quasi_newton(), direction=bilevel.Steepest())
    solution = bilevel.solve(problem, np.zeros(4), method, bounds=(0.0, 50.0), tol=1e-6, max_steps=60)
    assert solution.converged
    np.testing.assert_allclose(solution.theta, [0, 0, 0, 20], atol=1e-3)


@pytest.mark.parametrize("rate", [0.3, 30.0])
def test_adam_certified_decreases_f_and_starts_again_where_momentum_points_uphill(rate):
    """alpha = 1 comes first; no step goes up; an uphill direction does not end the run."""
    problem = quadratic()
    method = replace(bilevel.quasi_newton(), direction=bilevel.Optax(optax.adam(rate)))
    thetas, infos = run(problem, 3 * ONES, method, tol=1e-2, max_steps=400)
    check_truth(problem, quadratic_truth, thetas, infos)
    assert infos[-1].result == RESULTS.converged
    assert infos[0].step == 1 or rate > 1
