"""Lasso and elastic net: scikit-learn, an active-set reference in long double, and descent on certified values."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import ElasticNet as SkElasticNet
from sklearn.linear_model import Lasso as SkLasso
from sklearn.linear_model import LassoCV

import bilevel
from bilevel import RESULTS
from bilevel.problems import ElasticNet, Lasso, LinearRegression, k_folds

N, P = 30, 45  # more features than rows


def data(seed, n=N, p=P, correlated=0.5):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(2 * n, p)) + correlated * rng.normal(size=(2 * n, 1))
    w = np.zeros(p)
    w[:3] = 2 * rng.normal(size=3)
    y = A @ w + rng.normal(size=2 * n)
    return A[:n], y[:n], A[n:], y[n:]


def reference(A, y, alpha, rho):
    """x by coordinate descent, then exactly on its support, in long double; NaN where the signs do not fit."""
    n, p = A.shape
    # as a Lasso of more rows, which gives each feature a penalty of its own
    scaled = np.vstack([A / np.sqrt(n), np.sqrt(rho) * np.eye(p)]) / alpha[None]
    target = np.concatenate([y / np.sqrt(n), np.zeros(p)])
    fit = SkLasso(alpha=1 / len(target), fit_intercept=False, tol=1e-14, max_iter=200_000)
    x = fit.fit(scaled, target).coef_ / alpha
    S = np.flatnonzero(x)
    B, c = (A / np.sqrt(n)).astype(np.longdouble)[:, S], (y / np.sqrt(n)).astype(np.longdouble)
    G, b = B.T @ B + rho * np.eye(len(S)), B.T @ c - alpha[S] * np.sign(x[S])
    z = x[S].astype(np.longdouble)
    for _ in range(4 if len(S) else 0):
        z += np.linalg.solve(G.astype(float), (b - G @ z).astype(float))
    exact = np.zeros(p, np.longdouble)
    exact[S] = z
    k = A.astype(np.longdouble).T @ (y - A @ exact) / n - rho * exact
    fits = np.all(z * x[S] > 0) and np.all(np.abs(k) <= alpha * (1 + 1e-9))
    return exact if fits else exact * np.nan


def value(V, v, x):
    return np.mean((V @ x - v) ** 2) / 2


def f(theta, A, y, V, v, rho=0.0):
    return float(value(V, v, reference(A, y, np.broadcast_to(np.exp(theta), A.shape[1]), rho)))


def test_coefficients_and_support_are_those_of_scikit_learn():
    A, y, V, v = data(0)
    problem = Lasso(A, y, V, v)
    for share in (0.5, 0.2, 0.05):
        alpha = share * float(problem.largest)
        ours = bilevel.solve_lower(problem, np.log(alpha), eps=1e-9)
        theirs = SkLasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(A, y).coef_
        assert ours.result == RESULTS.converged and ours.certified
        np.testing.assert_allclose(ours.x[:, 0], theirs, atol=1e-6)
        np.testing.assert_array_equal(ours.x[:, 0] != 0, theirs != 0)


def test_elastic_net_with_folds_weights_and_an_intercept():
    """Every fold is what scikit-learn learns from its rows."""
    A, y, *_ = data(1, p=8)
    weights, folds = np.random.default_rng(0).uniform(0.5, 2, N), k_folds(N, 3)
    problem = ElasticNet(A, y, folds=folds, weights=weights, intercept=True)
    one, rho = 0.1, 0.3
    ours = bilevel.solve_lower(problem, np.log([one, rho]), eps=1e-9)
    x, intercepts = problem.coefficients(ours.x)
    scores = []
    for k, rows in enumerate(folds):
        fit = SkElasticNet(alpha=one + rho, l1_ratio=one / (one + rho), tol=1e-12, max_iter=100_000)
        fit.fit(A[rows], y[rows], weights[rows])
        np.testing.assert_allclose(x[k, :, 0], fit.coef_, atol=1e-7)
        np.testing.assert_allclose(intercepts[k, 0], fit.intercept_, atol=1e-7)
        scores.append(np.average((fit.predict(A[~rows]) - y[~rows]) ** 2, weights=weights[~rows]) / 2)
    np.testing.assert_allclose(problem.valid.loss(ours.x), np.mean(scores), rtol=1e-7)


def violations(draws, seed):
    """Of x and the value, with and without a ridge, at loose and tight accuracies; how many draws the reference could
    decide."""
    found = decided = 0
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        A, y, V, v = data(rng.integers(2**31), correlated=rng.choice([0, 0.5, 2]))
        ridge = rng.choice([0.0, 10 ** rng.uniform(-3, 0)])
        problem, theta = Lasso(A, y, V, v, ridge=ridge), rng.uniform(-4, 0) + rng.uniform(-1, 1, (P, 1))
        x = reference(A, y, np.exp(theta[:, 0]), ridge)
        if np.isnan(x).any():
            continue
        hg = bilevel.hypergradient(problem, theta, eps=10 ** rng.uniform(-10, 0))
        if not np.isfinite(hg.error):
            continue
        decided += 1
        found += np.linalg.norm(np.asarray(hg.x)[:, 0] - x) > float(hg.error)
        found += abs(float(hg.value) - value(V, v, x)) > float(hg.value_error)
    return found, decided


def test_certificates_hold():
    found, decided = violations(24, seed=0)
    assert found == 0 and decided > 18


@pytest.mark.full
def test_certificates_hold_in_two_thousand_draws():
    found, decided = violations(2000, seed=1)
    assert found == 0 and decided > 1500


def test_bounds_are_of_the_size_of_the_error():
    A, y, V, v = data(2)
    problem = Lasso(A, y, V, v)
    theta = np.log(0.1 * float(problem.largest))
    x = reference(A, y, np.full(P, np.exp(theta)), 0.0)
    for eps in (1e-1, 1e-3, 1e-8):
        lower = bilevel.solve_lower(problem, theta, eps=eps)
        assert lower.error <= eps and np.linalg.norm(np.asarray(lower.x)[:, 0] - x) <= float(lower.error)


def test_z_is_the_derivative_on_the_active_set():
    A, y, V, v = data(3)
    problem, theta = Lasso(A, y, V, v), np.log(np.linspace(0.05, 0.3, P))[:, None]
    hg = bilevel.hypergradient(problem, theta, eps=1e-10)
    assert not hg.certified and hg.gradient_error == np.inf and hg.value_error < 1e-7
    for j in np.flatnonzero(hg.x)[:4]:
        e = 1e-6 * (np.arange(P) == j)
        difference = (f(theta[:, 0] + e, A, y, V, v) - f(theta[:, 0] - e, A, y, V, v)) / 2e-6
        np.testing.assert_allclose(hg.gradient[j, 0], difference, rtol=1e-4, atol=1e-7)


def test_z_of_the_elastic_net():
    A, y, V, v = data(3)
    problem, theta = ElasticNet(A, y, V, v), np.log([0.1, 0.2])
    z = bilevel.hypergradient(problem, theta, eps=1e-10).gradient
    for j, e in enumerate(1e-6 * np.eye(2)):
        above, below = (f(t[0], A, y, V, v, rho=np.exp(t[1])) for t in (theta + e, theta - e))
        np.testing.assert_allclose(z[j], (above - below) / 2e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def small():
    """The case of an absolute value in a lower level, 40 rows and 8 features."""
    rng = np.random.default_rng(0)
    A, w = rng.normal(size=(40, 8)), np.array([2.0, -1, 0, 0, 0, 0, 0, 1.5])
    y = A @ w + rng.normal(size=40)
    V = rng.normal(size=(40, 8))
    return A, y, V, V @ w + rng.normal(size=40)


def test_descent_ends_at_the_best_of_a_grid_and_tells_the_truth(small):
    problem = Lasso(*small)
    solution = bilevel.solve(problem, np.array(-1.0), bounds=(-6.0, 2.0))
    grid = [f(t, *small) for t in np.linspace(-6, 2, 401)]
    assert solution.value <= min(grid) * (1 + 1e-4)
    assert abs(solution.history["value"][0] - 0.85045) < 1e-5
    assert abs(solution.value - f(solution.theta, *small)) <= solution.value_error
    assert solution.result == RESULTS.settled and not solution.converged and solution.certified
    assert solution.gradient_error == np.inf and "nothing is called converged" in solution.message
    values, errors = solution.history["value"], solution.history["value_error"]
    assert np.all(values[1:] + errors[1:] < values[:-1] - errors[:-1])  # every step is certified


def test_many_penalties_and_a_budget(small):
    problem = Lasso(*small)
    free = bilevel.solve(problem, np.full((8, 1), -1.0), bounds=(-8.0, 2.0))
    one = bilevel.solve(problem, np.array(-1.0), bounds=(-8.0, 2.0))
    assert free.value < one.value
    capped = bilevel.solve(problem, np.full((8, 1), -1.0), bounds=(-8.0, 2.0), max_cost=free.cost // 2)
    assert capped.result == RESULTS.max_cost_reached and capped.cost <= free.cost // 2
    loose = bilevel.solve(problem, np.full((8, 1), -1.0), bilevel.value_descent(value_tol=0.05), bounds=(-8.0, 2.0))
    assert loose.result == RESULTS.settled and loose.tol == 0.05 and loose.steps < free.steps


def test_the_best_alpha_is_that_of_lassocv():
    A, y, *_ = data(5, n=40, p=10)
    folds = k_folds(40, 4)
    alphas = np.logspace(-3, 0.5, 200)
    pairs = [(np.flatnonzero(rows), np.flatnonzero(~rows)) for rows in folds]
    theirs = LassoCV(alphas=alphas, cv=pairs, tol=1e-10, max_iter=100_000).fit(A, y)
    solution = bilevel.solve(Lasso(A, y, folds=folds, intercept=True), np.log(0.3), bilevel.value_descent(1e-7))
    assert abs(np.log(theirs.alpha_) - float(solution.theta)) <= np.log(alphas[1] / alphas[0])
    assert 2 * solution.value <= theirs.mse_path_.mean(axis=1).min() * (1 + 1e-9)


def test_above_the_largest_penalty_nothing_is_left(small):
    problem = Lasso(*small)
    solution = bilevel.solve(problem, np.log(2 * float(problem.largest)))
    assert not np.any(solution.x) and solution.result == RESULTS.settled and solution.gradient_norm == 0


def test_features_that_are_copies_need_a_ridge():
    A, y, V, v = data(6, p=3)
    A, V = np.hstack([A, A]), np.hstack([V, V])
    lower = bilevel.solve_lower(Lasso(A, y, V, v), np.array(-3.0), eps=1e-6)
    assert lower.result == RESULTS.not_strongly_convex and lower.error == np.inf
    lower = bilevel.solve_lower(Lasso(A, y, V, v, ridge=1e-3), np.array(-3.0), eps=1e-6)
    assert lower.result == RESULTS.converged
    np.testing.assert_allclose(lower.x[:3], lower.x[3:], atol=1e-6)


def test_what_needs_a_gradient_refuses(small):
    problem = Lasso(*small)
    for method in (bilevel.quasi_newton(), bilevel.maid(), bilevel.self_tuning()):
        with pytest.raises(TypeError, match=r"pass bilevel.value_descent\(\)"):
            bilevel.solve(problem, -1.0, method)
    with pytest.raises(TypeError, match=r"pass bilevel.quasi_newton\(\)"):
        bilevel.solve(LinearRegression(*small), -1.0, bilevel.value_descent())
    with pytest.raises(ValueError, match="value_tol"):
        bilevel.solve(problem, -1.0, tol=1e-3)
    with pytest.raises(ValueError, match="value_tol"):
        bilevel.value_descent(value_tol=0.0)
    for refused in (
        lambda: bilevel.objective(problem, eps=1e-3),
        lambda: bilevel.check_problem(problem, -1.0),
        lambda: bilevel.estimate_error(problem, -1.0, bilevel.hypergradient(problem, -1.0)),
    ):
        with pytest.raises(TypeError, match="has a kink"):
            refused()


def test_inputs(small):
    with pytest.raises(ValueError, match="ridge"):
        Lasso(*small, ridge=-1.0)
    with pytest.raises(ValueError, match=r"theta must be \(2,\)"):
        bilevel.solve_lower(ElasticNet(*small), 0.0)
    with pytest.raises(ValueError, match="theta must have one of the shapes"):
        bilevel.solve_lower(Lasso(*small), np.zeros(3))


def test_a_run_that_was_cut_goes_on(small, tmp_path):
    problem, options = Lasso(*small), dict(checkpoint=tmp_path / "run.npz", every=1, bounds=(-6.0, 2.0))
    whole = bilevel.solve(problem, -1.0, bounds=(-6.0, 2.0))
    bilevel.solve(problem, -1.0, max_steps=2, **options)
    resumed = bilevel.solve(problem, -1.0, resume=True, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed.theta, whole.theta)
    assert resumed.cost == whole.cost


def test_a_start_is_the_best_of_a_path():
    A, y, *_ = data(8, n=40, p=10)
    problem = Lasso(A, y, folds=k_folds(40, 4), intercept=True)
    start = problem.start(points=20)
    shares = np.log(float(problem.largest)) + np.linspace(0, np.log(1e-3), 20)
    values = [float(bilevel.hypergradient(problem, theta, eps=1e-6).value) for theta in shares]
    assert np.isclose(start, shares[np.argmin(values)])
    assert bilevel.solve(problem, start).value <= min(values) * (1 + 1e-6)


def test_a_start_where_nothing_is_active_is_told():
    """Above the largest penalty that matters x is zero, whatever theta is: nothing was found, and that is said."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((20, 3))
    problem = Lasso(A, A @ np.array([1.0, 0, 0]), folds=2)
    solution = bilevel.solve(problem, np.log(2 * problem.largest), progress=False)
    assert solution.result == bilevel.RESULTS.settled and not solution.converged
    assert "start elsewhere" in solution.message and np.all(np.asarray(solution.x) == 0)
