"""Multinomial logistic regression: its constants, its certificates, its inputs."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from test_certificates import dense, measure

import bilevel
from bilevel import Nesterov, NewtonCG
from bilevel.problems import LogisticRegression
from experiments.paper.mnist import Euclidean

ROOT = Path(__file__).parents[1]
ROWS, FEATURES, CLASSES = 20, 4, 3
SHAPES = [(), (1, CLASSES), (FEATURES, 1), (FEATURES, CLASSES)]


def random_logistic(shape, rows=ROWS, features=FEATURES):
    def draw(rng, dtype):
        def data():
            labels = np.concatenate([np.arange(CLASSES), rng.integers(0, CLASSES, rows - CLASSES)])
            return (rng.standard_normal((rows, features)) * rng.uniform(0.1, 3)).astype(dtype), labels

        return LogisticRegression(*data(), *data()), jnp.asarray(rng.uniform(rng.choice([-8, -3]), 1, shape), dtype)

    return draw


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_bound_is_violated(shape):
    """x, value and hypergradient, on 100 draws for each way of sharing penalties."""
    errors, bounds = measure(np.random.default_rng(0), random_logistic(shape), np.float64, Nesterov(), 100, dense)
    assert np.all(np.isfinite(bounds)) and np.all(errors <= bounds)


@pytest.mark.parametrize("shape", [pytest.param((9, 1), marks=pytest.mark.full), (9, CLASSES)], ids=str)
def test_no_bound_is_violated_with_more_features_than_rows(shape):
    """Nine features, five rows: norms and preconditioner from A A^T."""
    draw = random_logistic(shape, rows=5, features=9)
    errors, bounds = measure(np.random.default_rng(0), draw, np.float64, NewtonCG(), 100, dense)
    assert np.all(np.isfinite(bounds)) and np.all(errors <= bounds)


WIDE = """
import resource, time, numpy as np, jax
jax.config.update("jax_enable_x64", True)
import bilevel
from bilevel import problems
rng, y = np.random.default_rng(0), np.arange(40) % 2
A, A_valid = rng.standard_normal((2, 40, 4000)) + y[:, None]
problems.LogisticRegression(A[:, :3], y, A_valid[:, :3], y)  # the first starts JAX
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start, before = time.process_time(), peak()
problem = problems.LogisticRegression(A, y, A_valid, y)
jax.block_until_ready(problem.train.norm)
print(time.process_time() - start, peak() - before)
theta = np.zeros((4000, 1))
z = bilevel.hypergradient(problem, theta, eps=1e-3, delta=1e-3, solver=bilevel.NewtonCG())
assert z.result == bilevel.RESULTS.converged and z.certificate == "proven"
start = time.process_time()
jax.block_until_ready(bilevel.hypergradient(problem, theta - 1, eps=1e-3, delta=1e-3, solver=bilevel.NewtonCG()).x)
print(time.process_time() - start, peak() - before)
"""


def test_four_thousand_features_and_forty_rows():
    """Made in 2 s of running time, with 100 MB beside the data (a matrix features by features is 128 MB), and one
    hypergradient in as much once it is compiled."""
    done = subprocess.run([sys.executable, "-c", WIDE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    made, megabytes, learnt, _ = map(float, done.stdout.split())
    assert made < 2 and megabytes < 100 and learnt < 2


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
NUMBERED = r"np\.unique\(labels, return_inverse=True\)\[1\]"


@pytest.mark.parametrize(
    "train, error, match",
    [
        ((good[0][:0], good[1][:0]), ValueError, "at least 1"),
        ((good[0][:, :0], good[1]), ValueError, "at least 1"),
        ((good[0][:, 0], good[1]), ValueError, r"must have shape.*features\[:, None\]"),
        ((good[0], good[1][:3]), ValueError, "rows of features"),
        ((good[0], np.eye(4, dtype=int)), ValueError, r"one-hot.*labels\.argmax\(axis=1\)"),
        ((good[0] * np.nan, good[1]), ValueError, "NaN"),
        ((good[0].astype(int), good[1]), TypeError, "astype"),
        ((good[0].astype(np.float32), good[1]), TypeError, "one dtype"),
        ((good[0][:, :1], good[1]), ValueError, "same columns"),
        ((1e200 * good[0], good[1]), ValueError, r"reach 1\.0e\+200, whose squares float64 cannot hold: scale"),
        ((1e-200 * good[0], good[1]), ValueError, r"reach 1\.0e-200, whose squares"),
    ],
)
def test_bad_input(train, error, match):
    with pytest.raises(error, match=match):
        LogisticRegression(*train, *good)


LABELS = {
    "from one": (np.array([1, 2, 1, 2]), r"labels are \[1, 2\], 2 classes that are not numbered 0 \.\.\. 1"),
    "far from zero": (np.array([10, 11, 12, 10]), "not numbered"),
    "a gap": (np.array([0, 2, 0, 2]), "not numbered"),
    "signs": (np.array([-1, 1, -1, 1]), r"labels are \[-1, 1\]"),
    "huge": (np.array([0, 2**40, 1, 0]), "not numbered"),
    "unsigned": (np.array([0, 2**64 - 1, 1, 0], np.uint64), "not numbered"),
    "many": (np.arange(4) + 100, "not numbered"),
    "floats": (np.array([0.0, 1.0, 0.0, 1.0]), "float64, not integers"),
    "truths": (np.array([True, False, True, False]), "bool, not integers"),
    "words": (np.array(["cat", "dog", "cat", "dog"]), "not integers"),
    "objects": (np.array([0, None, 1, 1], object), "object, not integers"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_not_numbered_are_told_how(name):
    """An error that names the remedy; and the remedy works."""
    labels, words = LABELS[name]
    error = ValueError if np.issubdtype(labels.dtype, np.integer) else TypeError
    with pytest.raises(error, match=f"(?s){words}.*{NUMBERED}"):
        LogisticRegression(good[0], labels, good[0], labels)
    if name != "objects":
        numbered = np.unique(labels, return_inverse=True)[1]
        assert LogisticRegression(good[0], numbered, good[0], numbered).classes == len(np.unique(labels))


def test_every_class_has_something_to_learn_from():
    """One that only validation has is an error; one that only training has is a class; one of none is a gap."""
    three, two = np.array([0, 1, 2, 0]), np.array([0, 1, 1, 0])
    assert LogisticRegression(good[0], three, good[0], two).classes == 3
    with pytest.raises(ValueError, match=r"\[2\] occur in valid and not in train.*stratified.*drop"):
        LogisticRegression(good[0], two, good[0], three)
    with pytest.raises(ValueError, match="not numbered"):
        LogisticRegression(good[0], 2 * two, good[0], 3 * two)
    with pytest.raises(ValueError, match=r"all labels are 4.*two classes"):
        LogisticRegression(good[0], 0 * two + 4, good[0], 0 * two + 4)


def test_one_row_decides():
    """Two rows to train, one to validate, more features than rows: all constants, one penalty each."""
    problem = LogisticRegression(np.array([[1.0, 2, 0], [0, 1, 0]]), np.array([0, 1]), np.ones((1, 3)), np.array([1]))
    solution = bilevel.hypergradient(problem, np.zeros((3, 2)), eps=1e-8, delta=1e-8)
    assert solution.certificate == "proven" and solution.gradient_error < 1e-6
    np.testing.assert_array_equal(solution.x[2], 0)


def test_wrong_theta_and_labels_to_judge_by():
    problem = LogisticRegression(*good, *good)
    with pytest.raises(ValueError, match="one log penalty"):
        bilevel.solve(problem, np.zeros(2))
    x, labels = jnp.asarray([[0.0, 1.0], [0.0, 0.0]]), jnp.asarray(good[1])
    assert problem.accuracy(x, jnp.asarray(good[0]), labels) == 0.5
    assert problem.accuracy(x, jnp.asarray(good[0]), labels.astype(jnp.int8)) == 0.5
    with pytest.raises(ValueError, match="one label a row"):
        problem.accuracy(x, jnp.asarray(good[0]), labels[:1])
