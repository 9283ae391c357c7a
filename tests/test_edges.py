"""Corners that a careful reader looked into, one promise each."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import bilevel
from bilevel import RESULTS, AbstractProblem, Adaptive, CertifiedBacktracking, Constants, Method, NewtonCG
from bilevel._outer.accuracy import AbstractAccuracy, scaled
from bilevel.problems import Quadratic, TotalVariation


class Ridge(AbstractProblem):
    """1/2 ||A x - b||^2 + 1/2 e^theta ||x||^2, with only some of the constants declared."""

    A: Array
    b: Array

    def lower(self, x, theta):
        return jnp.sum((self.A @ x - self.b) ** 2) / 2 + jnp.exp(theta) * jnp.sum(x**2) / 2

    def upper(self, x, theta):
        return jnp.sum((self.A @ x) ** 2) / 2

    def guess(self, theta):
        return jnp.zeros_like(self.A[0])

    def constants(self, theta):
        squares = jnp.sum(self.A**2)
        return Constants(mu=jnp.exp(theta), L=jnp.exp(theta) + squares, L_upper=squares)


class DoubleWell(AbstractProblem):
    start: Array

    def lower(self, x, theta):
        return jnp.sum((x**2 - 1) ** 2) + jnp.exp(theta) * jnp.sum(x**2) * 0

    def upper(self, x, theta):
        return jnp.sum(x**2) / 2

    def guess(self, theta):
        return self.start

    def constants(self, theta):
        return Constants(mu=1.0, L=8.0)


def ridge():
    rng = np.random.default_rng(0)
    return Ridge(rng.standard_normal((8, 3)), rng.standard_normal(8))


def small_tv():
    rng = np.random.default_rng(0)
    clean = np.kron(rng.uniform(size=(2, 3, 3)), np.ones((4, 4)))
    return TotalVariation(clean, clean + 0.1 * rng.standard_normal(clean.shape))


def test_bounds_hold_where_the_data_cancel():
    """A3 theta and b2 are a thousand times their difference: float32 loses digits that L ||x|| knows nothing of."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        A1, A2, A3 = rng.standard_normal((3, 12, 4))
        theta = 100 * rng.standard_normal(4)
        b2 = A3 @ theta + A2 @ (0.1 * rng.standard_normal(4))
        data = [v.astype(np.float32) for v in (A1, A2, A3, A1 @ rng.standard_normal(4), b2)]
        problem, theta = Quadratic(*data), theta.astype(np.float32)
        z, exact = bilevel.hypergradient(problem, theta, eps=1e-9, delta=1e-9), problem.closed_form(jnp.asarray(theta))
        assert z.result == RESULTS.accuracy_floor
        assert np.linalg.norm(z.x - exact.x) <= z.error
        assert abs(z.value - exact.value) <= z.value_error
        assert np.linalg.norm(z.gradient - exact.gradient) <= z.gradient_error


def test_newton_reports_negative_curvature():
    lower = bilevel.solve_lower(DoubleWell(np.full(2, 0.1)), 0.0, eps=1e-6, solver=NewtonCG())
    assert lower.result == RESULTS.not_strongly_convex


@pytest.mark.parametrize("budget", range(4, 120, 7))
def test_an_estimate_is_never_called_certified(budget):
    """Wherever the budget ends: a finite gradient_error that rests on estimates is not certified."""
    solution = bilevel.solve(ridge(), 0.5, max_cost=budget)
    assert not (np.isfinite(solution.gradient_error) and solution.certified)
    assert solution.cost <= budget


def test_iterate_keeps_its_budget_and_says_what_it_needs():
    with pytest.raises(ValueError, match="which takes 7"):
        list(bilevel.iterate(Undeclared(np.ones(3)), np.zeros(3), max_cost=3))
    state, _ = list(bilevel.iterate(Undeclared(np.ones(3)), np.zeros(3) + 0.1, max_cost=7))[-1]
    assert state.counts.cost <= 7


class Undeclared(AbstractProblem):
    """Nothing declared; `bounds` counts its traces."""

    y: Array
    traces = 0

    def lower(self, x, theta):
        return jnp.sum((x - self.y) ** 2) / 2 + jnp.sum(jnp.exp(theta) * x**2) / 2

    def upper(self, x, theta):
        return jnp.sum((x - 1) ** 2) / 2

    def guess(self, theta):
        return jnp.zeros_like(self.y)

    def bounds(self, x, theta, q, radius):
        Undeclared.traces += 1
        return super().bounds(x, theta, q, radius)


def test_bounds_are_not_traced_again():
    problem = Undeclared(np.full(3, 2.0))
    bilevel.solve(problem, np.full(3, 0.5), max_cost=500)
    before = Undeclared.traces
    bilevel.solve(problem, np.ones(3), max_cost=600)
    assert before > 0 and Undeclared.traces == before


@pytest.mark.parametrize("x0", [np.zeros((1, 12, 12)), np.zeros(12), {"x": np.zeros((2, 12, 12))}], ids=str)
def test_what_would_broadcast_is_refused(x0):
    with pytest.raises(ValueError, match="x0 must have the structure and shapes"):
        bilevel.solve(small_tv(), np.array([-3.0, -3.0]), x0=x0)
    with pytest.raises(ValueError, match="q0 must have the structure and shapes"):
        bilevel.hypergradient(small_tv(), np.array([-3.0, -3.0]), q0=x0)


def test_checkpoint_options_are_checked_before_the_run(tmp_path):
    with pytest.raises(ValueError, match="every"):
        bilevel.solve(ridge(), 0.0, every=0)
    with pytest.raises(ValueError, match="folder that does not exist"):
        bilevel.solve(ridge(), 0.0, checkpoint=tmp_path / "missing" / "run.npz")


def test_constants_stand_in_the_order_of_the_contract():
    c = Constants(1.0, 2.0, 3.0, 4.0, 5.0)
    assert (c.mu, c.L, c.L_upper, c.L_hessian, c.L_cross) == (1.0, 2.0, 3.0, 4.0, 5.0)


def test_eps_between_two_floats_is_not_mistaken_for_converged():
    """eps just below a float32 error: rounded on its way into the solve, it must not end the run."""
    start = float(bilevel.solve_lower(ridge32(), 0.0, eps=1e6).error)
    solution = bilevel.solve(ridge32(), 0.0, bilevel.maid(start * (1 - 1e-9), 1e-3), tol=1e-12, max_cost=300)
    assert np.isfinite(solution.history["gradient_norm"][0]) and not solution.converged


def ridge32():
    problem = ridge()
    return Ridge(problem.A.astype(np.float32), problem.b.astype(np.float32))


class Labelled(Ridge):
    """With a NumPy array of integers among the data."""

    rows: np.ndarray

    def upper(self, x, theta):
        return jnp.sum((self.A[self.rows] @ x - self.b[self.rows]) ** 2) / 2


def test_integer_arrays_may_be_data():
    base = ridge()
    solution = bilevel.solve(Labelled(base.A, base.b, np.array([0, 2])), 0.0, max_cost=300)
    assert solution.value < solution.history["value"][0]


class OneAtATime(AbstractAccuracy):
    """The published loop to the letter: one nu per failed certificate, whatever the excess."""

    adaptive: Adaptive

    def init(self, error, norm_g_x, value):
        return self.adaptive.init(error, norm_g_x, value)

    def wanted(self, asked, reached):
        return self.adaptive.wanted(asked, reached)

    def tighten(self, asked, reached, wanted, tries):
        return scaled(asked, self.adaptive.nu)

    def harder(self, asked, floor, judged):
        return self.adaptive.harder(asked, floor, judged)

    def accepted(self, asked):
        return self.adaptive.accepted(asked)


def test_skipping_checks_finds_the_published_accuracies():
    """From accuracies far too loose: the same eps and delta are asked for at every step, at a smaller cost."""
    runs = []
    for rule in (Adaptive(1e3, 1e3), OneAtATime(Adaptive(1e3, 1e3))):
        method = Method(rule, CertifiedBacktracking(1e-2))
        runs.append([s for s, _ in bilevel.iterate(small_tv(), np.array([-2.0, -4.0]), method, max_steps=6)])
    asked = np.array([[(s.memory.asked.eps, s.memory.asked.delta) for s in run] for run in runs])
    np.testing.assert_allclose(asked[0], asked[1], rtol=1e-12)
    assert runs[0][-1].counts.cost < runs[1][-1].counts.cost
