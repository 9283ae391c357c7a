"""Sparse features: the problems that dense ones are, with norms that are no smaller, and nothing dense made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO
from test_linear_models import CLASSES, KINDS, columns, data, offsets, solved

import bilevel
from bilevel import problems
from bilevel.problems import LinearRegression, LogisticRegression

ROWS, FEATURES, FOLDS = 30, 7, 3


def sparse_data(kind, rng):
    A, y = data(kind, rng, rows=ROWS, features=FEATURES)
    A *= rng.random(A.shape) < 0.4
    A[:, 2] = 0
    return A, y


@pytest.mark.parametrize(
    "kind",
    ["gaussian", "multinomial", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("binomial", "poisson"))],
)
def test_sparse_is_dense(kind):
    """Value and hypergradient of the exact solution, coefficients; with a column that is not penalised."""
    rng = np.random.default_rng(0)
    A, y = sparse_data(kind, rng)
    options = dict(
        folds=problems.k_folds(ROWS, FOLDS, labels=y if kind == "multinomial" else None), intercept=True,
        weights=rng.uniform(0.5, 2, ROWS), offset=offsets(kind, rng, ROWS),
        penalised=np.arange(FEATURES) != 4,
    )  # fmt: skip
    theta = jnp.asarray(rng.uniform(-3, 0, (FEATURES - 1, columns(kind))))
    dense, sparse = (KINDS[kind](X, y, **options) for X in (A, scipy.sparse.csc_array(A)))
    expected, found = (solved(problem, theta, problem.guess(theta)) for problem in (dense, sparse))
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-10)
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=0, atol=1e-10)
    both = (problem.coefficients(solution.x) for problem, solution in ((dense, expected), (sparse, found)))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
    z = bilevel.hypergradient(sparse, theta, eps=1e-8, delta=1e-8, solver=bilevel.NewtonCG())
    assert z.certificate == "proven" and abs(z.value - expected.value) <= z.value_error
    assert np.linalg.norm(z.gradient - expected.gradient) <= z.gradient_error < np.inf

    W = np.exp(rng.uniform(0, 4, (FEATURES + (kind in ("multinomial", "binomial", "poisson")), CLASSES)))
    W = (W / W.min())[: sparse.shape[-2]]
    W /= W.min()
    for rows in (sparse.train, sparse.valid):
        full = np.asarray(rows.A.todense())
        for w, M in zip(*map(np.asarray, (rows.weights, rows.means)), strict=True):
            centred = full - np.asarray(rows.fixed) @ M
            G = centred.T * w @ centred
            assert np.linalg.norm(G, 2) <= rows.norm
            assert max(np.linalg.norm(G / np.sqrt(np.outer(c, c)), 2) for c in W.T) <= rows.weighted(
                jnp.asarray(W), CLASSES
            )
        lengths = np.linalg.norm(
            full[None] - np.einsum("nu,kup->knp", *map(np.asarray, (rows.fixed, rows.means))), axis=2
        )
        assert (lengths <= rows.lengths * (1 + 1e-12)).all()


def test_every_way_to_say_sparse():
    """CSR, CSC, COO with an entry twice, BCOO: one matrix; and a plain split of train and validation rows."""
    A, y = sparse_data("multinomial", np.random.default_rng(1))
    twice = scipy.sparse.coo_array(A)
    rows, cols = twice.coords
    twice = scipy.sparse.coo_array((np.tile(twice.data / 2, 2), (np.tile(rows, 2), np.tile(cols, 2))), shape=A.shape)
    theta = jnp.zeros((FEATURES, 1))
    expected = LogisticRegression(A, y, A, y).lower(jnp.ones((FEATURES, CLASSES)), theta)
    sliced = BCOO.fromdense(jnp.asarray(np.vstack([A, A])))[:ROWS]  # whose other entries are outside, not gone
    for said in (scipy.sparse.csr_matrix(A), scipy.sparse.csc_array(A), twice, BCOO.fromdense(jnp.asarray(A)), sliced):
        problem = LogisticRegression(said, y, said, y)
        assert problem.A.nse == np.count_nonzero(A)
        np.testing.assert_allclose(problem.lower(jnp.ones((FEATURES, CLASSES)), theta), expected, rtol=1e-12)


def test_nothing_dense_is_made():
    """Of 300 rows and 400 columns no array of the programs has 300 x 400 or 400 x 400 numbers."""
    A = scipy.sparse.random_array((300, 400), density=0.01, rng=np.random.default_rng(0), format="csr")
    problem = LogisticRegression(A, np.arange(300) % 2, folds=3, intercept=True)
    theta = jnp.zeros((400, 1))

    def all_of_it(problem, theta):
        x = problem.guess(theta)
        found = jax.value_and_grad(problem.lower)(x, theta), jax.grad(problem.upper)(x, theta)
        known = problem.bounds(x, theta, x, jnp.asarray(1.0)), problem.constants(theta)
        return (
            found,
            known,
            problem.preconditioner(x, theta)(x),
            bilevel._certificate.value.upper_terms(problem, x, theta),
        )

    text = str(jax.make_jaxpr(lambda problem, theta: jax.tree.leaves(all_of_it(problem, theta)))(problem, theta))
    assert not any(shape in text for shape in ("300,400]", "400,300]", "400,400]", "300,401]", "401,401]"))


A = scipy.sparse.eye_array(6, format="csr")
ERRORS = {
    "integers": ((A.astype(int), np.ones(6)), TypeError, "float64"),
    "NaN": ((A * np.nan, np.ones(6)), ValueError, "NaN"),
    "mixed": ((A, np.ones(6), A.toarray(), np.ones(6)), TypeError, "both sparse"),
    "huge": ((A * 1e200, np.ones(6)), ValueError, "scale"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    tables, error, match = ERRORS[name]
    with pytest.raises(error, match=match):
        LinearRegression(*tables, folds=None if len(tables) == 4 else 2)
