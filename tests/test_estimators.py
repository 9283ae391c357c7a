"""Estimators: scikit-learn's own checks and its answers, penalties that are learnt, float64 in any process."""

import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_linnerud, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet as PlainElasticNet
from sklearn.linear_model import Lasso as PlainLasso
from sklearn.linear_model import LassoCV, LogisticRegressionCV, RidgeCV
from sklearn.linear_model import LogisticRegression as PlainLogistic
from sklearn.linear_model import PoissonRegressor as PlainPoisson
from sklearn.linear_model import Ridge as PlainRidge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevel import RESULTS, estimators
from bilevel.estimators import _base
from bilevel.estimators._learn import Learnt
from bilevel.estimators._padding import Table, padded, roomy

ROOT = Path(__file__).parents[1]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:The least populated class")
@parametrize_with_checks(
    [
        estimators.Ridge(),
        estimators.LogisticRegression(),
        estimators.PoissonRegressor(),
        estimators.Lasso(),
        estimators.ElasticNet(),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def diabetes():
    return load_diabetes(return_X_y=True)


def scaled(load):
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def golub():
    """Activity of 3 051 genes of 38 people, from the folder that BILEVEL_DATA names."""
    path = Path(os.environ.get("BILEVEL_DATA", ""), "golub", "golub.npz")
    if not path.is_file():
        pytest.skip("golub/golub.npz is not in BILEVEL_DATA")
    with np.load(path) as file:
        return StandardScaler().fit_transform(file["features"]), file["labels"]


def linnerud():
    """Exercises of 20 people, and their weights."""
    X, y = scaled(load_linnerud)
    return X, y[:, 0]


RIDGE = {
    "diabetes": diabetes,
    "linnerud": linnerud,
    "cancer": lambda: scaled(load_breast_cancer),
    "wine": lambda: scaled(load_wine),
    "iris": lambda: scaled(load_iris),
    "digits": lambda: (load_digits().data[:600] / 16, load_digits().target[:600].astype(float)),
    "golub": lambda: (golub()[0], golub()[1].astype(float)),
}


FLAT = ("golub", "linnerud")  # few rows


@pytest.mark.parametrize(
    "name", [name if name == "diabetes" else pytest.param(name, marks=pytest.mark.full) for name in RIDGE]
)
def test_one_penalty_is_that_of_ridge_cv(name):
    """Within one step of a grid of 20 a decade, or, where the loss is flat, golub's down to no penalty, no worse; the
    same coefficients at the same penalty; folds that are given."""
    X, y = RIDGE[name]()
    cv = KFold(5, shuffle=True, random_state=0)
    model = estimators.Ridge(cv=cv).fit(X, y)
    grid = np.logspace(-6, 5, 221)
    peer = RidgeCV(grid, cv=cv, scoring="neg_mean_squared_error").fit(X, y)
    plain = PlainRidge(alpha=float(model.penalties_)).fit(X, y)
    print(name, float(model.penalties_), peer.alpha_, model.n_iter_)
    near = abs(np.log10(model.penalties_ / peer.alpha_)) <= 0.05 * (1 + 1e-9)
    assert near or (name in FLAT and 2 * model.solution_.value <= -peer.best_score_ * (1 + 1e-4))
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=0, atol=1e-6 * np.max(np.abs(plain.coef_)))
    np.testing.assert_allclose(model.predict(X), plain.predict(X), rtol=1e-8, atol=1e-12 * np.max(np.abs(y)))
    assert model.solution_.converged and model.solution_.certified


def above(X, y):
    return X, (y > np.median(y)).astype(int)


LOGISTIC = {
    "iris": lambda: scaled(load_iris),
    "wine": lambda: scaled(load_wine),
    "cancer": lambda: scaled(load_breast_cancer),
    "digits": lambda: (load_digits().data[:600] / 16, load_digits().target[:600]),
    "diabetes": lambda: above(*scaled(load_diabetes)),
    "linnerud": lambda: above(*linnerud()),
    "golub": golub,
}


@pytest.mark.full
@pytest.mark.parametrize("name", LOGISTIC)
def test_one_penalty_is_that_of_logistic_regression_cv(name):
    """Within one step of a grid of 4 a decade, or, where the loss is flat, no worse; the same coefficients at the same
    penalty."""
    X, y = LOGISTIC[name]()
    cv = StratifiedKFold(5)
    model = estimators.LogisticRegression(cv=cv).fit(X, y)
    peer = LogisticRegressionCV(
        Cs=np.logspace(-3, 3, 25), cv=cv, scoring="neg_log_loss", tol=1e-8, max_iter=10_000, l1_ratios=(0,),
        use_legacy_attributes=False,
    ).fit(X, y)  # fmt: skip
    options = dict(tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    plain = PlainLogistic(C=1 / float(model.penalties_), **options).fit(X, y)
    print(name, 1 / float(model.penalties_), peer.C_, model.n_iter_, model.solution_.message)
    near = abs(np.log10(model.penalties_ * peer.C_)) <= 0.25 * (1 + 1e-9)
    best = -np.max(np.mean(np.reshape(peer.scores_, (5, -1)), axis=0))
    assert near or (name in FLAT and model.solution_.value <= best * (1 + 1e-4))
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=0, atol=1e-6 * np.max(np.abs(plain.coef_)))
    np.testing.assert_allclose(model.predict_proba(X), plain.predict_proba(X), rtol=0, atol=1e-6)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", RIDGE)
def test_one_penalty_is_that_of_lasso_cv(name):
    """Within one step of a grid of 33 a decade, or, as f has several minima, no worse; the same coefficients and
    support at the same penalty."""
    X, y = RIDGE[name]()
    cv = KFold(5, shuffle=True, random_state=0)
    model = estimators.Lasso(cv=cv).fit(X, y)
    peer = LassoCV(cv=cv, alphas=100, tol=1e-8, max_iter=100_000).fit(X, y)
    plain = PlainLasso(alpha=float(model.penalties_), tol=1e-12, max_iter=1_000_000).fit(X, y)
    best = np.min(peer.mse_path_.mean(axis=1))
    print(name, float(model.penalties_), peer.alpha_, 2 * model.solution_.value, best, model.n_iter_)
    near = abs(np.log10(model.penalties_ / peer.alpha_)) <= 3 / 99 * (1 + 1e-9)
    assert near or 2 * model.solution_.value <= best * (1 + 1e-4)
    np.testing.assert_allclose(
        model.coef_, plain.coef_, rtol=0, atol=1e-6 * np.max(np.abs(plain.coef_), initial=1e-300)
    )
    np.testing.assert_array_equal(model.coef_ == 0, plain.coef_ == 0)


@pytest.mark.full
def test_leave_one_out():
    """RidgeCV's own formula for it, on a grid of 20 a decade."""
    X, y = (part[:50] for part in diabetes())
    model = estimators.Ridge(cv=LeaveOneOut()).fit(X, y)
    peer = RidgeCV(np.logspace(-5, 3, 161)).fit(X, y)
    assert abs(np.log10(model.penalties_ / peer.alpha_)) <= 0.05 * (1 + 1e-9)


@pytest.mark.full
def test_one_penalty_of_poisson_regression():
    """Both neighbours on a grid of 10 a decade are worse on the folds, and the coefficients are scikit-learn's."""
    X, y = diabetes()
    cv = KFold(5, shuffle=True, random_state=0)
    model = estimators.PoissonRegressor(cv=cv).fit(X, y)
    options = dict(tol=1e-10, max_iter=10_000, solver="newton-cholesky")
    plain = PlainPoisson(alpha=float(model.penalties_), **options).fit(X, y)
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=0, atol=1e-6 * np.max(np.abs(plain.coef_)))

    def loss(alpha):
        scores = cross_val_score(PlainPoisson(alpha=alpha, **options), X, y, cv=cv, scoring="neg_mean_poisson_deviance")
        return -scores.mean()

    assert loss(float(model.penalties_)) < min(loss(float(model.penalties_) * 10**step) for step in (-0.1, 0.1))
    np.testing.assert_allclose(2 * model.solution_.value, loss(float(model.penalties_)), rtol=1e-6)


def test_penalties_of_every_kind():
    """Words as labels, two kinds of sharing a program: never worse on the folds than one penalty; and the interface."""
    X, y = load_iris(return_X_y=True)
    y = np.array(["setosa", "versicolor", "virginica"])[y]
    cv = StratifiedKFold(3)
    one, feature, group = (
        estimators.LogisticRegression(cv=cv, penalties=penalties, tol=1e-4).fit(X, y)
        for penalties in ("one", "feature", ["long", "wide", "long", "wide"])
    )
    assert one.penalties_.shape == () and feature.penalties_.shape == (4,) and group.penalties_.shape == (2,)
    assert feature.solution_.value <= group.solution_.value * (1 + 1e-6) <= one.solution_.value * (1 + 2e-6)
    assert one.coef_.shape == (3, 4) and one.intercept_.shape == (3,) and set(one.predict(X)) == set(y)
    np.testing.assert_allclose(feature.predict_proba(X).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(feature.predict_log_proba(X)), feature.predict_proba(X), rtol=1e-12)
    assert feature.score(X, y) > 0.95


@pytest.mark.full
def test_composition_with_scikit_learn():
    """Pipeline, cross_val_score, GridSearchCV, several targets, groups as folds, weights: few shapes, few programs."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 5)) * [1, 10, 1, 0.1, 1]
    Y = X @ rng.standard_normal((5, 2)) + rng.standard_normal((60, 2))
    pipeline = make_pipeline(StandardScaler(), estimators.Ridge(cv=3))
    assert cross_val_score(pipeline, X, Y[:, 0], cv=2).min() > 0.5
    search = GridSearchCV(pipeline, {"ridge__tol": [1e-2, 1e-5]}, cv=2, refit=False).fit(X, Y[:, 0])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    X, Y = X[:30], Y[:30]
    both = estimators.Ridge(cv=ShuffleSplit(3, random_state=0), penalties="weight").fit(X, Y)
    assert both.coef_.shape == both.penalties_.shape == (2, 5) and both.predict(X).shape == (30, 2)
    folds = list(GroupKFold(3).split(X, groups=np.arange(30) // 5))
    weights = rng.integers(0, 3, 30)
    weighted = estimators.Ridge(cv=folds).fit(X, Y[:, 0], weights)
    plain = PlainRidge(float(weighted.penalties_)).fit(X, Y[:, 0], weights)
    np.testing.assert_allclose(weighted.coef_, plain.coef_, rtol=1e-7)


def test_lasso_and_elastic_net():
    """One penalty: LassoCV's within one step of a grid of 33 a decade, and scikit-learn's coefficients and support."""
    X, y = diabetes()
    X, y = (X / X.std(axis=0))[:200], y[:200]
    cv = KFold(3, shuffle=True, random_state=0)
    model = estimators.Lasso(cv=cv).fit(X, y)
    peer = LassoCV(cv=cv, alphas=100, tol=1e-8, max_iter=100_000).fit(X, y)
    assert abs(np.log10(model.penalties_ / peer.alpha_)) <= 3 / 99 * (1 + 1e-9)
    plain = PlainLasso(alpha=float(model.penalties_), tol=1e-10, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=0, atol=1e-6 * np.max(np.abs(plain.coef_)))
    np.testing.assert_array_equal(model.coef_ == 0, plain.coef_ == 0)
    assert 2 * model.solution_.value <= np.min(peer.mse_path_.mean(axis=1)) * (1 + 1e-5)
    each = estimators.Lasso(cv=cv, penalties="feature", max_steps=30, tol=1e-3).fit(X, y)
    assert each.penalties_.shape == (10,) and each.solution_.value <= model.solution_.value * (1 + 1e-3)
    net = estimators.ElasticNet(cv=cv).fit(X, y)
    lasso, ridge = net.penalties_
    plain = PlainElasticNet(alpha=lasso + ridge, l1_ratio=lasso / (lasso + ridge), tol=1e-10, max_iter=100_000)
    np.testing.assert_allclose(net.coef_, plain.fit(X, y).coef_, rtol=0, atol=1e-6 * np.max(np.abs(net.coef_)))


@pytest.mark.full
def test_sparse_features_and_class_weights(monkeypatch):
    """What dense features give, to 1e-4, though they stay sparse; class weights are sample weights."""
    monkeypatch.setattr(_base, "SMALL", 0)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 6)) * (rng.random((40, 6)) < 0.5)
    y = np.array(["no", "yes"])[(X[:, 0] + X[:, 1] + rng.standard_normal(40) / 2 > 0.5).astype(int)]
    dense, sparse = (
        estimators.LogisticRegression(cv=StratifiedKFold(3), class_weight="balanced").fit(kind(X), y)
        for kind in (np.asarray, scipy.sparse.csc_array)
    )
    np.testing.assert_allclose(sparse.penalties_, dense.penalties_, rtol=1e-3)
    np.testing.assert_allclose(sparse.predict_proba(scipy.sparse.csr_array(X)), dense.predict_proba(X), atol=1e-4)
    assert sparse.solution_.certified and sparse.solution_.converged
    plain = PlainLogistic(C=1 / float(dense.penalties_), class_weight="balanced", tol=1e-10, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(dense.coef_, plain.coef_, rtol=1e-5)
    weights = np.where(y == "no", 3.0, 1.0)
    told = estimators.LogisticRegression(cv=StratifiedKFold(3), class_weight={"no": 3.0, "yes": 1.0}).fit(X, y)
    given = estimators.LogisticRegression(cv=StratifiedKFold(3)).fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(told.coef_, given.coef_)


IN_FLOAT32 = """
import sys
import bilevel
assert not any(name.split(".")[0] == "sklearn" for name in sys.modules)
import jax, numpy as np
from bilevel import estimators
rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3)).astype(np.float32)
model = estimators.Ridge(cv=2).fit(X, X @ [1.0, 2.0, 3.0] + rng.standard_normal(40))
assert model.coef_.dtype == np.float64 and model.solution_.converged and model.solution_.certified
assert model.solution_.value_error < 1e-7 * model.solution_.value
assert not jax.config.jax_enable_x64 and jax.numpy.ones(()).dtype == np.float32
"""


def test_float64_where_nobody_set_it():
    """In a process that never sets x64; and `import bilevel` loads nothing of scikit-learn."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    done = subprocess.run(
        [sys.executable, "-c", IN_FLOAT32], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_budget_that_ends_is_a_warning():
    X, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="steps"):
        model = estimators.LogisticRegression(cv=StratifiedKFold(3), penalties="feature", max_steps=1).fit(X, y)
    assert model.solution_.result == RESULTS.max_steps_reached and model.n_iter_ <= 1 and model.score(X, y) > 0.9


def test_padding_changes_no_shape_often():
    assert [roomy(n, 4) for n in (1, 5, 32, 33, 40, 65, 1000)] == [4, 8, 32, 40, 40, 80, 1024]
    table = padded(Table(np.ones((50, 5)), np.ones((50, 2)), np.ones(50), []))
    assert table.A.shape == (56, 8) and table.y.shape == (56, 2) and table.weights.sum() == 50


X, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
BAD = {
    "penalties": (estimators.Ridge(penalties="all"), (X, y), "penalties='all'"),
    "groups": (estimators.Ridge(penalties=[0, 1, 2]), (X, y), r"penalties of shape \(3,\)"),
    "folds": (estimators.Ridge(cv=13), (X, y), "n_splits=13"),
    "tol": (estimators.Ridge(tol=0), (X, y), "tol"),
    "steps": (estimators.Ridge(max_steps=0.5), (X, y), "max_steps"),
    "NaN": (estimators.Ridge(), (X * np.nan, y), "NaN"),
    "one row": (estimators.Ridge(), (X[:1], y[:1]), "1 sample"),
    "weights": (estimators.Ridge(), (X, y, 0 * y), "zero"),
    "negative": (estimators.PoissonRegressor(), (X, -y), "negative"),
    "one class": (estimators.LogisticRegression(), (X, 0 * y), "one class"),
    "continuous": (estimators.LogisticRegression(), (X, y / 3), "Unknown label type"),
    "a class in one fold": (
        estimators.LogisticRegression(cv=[(np.arange(6), np.arange(6, 12))]), (X, np.arange(12) // 4), "of class 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    model, data, match = BAD[name]
    with pytest.raises(ValueError, match=match):
        model.fit(*data)


@pytest.mark.parametrize(("penalties", "steps", "warned"), [("feature", 0, 1), ("feature", 1, 0), ("one", 0, 0)])
def test_several_penalties_that_rounding_never_let_move_are_a_warning(monkeypatch, penalties, steps, warned):
    ended = types.SimpleNamespace(result=RESULTS.accuracy_floor, steps=steps, converged=False, message="floor")
    learnt = Learnt(np.zeros((3, 1)), np.zeros(1), np.zeros((3, 1)), 1.0, ended)
    monkeypatch.setattr(estimators.Ridge, "_learner", staticmethod(lambda *_: learnt))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        estimators.Ridge(penalties=penalties).fit(np.eye(12)[:, :3], np.arange(12.0))
    assert len(told) == warned
