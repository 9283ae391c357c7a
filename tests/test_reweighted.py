"""A weight for every example: what it is, its certificates, what it finds, its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets, linear_model
from test_certificates import measure
from test_linear_models import ROWS, data, tight

import bilevel
from bilevel import NewtonCG, problems
from bilevel.problems import Reweighted

FAMILIES = ("gaussian", "multinomial", "binomial", "poisson")


def random(family, groups):
    """Clean and doubtful rows, weights from almost none to nearly one."""

    def draw(rng, dtype):
        A, y = data(family, rng, rows=2 * ROWS)
        names = rng.permutation(np.arange(ROWS) % groups) if groups else None
        half = slice(None, ROWS), slice(ROWS, None)
        (A, A_valid), (y, y_valid) = ([v[part] for part in half] for v in (A, y))
        problem = Reweighted(A, y, A_valid, y_valid, penalty=10 ** rng.uniform(-2, 0), family=family, groups=names)
        return problem, jnp.asarray(rng.uniform(-4, 4, groups or ROWS), dtype)

    return draw


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        ("multinomial", 0),
        ("poisson", 5),
        *(pytest.param(f, g, marks=pytest.mark.full) for f in FAMILIES for g in (0, 5)),
    ],
    ids=str,
)
def test_no_bound_is_violated(family, groups, request):
    """x, value and hypergradient."""
    count = 200 if request.node.get_closest_marker("full") else 40
    errors, bounds = measure(np.random.default_rng(0), random(family, groups), np.float64, NewtonCG(), count, tight)
    finite = np.isfinite(bounds)
    print(np.median((bounds / np.maximum(errors, 1e-300))[finite.all(axis=1)], axis=0))
    assert np.all(errors <= bounds) and np.mean(finite) > 0.5


def test_gaussian_is_weighted_ridge():
    """f and its gradient from the normal equations."""
    rng = np.random.default_rng(0)
    A, b, A_valid, b_valid = (*(rng.standard_normal(s) for s in ((12, 3), (12,), (9, 3), (9,))),)
    groups = np.arange(12) % 4

    def f(theta):
        s = 1 / (1 + np.exp(-theta[groups]))
        x = np.linalg.solve((A.T * s) @ A / 12 + 0.3 * np.eye(3), A.T @ (s * b) / 12)
        return np.mean((A_valid @ x - b_valid) ** 2) / 2

    problem = Reweighted(A, b, A_valid, b_valid, penalty=0.3, family="gaussian", groups=groups)
    theta = rng.standard_normal(4)
    found = bilevel.hypergradient(problem, theta, eps=1e-9, delta=1e-9)
    slopes = [(f(theta + t) - f(theta - t)) / 2e-6 for t in 1e-6 * np.eye(4)]
    assert abs(found.value - f(theta)) <= found.value_error < 1e-8
    np.testing.assert_allclose(found.gradient, slopes, rtol=0, atol=1e-9)
    solution = bilevel.solve(problem, np.zeros(4), progress=False)
    assert solution.certified and solution.value < f(np.zeros(4))
    np.testing.assert_allclose(solution.value, f(np.asarray(solution.theta)), rtol=1e-6)


def test_the_lower_level_is_scikit_learns_with_sample_weights():
    A, y = datasets.load_wine(return_X_y=True)
    A = (A - A.mean(axis=0)) / A.std(axis=0)
    problem, theta = Reweighted(A, y, A, y, penalty=0.4), np.random.default_rng(0).standard_normal(len(y))
    x = bilevel.solve_lower(problem, theta, eps=1e-8).x
    peer = linear_model.LogisticRegression(C=1 / (0.4 * len(y)), fit_intercept=False, tol=1e-10, max_iter=10_000)
    peer.fit(A, y, sample_weight=1 / (1 + np.exp(-theta)))
    np.testing.assert_allclose(np.asarray(x).T, peer.coef_, rtol=0, atol=1e-6)


def test_wrong_labels_are_found():
    """Digits, a third of the labels drawn anew: nothing but the required arguments."""
    A, y = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    A, y = A[order] / 16, y[order]
    drawn = np.where(rng.random(600) < 1 / 3, rng.integers(0, 10, 600), y[:600])
    problem = Reweighted(A[:600], drawn, A[600:1200], y[600:1200], penalty=0.02)
    solution = bilevel.solve(problem, np.zeros(600), max_cost=600, progress=False)
    wrong = drawn != y[:600]
    doubted = np.asarray(problem.weights(solution.theta)) < 0.5
    assert np.all(np.diff(solution.history["value"]) < 0) and solution.certified
    assert np.mean(doubted[wrong]) > 0.9 and np.mean(doubted[~wrong]) < 0.35

    def right(theta):
        scores = A[1200:] @ np.asarray(bilevel.solve_lower(problem, theta).x)
        return np.mean(np.argmax(scores, axis=1) == y[1200:])

    assert right(solution.theta) > right(np.zeros(600)) + 0.02


class Huber(problems.AbstractReweighted):
    """A loss of one's own."""

    A: jax.Array
    b: jax.Array

    def weights(self, theta):
        return jax.nn.sigmoid(theta)[jnp.arange(len(self.b)) % 2]

    def losses(self, x):
        return jnp.sqrt(1 + (self.A @ x - self.b) ** 2)

    def upper(self, x, theta):
        return jnp.sum(x**2) / 2 - x[0]

    def guess(self, theta):
        return jnp.zeros(self.A.shape[1])


def test_losses_of_ones_own():
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((10, 2)), rng.standard_normal(10)
    problem = Huber(0.5, jnp.asarray(A), jnp.asarray(b))
    theta = np.array([-1.0, 2.0])
    weights = 1 / (1 + np.exp(-theta[np.arange(10) % 2]))
    x = np.asarray(bilevel.solve_lower(problem, theta, eps=1e-9).x)
    r = A @ x - b
    gradient = A.T @ (weights * r / np.sqrt(1 + r**2)) / 10 + 0.5 * x
    np.testing.assert_allclose(gradient, 0, rtol=0, atol=1e-8)


A, LABELS = np.ones((4, 2)) * np.arange(1, 5)[:, None], np.array([0, 1, 0, 1])
REFUSED = {
    "a family that is none": (dict(family="cox"), "'cox'"),
    "no penalty": (dict(penalty=0.0), "strongly convex"),
    "groups with a gap": (dict(groups=np.array([0, 2, 2, 0])), "without a gap"),
    "one group an example": (dict(groups=np.array([0, 1])), "4 integers"),
    "targets out of range": (dict(family="binomial", y=2.0 * LABELS, y_valid=1.0 * LABELS), r"\[0, 1\]"),
    "counts below zero": (dict(family="poisson", y=LABELS - 1.0, y_valid=1.0 * LABELS), "poisson"),
    "other columns": (dict(A_valid=A[:, :1]), "same columns"),
    "NaN": (dict(A=A * np.nan), "NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case):
    changes, message = REFUSED[case]
    given = dict(A=A, y=LABELS, A_valid=A, y_valid=LABELS, penalty=0.4) | changes
    with pytest.raises(ValueError, match=message):
        Reweighted(**given)


@pytest.mark.parametrize("groups", [None, LABELS])
def test_theta_of_another_length_is_refused(groups):
    """One entry would be everybody's, and an index too large the last entry's."""
    problem = Reweighted(A, LABELS, A, LABELS, penalty=0.4, groups=groups)
    with pytest.raises(ValueError, match="theta must have shape"):
        bilevel.solve_lower(problem, np.zeros(1))
