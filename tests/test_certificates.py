"""The three bounds hold on random draws, are not vacuous, and shrink like eps; what rests on estimates says so."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import (
    Bilinear,
    Nested,
    Robust,
    Undeclared,
    batched,
    distance,
    in_float64,
    random_nested,
    random_quadratic,
    random_robust,
    random_tv,
    stack,
    truth,
)

import bilevel
from bilevel import LBFGS, RESULTS, GradientDescent, Nesterov, NewtonCG
from bilevel.hypergradient import differentiate, evaluate
from bilevel.meter import UNLIMITED

F32, F64 = np.float32, np.float64
QUADRATICS = [
    (random_quadratic, F64, Nesterov(), 200),
    (random_quadratic, F64, LBFGS(), 150),
    (random_quadratic, F64, NewtonCG(), 150),
    (partial(random_quadratic, kappas=(2, 1e3)), F64, GradientDescent(), 100),
    (random_quadratic, F32, Nesterov(), 150),
]
OTHERS = [
    (random_tv, F64, Nesterov(), 100),
    (partial(random_tv, isotropic=True), F64, LBFGS(), 100),
    (partial(random_tv, isotropic=True, elastic=True), F64, NewtonCG(), 100),
    (random_tv, F32, Nesterov(), 100),
    (random_robust, F64, Nesterov(), 150),
    (random_robust, F32, LBFGS(), 100),
    (random_nested, F64, NewtonCG(), 100),
]


@eqx.filter_jit
@partial(eqx.filter_vmap, in_axes=(None, *[eqx.if_array(0)] * 6))
def run(solver, problem, theta, eps, delta, x0, q0):
    point = evaluate(problem, solver, theta, x0, eps, jnp.asarray(UNLIMITED))
    return point, differentiate(problem, theta, point.lower, q0, delta, jnp.asarray(UNLIMITED))


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
    point, z = jax.device_get(run(solver, problem, theta, eps, delta, x0, q0))

    for result in (point.lower.result, z.result):
        assert np.all((result == RESULTS.converged) | (result == RESULTS.accuracy_floor))
    assert np.all((point.lower.error <= eps) == (point.lower.result == RESULTS.converged))
    assert np.all((z.delta <= delta * (1 + 1e-6)) == (z.result == RESULTS.converged))
    assert point.certified and z.certificate == "proven"
    value, value_error, below = (np.asarray(v, F64) for v in (point.value, point.value_error, point.below))
    assert np.all(value - below <= exact.value)
    bounds = np.stack([point.lower.error, value_error, z.error], 1).astype(F64)
    errors = distances(point.lower.x, exact.x), np.abs(value - exact.value), distances(z.gradient, exact.gradient)
    return np.stack(errors, 1), bounds


def report(errors, bounds):
    ratio = bounds / np.maximum(errors, np.finfo(F64).tiny)
    names = ("x", "value", "hypergradient")
    return {n: f"min {r.min():.2f} median {np.median(r):.3g}" for n, r in zip(names, ratio.T, strict=True)}


@pytest.mark.parametrize(("draw", "dtype", "solver", "count"), QUADRATICS + OTHERS)
def test_no_bound_is_violated(draw, dtype, solver, count):
    rng = np.random.default_rng(0)
    errors, bounds = measure(rng, draw, dtype, solver, count, closed_form if "quad" in str(draw) else dense)
    print(report(errors, bounds))
    assert np.all(np.isfinite(bounds)) and np.all(errors <= bounds)
