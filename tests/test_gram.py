"""The largest eigenvalue of A^T A / n in min(n, p): finite and never below the true one, whatever the columns are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import problems
from bilevel.problems.gram import gram, ridge_inverse, weighted_norm

CLASSES = 3
BOTH = pytest.mark.parametrize("dtype", [np.float64, np.float32])
SHAPES = [(30, 6), (6, 30), (1, 6), (6, 1)]


def kinds(rng, n, p):
    """What columns come as: of either sign, of one sign, none in a column or anywhere, alike, far from zero, sparse."""
    A = rng.standard_normal((n, p))
    empty, alike = A.copy(), A.copy()
    empty[:, :: max(2, p // 3)] = 0
    alike[:, p // 2 :] = A[:, :1]
    return {
        "signed": A, "positive": np.abs(A), "zero columns": empty, "zero": np.zeros_like(A), "duplicated": alike,
        "constant": np.ones_like(A), "offset": 100 + A, "ragged": A * 10.0 ** rng.uniform(-4, 2, p),
        "one-hot": np.eye(n, p), "few": A * (rng.random((n, p)) < 0.1),
    }  # fmt: skip


def weights(rng, p):
    """W >= 1 with a 1 in it, shared in each of the four ways, from nearly alike to e^30 apart."""
    for shape in ((), (1, CLASSES), (p, 1), (p, CLASSES)):
        W = np.exp(rng.uniform(0, rng.choice([0.1, 5, 30]), shape))
        yield W / W.min()


@jax.jit
def norms(A, W):
    small, norm = gram(A)
    return norm, weighted_norm(A, small, norm, W, CLASSES)


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bounds_are_finite_and_above_the_eigenvalues(shape, dtype):
    """Against dense eigenvalues in float64 of the very same data, on 80 draws each; the plain norm is also tight."""
    rng = np.random.default_rng(0)
    for _ in range(2):
        for name, A in kinds(rng, *shape).items():
            A = A.astype(dtype)
            G = A.T.astype(np.float64) @ A.astype(np.float64) / shape[0]
            top = max(np.linalg.eigvalsh(G)[-1], 0)
            for W in weights(rng, shape[1]):
                W = W.astype(dtype)
                exact = max(
                    np.linalg.eigvalsh(G / np.sqrt(np.outer(w, w)))[-1]
                    for w in np.broadcast_to(W, (shape[1], CLASSES)).T.astype(np.float64)
                )
                norm, weighted = norms(A, W)
                assert norm.dtype == weighted.dtype == dtype
                assert top <= norm <= (1 + 1e3 * np.finfo(dtype).eps) * top, name
                assert exact <= weighted <= norm, (name, W.shape)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_weights_sharpen_the_bound_where_features_are_not_negative(shape):
    """To 1 % on dense positive data, in (p, p) as in (n, n)."""
    rng = np.random.default_rng(1)
    A = rng.random(shape)
    W = np.exp(rng.uniform(0, 8, (shape[1], CLASSES)))
    W /= W.min()
    exact = max(np.linalg.eigvalsh(A.T @ A / shape[0] / np.sqrt(np.outer(w, w)))[-1] for w in W.T)
    assert exact <= norms(A, W)[1] <= 1.01 * exact


@partial(jax.jit, static_argnums=2)
def solve(A, D, w, r):
    return ridge_inverse(A, *gram(A), w, D, CLASSES)(r)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ridge_systems_are_solved(shape):
    """w G + diag(D_c) times the result is r, for penalties shared in each way and every kind of data."""
    rng = np.random.default_rng(2)
    for name, A in kinds(rng, *shape).items():
        for W in weights(rng, shape[1]):
            D, r = 1e-2 * np.minimum(W, 1e4), rng.standard_normal((shape[1], CLASSES))
            v = np.asarray(solve(A, D, 0.07, r))
            back = 0.07 * A.T @ (A @ v) / shape[0] + D * v
            scale = 1e-2 + 0.07 * np.linalg.norm(A, 2) ** 2 / shape[0] + np.max(D)
            np.testing.assert_allclose(back, r, rtol=0, atol=1e-11 * scale * np.max(np.abs(v)), err_msg=name)


@BOTH
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_ridge_systems_stay_positive_definite(shape, dtype):
    """Penalties of e^-30 on columns that depend on each other: finite, symmetric, positive, whatever the dtype."""
    rng = np.random.default_rng(3)
    p = shape[1]
    unit = np.eye(p, dtype=dtype)
    for name, A in kinds(rng, *shape).items():
        for D in (np.exp(-30.0), np.full((p, CLASSES), np.exp(-30.0)), np.exp(rng.uniform(-30, 0, (p, 1)))):
            columns = [solve(A.astype(dtype), np.asarray(D, dtype), 0.07, np.tile(e[:, None], CLASSES)) for e in unit]
            P = np.stack(columns).astype(np.float64)[..., 0]
            assert np.all(np.isfinite(P)), name
            root = np.sqrt(np.diag(P))
            P = P / np.outer(root, root)  # numbers of one size
            assert np.max(np.abs(P - P.T)) < 0.02, name
            assert np.linalg.eigvalsh((P + P.T) / 2)[0] > 0, name


def test_nothing_has_features_times_features_entries():
    """Fifty features and four rows: no array of the programs is 50 x 50."""
    A, r = np.ones((4, 50)), np.ones((50, CLASSES))
    for shape in ((), (1, CLASSES), (50, 1), (50, CLASSES)):
        D = np.ones(shape)
        for program in (jax.make_jaxpr(norms)(A, D), jax.make_jaxpr(solve, static_argnums=2)(A, D, 0.1, r)):
            assert "50,50]" not in str(program) and "4,4]" in str(program)
    tall = jax.make_jaxpr(norms)(jnp.ones((60, 50)), np.ones((50, 1)))
    assert "50,50]" in str(tall)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_least_squares_of_more_features_than_rows_is_inverted_fold_by_fold(intercept, spread):
    """P_k^{-1} H_k v = v for every fold k, whatever the penalties are."""
    rng = np.random.default_rng(1)
    A, y = rng.standard_normal((12, 30)), rng.standard_normal(12)
    problem = problems.LinearRegression(A, y, folds=3, intercept=intercept)
    theta = jnp.asarray(spread * rng.standard_normal((30, 1)))
    v = jnp.asarray(rng.standard_normal(problem.shape))

    @jax.jit
    def back(v):
        Hv = jax.jvp(lambda x: jax.grad(problem.lower)(x, theta), (jnp.zeros_like(v),), (v,))[1]
        return problem.preconditioner(v, theta)(Hv)

    np.testing.assert_allclose(back(v), v, atol=1e-9)
