"""The three bounds hold on random draws, are not vacuous, and shrink like eps; what rests on estimates says so."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import (
    Bilinear,
    Scalar,
    Undeclared,
    batched,
    in_float64,
    random_nested,
    random_quadratic,
    random_robust,
    random_tv,
    stack,
    truth,
)

import bilevel
from bilevel import LBFGS, RESULTS, Nesterov, NewtonCG
from bilevel._certificate.gradient import differentiate
from bilevel._certificate.value import correct, evaluate
from bilevel._outer.programs import UNLIMITED

F32, F64 = np.float32, np.float64
elastic_tv = partial(random_tv, elastic=True)
QUADRATICS = [
    (random_quadratic, F64, Nesterov(), 4000),
    (random_quadratic, F64, NewtonCG(), 2500),
    (random_quadratic, F32, LBFGS(), 2400),
]
OTHERS = [
    (elastic_tv, F64, Nesterov(), 200),
    (partial(random_tv, isotropic=True), F32, LBFGS(), 200),
    (random_robust, F64, Nesterov(), 500),
    (random_nested, F32, NewtonCG(), 200),
]


@eqx.filter_jit
@partial(eqx.filter_vmap, in_axes=(None, *[eqx.if_array(0)] * 6))
def run(solver, problem, theta, eps, delta, x0, q0):
    point = evaluate(problem, solver, theta, x0, eps, jnp.asarray(UNLIMITED))
    z = differentiate(problem, theta, point.lower, q0, delta, jnp.asarray(UNLIMITED))
    return point, z, [correct(problem, theta, point, q) for q in (z.q, q0)]


true = batched(lambda problem, theta: truth(problem, theta, problem.guess(theta)))


def closed_form(draws):
    """xhat, f, grad f of quadratics."""
    return stack([problem.closed_form(theta) for problem, theta in draws])


def dense(draws):
    """xhat, f, grad f by Newton's method and dense linear algebra in float64."""
    problem, theta = in_float64(stack(draws))
    exact = jax.device_get(true(problem, theta))
    assert np.max(exact.error) < 1e-11
    return exact


def log_uniform(rng, low, high, count, dtype):
    return jnp.asarray(np.exp(rng.uniform(np.log(low), np.log(high), count)), dtype)


def scaled(tree, factors):
    """Every leaf times `factors` along the first axis."""
    return jax.tree.map(lambda v: v * factors.reshape(-1, *[1] * (v.ndim - 1)), tree)


def distances(a, b):
    """||a_k - b_k|| of stacked pytrees, in float64."""
    pairs = zip(*(jax.tree.leaves(jax.device_get(v)) for v in (a, b)), strict=True)
    squares = [(u.astype(F64) - v.astype(F64)).reshape(len(u), -1) ** 2 for u, v in pairs]
    return np.sqrt(np.sum(np.concatenate(squares, axis=1), axis=1))


def measure(rng, draw, dtype, solver, count, exactly):
    """Errors and bounds of `count` draws, (count, 3): of x, of the value and of the hypergradient."""
    draws = [draw(rng, dtype) for _ in range(count)]
    exact = exactly(draws)
    problem, theta = stack(draws)
    eps, delta = (log_uniform(rng, 1e-11 if dtype is F64 else 1e-5, 10, count, dtype) for _ in range(2))
    noise = scaled(jax.tree.map(lambda v: rng.standard_normal(v.shape), exact.x), 10 ** rng.uniform(-4, 1, count))
    x0 = jax.tree.map(lambda v, noise: jnp.asarray(v + noise, dtype), exact.x, noise)
    q0 = scaled(x0, jnp.asarray(np.arange(count) % 2, dtype))  # every other adjoint starts from zero
    point, z, corrected = jax.device_get(run(solver, problem, theta, eps, delta, x0, q0))

    for result in (point.lower.result, z.result):
        assert np.all((result == RESULTS.converged) | (result == RESULTS.accuracy_floor))
    assert np.all((point.lower.error <= eps) == (point.lower.result == RESULTS.converged))
    assert np.all((z.delta <= delta * (1 + 1e-6)) == (z.result == RESULTS.converged))
    assert point.certified and z.certificate == "proven"
    value, value_error, below = (np.asarray(v, F64) for v in (point.value, point.value_error, point.below))
    assert np.all(value - below <= exact.value)
    for fixed in corrected:  # by the adjoint, and by any other vector
        error = np.asarray(fixed.value_error, F64)
        assert np.all(np.abs(np.asarray(fixed.value, F64) - exact.value) <= error) and np.all(np.isfinite(error))
        assert np.all(error <= value_error * (1 + 1e-6) + 8 * np.finfo(dtype).eps * np.abs(value))
    bounds = np.stack([point.lower.error, value_error, z.error], 1).astype(F64)
    # where the problem declares a metric, eps bounds the distance in it
    metric = eqx.filter_vmap(lambda problem, theta: problem.constants(theta).metric)(problem, theta)
    x = (point.lower.x, exact.x)
    if metric is not None:
        x = (jax.tree.map(lambda v, w: np.asarray(v, F64) * np.sqrt(np.asarray(w, F64)), v, metric) for v in x)
    errors = distances(*x), np.abs(value - exact.value), distances(z.gradient, exact.gradient)
    return np.stack(errors, 1), bounds


@pytest.mark.parametrize(
    ("draw", "dtype", "solver", "count", "exactly"),
    # a solver and dtype of each in `make test`; tests/test_attack.py has more families
    [pytest.param(*case, closed_form, marks=pytest.mark.full if case[1] is F64 else ()) for case in QUADRATICS]
    + [pytest.param(*case, dense, marks=pytest.mark.full if case[1] is F32 else ()) for case in OTHERS],
)
def test_no_bound_is_violated(draw, dtype, solver, count, exactly):
    """||x - xhat|| <= error, |g(x) - f| <= value_error, ||z - grad f|| <= omega: on every one of 10 000 draws.

    eps and delta from 10 to below the dtype's floor, warm starts at distances 1e-4 to 10, for x and every other q. On
    quadratics the bounds are not vacuous either (the median over kappa = 2 to 1e6 of bound/error; omega must allow for
    the worst direction of J and of x, which a random draw does not meet).
    """
    errors, bounds = measure(np.random.default_rng(0), draw, dtype, solver, count, exactly)
    ratio = bounds / np.maximum(errors, np.finfo(F64).tiny)
    print([f"min {r.min():.2f} median {np.median(r):.3g}" for r in ratio.T])
    assert np.all(np.isfinite(bounds)) and np.all(errors <= bounds)
    if exactly is closed_form:
        assert np.all(np.median(ratio, axis=0) < [500, 3000, 5000])


def test_there_are_ten_thousand_draws():
    assert sum(count for *_, count in QUADRATICS + OTHERS) >= 10_000


ZERO = dict(mu=0.5, a=0.0, p=0.0, b=0.0, c=0.0, curve=0.0, s=0.0, m=0.0)
ALONE = {  # name: the problem, x, q, and which error is meant
    "x: rho": (dict(p=1.0), 0.3, 0.0, 0),
    "value: slope": (dict(s=2.0), 0.3, 4.0, 1),
    "value: slope and curvature": (dict(curve=2.0, c=5.0), 0.3, 0.0, 1),
    "omega: delta": (dict(p=3.0, s=2.0), 0.0, 1.5, 2),
    "omega: L_upper": (dict(p=3.0, curve=2.0, c=0.0), 0.3, 1.2, 2),
    "omega: M_H": (dict(p=3.0, s=2.0, a=5.0), 1e-5, 2.0 / (0.5 + 5e-5), 2),
    "omega: M_J": (dict(b=3.0, s=2.0), 1e-5, 4.0, 2),
    "omega: L_J": (dict(b=3.0, p=-0.9, s=2.0), 0.3, 0.0, 2),
    "omega: L_upper_theta": (dict(m=3.0), 0.3, 0.0, 2),
}


@pytest.mark.parametrize("name", ALONE)
def test_every_term_is_needed(name):
    """Scalar problems in which one term is the whole error: the bound is attained, to one part in a thousand.

    x and q are warm starts that meet what is asked for, so neither moves.
    """
    fields, x, q, which = ALONE[name]
    problem = Scalar(**{key: jnp.asarray(value) for key, value in (ZERO | fields).items()})
    out = bilevel.hypergradient(problem, 0.0, eps=10.0, delta=10.0, x0=x, q0=q)
    exact = truth(problem, jnp.asarray(0.0), jnp.asarray(0.0))
    assert (float(out.x), float(out.q)) == (x, q)
    error = abs(out.x - exact.x), abs(out.value - exact.value), abs(out.gradient - exact.gradient)
    bound = out.error, out.value_error, out.gradient_error
    assert 0.999 * bound[which] <= error[which] <= bound[which]
    assert error[0] <= bound[0] and error[1] <= bound[1] and error[2] <= bound[2]


@pytest.mark.parametrize(
    ("draw", "count"), [(partial(random_quadratic, kappas=(100, 101)), 400), (random_robust, 300), (elastic_tv, 200)]
)
def test_bounds_shrink_like_eps(draw, count):
    """log omega and log value_error against log eps, delta = eps, have slope 1 within 0.1 over seven decades."""
    problem, theta = draw(np.random.default_rng(7), F64)
    theta = jnp.clip(theta, -2, 0)
    eps, x0 = jnp.geomspace(1e-2, 1e-9, count), problem.guess(theta)
    point, z, _ = run(Nesterov(), *stack([(problem, theta)] * count), eps, eps, *stack([(x0, 0 * x0)] * count))
    slopes = [np.polyfit(np.log(eps), np.log(error), 1)[0] for error in (z.error, point.value_error)]
    print("slopes", slopes)
    assert np.all(np.abs(np.array(slopes) - 1) < 0.1)


@pytest.mark.parametrize(
    ("draw", "declared", "count"),
    [
        (random_robust, ("mu",), 300),
        (random_robust, (), 300),
        pytest.param(elastic_tv, (), 200, marks=pytest.mark.full),
    ],
)
def test_estimates_say_so_and_mostly_hold(draw, declared, count):
    """With mu alone, or nothing, declared: "estimated", never certified. Measured: the bounds of x, of the value and
    of the hypergradient held in all of these 800 draws; a few failures in a hundred would not be a fault."""
    rng = np.random.default_rng(8)
    draws = [draw(rng, F64) for _ in range(count)]
    exact = dense(draws)
    problem, theta = stack(draws)
    eps, delta = (log_uniform(rng, 1e-8, 1, count, F64) for _ in range(2))
    x0 = jax.vmap(lambda x: x + 0.1)(jnp.asarray(exact.x))
    point, z, _ = jax.device_get(run(Nesterov(), Undeclared(problem, declared), theta, eps, delta, x0, 0 * x0))
    assert not point.certified and point.lower.certified == ("mu" in declared) and z.certificate == "estimated"
    errors = distances(point.lower.x, exact.x), np.abs(point.value - exact.value), distances(z.gradient, exact.gradient)
    bounds = point.lower.error, point.value_error, z.error
    held = [float(np.mean(e <= b)) for e, b in zip(errors, bounds, strict=True)]
    print("held", held, "median bound / error", np.median(z.error / errors[2]))
    assert min(held) >= 0.95 and np.all(np.isfinite(z.error))


def certificate(problem, theta, x):
    """Whether values are certified, and the kind of certificate of a hypergradient: static, so traced, never run."""
    number, most = jnp.asarray(1.0), jnp.asarray(UNLIMITED, jnp.int32)

    def both():
        point = evaluate(problem, Nesterov(), theta, x, number, most)
        return point, differentiate(problem, theta, point.lower, x, number, most)

    point, z = eqx.filter_eval_shape(both)
    return point.certified, z.certificate


@pytest.mark.parametrize(("d", "expected"), [(5, "proven"), (60, "probable")])
def test_what_the_norm_of_the_cross_derivative_is_worth(d, expected):
    """Without a formula for ||J||: proven where its few columns are computed, probable by Lanczos for many."""
    assert certificate(Bilinear(jnp.ones((70, d))), jnp.ones(d), jnp.ones(70)) == (True, expected)


def test_what_a_problem_declares_is_what_certifies():
    """One missing constant of an otherwise declared problem makes its certificate an estimate; in place of L alone
    Lanczos gives a bound that is probable."""
    problem, theta = random_nested(np.random.default_rng(10), F64)
    everything = ("mu", "L", "L_upper", "L_upper_theta", "L_hessian", "L_cross")
    x = problem.guess(theta)
    assert certificate(Undeclared(problem, everything), theta, x) == (True, "proven")
    for missing in everything:
        told = Undeclared(problem, tuple(name for name in everything if name != missing))
        expected = "probable" if missing == "L" else "estimated"
        assert certificate(told, theta, x) == (missing not in ("mu", "L_upper"), expected)
