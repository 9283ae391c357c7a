"""The hypergradient from gradients alone: its rates in t, its bound, descent over it."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import Undeclared, quadratic, random_nested, random_quadratic, random_robust, random_tv, stack
from sklearn import datasets
from test_certificates import closed_form, dense, distances, log_uniform

import bilevel
from bilevel import LBFGS, RESULTS, Balanced, Method, Penalty, QuasiNewton, Secants, SlopeTest, problems
from bilevel._certificate.penalty import Penalised, difference, room
from bilevel._lower.descend import descend
from bilevel._outer.programs import UNLIMITED
from bilevel.problems import data

MOST = jnp.asarray(UNLIMITED)


def first_order(two_sided=False):
    return Method(Balanced(), SlopeTest(), QuasiNewton(), predictor=Secants(), gradient=Penalty(two_sided))


@eqx.filter_jit
@partial(eqx.filter_vmap, in_axes=(None, eqx.if_array(0), eqx.if_array(0), 0, 0, 0))
def run(sides, problem, theta, t, eps, x0):
    """z and its bound, with t in units of mu/L_g and both lower levels to eps."""
    solver, t = LBFGS(), t * room(problem, theta)
    base = descend(problem, solver, theta, x0, eps, MOST)
    moved = tuple(descend(Penalised(problem, s * t), solver, theta, x0, eps, MOST) for s in (1, -1)[:sides])
    found = difference(problem, theta, base, moved, t)
    inexact = base.error + jnp.max(jnp.stack([m.error for m in moved]))
    return found.z, found.bias * t + (found.amplified * inexact + found.noise) / t


@pytest.mark.parametrize(("sides", "rate"), [(1, 1), (2, 2)])
def test_the_rate_in_t(sides, rate):
    """O(t) one-sided, O(t^2) two-sided, on the closed form."""
    problem = quadratic(np.random.default_rng(0), 10.0)
    theta = jnp.asarray([0.3, -1.0, 0.5])
    exact, t = problem.closed_form(theta), np.array([0.1, 0.05, 0.025, 0.0125])
    many = stack([(problem, theta)] * len(t))
    z, _ = run(sides, *many, jnp.asarray(t), jnp.full(len(t), 1e-12), jnp.zeros((len(t), exact.x.size)))
    errors = np.linalg.norm(np.asarray(z) - exact.gradient, axis=1)
    np.testing.assert_allclose(np.diff(np.log(errors)) / np.diff(np.log(t)), rate, atol=0.1)


DRAWS = [
    (random_quadratic, closed_form, 2, 400, 4000),
    (partial(random_tv, elastic=True), dense, 1, 40, 1500),
    (random_robust, dense, 2, 0, 3000),
    (random_nested, dense, 1, 0, 1500),
]


@pytest.mark.parametrize(
    ("draw", "exactly", "sides", "count"),
    [(draw, exactly, sides, few) for draw, exactly, sides, few, _ in DRAWS if few]
    + [pytest.param(draw, exactly, sides, many, marks=pytest.mark.full) for draw, exactly, sides, _, many in DRAWS],
)
def test_no_bound_is_violated(draw, exactly, sides, count):
    """t from 1e-6 to 1/2 of mu/L_g, eps from 10 to below the floor, starts 1e-4 to 10 away: 10 000 draws in all."""
    rng = np.random.default_rng(0)
    draws = [draw(rng, np.float64) for _ in range(count)]
    exact = exactly(draws)
    t, eps = log_uniform(rng, 1e-6, 0.5, count, float), log_uniform(rng, 1e-12, 10, count, float)
    scale = 10 ** rng.uniform(-4, 1, count)
    x0 = jax.tree.map(
        lambda v: jnp.asarray(v + scale.reshape(-1, *[1] * (v.ndim - 1)) * rng.standard_normal(v.shape)), exact.x
    )
    z, omega = jax.device_get(run(sides, *stack(draws), t, eps, x0))
    errors = distances(z, exact.gradient)
    print(np.median(omega / errors), np.max(errors / omega))
    assert np.all(errors <= omega) and np.all(np.isfinite(omega))


def tables():
    """Wine with noise, so that the best penalty is neither nothing nor everything."""
    A, y = datasets.load_wine(return_X_y=True)
    A = (A - A.mean(axis=0)) / A.std(axis=0) + np.random.default_rng(0).standard_normal(A.shape)
    train = np.arange(len(y)) % 6 == 0
    return problems.LogisticRegression(A[train], y[train], A[~train], y[~train])


def photographs():
    train, _ = data.denoising_set("photographs", sigma=0.1, size=24)
    return problems.TotalVariation(train.clean, train.noisy)


CASES = {
    "quadratic": (lambda: problems.quadratic.uniform_data(0), np.ones(10)),
    "TV": (photographs, np.array([-3.0, -3.0])),
    "wine": (tables, np.array(-2.0)),
}


@pytest.mark.parametrize("two_sided", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("case", CASES)
def test_descent_converges_without_a_hessian_product(case, two_sided):
    make, theta0 = CASES[case]
    problem = make()
    default = bilevel.solve(problem, theta0, progress=False)
    found = bilevel.solve(problem, theta0, first_order(two_sided), progress=False)
    assert found.result == RESULTS.converged and found.certified and found.counts.hessian_products == 0
    assert abs(found.value - default.value) <= 1e-5 * default.value
    exact = bilevel.hypergradient(problem, found.theta, eps=1e-7, delta=1e-7)
    size = np.linalg.norm(np.ravel(exact.gradient))
    assert size <= found.gradient_norm + found.gradient_error + float(exact.gradient_error)


def test_what_is_not_declared_is_asked_for():
    problem = Undeclared(problems.quadratic.uniform_data(0), ("L", "L_upper"))
    with pytest.raises(ValueError, match=r"declared constants.*mu"):
        bilevel.solve(problem, np.zeros(10), first_order(), progress=False)
