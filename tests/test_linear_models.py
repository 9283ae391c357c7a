"""Linear models on folds: what they are, their certificates, their inputs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import batched, stack, truth
from scipy.optimize import minimize
from test_certificates import measure, true

import bilevel
from bilevel import NewtonCG
from bilevel.problems import BinomialRegression, LinearRegression, LogisticRegression, PoissonRegression, k_folds
from bilevel.problems.assemble import HELD
from bilevel.problems.folds import masks

ROWS, FEATURES, CLASSES, FOLDS = 24, 4, 3, 3
KINDS = {
    "gaussian": LinearRegression,
    "multinomial": LogisticRegression,
    "binomial": BinomialRegression,
    "poisson": PoissonRegression,
}


def data(kind, rng, rows=ROWS, features=FEATURES):
    """Features away from zero, of unlike scales, and targets that depend on them."""
    A = (rng.standard_normal((rows, features)) + 0.3) * rng.uniform(0.2, 1, features)
    s = A @ rng.standard_normal((features, CLASSES)) + rng.gumbel(size=(rows, CLASSES)) / 2
    if kind == "multinomial":
        y = np.argmax(s, axis=1)
        y[: 3 * CLASSES] = np.arange(3 * CLASSES) % CLASSES
        return A, y
    if kind == "binomial":
        return A, np.where(np.arange(rows) < 8, np.arange(rows) % 2, s[:, 0] > s[:, 1]).astype(float)
    return A, s[:, 0] if kind == "gaussian" else rng.poisson(np.exp(np.minimum(s[:, 0], 3))).astype(float)


def columns(kind):
    return CLASSES if kind == "multinomial" else 1


def offsets(kind, rng, rows=ROWS):
    return 0.2 * rng.standard_normal((rows, CLASSES) if kind == "multinomial" else rows)


FREE = np.array([True, True, False, True])  # the third column is not penalised


def random_folds(kind, shape, intercept, features=FEATURES, penalties=None, more=False):
    """Weighted rows, stratified folds, penalties from almost none to strong; `more`: offsets, and a column that is not
    penalised."""

    def draw(rng, dtype):
        A, y = data(kind, rng, features=features)
        weights = rng.uniform(0.2, 1, len(y)) * (rng.random(len(y)) < 0.9)
        weights[: 3 * CLASSES] = 1
        folds = k_folds(len(y), FOLDS, seed=int(rng.integers(100)), labels=y if kind == "multinomial" else None)
        options = dict(folds=folds, weights=weights, intercept=intercept, penalties=penalties)
        if more:
            options |= dict(offset=offsets(kind, rng), penalised=FREE)
        try:
            problem = KINDS[kind](A, y, **options)
        except ValueError as error:  # few rows: now and then the column alone tells those of a class
            assert "nothing holds" in str(error)
            return draw(rng, dtype)
        return problem, jnp.asarray(rng.uniform(rng.choice([-6, -3]), 1, shape), dtype)

    return draw


solved = eqx.filter_jit(truth)
EACH = pytest.mark.parametrize("kind", KINDS)


@EACH
def test_folds_are_the_mean_of_separate_problems(kind):
    """f and grad f to 1e-12, with weights, offsets, an intercept and, gaussian, a column that is not penalised; and
    finite differences of f."""
    rng = np.random.default_rng(1)
    A, y = data(kind, rng)
    weights, offset, free = rng.uniform(0.5, 2, ROWS), offsets(kind, rng), FREE if kind == "gaussian" else None
    train = k_folds(ROWS, FOLDS, labels=y if kind == "multinomial" else None)
    theta = jnp.asarray(rng.uniform(-3, 0, (FEATURES - (free is not None), columns(kind))))
    problem = KINDS[kind](A, y, folds=train, weights=weights, intercept=True, offset=offset, penalised=free)
    whole = solved(problem, theta, problem.guess(theta))
    options = [
        dict(A_valid=A[~rows], y_valid=y[~rows], weights=weights[rows], weights_valid=weights[~rows], intercept=True)
        | dict(offset=offset[rows], offset_valid=offset[~rows], penalised=free)
        for rows in train
    ]
    parts = [KINDS[kind](A[rows], y[rows], **option) for rows, option in zip(train, options, strict=True)]
    each = batched(lambda problem, theta: truth(problem, theta, problem.guess(theta)))(
        stack(parts), jnp.broadcast_to(theta, (FOLDS, *theta.shape))
    )
    np.testing.assert_allclose(whole.value, each.value.mean(), rtol=1e-12)
    np.testing.assert_allclose(whole.gradient, each.gradient.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(whole.x, each.x, rtol=0, atol=1e-10)

    d = jnp.asarray(rng.standard_normal(theta.shape))
    ends = [solved(problem, theta + t * d, whole.x).value for t in (1e-5, -1e-5)]
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, jnp.vdot(whole.gradient, d), rtol=1e-6, atol=1e-9)

    coefficients, intercepts = problem.coefficients(whole.x)
    scores = A @ np.asarray(coefficients[0]) + np.asarray(intercepts[0])
    own = problem.valid.scores(whole.x)[0].T
    scores += 0 if kind == "gaussian" else offset.reshape(ROWS, -1)
    np.testing.assert_allclose(scores, own, rtol=1e-10, atol=1e-10)


SHARED = {
    "groups": ((2,), np.array([0, 1, 1, 0])),
    "B": ((2,), np.array([[1.0, 0], [1, 0.3], [1, -1], [0.2, 0.5]])),
}
CASES = [
    ("gaussian", (FEATURES, 1), True),
    ("multinomial", (FEATURES, CLASSES), False),
    ("poisson", (FEATURES - 1, 1), "more"),
    ("gaussian", (1, 1), "more"),
    pytest.param("binomial", (), "more", marks=pytest.mark.full),
    pytest.param("multinomial", (1, CLASSES), "more", marks=pytest.mark.full),
    pytest.param("gaussian", "groups", True, marks=pytest.mark.full),
    pytest.param("multinomial", "groups", True, marks=pytest.mark.full),
    pytest.param("poisson", "B", False, marks=pytest.mark.full),
    *(
        pytest.param(kind, shape, intercept, marks=pytest.mark.full)
        for kind in KINDS
        for shape in ((), (1, columns(kind)), (FEATURES, 1), (FEATURES, columns(kind)))
        for intercept in (False, True)
    ),
]


def tight(draws):
    """`dense`, where mu is that of a held intercept: gradients at the floor of float64."""
    exact = jax.device_get(true(*stack(draws)))
    assert np.max(exact.error) < 1e-12 / HELD
    return exact


@pytest.mark.parametrize(("kind", "shape", "intercept"), CASES, ids=str)
def test_no_bound_is_violated(kind, shape, intercept, request):
    """x, value and hypergradient."""
    count = 130 if request.node.get_closest_marker("full") else 40
    shape, penalties = SHARED.get(shape, (shape, None))
    draw = random_folds(kind, shape, bool(intercept), penalties=penalties, more=intercept == "more")
    errors, bounds = measure(np.random.default_rng(0), draw, np.float64, NewtonCG(), count, tight)
    finite = np.isfinite(bounds)
    print(np.mean(finite, axis=0), np.median((bounds / np.maximum(errors, 1e-300))[finite.all(axis=1)], axis=0))
    assert np.all(errors <= bounds) and np.mean(finite) > 0.5


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_is_violated_with_more_features_than_rows(kind):
    draw = random_folds(kind, (30, 1), True, features=30)
    errors, bounds = measure(np.random.default_rng(0), draw, np.float64, NewtonCG(), 25, tight)
    assert np.all(errors <= bounds) and np.mean(np.isfinite(bounds)) > 0.5


@EACH
@pytest.mark.parametrize("features", [FEATURES, 30])
def test_preconditioner_and_norms(kind, features):
    """The largest eigenvalues of the folds, from dense matrices; and P^{-1} is symmetric, positive definite."""
    rng = np.random.default_rng(3)
    problem, _ = random_folds(kind, (), True, features)(rng, np.float64)
    theta = jnp.asarray(rng.uniform(-4, 0, (features, 1)))
    W = np.asarray(problem.constants(theta).metric)
    rows = problem.valid
    for weighted, bound in ((False, rows.norm), (True, rows.weighted(jnp.asarray(W[0]), columns(kind)))):
        top = 0
        for w, m in zip(np.asarray(rows.weights), np.asarray(rows.means), strict=True):
            root = np.sqrt(w)[:, None] * (np.asarray(rows.A) - m) / (np.sqrt(W[0, :, :1].T) if weighted else 1)
            top = max(top, np.linalg.norm(root, 2) ** 2)
        assert top <= bound * (1 + 1e-12) and (weighted or bound <= top * (1 + 1e-10))
    P = problem.preconditioner(problem.guess(theta), theta)
    u, v = (jnp.asarray(rng.standard_normal(problem.shape)) for _ in range(2))
    np.testing.assert_allclose(jnp.vdot(u, P(v)), jnp.vdot(v, P(u)), rtol=1e-9)
    assert jnp.vdot(u, P(u)) > 0


@pytest.mark.parametrize("name", SHARED)
def test_norm_of_the_cross_derivative_is_exact(name):
    """||J|| in the metric where features share penalties, or theta = B gamma."""
    shape, penalties = SHARED[name]
    problem, theta = random_folds("multinomial", shape, True, penalties=penalties)(np.random.default_rng(1), np.float64)
    x = jnp.asarray(np.random.default_rng(2).standard_normal(problem.shape))
    J = jax.jacobian(jax.grad(problem.lower), argnums=1)(x, theta).reshape(x.size, -1)
    J /= np.sqrt(problem.constants(theta).metric).reshape(-1, 1)
    np.testing.assert_allclose(problem.bounds(x, theta, x, jnp.asarray(1.0)).J, np.linalg.norm(J, 2), rtol=1e-10)


def test_what_is_not_penalised_is_least_squares():
    """Against the normal equations with a penalty of zero for an intercept and for a column."""
    rng = np.random.default_rng(5)
    A, y = data("gaussian", rng)
    weights, offset = rng.uniform(0.2, 1, ROWS), offsets("gaussian", rng)
    options = dict(weights=weights, offset=offset, offset_valid=offset, intercept=True, penalised=FREE)
    problem = LinearRegression(A, y, A, y, **options)
    x = bilevel.solve_lower(problem, np.array(-2.0), eps=1e-12, solver=NewtonCG()).x
    coefficients, intercept = problem.coefficients(x)
    all_ = np.column_stack([A, np.ones(ROWS)])
    w = weights / weights.sum()
    penalty = np.diag([*np.exp(-2.0) * FREE, 0])
    expected = np.linalg.solve(all_.T @ (w[:, None] * all_) + penalty, all_.T @ (w * (y - offset)))
    np.testing.assert_allclose([*coefficients[:, 0], *intercept], expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["binomial", "poisson", "multinomial"])
def test_what_is_held_is_not_penalised(kind):
    """Against SciPy over all weights, with a penalty of zero for an intercept and for a column."""
    rng = np.random.default_rng(5)
    A, y = data(kind, rng, rows=4 * ROWS)
    weights, offset = rng.uniform(0.2, 1, len(y)), offsets(kind, rng, len(y))
    problem = KINDS[kind](
        A, y, A, y, weights=weights, offset=offset, offset_valid=offset, intercept=True, penalised=FREE
    )
    coefficients, intercept = problem.coefficients(
        bilevel.solve_lower(problem, np.array(-2.0), eps=1e-10, solver=NewtonCG()).x
    )
    all_, shape = np.column_stack([A, np.ones(len(y))]), (FEATURES + 1, columns(kind))
    targets = jnp.asarray(y if kind == "multinomial" else y[None])

    @jax.jit
    @jax.value_and_grad
    def h(b):
        b = b.reshape(shape)
        s = (all_ @ b).T + offset.reshape(len(y), -1).T
        loss = jnp.vdot(weights / weights.sum(), problem.family.losses(s[None], targets)[0])
        return loss + np.exp(-2.0) / 2 * jnp.sum(jnp.asarray([*FREE, False])[:, None] * b**2)

    b = minimize(h, np.zeros(shape).ravel(), jac=True, method="BFGS", options={"gtol": 1e-10}).x.reshape(shape)
    found = np.concatenate([coefficients, intercept[None]])
    b[~np.array([*FREE, False])] -= b[~np.array([*FREE, False])].mean(axis=1, keepdims=True) * (kind == "multinomial")
    np.testing.assert_allclose(found, b, rtol=0, atol=2e-5)


ALONE = dict(intercept=True, penalised=np.array([True, False]))
RARE = (np.arange(2000) == 0).astype(float)  # a column whose only row is of one class, or counts nothing


@pytest.mark.parametrize("kind", ["binomial", "poisson", "multinomial"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_columns_that_tell_a_target_from_all_others(kind, dtype):
    """Nothing holds their weight, however rare it is; with another row that is otherwise, something does."""
    rng = np.random.default_rng(9)
    A = np.column_stack([rng.standard_normal(len(RARE)), RARE]).astype(dtype)
    y = {"binomial": rng.random(len(RARE)) < 0.3, "poisson": rng.poisson(2, len(RARE))}.get(
        kind, rng.integers(3, size=len(RARE))
    )
    y = y.astype(int if kind == "multinomial" else dtype)
    y[:2] = (0, 1) if kind == "poisson" else (1, 0)
    with pytest.raises(ValueError, match="tell from all others"):
        KINDS[kind](A, y, A, y, **ALONE)
    A[1, 1] = 1
    if kind == "multinomial":
        A[2, 1], y[2] = 1, 2
    assert np.isfinite(KINDS[kind](A, y, A, y, **ALONE).train.base).all()


def test_offsets_and_targets_may_be_of_any_size():
    """The best intercept of counts is log(sum y / sum e^o): offsets far from zero, tiny targets, a row of weight 0."""
    rng = np.random.default_rng(10)
    A, y, weights = rng.standard_normal((50, 2)), rng.poisson(3, 50) * 1.0, np.arange(50) > 0
    for size, offset in ((1, 150), (1, -150), (1e-12, 0), (1e6, 10)):
        o = offset + rng.standard_normal(50)
        o[0] = 500 + offset  # of the row without weight
        options = dict(offset=o, offset_valid=o, weights=weights, intercept=True)
        base = PoissonRegression(A, size * y, A, size * y, **options).train.base
        best = np.log(size * y[1:].sum()) - offset - np.log(np.exp(o[1:] - offset).sum())
        np.testing.assert_allclose(base[0, 0, 0], best, rtol=1e-12)


@pytest.mark.parametrize("size", [1e-5, 1e5])
def test_what_holds_is_small_beside_the_data(size):
    """Of targets of any size."""
    rng = np.random.default_rng(11)
    A = rng.standard_normal((300, 4))
    y = size * np.exp(0.9 * A @ rng.standard_normal(4))
    problem = PoissonRegression(A, y, A, y, intercept=True, penalised=FREE)
    theta = np.log(size) - 3
    coefficients, intercept = problem.coefficients(bilevel.solve_lower(problem, np.array(theta), eps=1e-9).x)
    scores = A @ coefficients[:, 0] + intercept
    np.testing.assert_allclose((np.exp(scores) - y) @ A[:, 2] / len(y), 0, atol=1e-4 * y.mean())
    np.testing.assert_allclose((np.exp(scores) - y).mean(), 0, atol=1e-4 * y.mean())


def test_exposure_is_an_offset():
    """Counts at exposures e, offsets log e: those of rates y/e with weights w e, and what is best without features is
    log(sum y / sum e)."""
    rng = np.random.default_rng(6)
    A, y = data("poisson", rng)
    e = rng.uniform(0.2, 3, ROWS)
    counted = PoissonRegression(A, y, A, y, offset=np.log(e), offset_valid=np.log(e), intercept=True)
    np.testing.assert_allclose(counted.train.base[0, 0, 0], np.log(y.sum() / e.sum()), rtol=1e-14)
    rated = PoissonRegression(A, y / e, A, y / e, weights=e, weights_valid=e)
    counted = PoissonRegression(A, y, A, y, offset=np.log(e), offset_valid=np.log(e))
    solved = [
        bilevel.solve_lower(problem, np.array(theta), eps=1e-11, solver=NewtonCG()).x
        for problem, theta in ((counted, -3.0), (rated, -3.0 - np.log(e.mean())))
    ]
    np.testing.assert_allclose(*solved, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["binomial", "multinomial"])
def test_what_is_best_without_features_beside_offsets(kind):
    """The intercept's gradient vanishes at x = 0."""
    rng = np.random.default_rng(7)
    A, y = data(kind, rng)
    offset = 10 * offsets(kind, rng)
    problem = KINDS[kind](A, y, A, y, offset=offset, offset_valid=offset, intercept=True)
    assert np.max(np.abs(jax.grad(problem.lower)(jnp.zeros(problem.shape), jnp.asarray(0.0))[-1])) < 1e-13


def test_an_infinite_ball_is_no_nan():
    """Poisson's bounds where nothing is known of the distance yet: infinite, or zero where q is."""
    problem, theta = random_folds("poisson", (), True)(np.random.default_rng(0), np.float64)
    x = problem.guess(theta)
    known = problem.bounds(x, theta, x, jnp.asarray(jnp.inf))
    assert known.M_H == 0 and known.L_upper == jnp.inf
    assert jnp.inf == problem.bounds(x, theta, x + 1, jnp.asarray(jnp.inf)).M_H


def test_ways_to_say_folds():
    """A number, labels, an array, pairs of indices: the same masks."""
    train = k_folds(12, 3, seed=0)
    labels = np.argmin(train, axis=0)
    pairs = [(np.flatnonzero(rows), np.flatnonzero(~rows)) for rows in train]
    for said in (3, labels, train, train.astype(int), pairs, iter(pairs)):
        learnt, left = masks(said, 12)
        np.testing.assert_array_equal(learnt, train)
        np.testing.assert_array_equal(left, ~train)


def test_folds_are_balanced_stratified_and_repeated():
    y = np.repeat([0, 1, 2], [17, 9, 5])
    train = k_folds(31, 5, seed=3, repeats=2, labels=y)
    left = ~train
    assert train.shape == (10, 31) and (left[:5].sum(axis=0) == 1).all() and (left[5:].sum(axis=0) == 1).all()
    for label in range(3):
        counts = left[:, y == label].sum(axis=1)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(left.sum(axis=1)) <= 1
    assert (left[:5] != left[5:]).any() and (k_folds(31, 5, seed=4, labels=y) != train[:5]).any()
    np.testing.assert_array_equal(k_folds(4, 4).sum(axis=1), 3)


A, Y = np.arange(12.0).reshape(6, 2) / 10, np.array([0, 1, 0, 1, 0, 1])
ERRORS = {
    "both": (LogisticRegression, (A, Y, A, Y), dict(folds=2), "either A_valid and y_valid, or folds"),
    "neither": (LogisticRegression, (A, Y), {}, "pass one of"),
    "half": (LogisticRegression, (A, Y, A), {}, "go together"),
    "one fold": (LogisticRegression, (A, Y), dict(folds=1), "at least 2 folds"),
    "too many": (LinearRegression, (A, A[:, 0]), dict(folds=7), "n_splits > n_samples"),
    "no such array": (LinearRegression, (A, A[:, 0]), dict(folds=np.ones((2, 5))), "zeros and ones"),
    "nothing left out": (LinearRegression, (A, A[:, 0]), dict(folds=np.ones((2, 6))), "leaves out no row"),
    "overlap": (LinearRegression, (A, A[:, 0]), dict(folds=[([0, 1], [1, 2])]), "that it learns from"),
    "no class": (LogisticRegression, (A, Y), dict(folds=Y), r"learns from no row of class 0.*labels=y"),
    "one class": (LogisticRegression, (A, Y * 0), dict(folds=2), "at least two classes"),
    "weights": (LinearRegression, (A, A[:, 0]), dict(folds=2, weights=np.zeros(6)), "not all zero"),
    "negative": (LinearRegression, (A, A[:, 0]), dict(folds=2, weights=-np.ones(6)), "none negative"),
    "empty fold": (LinearRegression, (A, A[:, 0]), dict(folds=Y, weights=1.0 * Y), "weight zero alone"),
    "valid weights": (LinearRegression, (A, A[:, 0]), dict(folds=2, weights_valid=np.ones(6)), "those of all rows"),
    "valid offset": (LinearRegression, (A, A[:, 0]), dict(folds=2, offset_valid=np.ones(6)), "those of all rows"),
    "half an offset": (BinomialRegression, (A, 1.0 * Y, A, 1.0 * Y), dict(offset=np.ones(6)), "go together"),
    "offset of a class": (LogisticRegression, (A, Y), dict(folds=2, offset=np.ones(6)), r"shape \(6, 2\)"),
    "not penalised": (BinomialRegression, (A, 1.0 * Y), dict(folds=2, penalised=Y == 0), r"\(6,\)|2 columns"),
    "separated": (BinomialRegression, (A + 9 * Y[:, None], 1.0 * Y), dict(folds=2, **ALONE), "tell from all others"),
    "dependent": (LinearRegression, (A * 0 + 1, Y / 2), dict(folds=2, intercept=True, penalised=Y[:2] == 0), "depend"),
    "nothing penalised": (LinearRegression, (A, A[:, 0]), dict(folds=2, penalised=Y[:2] > 5), "one at least"),
    "shares": (BinomialRegression, (A, A[:, 0] + 1), dict(folds=2), "not in"),
    "no event": (BinomialRegression, (A, A[:, 0] * 0), dict(folds=2, intercept=True), "one class"),
    "counts": (PoissonRegression, (A, -A[:, 0]), dict(folds=2), "negative"),
    "NaN": (LinearRegression, (A, A[:, 0] * np.nan), dict(folds=2), "NaN"),
    "targets": (LinearRegression, (A, A[:5, 0]), dict(folds=2), r"pass \(6,\)"),
    "gap": (LinearRegression, (A, A[:, 0]), dict(folds=2, penalties=np.array([0, 2])), "without a gap"),
    "no penalties": (LinearRegression, (A, A[:, 0]), dict(folds=2, penalties=np.ones(3)), "penalties of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name):
    kind, tables, options, match = ERRORS[name]
    with pytest.raises(ValueError, match=match):
        kind(*tables, **options)


def test_folds_of_another_type():
    with pytest.raises(TypeError, match="pass a number"):
        LinearRegression(A, A[:, 0], folds=0.5)
    with pytest.raises(ValueError, match=r"one log penalty a group"):
        problem = LinearRegression(A, A[:, 0], folds=2, penalties=np.array([0, 1]))
        bilevel.hypergradient(problem, np.zeros(3), eps=1.0)
