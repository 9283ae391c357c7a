"""Conjugate gradients report the true residual and what they saw; Ritz values are the spectrum's."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import Bilinear

from bilevel._certificate.estimates import cross_norm, cross_norm_cost
from bilevel._linalg.cg import conjugate_gradients
from bilevel._linalg.lanczos import lanczos

N = 12


def spd(rng, smallest=1.0, largest=100.0, n=N, dtype=np.float64):
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return jnp.asarray((Q * np.geomspace(smallest, largest, n)) @ Q.T, dtype)


@eqx.filter_jit
def cg(H, b, q0, delta, mu, L, max_products=1000):
    u = float(jnp.finfo(b.dtype).eps) / 2
    delta, mu, L = (jnp.asarray(v, b.dtype) for v in (delta, mu, L))
    most = jnp.asarray(max_products, jnp.int32)
    return conjugate_gradients(lambda v: H @ v, b, q0, delta=delta, mu=mu, L=L, u=u, max_products=most)


def true_residual(H, q, b):
    H, q, b = (np.asarray(v, np.longdouble) for v in (H, q, b))
    return float(np.linalg.norm((H @ q - b).astype(float)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_reported_residual_is_the_true_one(dtype):
    """Whatever was asked for, the residual reported is ||H q - b|| but for rounding, u L ||q||; what was asked for is
    reached down to the floor, and the drift of CG's own recursion is never believed."""
    rng = np.random.default_rng(0)
    u = np.finfo(dtype).eps / 2
    for delta in 10.0 ** -np.arange(14):
        H, b = spd(rng, 1.0, 1e3, dtype=dtype), jnp.asarray(rng.standard_normal(N), dtype)
        q0 = jnp.asarray(rng.standard_normal(N), dtype)
        out = cg(H, b, q0, jnp.asarray(delta, dtype), 1.0, 1e3)
        floor = u * 1e3 * float(jnp.linalg.norm(out.q))
        assert abs(true_residual(H, out.q, b) - float(out.residual)) <= 2 * floor
        assert out.residual <= max(delta - floor, floor) * (1 + 1e-6) or out.residual <= 2 * floor
        assert not out.negative_curvature and 1 <= out.products <= 10 * N


@pytest.mark.parametrize("indefinite", [lambda r: -r, lambda r: r * jnp.where(jnp.arange(N) < 11, 1, -50.0)])
def test_a_preconditioner_that_is_not_definite_ends_the_iteration(indefinite):
    """What rounding can make of secant pairs: no endless loop, and the residual that is reported is the true one."""
    rng = np.random.default_rng(5)
    H, b, most = spd(rng), jnp.asarray(rng.standard_normal(N)), jnp.asarray(100_000, jnp.int32)
    numbers = {name: jnp.asarray(v) for name, v in {"delta": 1e-8, "mu": 1.0, "L": 100.0}.items()}
    u = float(np.finfo(np.float64).eps) / 2
    run = eqx.filter_jit(lambda H, b: conjugate_gradients(
        lambda v: H @ v, b, 0 * b, **numbers, u=u, max_products=most, precondition=indefinite
    ))  # fmt: skip
    out = run(H, b)
    assert out.products <= 100 and not out.negative_curvature
    assert float(out.residual) == pytest.approx(true_residual(H, out.q, b), abs=1e-12)


@pytest.mark.parametrize("size", [1e-24, 1e-12, 1.0])
def test_where_squares_underflow_nothing_is_blamed(size):
    """float32, H of size 1e-22 as it was declared: p^T H p vanishes for small p, which says nothing of H. A direction
    that does not curve is still told where it can be seen."""
    H = spd(np.random.default_rng(1), 1e-22, 1e-20, dtype=np.float32)
    b = jnp.asarray(size * np.random.default_rng(2).standard_normal(N), jnp.float32)
    assert not cg(H, b, jnp.zeros_like(b), 0.0, 1e-22 * (1 - 1e-3), 1e-20).negative_curvature
    flat = cg(jnp.zeros((N, N), jnp.float32), b / size, jnp.zeros_like(b), 0.0, 0.0, 1.0)
    assert flat.negative_curvature


def test_as_many_steps_as_eigenvalues():
    """Three distinct eigenvalues take three steps, and one product more at the start and at the end each, to look."""
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.standard_normal((N, N)))[0]
    H, b = jnp.asarray((Q * np.repeat([1.0, 10.0, 100.0], N // 3)) @ Q.T), jnp.asarray(rng.standard_normal(N))
    out = cg(H, b, jnp.zeros(N), 1e-10, 1.0, 100.0)
    np.testing.assert_allclose(out.q, np.linalg.solve(H, b), rtol=1e-9)
    assert out.products == 3 + 2


def test_a_warm_start_is_used():
    rng = np.random.default_rng(2)
    H, b = spd(rng), jnp.asarray(rng.standard_normal(N))
    q = jnp.linalg.solve(H, b)
    again = cg(H, b, q, 1e-8, 1.0, 100.0)
    assert again.products == 1 and jnp.all(again.q == q)
    near, far = (cg(H, b, q0, 1e-8, 1.0, 100.0).products for q0 in (q + 1e-6 * b, jnp.zeros(N)))
    assert near < far


def test_the_cap_is_kept():
    """Never more products than allowed, and fewer allowed is what ends it; the residual is still the true one."""
    rng = np.random.default_rng(3)
    H, b = spd(rng, 1.0, 1e4), jnp.asarray(rng.standard_normal(N))
    for most in (1, 2, 3, 5, 8):
        out = cg(H, b, jnp.zeros(N), 1e-12, 1.0, 1e4, jnp.asarray(most, jnp.int32))
        assert out.products == most
        np.testing.assert_allclose(out.residual, true_residual(H, out.q, b), rtol=1e-9)


@pytest.mark.parametrize(("smallest", "mu", "flagged"), [(-1, 1, 1), (0.5, 1, 1), (0.9, 1, 1), (1, 1, 0), (2, 1, 0)])
def test_curvature_below_mu_is_flagged(smallest, mu, flagged):
    """A direction with p^T H p < mu ||p||^2 disproves mu: indefinite H, or mu declared a tenth too large."""
    rng = np.random.default_rng(4)
    Q = np.linalg.qr(rng.standard_normal((N, N)))[0]
    H = jnp.asarray((Q * np.array([smallest, *[3.0] * (N - 1)])) @ Q.T)
    b = jnp.asarray(Q[:, 0] * 10 + Q[:, 1])
    out = cg(H, b, jnp.zeros(N), 1e-10, float(mu), 3.0)
    assert out.negative_curvature == bool(flagged)


@eqx.filter_jit
def ritz(A, steps):
    seen, products = lanczos(lambda v: A @ v, A[0], steps)
    return seen.smallest, seen.largest, products


@pytest.mark.parametrize("n", [1, 7, 15])
def test_ritz_values_are_eigenvalues_of_small_matrices(n):
    """After n steps the Ritz values are the eigenvalues, for any symmetric matrix."""
    rng = np.random.default_rng(n)
    A = rng.standard_normal((n, n))
    A = jnp.asarray(A + A.T)
    smallest, largest, steps = ritz(A, 20)
    eigenvalues = np.linalg.eigvalsh(A)
    np.testing.assert_allclose([smallest, largest], eigenvalues[[0, -1]], rtol=1e-12, atol=1e-13)
    assert steps == n


@pytest.mark.parametrize("shift", [0.0, 1.0, -2.0])
def test_invariant_subspaces_end_the_process(shift):
    """Identities, low rank and repeated eigenvalues: after the Krylov space is used up nothing may appear outside."""
    rng = np.random.default_rng(5)
    B = rng.standard_normal((N, 2))
    for A in (np.zeros((N, N)), np.eye(N), B @ B.T, np.diag(np.repeat([1.0, 5.0], N // 2))):
        A = jnp.asarray(A + shift * np.eye(N))
        smallest, largest, _ = ritz(A, N)
        np.testing.assert_allclose([smallest, largest], np.linalg.eigvalsh(A)[[0, -1]], rtol=1e-10, atol=1e-10)


def test_ritz_values_lie_inside_the_spectrum():
    rng = np.random.default_rng(6)
    for k in (1, 3, 6):
        A = spd(rng, 1.0, 1e4, n=40)
        smallest, largest, steps = ritz(A, k)
        assert steps == k and 1.0 - 1e-9 <= smallest <= largest <= 1e4 * (1 + 1e-12)


def low_rank(rng, n, d):
    return rng.standard_normal((n, 1)) @ rng.standard_normal((1, d))


def clustered(rng, n, d):
    """No gap at the top: the hardest spectrum for Lanczos."""
    U, V = (np.linalg.qr(rng.standard_normal((size, min(n, d))))[0] for size in (n, d))
    return (U * np.linspace(0.9, 1, min(n, d))) @ V.T


def decaying(rng, n, d):
    return rng.standard_normal((n, d)) * np.geomspace(1, 1e-6, d)


@pytest.mark.parametrize(("n", "d", "certain"), [(8, 5, True), (8, 60, False), (120, 60, False), (60, 120, False)])
def test_lanczos_bounds_the_cross_derivative(n, d, certain):
    """||J|| <= sqrt(ritz / (1 - e)) <= 1.42 ||J|| with e = 1/2; with few hyperparameters equal to ||J||."""
    rng = np.random.default_rng(7)
    found = eqx.filter_jit(lambda K: cross_norm(Bilinear(K), K[:, 0], K[0])[0])
    for draw in 5 * [low_rank, clustered, decaying]:
        K = draw(rng, n, d) * 10 ** rng.uniform(-3, 3)
        bound, norm = float(found(jnp.asarray(K))), np.linalg.norm(K, 2)
        assert norm <= bound * (1 + 1e-12) and bound <= (1 + 1e-9 if certain else 1.42) * norm
    K = jnp.asarray(K)
    assert cross_norm(Bilinear(K), K[:, 0], K[0])[1] == certain
    assert cross_norm_cost(K[:, 0], K[0]) <= d
