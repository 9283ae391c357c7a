"""The hypergradient against the closed form, central differences and unrolled autodiff; counted against real calls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from problems_for_tests import (
    Counted,
    calls,
    distance,
    quadratic,
    random_nested,
    random_robust,
    random_tv,
)

import bilevel
from bilevel import LBFGS, RESULTS, AbstractProblem, Constants, GradientDescent, Nesterov, NewtonCG
from bilevel._certificate.gradient import gradient_moves

SOLVERS = [GradientDescent(), Nesterov(), LBFGS(), NewtonCG()]


def well_posed(draw, *limits):
    """The draw of a problem with its theta clipped to where gradient descent needs few steps."""
    problem, theta = draw
    return problem, jax.tree.map(lambda t: jnp.clip(t, *limits), theta)


def examples():
    rng = np.random.default_rng(3)
    tv, robust = np.array([-2.0, -2.5]), (-1.0, 1.0)
    return {
        "quadratic": (quadratic(rng, 30), jnp.asarray(rng.standard_normal(3))),
        "tv": (random_tv(rng, np.float64)[0], jnp.asarray(tv)),
        "tv isotropic elastic": (
            random_tv(rng, np.float64, isotropic=True, elastic=True)[0],
            jnp.asarray([*tv, -3.0]),
        ),
        "robust": well_posed(random_robust(rng, np.float64), *robust),
        "nested": well_posed(random_nested(rng, np.float64), *robust),
    }


EXAMPLES = examples()
each_example = pytest.mark.parametrize("name", EXAMPLES)


def tight(problem, theta, solver=NewtonCG()):
    mu = float(problem.constants(theta).mu)
    return bilevel.hypergradient(problem, theta, eps=1e-9, delta=1e-9 * mu, solver=solver)


def relative(a, b):
    return distance(a, b) / max(distance(jax.tree.map(jnp.zeros_like, b), b), 1e-300)


def test_equals_the_closed_form():
    problem, theta = EXAMPLES["quadratic"]
    out, exact = tight(problem, theta), problem.closed_form(theta)
    assert relative(out.gradient, exact.gradient) < 1e-6
    assert relative(out.x, exact.x) < 1e-8 and abs(out.value / exact.value - 1) < 1e-8


@each_example
def test_equals_central_differences(name):
    """z_j = (8 (f(t) - f(-t)) - (f(2t) - f(-2t))) / 12 t + O(t^4), f from lower levels solved to 1e-10."""
    problem, theta = EXAMPLES[name]
    flat, unravel = ravel_pytree(theta)
    out, t = tight(problem, theta), 2e-3

    def f(flat):
        solved = bilevel.hypergradient(problem, unravel(flat), eps=1e-10, delta=1e3, x0=out.x, solver=NewtonCG())
        assert solved.error <= 1e-10
        return float(solved.value)

    differences = []
    for e in np.eye(flat.size):
        a, b, c, d = (f(flat + jnp.asarray(s * t * e)) for s in (1, -1, 2, -2))
        differences.append((8 * (a - b) - (c - d)) / (12 * t))
    assert out.result == RESULTS.converged and out.certificate == "proven"
    assert jax.tree.structure(out.gradient) == jax.tree.structure(theta)
    assert relative(out.gradient, unravel(jnp.asarray(differences))) < 1e-6


@each_example
def test_equals_unrolled_autodiff(name):
    """The derivative of g after 3 000 gradient steps from the guess, through all of them."""
    problem, theta = EXAMPLES[name]
    constants = problem.constants(theta)
    step = 2 / (float(constants.L) + float(constants.mu))

    def unrolled(theta):
        def descend(x, _):
            return optax.tree.add_scale(x, -step, jax.grad(problem.lower)(x, theta)), None

        x, _ = jax.lax.scan(descend, problem.guess(theta), length=3000)
        return problem.upper(x, theta)

    assert relative(tight(problem, theta).gradient, jax.jit(jax.grad(unrolled))(theta)) < 1e-6


def test_warm_starts_are_used():
    """From the solved x and q of the same theta nothing is left to do but to look."""
    problem, theta = EXAMPLES["robust"]
    first = bilevel.hypergradient(problem, theta, eps=1e-6, delta=1e-6, solver=LBFGS())
    again = bilevel.hypergradient(problem, theta, eps=1e-6, delta=1e-6, solver=LBFGS(), x0=first.x, q0=first.q)
    assert first.counts.lower_gradients > 5 and again.counts.lower_gradients == 1
    whole = 2 * 5  # H and its factor
    assert first.counts.hessian_products > 3 + whole and again.counts.hessian_products == 1 + whole
    assert distance(first.gradient, again.gradient) == 0


def test_whether_the_gradient_in_theta_moves_with_x():
    """It does where g mixes the two, and not where it does not read theta, or only in a term of its own."""
    for name, expected in (("quadratic", False), ("robust", False), ("nested", True)):
        problem, theta = EXAMPLES[name]
        assert gradient_moves(problem, problem.guess(theta), theta) == expected


class Penalised(AbstractProblem):
    """g1(x) + g2(theta), everything declared but the constant that is zero: grad_theta g does not move with x."""

    problem: AbstractProblem

    def lower(self, x, theta):
        return self.problem.lower(x, theta)

    def upper(self, x, theta):
        return jax.jit(lambda x, theta: self.problem.upper(x, theta) + 0.1 * jnp.sum(jnp.tanh(theta) ** 2))(x, theta)

    def guess(self, theta):
        return self.problem.guess(theta)

    def constants(self, theta):
        return dataclasses.replace(self.problem.constants(theta), L_upper_theta=None)


def test_a_penalty_on_theta_keeps_its_certificate():
    problem, theta = EXAMPLES["robust"]
    out = bilevel.hypergradient(Penalised(problem), theta, eps=1e-6, delta=1e-6)
    assert not gradient_moves(Penalised(problem), problem.guess(theta), theta)
    assert out.certified and out.certificate == "proven"
    plain = bilevel.hypergradient(problem, theta, eps=1e-6, delta=1e-6)
    slope = jax.grad(lambda theta: 0.1 * jnp.sum(jnp.tanh(theta) ** 2))(theta)
    assert distance(out.gradient, plain.gradient + slope) < 1e-12


def test_below_the_floor_says_so():
    """delta below 2 u L ||q|| ends at accuracy_floor with a delta, and an omega, that still hold."""
    problem, theta = EXAMPLES["quadratic"]
    out = bilevel.hypergradient(problem, theta, eps=1e-300, delta=1e-300)
    assert out.result == RESULTS.accuracy_floor and out.certified
    assert 0 < out.residual < 1e-10
    assert distance(out.gradient, problem.closed_form(theta).gradient) <= out.gradient_error < 1e-9


class Saddle(AbstractProblem):
    """Curvature `low` in the last direction, 1 in the others, declared 1 everywhere. NaN where theta < -1."""

    low: float

    def lower(self, x, theta):
        return (jnp.sum(x[:-1] ** 2) + self.low * x[-1] ** 2) / 2 - jnp.sqrt(theta + 1) * jnp.sum(x)

    def upper(self, x, theta):
        return jnp.sum((x - 3) ** 2) / 2

    def guess(self, theta):
        return jnp.zeros(4, theta.dtype)

    def constants(self, theta):
        return Constants(mu=1.0, L=1.0, L_upper=1.0, L_hessian=0.0, L_cross=0.0, convex_upper=True)


@pytest.mark.parametrize("low", [-0.5, 0.5])
def test_too_little_curvature_is_seen(low):
    """CG meets p with p^T H p < mu ||p||^2: negative, or only less than declared; either disproves the bound."""
    out = bilevel.hypergradient(Saddle(low), 1.0, eps=1e3)
    assert out.result == RESULTS.not_strongly_convex
    assert bilevel.hypergradient(Saddle(1.0), 1.0).result == RESULTS.converged


def test_nan_is_seen():
    assert bilevel.hypergradient(Saddle(1.0), -2.0).result == RESULTS.non_finite


# Counted cost equals real calls.

EVERYTHING = ("mu", "L", "L_upper", "L_hessian", "L_cross", "convex_upper")
DECLARED = {"all": EVERYTHING, "mu": ("mu",), "nothing": ()}
SETTINGS = [(name, Nesterov()) for name in DECLARED] + [("all", solver) for solver in SOLVERS if solver != Nesterov()]
SETTINGS += [("mu", NewtonCG())]


def identify(value):
    return value if isinstance(value, str) else type(value).__name__


def real(function):
    """What `function` returns, and the calls it made by kind."""
    calls.clear()
    out = jax.block_until_ready(function())
    jax.effects_barrier()
    return out, dict(calls)


def nonzero(counts):
    return {name: count for name, count in counts._asdict().items() if count}


@pytest.fixture(scope="module")
def robust():
    return well_posed(random_robust(np.random.default_rng(4), np.float64), -1.0, 1.0)


@pytest.mark.parametrize(("declared", "solver"), SETTINGS, ids=identify)
def test_hypergradient_counts_real_calls(robust, declared, solver):
    problem, theta = robust
    counted = Counted(problem, DECLARED[declared])
    out, made = real(lambda: bilevel.hypergradient(counted, theta, eps=1e-4, delta=1e-4, solver=solver))
    assert out.result == RESULTS.converged and made["lower_gradients"] > 3
    made["hessian_products"] += 5  # the factor of H counts the size of x, and calls nothing
    assert made == nonzero(out.counts)


@pytest.mark.parametrize("columns", [40, 70])
def test_lanczos_counts_real_calls(columns):
    """With many hyperparameters ||J|| costs Lanczos steps on J^T J or J J^T, whichever is smaller."""
    rng = np.random.default_rng(0)
    problem = quadratic(rng, 10, n=50, d=columns)
    counted = Counted(problem, EVERYTHING)
    out, made = real(lambda: bilevel.hypergradient(counted, jnp.ones(columns), eps=1e-4, delta=1e-4))
    assert out.certificate == "probable" and made["cross_products"] < columns + 50  # all of J, too, for so small an x
    made["hessian_products"] += 50
    assert made == nonzero(out.counts)


@pytest.mark.parametrize(
    ("method", "declared", "solver"),
    [("maid", *setting) for setting in SETTINGS]
    + [(method, declared, Nesterov()) for method in ("hoag", "fixed_accuracy") for declared in DECLARED],
    ids=identify,
)
def test_solve_counts_real_calls(robust, declared, method, solver):
    """Every call that was ever made is in `state.counts`, and in the last entry of the history too when the run ends
    on a certified theta; before, an entry never counts more than had been called."""
    problem, theta = robust
    arguments = (1e-4,) if method == "fixed_accuracy" else ()
    counted = Counted(problem, DECLARED[declared])
    run = getattr(bilevel, method)(*arguments, solver=solver)
    out, made = real(lambda: bilevel.solve(counted, theta, run, max_steps=6, tol=0.0, progress=False))
    assert out.result == RESULTS.max_steps_reached and out.steps == 6
    assert made == nonzero(out.counts)
    assert [out.history[name][-1] for name in out.counts._fields] == list(out.counts)
    assert np.all(np.diff(out.history["cost"]) > 0)


def test_max_cost_counts_real_calls(robust):
    """A budget that ends anywhere is never exceeded, by real calls."""
    problem, theta = robust
    counted = Counted(problem, EVERYTHING)
    for max_cost in range(15, 400, 35):
        out, made = real(lambda: bilevel.solve(counted, theta, max_cost=max_cost, tol=0.0, progress=False))  # noqa: B023
        assert out.result == RESULTS.max_cost_reached
        assert sum(made.values()) <= max_cost
        counted_only = out.counts.hessian_products - made.pop("hessian_products", 0)
        assert counted_only % 5 == 0  # factors of H
        assert made == {k: v for k, v in nonzero(out.counts).items() if k != "hessian_products"}
