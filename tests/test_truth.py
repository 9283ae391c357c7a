"""One fault each that was found in the engine's words and bounds, and what is right instead."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import distance, truth

import bilevel
from bilevel import RESULTS
from bilevel import _checkpoint as checkpoint
from bilevel._outer import programs
from bilevel._outer.programs import UNLIMITED

A, B = np.random.default_rng(0).standard_normal((2, 20, 4))
b, c = np.random.default_rng(1).standard_normal((2, 20))


class Regression(bilevel.AbstractProblem):
    """h = sum psi(A x - b) + e^theta/2 ||x||^2, g = 1/2 ||B x - c||^2; psi is t^2/2 or log cosh t, with psi'' <= 1 and
    |psi'''| <= 4/sqrt(27) < 0.7699. All is declared, mu by the penalty alone."""

    A: jax.Array
    b: jax.Array
    B: jax.Array
    c: jax.Array
    kind: str = eqx.field(static=True, default="square")
    told: dict = eqx.field(static=True, default_factory=dict)

    def lower(self, x, theta):
        r = self.A @ x - self.b
        losses = r**2 / 2 if self.kind == "square" else jnp.logaddexp(r, -r) if self.kind == "logcosh" else jnp.abs(r)
        sparse = jnp.sum(jnp.abs(x)) if self.kind == "kink" else 0.0
        return jnp.sum(losses) + sparse + jnp.exp(theta) / 2 * jnp.sum(x**2)

    def upper(self, x, theta):
        return jnp.sum((self.B @ x - self.c) ** 2) / 2

    def guess(self, theta):
        return jnp.zeros_like(self.A[0])

    def constants(self, theta):
        squared = [float(np.linalg.norm(np.asarray(v), 2)) ** 2 for v in (A, B)]
        row = float(np.linalg.norm(A, axis=1).max())
        L_H = 0.7699 * squared[0] * row if self.kind == "logcosh" else 0.0
        e = jnp.exp(theta)
        known = dict(mu=e, L=squared[0] + e, L_upper=squared[1], L_hessian=L_H, L_cross=e, convex_upper=True)
        return bilevel.Constants(**known | self.told)


def regression(kind="square", dtype=np.float64, **told):
    return Regression(*(v.astype(dtype) for v in (A, b, B, c)), kind, told)


exactly = eqx.filter_jit(truth)


@pytest.mark.parametrize("kind", ["square", "logcosh"])
def test_bounds_follow_the_curvature_that_is_there(kind):
    """mu = e^-6 where the data curve a thousand times more: omega is at least a hundred times smaller than by mu and
    the Lipschitz constants alone, and holds; so do the bounds of x and of the value."""
    problem, theta = regression(kind), jnp.asarray(-6.0)
    exact = exactly(problem, theta, problem.guess(theta))
    gains = []
    for eps in (1e-2, 1e-4, 1e-6, 1e-8):
        out = bilevel.hypergradient(problem, theta, eps=eps, delta=eps)
        assert distance(out.x, exact.x) <= out.error
        assert abs(out.value - exact.value) <= out.value_error * (1 + 1e-12)
        assert distance(out.gradient, exact.gradient) <= out.gradient_error
        point = programs.evaluate(problem, bilevel.Nesterov(), theta, problem.guess(theta), jnp.asarray(eps),
                               jnp.asarray(UNLIMITED, jnp.int32), None, jnp.asarray(0, jnp.int32))  # fmt: skip
        plain = programs.differentiate(problem, theta, point.lower, 0 * out.q, jnp.asarray(eps),
                                    jnp.asarray(UNLIMITED, jnp.int32), jnp.asarray(0, jnp.int32))  # fmt: skip
        gains.append(float(plain.error / out.gradient_error))
    print(gains)
    assert np.median(gains) > 100


def test_products_are_taken_in_the_full_precision_of_float32():
    """Read from the lowered programs: no product of matrices is left to the accelerator's default."""
    problem, theta, x = regression(dtype=np.float32), jnp.float32(0.0), jnp.zeros(4, jnp.float32)
    most, seed, one = jnp.asarray(UNLIMITED, jnp.int32), jnp.asarray(0, jnp.int32), jnp.float32(1.0)
    solver = bilevel.LBFGS(pairs=3)
    learnt = solver.curvature(x)
    point = programs.evaluate(problem, solver, theta, x, one, most, learnt, seed)
    lowered = [
        programs.evaluate.lower(problem, solver, theta, x, one, most, learnt, seed),
        programs.differentiate.lower(problem, theta, point.lower, x, one, most, seed),
        programs.sharpen.lower(problem, theta, point.lower),
        programs.correct.lower(problem, theta, point, x),
    ]
    for program in lowered:
        products = [line for line in program.as_text().splitlines() if "dot_general" in line]
        assert products and all("HIGHEST" in line for line in products)


def test_a_kink_is_told_as_a_kink():
    """Exact L1 in float64: no advice to use float64, and no claim of a floor."""
    for problem in (regression("kink"), regression("kink", L=None), regression("kink", mu=None, L=None)):
        lower = bilevel.solve_lower(problem, -1.0, eps=1e-8)
        assert lower.result == RESULTS.lower_stalled
        assert "kink" in str(RESULTS[lower.result]) and "float64" not in str(RESULTS[lower.result])


@pytest.mark.parametrize("told", [{}, {"L": None}, {"mu": None, "L": None}], ids=["declared", "no L", "neither"])
def test_a_budget_is_kept_by_the_parts(told):
    """`max_cost` of `hypergradient` and `solve_lower`: never exceeded, and said; what it cannot pay for is an error."""
    problem = regression("logcosh", **told)
    whole = bilevel.hypergradient(problem, -6.0, eps=1e-10, delta=1e-10)
    assert whole.result == RESULTS.converged
    for most in range(60, whole.counts.cost - 10, 25):  # 9 are for H(x), which the result can do without
        out = bilevel.hypergradient(problem, -6.0, eps=1e-10, delta=1e-10, max_cost=most)
        assert out.counts.cost <= most and out.result == RESULTS.max_cost_reached
    lower = bilevel.solve_lower(problem, -6.0, eps=1e-12, max_cost=20)
    assert lower.lower_gradients + lower.hessian_products <= 20 and lower.result == RESULTS.max_cost_reached
    for call in (bilevel.hypergradient, bilevel.solve_lower):
        with pytest.raises(ValueError, match=r"max_cost=0.5 does not pay"):
            call(problem, -6.0, max_cost=0.5)


def test_methods_that_differ_in_arrays_alone_are_told_apart():
    """An array prints as its shape."""

    class Weighted(bilevel.Method):
        weights: jax.Array = eqx.field(default_factory=lambda: jnp.ones(3))

    one, other, same = (
        checkpoint.fingerprint(
            regression(), Weighted(bilevel.Adaptive(), bilevel.Constant(), weights=jnp.full(3, w)), {}
        )["method"]
        for w in (1.0, 2.0, 1.0)
    )
    assert one == same != other
    functions = [checkpoint.fingerprint(regression(), m, {})["method"] for m in (bilevel.hoag(), bilevel.maid())]
    assert functions[0] != functions[1]


def test_a_value_is_rounded_as_much_as_what_it_adds_up():
    """float32, g a difference of thousands: half of u times the terms is what the value may be off by, and is told."""
    shift = 1e4
    problem = regression(dtype=np.float32)
    moved = eqx.tree_at(lambda p: p.c, problem, jnp.asarray(c + shift, jnp.float32))
    moved = eqx.tree_at(lambda p: p.B, moved, jnp.asarray(np.column_stack([B[:, :3], np.full(20, shift)]), jnp.float32))
    x0 = jnp.asarray([0.1, -0.2, 0.3, 1.0], jnp.float32)
    g, terms = moved.upper(x0, 0.0), bilevel.hypergradient(moved, 0.0, eps=10.0, delta=1e3, x0=x0).value_error
    r = np.asarray(moved.B, np.longdouble) @ np.asarray(x0, np.longdouble) - np.asarray(moved.c, np.longdouble)
    assert abs(float(g) - float(r @ r) / 2) <= float(terms)
    declared = eqx.tree_at(lambda p: p.c, regression(rounding_upper=1e12), problem.c.astype(jnp.float64))
    told = bilevel.hypergradient(declared, 0.0).value_error
    assert float(told) > 1e12 * 1e-16


@pytest.mark.parametrize("told, words", [
    ({"metric": jnp.asarray([1.0, 0.5, 1.0, 1.0])}, "goes down to 0.5"),
    ({"metric": jnp.ones(4), "mu": None}, "a metric, but no mu"),
])  # fmt: skip
def test_a_metric_below_one_or_without_mu_is_refused(told, words):
    class Metric(Regression):
        def constants(self, theta):
            return bilevel.Constants(**{"mu": jnp.exp(theta), "metric": told["metric"]} | told)

    with pytest.raises(ValueError, match=words):
        bilevel.hypergradient(Metric(A, b, B, c), 0.0)


def test_complex_numbers_are_refused_with_what_to_hold_instead():
    with pytest.raises(TypeError, match="real and imaginary parts"):
        bilevel.hypergradient(regression(), 0.0 + 1.0j)


def test_jax_may_be_strict():
    """No implicit promotion of dtypes, no NaN on the way."""
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        problem = regression("logcosh", mu=None)
        solution = bilevel.solve(problem, 0.3, bounds=(-8.0, 8.0), max_steps=3, tol=1e-6, progress=False)
    assert solution.value < solution.history["value"][0] and not solution.certified
