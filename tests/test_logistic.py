"""Multinomial logistic regression: its constants, its certificates, its inputs."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from test_certificates import dense, measure

import bilevel
from bilevel import Nesterov
from problems import LogisticRegression

ROWS, FEATURES, CLASSES = 20, 4, 3
SHAPES = [(), (1, CLASSES), (FEATURES, 1), (FEATURES, CLASSES)]


def random_logistic(shape):
    def draw(rng, dtype):
        def data():
            labels = np.concatenate([np.arange(CLASSES), rng.integers(0, CLASSES, ROWS - CLASSES)])
            return (rng.standard_normal((ROWS, FEATURES)) * rng.uniform(0.1, 3)).astype(dtype), labels

        return LogisticRegression(*data(), *data()), jnp.asarray(rng.uniform(rng.choice([-8, -3]), 1, shape), dtype)

    return draw


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_bound_is_violated(shape):
    """x, value and hypergradient, on 100 draws for each way of sharing penalties."""
    errors, bounds = measure(np.random.default_rng(0), random_logistic(shape), np.float64, Nesterov(), 100, dense)
    assert np.all(np.isfinite(bounds)) and np.all(errors <= bounds)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_of_the_cross_derivative_is_exact(shape):
    """||J|| from theta to the metric's dual norm, that is, of W^{-1/2} J."""
    problem, theta = random_logistic(shape)(np.random.default_rng(1), np.float64)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((FEATURES, CLASSES)))
    J = jax.jacobian(jax.grad(problem.lower), argnums=1)(x, theta).reshape(x.size, -1)
    bounds = problem.bounds(x, theta, x, jnp.asarray(1.0))
    J /= np.sqrt(problem.constants(theta).metric).reshape(-1, 1)
    np.testing.assert_allclose(bounds.J, np.linalg.norm(J, 2), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_weighted_norm_is_the_largest_eigenvalue_or_above(seed):
    """lambda_W(G) of signed features, at most lambda(G); of features that are not negative, to 1 %."""
    rng = np.random.default_rng(seed)
    metric = np.exp(rng.uniform(0, 8, (FEATURES, CLASSES)))
    for features, tight in ((rng.standard_normal((ROWS, FEATURES)), np.inf), (rng.random((ROWS, FEATURES)), 1.01)):
        labels = np.arange(ROWS) % CLASSES
        gram = features.T @ features / ROWS
        exact = max(np.linalg.eigvalsh(gram / np.sqrt(np.outer(w, w)))[-1] for w in metric.T)
        problem = LogisticRegression(features, labels, features, labels)
        bound = 2 * problem.constants(jnp.log(metric)).L_upper
        exact *= metric.min()  # the class divides by the smallest penalty
        assert exact <= bound <= min(tight * exact, np.linalg.eigvalsh(gram)[-1] * (1 + 1e-12))


def test_the_metric_keeps_the_certificate_usable_with_tiny_penalties():
    """On the digits, one weight in ten almost free (e^-8): omega at the same x and q falls at least tenfold."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
    from mnist import Euclidean

    A, y = load_digits(return_X_y=True)
    data = A[:300] / 16, y[:300], A[300:600] / 16, y[300:600]
    theta = jnp.where(jnp.asarray(np.random.default_rng(0).random((64, 10)) < 0.1), -8.0, -2.0)
    with_metric, without = (
        bilevel.hypergradient(kind(*data), theta, eps=1e-4, delta=1e-4, solver=bilevel.NewtonCG())
        for kind in (LogisticRegression, Euclidean)
    )
    print(with_metric.gradient_error, without.gradient_error)
    assert with_metric.gradient_error < 0.1 * without.gradient_error


def test_nothing_contradicts_the_constants(capsys):
    problem, theta = random_logistic((FEATURES, CLASSES))(np.random.default_rng(3), np.float64)
    assert bilevel.check_problem(problem, theta) == []


def test_digits_are_learnt():
    """On the 8 x 8 digits, one penalty each: descent certified throughout, validation loss well below the start's."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    A, y = features[order] / 16, labels[order]
    problem = LogisticRegression(A[:600], y[:600], A[600:1200], y[600:1200])
    theta0 = jnp.full((64, 10), -2.0)
    solution = bilevel.solve(problem, theta0, max_cost=1500)
    assert solution.certified and solution.value < 0.8 * solution.history["value"][0]
    unseen = LogisticRegression(A[:600], y[:600], A[1200:], y[1200:])
    before = bilevel.solve_lower(problem, theta0).x
    assert unseen.upper(solution.x, solution.theta) < unseen.upper(before, theta0)
    assert unseen.accuracy(solution.x, unseen.A_valid, unseen.y_valid) > 0.8


good = np.ones((4, 2)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    "train, error, match",
    [
        ((good[0][:0], good[1][:0]), ValueError, "at least 1"),
        ((good[0][0], good[1]), ValueError, "must have shape"),
        ((good[0], good[1][:3]), ValueError, "rows of features"),
        ((good[0] * np.nan, good[1]), ValueError, "NaN"),
        ((good[0], -good[1]), ValueError, "from 0"),
        ((good[0].astype(int), good[1]), TypeError, "astype"),
        ((good[0], good[1].astype(float)), TypeError, "integers"),
        ((good[0].astype(np.float32), good[1]), TypeError, "one dtype"),
        ((good[0][:, :1], good[1]), ValueError, "same columns"),
    ],
)
def test_bad_input(train, error, match):
    with pytest.raises(error, match=match):
        LogisticRegression(*train, *good)


def test_one_class_and_wrong_theta():
    with pytest.raises(ValueError, match="two classes"):
        LogisticRegression(good[0], 0 * good[1], good[0], 0 * good[1])
    with pytest.raises(ValueError, match="one log penalty"):
        bilevel.solve(LogisticRegression(*good, *good), np.zeros(2))
