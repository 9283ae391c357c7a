"""Norms at every scale of a dtype, in a metric, and of the projected gradient where theta is large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel._linalg.norms import dual_norm, metric_norm, norm
from bilevel._linalg.rounding import unit_roundoff
from bilevel._outer.region import stationarity
from bilevel._problem import AbstractProblem, Constants, bounds_along
from bilevel.problems import LogisticRegression, TotalVariation

sizes = jax.jit(norm)


@pytest.mark.parametrize("dtype, scales", [(np.float32, (1e-33, 1e-30, 1e-22, 1e-19, 1e-10, 1.0, 1e18, 1e30, 1e36)),
                                           (np.float64, (1e-300, 1e-170, 1e-22, 1.0, 1e150, 1e300))])  # fmt: skip
def test_no_square_vanishes_or_overflows(dtype, scales):
    """Against long double, at the size of one entry and of all; entries of very different size as well."""
    rng = np.random.default_rng(0)
    for scale in scales:
        for spread in (1.0, 1e-3):
            a, b = (
                (scale * rng.standard_normal((3, 4)) * spread).astype(dtype),
                (scale * rng.standard_normal(5)).astype(dtype),
            )
            exact = np.sqrt(sum(np.sum(v.astype(np.longdouble) ** 2) for v in (a, b)))
            found = float(sizes({"a": jnp.asarray(a), "b": jnp.asarray(b)}))
            assert abs(found - exact) <= 32 * unit_roundoff(dtype) * exact


def test_what_is_not_a_number_stays_none_and_zero_is_zero():
    for value, expected in ((0.0, 0.0), (np.inf, np.inf), (np.nan, np.nan)):
        np.testing.assert_equal(float(sizes(jnp.asarray([value, 0.0]))), expected)


def test_the_norms_of_a_metric_are_dual():
    """<g, v> <= ||g||_{W^-1} ||v||_W, attained at v = W^{-1} g."""
    rng = np.random.default_rng(1)
    g, W = jnp.asarray(rng.standard_normal(6)), jnp.asarray(10 ** rng.uniform(0, 6, 6))
    v = g / W
    assert float(g @ v) == pytest.approx(float(dual_norm(g, W) * metric_norm(v, W)), rel=1e-12)


class Weighted(AbstractProblem):
    """h = mu/2 sum W x^2 + a/6 x_0_+^3 with constants given in the metric: |H_00 - H_00'| <= a |x_0 - x_0'|."""

    W: jax.Array
    a: float

    def lower(self, x, theta):
        return jnp.sum(self.W * x**2) / 2 + self.a / 6 * jnp.maximum(x[0], 0) ** 3 + theta * x[0] ** 2 / 2

    def upper(self, x, theta):
        return jnp.sum(x)

    def constants(self, theta):
        w = self.W[0]
        return Constants(mu=1.0, L_hessian=self.a / w**1.5, L_cross=1 / w, metric=self.W)


@pytest.mark.parametrize("w", [1.0, 1e2, 1e6])
def test_constants_in_the_metric_bound_products_with_q_in_its_norm(w):
    """||(H(x) - H(x')) q||_{W^-1} = M_H ||x - x'||_W and ||(J(x) - J(x'))^T q|| = M_J ||x - x'||_W, attained."""
    problem = Weighted(jnp.asarray([w, 1.0]), 3.0)
    q, x, y, theta = jnp.asarray([2.0, 0.0]), jnp.asarray([1.5, 0.0]), jnp.zeros(2), jnp.asarray(0.0)
    bounds = problem.bounds(x, theta, q, jnp.asarray(1.0))
    H, J = jax.hessian(problem.lower), jax.jacfwd(jax.grad(problem.lower), argnums=1)
    distance = metric_norm(x - y, problem.W)
    change = dual_norm((H(x, theta) - H(y, theta)) @ q, problem.W)
    assert float(change) == pytest.approx(float(bounds.M_H * distance), rel=1e-12)
    assert abs(float((J(x, theta) - J(y, theta)) @ q)) == pytest.approx(float(bounds.M_J * distance), rel=1e-12)


@pytest.mark.parametrize("kind", ["logistic", "TV", "isotropic TV"])
def test_bounds_along_q_are_of_first_degree_in_q(kind):
    """M_H and M_J at 2^k q are 2^k times those at q, bit for bit, where squares in a problem's own formulas vanish or
    overflow; and at q = 0 they are 0."""
    rng = np.random.default_rng(2)
    if kind == "logistic":
        A = rng.standard_normal((8, 3)).astype(np.float32)
        problem, theta = (
            LogisticRegression(A, np.arange(8) % 2, A, np.arange(8) % 2),
            jnp.full((3, 1), -2.0, jnp.float32),
        )
    else:
        images = rng.uniform(size=(1, 4, 5)).astype(np.float32)
        problem = TotalVariation(images, images, isotropic=kind != "TV")
        theta = jnp.asarray([-2.0, -3.0], jnp.float32)
    x = problem.guess(theta)
    q, radius = jnp.asarray(rng.standard_normal(x.shape), jnp.float32), jnp.asarray(0.1, jnp.float32)
    found = jax.jit(lambda q: bounds_along(problem, x, theta, q, radius))
    one = found(q)
    for k in (-100, -60, 60, 100):
        far = found(jnp.ldexp(q, k))
        assert (jnp.ldexp(one.M_H, k), jnp.ldexp(one.M_J, k)) == (far.M_H, far.M_J) and far.J == one.J
    assert one.M_H > 0 and one.M_J > 0 and found(0 * q).M_H == found(0 * q).M_J == 0


@pytest.mark.parametrize("size", [20.0, 1e4])
def test_a_small_gradient_is_not_lost_in_a_large_theta(size):
    """float32, ||z|| = 1e-7 and theta of 20 and more: added to theta it would vanish, and be called stationary."""
    theta = jnp.asarray([size, -size], jnp.float32)
    z = jnp.asarray([3e-8, 4e-8], jnp.float32)
    box = (theta - 1, theta + 1)
    assert float(stationarity(theta, z, box)) == pytest.approx(5e-8, rel=1e-6)
    assert float(stationarity(theta, z, None)) == pytest.approx(5e-8, rel=1e-6)
    # at a bound, pushed out of the box, it is stationary; pushed in it is not; and no step is longer than the box
    assert float(stationarity(theta, z, (theta, theta + 1))) == 0.0
    assert float(stationarity(theta, -z, (theta, theta + 1))) == pytest.approx(5e-8, rel=1e-6)
    assert float(stationarity(theta, 1e9 * z, box)) == pytest.approx(2**0.5, rel=1e-3)
