"""Every method for the lower level reaches the certified error, at its rate, within its budget, or says why not."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems_for_tests import (
    Undeclared,
    batched,
    distance,
    in_float64,
    quadratic,
    random_robust,
    random_tv,
    truth,
)

import bilevel
from bilevel import LBFGS, RESULTS, AbstractProblem, Constants, GradientDescent, Nesterov, NewtonCG
from bilevel._certificate.gradient import differentiate
from bilevel._lower.descend import descend, overhead
from bilevel._outer.programs import UNLIMITED
from bilevel.problems import TotalVariation

F32, F64 = np.float32, np.float64
SOLVERS = [GradientDescent(), Nesterov(), LBFGS(), NewtonCG()]
DECLARED = ("mu", "L", "L_upper", "L_hessian", "L_cross")
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
exactly, minimise = eqx.filter_jit(truth), eqx.filter_jit(descend)


def example(name, dtype):
    rng = np.random.default_rng(5)
    if name == "quadratic":
        return quadratic(rng, 100, dtype=dtype), jnp.asarray(rng.standard_normal(3), dtype)
    if name == "tv":
        return random_tv(rng, dtype)[0], jnp.asarray([-2.0, -2.5], dtype)
    problem, theta = random_robust(rng, dtype)
    return problem, jnp.clip(theta, -1, 1)


TABLE = [("quadratic", F64, DECLARED), ("tv", F32, DECLARED), ("robust", F64, DECLARED)]
TABLE += [("quadratic", F32, ("mu",)), ("tv", F64, ("mu",)), ("robust", F32, ())]


@each_solver
@pytest.mark.parametrize(("name", "dtype", "declared"), TABLE)
def test_the_certified_error_is_reached(name, dtype, declared, solver):
    """||x - xhat|| <= error <= eps, from eps asked for at 1e-1 down to the dtype's ability, declared L or not."""
    problem, theta = example(name, dtype)
    told = Undeclared(problem, declared)
    exact = exactly(in_float64(problem), theta.astype(F64), in_float64(problem.guess(theta)))
    for eps in (1e-1, 1e-8 if dtype is F64 else 3e-3):
        lower = bilevel.solve_lower(told, theta, eps=eps, solver=solver)
        assert lower.result == RESULTS.converged and lower.certified == ("mu" in declared)
        assert lower.x.dtype == dtype
        assert distance(lower.x, exact.x) <= float(lower.error) <= dtype(eps)
        assert lower.lower_gradients + lower.hessian_products < 3000


@each_solver
@pytest.mark.parametrize("dtype", [F32, F64])
def test_below_the_floor_it_ends_honestly(solver, dtype, optimised):
    """Asked for the impossible a solve ends at the floor u L ||x|| / mu, at no more than ten times the cost of
    getting near it, and the error it reports holds. Gradient descent at 2/(L + mu) forgets a rounding error along the
    top eigenvector only after kappa steps, so its residual hovers at about sqrt(kappa) = 10 times the floor, which the
    error adds once more."""
    problem, theta = example("quadratic", dtype)
    exact = problem.closed_form(theta)
    floor = np.finfo(dtype).eps / 2 * float(problem.L / problem.mu) * np.linalg.norm(exact.x)
    told = Undeclared(problem, DECLARED if dtype is F64 else ("mu",))
    near, below = (bilevel.solve_lower(told, theta, eps=eps, solver=solver) for eps in (10 * floor, 1e-30))
    assert near.result == RESULTS.converged and below.result == RESULTS.accuracy_floor
    assert distance(below.x, exact.x) <= float(below.error) <= (11 if solver == GradientDescent() else 3) * floor
    cost = [int(lower.lower_gradients + lower.hessian_products) for lower in (near, below)]
    assert cost[1] <= 10 * cost[0] + 600


def test_what_a_solve_learnt_starts_the_next():
    """Six pairs tell all of a quadratic's H: at another theta few gradients are left to do, and fewer products for the
    adjoint. Pairs of an H a thousand times as large, or as small, cost gradients and no certificate."""
    problem, theta = example("quadratic", F64)
    most, eps, solver = jnp.asarray(UNLIMITED, jnp.int32), jnp.asarray(1e-6), LBFGS()
    first = minimise(problem, solver, theta, problem.guess(theta), eps, most)
    exact = problem.closed_form(theta + 1)

    def products(lower):
        q0 = optax.tree.zeros_like(lower.x)
        z = eqx.filter_jit(differentiate)(problem, theta + 1, lower, q0, jnp.asarray(1e-6), most)
        assert z.result == RESULTS.converged and distance(z.gradient, exact.gradient) <= z.error
        return int(z.hessian_products)

    def solve(curvature):
        lower = minimise(problem, solver, theta + 1, first.x, eps, most, curvature)
        assert lower.result == RESULTS.converged and distance(lower.x, exact.x) <= lower.error <= 1e-6
        return lower

    alone, next_one = solve(solver.curvature(first.x)), solve(first.curvature)
    assert 2 * next_one.lower_gradients <= alone.lower_gradients
    assert products(next_one) < products(dataclasses.replace(next_one, curvature=None))
    pairs = first.curvature
    for factor in (1e-3, 1e3):
        solve(dataclasses.replace(
            pairs, y=factor * pairs.y, products=factor * pairs.products, gamma=pairs.gamma / factor
        ))  # fmt: skip


def test_the_pairs_are_overwritten_in_place():
    """Within the loop nothing copies a stack; the two copies are of the arguments, which stay the caller's."""
    clean = np.random.default_rng(0).uniform(0.2, 0.8, (4, 5, 6))
    problem, solver = TotalVariation(clean, clean), LBFGS(pairs=7)
    most, eps = jnp.asarray(2**30, jnp.int32), jnp.asarray(1e-6)

    def solve(problem, theta, curvature):
        lower = descend(problem, solver, theta, problem.noisy, eps, most, curvature)
        return lower.x, lower.curvature

    arguments = problem, jnp.array([-3.0, -3.0]), solver.curvature(problem.noisy)
    text = jax.jit(solve).lower(*arguments).compile().as_text()
    copies = [line for line in text.splitlines() if re.search(r"= f64\[7,4,5,6\]\S* copy\(", line)]
    assert "f64[7,4,5,6]" in text and len(copies) <= 2


def iterations(solver, kappas, digits=1e-6):
    """Gradients until eps = digits ||x0 - xhat||, from a start that excites every eigenvalue equally in h."""
    rng, problems, starts = np.random.default_rng(6), [], []
    theta = jnp.ones(3)
    for kappa in kappas:
        problem = quadratic(rng, kappa)
        problem = eqx.tree_at(lambda p: (p.mu, p.L), problem, (problem.L / kappa, problem.L))
        x, (_, V) = problem.closed_form(theta).x, np.linalg.eigh(problem.A2.T @ problem.A2)
        problems.append(problem)
        starts.append(x + V @ np.ones(len(x)))
    problem = jax.tree.map(lambda *v: jnp.stack(v), *problems)
    size = jnp.sqrt(1.0 * len(starts[0]))

    def count(problem, x0):
        return descend(problem, solver, theta, x0, digits * size, jnp.asarray(UNLIMITED, jnp.int32))

    lower = batched(count)(problem, jnp.asarray(np.stack(starts)))
    assert np.all(lower.result == RESULTS.converged)
    return np.asarray(lower.lower_gradients, float)


@pytest.mark.parametrize(
    ("solver", "kappas", "rate"),
    [(Nesterov(), np.geomspace(1e2, 1e6, 9), 0.5), (GradientDescent(), np.geomspace(1e2, 1e4, 5), 1.0)],
    ids=["Nesterov", "GradientDescent"],
)
def test_the_iteration_count_grows_at_its_rate(solver, kappas, rate):
    """Iterations grow like kappa^(1/2) for Nesterov's method, like kappa for gradient descent: slope in log-log."""
    slope = np.polyfit(np.log(kappas), np.log(iterations(solver, kappas)), 1)[0]
    print("slope", slope)
    assert abs(slope - rate) < 0.1


@each_solver
def test_a_cap_is_never_exceeded(solver):
    """Whatever max_cost, what is counted stays below it, an x with a true bound comes back, and it says max_cost.

    Less is left over than a last look at L takes, which is kept back for the x that comes back.
    """
    problem, theta = example("robust", F64)
    told = Undeclared(problem, ("mu",))
    exact = exactly(problem, theta, problem.guess(theta))
    x0, eps = problem.guess(theta) + 10, jnp.asarray(1e-10)
    least = overhead(told, theta, optax.tree.size(x0))
    for most in range(least, 40):
        lower = minimise(told, solver, theta, x0, eps, jnp.asarray(most, jnp.int32))
        cost, short = int(lower.lower_gradients + lower.hessian_products), bool(lower.error > eps)
        assert most - (least - 1) * short <= cost <= most if short else cost <= most
        assert (lower.result == RESULTS.max_cost_reached) == short
        assert distance(lower.x, exact.x) <= lower.error
        assert short or most > 2 * least - 1


class Steep(AbstractProblem):
    """h = x^4 / 4 + x^2 / 2 - theta x summed; overflows far out. Nothing is known about L."""

    data: jax.Array

    def lower(self, x, theta):
        return jnp.sum(x**4 / 4 + x**2 / 2 - theta * self.data * x)

    def upper(self, x, theta):
        return jnp.sum(x)

    def guess(self, theta):
        return 0 * self.data

    def constants(self, theta):
        return Constants(mu=1.0)


@each_solver
def test_what_is_not_finite_is_seen(solver):
    """NaN at the start, and an overflow there, end at once with non_finite."""
    problem = Steep(jnp.arange(1.0, 4.0))
    for x0, theta in ((jnp.full(3, 1e200), 1.0), (problem.guess(1.0), 1e308)):
        lower = bilevel.solve_lower(problem, theta, x0=x0, eps=1e-3, solver=solver)
        assert lower.result == RESULTS.non_finite
        assert lower.lower_gradients <= 3
    assert bilevel.solve_lower(problem, 1.0, eps=1e-3, solver=solver).result == RESULTS.converged


class Saddle(AbstractProblem):
    def lower(self, x, theta):
        return jnp.sum(x**2) / 2 - x[0] ** 2 - theta * jnp.sum(x)

    def upper(self, x, theta):
        return jnp.sum(x)

    def guess(self, theta):
        return jnp.ones(5, theta.dtype)


def test_a_saddle_is_not_solved():
    """With mu unknown, a Ritz value below zero says that h is not convex, and no error is claimed."""
    lower = bilevel.solve_lower(Saddle(), 1.0)
    assert lower.result == RESULTS.not_convex and lower.error == jnp.inf and jnp.all(jnp.isfinite(lower.x))


def test_a_warm_start_at_the_solution_costs_one_gradient():
    problem, theta = example("tv", F64)
    first = bilevel.solve_lower(problem, theta, eps=1e-6)
    again = bilevel.solve_lower(problem, theta, eps=1e-6, x0=first.x)
    assert again.lower_gradients == 1 and distance(first.x, again.x) == 0
