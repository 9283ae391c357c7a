"""Float32 first: the same certificates from float64 alone, the same answers, no cost uncounted, no failure kept."""

from collections import Counter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems_for_tests
import pytest
from problems_for_tests import Counted, Undeclared, distance, quadratic, random_robust, random_tv, truth

import bilevel
from bilevel import LBFGS, RESULTS, AbstractProblem, Constants, MixedPrecision, Nesterov, NewtonCG, SingleProducts
from bilevel._lower.descend import descend, overhead
from bilevel._outer.programs import Meter

MIXED = [*map(MixedPrecision, (Nesterov(), LBFGS())), SingleProducts(NewtonCG())]
DECLARED = ("mu", "L", "L_upper", "L_hessian", "L_cross")
each_solver = pytest.mark.parametrize("solver", MIXED, ids=lambda s: f"{type(s).__name__} {type(s.solver).__name__}")
exactly, minimise = eqx.filter_jit(truth), eqx.filter_jit(descend)


def example(name, dtype=np.float64):
    rng = np.random.default_rng(7)
    if name == "quadratic":
        return quadratic(rng, 100, dtype=dtype), jnp.asarray(rng.standard_normal(3), dtype)
    if name == "tv":
        return random_tv(rng, dtype)[0], jnp.asarray([-2.0, -2.5], dtype)
    problem, theta = random_robust(rng, dtype)
    return problem, jnp.clip(theta, -1, 1)


def cost(lower):
    return int(lower.lower_gradients + lower.hessian_products)


@each_solver
@pytest.mark.parametrize(("name", "declared"), [("quadratic", DECLARED), ("tv", DECLARED), ("robust", ("mu",))])
def test_the_certificate_holds_above_and_below_the_floor_of_float32(name, declared, solver):
    """||x - xhat|| <= error <= eps with eps on either side of float32's ability, and within both errors of float64's
    answer."""
    problem, theta = example(name)
    told = Undeclared(problem, declared)
    exact = exactly(problem, theta, problem.guess(theta))
    for eps in (1e-1, 3e-3, 1e-5, 1e-9):
        lower = bilevel.solve_lower(told, theta, eps=eps, solver=solver)
        assert lower.result == RESULTS.converged and lower.certified
        assert lower.x.dtype == lower.rho.dtype == lower.error.dtype == np.float64
        assert distance(lower.x, exact.x) <= lower.error <= eps
        alone = bilevel.solve_lower(told, theta, eps=eps, solver=solver.solver)
        assert distance(lower.x, alone.x) <= lower.error + alone.error
    floor = bilevel.solve_lower(told, theta, eps=1e-30, solver=solver)
    assert floor.result == RESULTS.accuracy_floor and distance(floor.x, exact.x) <= floor.error < 1e-9


@each_solver
@pytest.mark.parametrize("declared", [DECLARED, ()], ids=["declared", "estimated"])
def test_every_call_is_counted_and_those_in_float64_are_few(solver, declared, monkeypatch):
    """What is counted is what was called. Above float32's floor a mixed descent leaves to float64 the estimates, the
    first gradient and the last; single products leave it the estimates and the gradients, whatever eps."""
    calls = Counter()

    def called(kind, *operands):
        def count(*values):
            calls[kind, values[0].dtype] += 1
            return np.zeros((), values[0].dtype)

        return jax.pure_callback(count, jax.ShapeDtypeStruct((), operands[0].dtype), *operands)

    monkeypatch.setattr(problems_for_tests, "called", called)
    problem, theta = example("quadratic")  # full Newton steps, so that no product is taken back
    counted = Counted(problem, declared)
    x0 = problem.guess(theta) + 10
    for eps, most in ((1e-2, 10**6), (1e-8, 10**6), (1e-8, 30)):
        calls.clear()
        lower = minimise(counted, solver, theta, x0, jnp.asarray(eps), jnp.asarray(most, jnp.int32))
        jax.block_until_ready(lower)
        jax.effects_barrier()
        for kind in ("lower_gradients", "hessian_products"):
            assert getattr(lower, kind) == calls[kind, np.dtype(np.float32)] + calls[kind, np.dtype(np.float64)]
        in_float64 = sum(n for (_, dtype), n in calls.items() if dtype == np.float64)
        estimates = overhead(counted, theta, optax.tree.size(x0)) - 1
        if isinstance(solver, SingleProducts):
            looks = in_float64 - int(lower.lower_gradients)
        elif eps == 1e-2:
            looks = in_float64 - 2
        else:
            continue
        # what is not declared is looked at until a look leaves nothing to do
        assert looks == 0 if estimates == 0 else looks > 0 and looks % estimates == 0
        assert in_float64 < cost(lower)


@each_solver
def test_a_cap_is_never_exceeded(solver):
    problem, theta = example("robust")
    told = Undeclared(problem, ("mu",))
    exact = exactly(problem, theta, problem.guess(theta))
    x0, eps = problem.guess(theta) + 10, jnp.asarray(1e-10)
    least = overhead(told, theta, optax.tree.size(x0))
    for most in range(least, 40):
        lower = minimise(told, solver, theta, x0, eps, jnp.asarray(most, jnp.int32))
        short = bool(lower.error > eps)
        assert most - (least - 1) * short <= cost(lower) <= most if short else cost(lower) <= most
        assert (lower.result == RESULTS.max_cost_reached) == short
        assert distance(lower.x, exact.x) <= lower.error


class Large(AbstractProblem):
    """h = sum_j a_j (x_j - theta)^2 / 2 with curvatures whose squares overflow in float32."""

    a: jax.Array

    def lower(self, x, theta):
        return jnp.sum(self.a * (x - theta) ** 2) / 2

    def upper(self, x, theta):
        return jnp.sum(x)

    def guess(self, theta):
        return jnp.full_like(self.a, 5.0)

    def constants(self, theta):
        return Constants(mu=jnp.min(self.a), L=jnp.max(self.a))


class Cancelling(AbstractProblem):
    """h = (a - b) x^2 / 2 - theta x summed, a - b = 1 in float64 and 0 in float32."""

    a: jax.Array
    b: jax.Array

    def lower(self, x, theta):
        return jnp.sum((self.a - self.b) * x**2 / 2 - theta * x)

    def upper(self, x, theta):
        return jnp.sum(x)

    def guess(self, theta):
        return jnp.full_like(self.a, 5.0)

    def constants(self, theta):
        return Constants(mu=1.0, L=1.0)


@each_solver
def test_what_breaks_in_float32_is_solved_all_the_same(solver):
    large = Large(jnp.array([1e30, 2e30, 4e30]))
    assert jnp.isinf(jnp.linalg.norm(large.a.astype(np.float32)))
    for problem in (large, Cancelling(jnp.full(3, 1e9 + 1), jnp.full(3, 1e9))):
        lower = bilevel.solve_lower(problem, 2.0, eps=1e-3, solver=solver)
        assert lower.result == RESULTS.converged and lower.certified
        assert distance(lower.x, jnp.full(3, 2.0)) <= lower.error <= 1e-3


@each_solver
def test_float32_data_are_left_alone(solver):
    problem, theta = example("robust", np.float32)
    for eps in (1e-1, 1e-30):
        lower, alone = (bilevel.solve_lower(problem, theta, eps=eps, solver=s) for s in (solver, solver.solver))
        assert cost(lower) == cost(alone) and lower.result == alone.result
        assert np.array_equal(lower.x, alone.x) and lower.x.dtype == np.float32


def test_numbers_do_not_compile_anew():
    solver = MixedPrecision(Nesterov())
    problem, theta = example("tv")
    other = jax.block_until_ready(theta - 1)
    jax.block_until_ready(bilevel.solve_lower(problem, theta, eps=1e-1, solver=solver))
    before = Meter.compilations
    jax.block_until_ready(bilevel.solve_lower(problem, other, eps=1e-9, solver=solver))
    assert Meter.compilations == before


@pytest.mark.full
def test_a_whole_run_ends_where_float64_does():
    """The same minimum of f, certified, at a cost that its maximum bounds."""
    problem, theta0 = random_tv(np.random.default_rng(7), np.float64)[0], jnp.array([-3.0, -3.0])
    runs = [
        bilevel.solve(problem, theta0, bilevel.quasi_newton(solver=solver), tol=1e-4, bounds=(-6.0, 1.0))
        for solver in (LBFGS(), MixedPrecision(LBFGS()))
    ]
    assert all(run.converged and run.certified for run in runs)
    assert abs(runs[0].value - runs[1].value) < 1e-4
    short = bilevel.solve(problem, theta0, bilevel.quasi_newton(solver=MixedPrecision(LBFGS())), tol=0.0, max_cost=60)
    assert short.cost <= 60
