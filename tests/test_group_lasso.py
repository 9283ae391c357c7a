"""Group lasso: an active-set reference in long double, Lasso where every group has one feature, descent."""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import RESULTS
from bilevel.problems import GroupLasso, Lasso

N, P, GROUPS = 30, 45, np.arange(45) // 5  # more features than rows
SIZES = np.sqrt(np.bincount(GROUPS))


def data(seed, correlated=0.5):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(2 * N, P)) + correlated * rng.normal(size=(2 * N, 1))
    w = np.where(GROUPS < 2, rng.normal(size=P), 0)
    y = A @ w + rng.normal(size=2 * N)
    return A[:N], y[:N], A[N:], y[N:]


def lengths(v):
    return np.sqrt(np.bincount(GROUPS, np.asarray(v, float) ** 2))


def reference(A, y, penalties, rho, steps=4000):
    """x by accelerated proximal steps, then by Newton's method on its groups, in long double; NaN where those it leaves
    out would come in."""
    B, c = A / np.sqrt(N), y / np.sqrt(N)
    L, x, old, t = np.linalg.norm(B, 2) ** 2 + rho, np.zeros(P), np.zeros(P), 1.0
    for _ in range(steps):
        later = (1 + np.sqrt(1 + 4 * t**2)) / 2
        z = x + (t - 1) / later * (x - old)
        moved = z - (B.T @ (B @ z - c) + rho * z) / L
        kept = np.maximum(1 - penalties / L / np.maximum(lengths(moved), 1e-300), 0)[GROUPS]
        old, x = x, moved * kept
        t = 1.0 if np.sum((z - x) * (x - old)) > 0 else later
    S = np.flatnonzero(lengths(x)[GROUPS] > 1e-8)
    B, c, z = B.astype(np.longdouble), c.astype(np.longdouble), np.where(np.isin(np.arange(P), S), x, 0)
    z = z.astype(np.longdouble)
    for _ in range(8 if len(S) else 0):
        kept = np.sqrt(np.bincount(GROUPS, (z**2).astype(float)))  # of the Hessian alone
        exact = np.array([np.sqrt(np.sum(z[g == GROUPS] ** 2)) for g in range(len(SIZES))])
        slope = B.T @ (B @ z - c) + rho * z
        v = (slope + penalties[GROUPS] * z / np.where(exact > 0, exact, 1)[GROUPS])[S]
        unit, scale = (
            (z / np.where(exact > 0, exact, 1)[GROUPS])[S].astype(float),
            (penalties / np.maximum(kept, 1e-300)),
        )
        same = GROUPS[S][:, None] == GROUPS[S][None]
        H = (B[:, S].T @ B[:, S]).astype(float) + rho * np.eye(len(S))
        H += scale[GROUPS[S]][:, None] * same * (np.eye(len(S)) - unit[:, None] * unit[None])
        z[S] -= np.linalg.solve(H, v.astype(float))
    k = B.T @ (c - B @ z) - rho * z
    out = lengths(z) == 0
    done = len(S) == 0 or np.linalg.norm(v.astype(float)) < 1e-13
    fits = done and np.all(lengths(k)[out] <= penalties[out] * (1 + 1e-9)) and np.sum(z * x) >= 0
    return z if fits else z * np.nan


def value(V, v, x):
    return np.mean((V @ x - v) ** 2) / 2


def violations(draws, seed):
    """Of x and the value; how many draws the reference could decide."""
    found = decided = 0
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        A, y, V, v = data(rng.integers(2**31), correlated=rng.choice([0, 0.5, 2]))
        ridge = rng.choice([0.0, 10 ** rng.uniform(-3, 0)])
        problem = GroupLasso(A, y, V, v, groups=GROUPS, ridge=ridge)
        theta = rng.uniform(-4, 0) + rng.uniform(-1, 1, len(SIZES))
        x = reference(A, y, np.exp(theta) * SIZES, ridge)
        hg = bilevel.hypergradient(problem, theta, eps=10 ** rng.uniform(-10, 0))
        if np.isnan(x).any() or not np.isfinite(hg.error):
            continue
        decided += 1
        found += np.linalg.norm(np.asarray(hg.x)[:, 0] - x) > float(hg.error)
        found += abs(float(hg.value) - value(V, v, x)) > float(hg.value_error)
    return found, decided


@pytest.mark.full
def test_certificates_hold_in_five_hundred_draws():
    found, decided = violations(500, seed=1)
    print(found, decided)
    assert found == 0 and decided > 350


@pytest.mark.full
def test_bounds_are_small_and_z_is_the_derivative():
    A, y, V, v = data(3)
    problem, theta = GroupLasso(A, y, V, v, groups=GROUPS), np.log(np.linspace(0.1, 0.3, len(SIZES)))
    hg = bilevel.hypergradient(problem, theta, eps=1e-10)
    assert hg.value_error < 1e-7 and 0 < np.count_nonzero(hg.x) < P
    for j in range(len(SIZES)):
        e = 1e-6 * (np.arange(len(SIZES)) == j)
        above, below = (value(V, v, reference(A, y, np.exp(t) * SIZES, 0.0)) for t in (theta + e, theta - e))
        np.testing.assert_allclose(hg.gradient[j], (above - below) / 2e-6, rtol=1e-4, atol=1e-7)


@pytest.mark.full
def test_groups_of_one_feature_are_lassos():
    A, y, *_ = data(1)
    options = dict(folds=3, intercept=True)
    group, lasso = GroupLasso(A[:, :8], y, groups=np.arange(8), **options), Lasso(A[:, :8], y, **options)
    np.testing.assert_allclose(group.largest, lasso.largest, rtol=1e-12)
    ours, theirs = (bilevel.solve_lower(problem, -2.0, eps=1e-9) for problem in (group, lasso))
    assert ours.result == RESULTS.converged
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-8)
    theta = jnp.asarray(-2.0)
    np.testing.assert_allclose(group.lower(ours.x, theta), lasso.lower(ours.x, theta), rtol=1e-12)


@pytest.mark.full
def test_descent_leaves_groups_out_and_tells_the_truth():
    A, y, V, v = data(2)
    problem = GroupLasso(A, y, V, v, groups=GROUPS, ridge=1e-2)
    one = bilevel.solve(problem, problem.start(points=20))
    many = bilevel.solve(problem, np.full(len(SIZES), one.theta), bounds=(-8.0, 2.0))
    assert one.result == many.result == RESULTS.settled and many.value < one.value
    exact = value(V, v, reference(A, y, np.exp(many.theta) * SIZES, 1e-2))
    assert abs(many.value - exact) <= many.value_error
    dead = lengths(np.asarray(many.x)[:, 0]) == 0
    assert dead.any() and not dead[:2].all()
    above = bilevel.solve_lower(problem, np.log(1.01 * problem.largest), eps=1e-6)
    assert not np.any(above.x) and above.error == 0


def test_inputs():
    A, y, V, v = data(0)
    with pytest.raises(ValueError, match="groups must be integers"):
        GroupLasso(A, y, V, v, groups=np.zeros(3, int))
    with pytest.raises(ValueError, match="numbered 0, 1"):
        GroupLasso(A, y, V, v, groups=GROUPS + 1)
    with pytest.raises(ValueError, match="ridge"):
        GroupLasso(A, y, V, v, groups=GROUPS, ridge=-1.0)
    with pytest.raises(ValueError, match=r"theta must be \(\)"):
        bilevel.solve_lower(GroupLasso(A, y, V, v, groups=GROUPS), np.zeros(3))
