"""min over w, b of  1/(2n) ||y - X w - b||^2 + alpha ||w||_1 (+ rho/2 ||w||^2),    alpha by 5 folds: ours and a grid's.

Lasso and elastic net of `bilevel.estimators` beside scikit-learn's `LassoCV` and `ElasticNetCV` and celer's path, which
look for alpha among a hundred on the same folds. Two simulated tables, diabetes, and golub with its labels as -1 and 1,
five draws or random splits each: squared error on other rows, in units of their targets' variance.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from celer import celer_path
from matplotlib import pyplot as plt
from sklearn.linear_model import ElasticNetCV, LassoCV
from sklearn.model_selection import KFold, train_test_split
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from bilevel import estimators
from experiments._harness import console, record, style
from experiments.statistics import tables

SHARES = (0.1, 0.5, 0.9)  # of the L1 penalty, elastic net's
DRAWS, FOLDS = 5, 5
NONZERO, RATIO = 10, 3.0  # of a simulated table: features that matter, and how much longer the signal is than the noise

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def simulated(rows: int, features: int, k: int) -> Split:
    """Gaussian features, neighbours correlated by 1/2; 1 000 rows to judge by."""
    rng = np.random.default_rng(k)
    X = rng.normal(size=(rows + 1000, features))
    for j in range(1, features):
        X[:, j] = X[:, j - 1] / 2 + X[:, j] * 0.75**0.5
    signal = X[:, rng.choice(features, NONZERO, replace=False)] @ rng.normal(size=NONZERO)
    noise = rng.normal(size=len(X))
    y = signal + noise * np.linalg.norm(signal) / (RATIO * np.linalg.norm(noise))
    return X[:rows], X[rows:], y[:rows], y[rows:]


def real(make: Callable[[], tables.Table], k: int) -> Split:
    """The table's share to learn from; classes are -1 and 1."""
    X, y, _, classes, share = make()
    y = 2.0 * (y == y.max()) - 1 if classes else y
    return tuple(train_test_split(X, y, train_size=share, random_state=k, stratify=y if classes else None))


class CelerCV:
    """celer's path on scikit-learn's grid, for each fold; celer 0.7.4's own `LassoCV` wants scikit-learn before 1.9."""

    def __init__(self, cv: list):
        self.cv = cv

    def fit(self, X: np.ndarray, y: np.ndarray) -> "CelerCV":
        top = np.max(np.abs(X.T @ (y - y.mean()))) / len(y)
        alphas = np.geomspace(top, 1e-3 * top, 100)
        losses = []
        for rows, left in self.cv:
            coef, intercept = self.path(X[rows], y[rows], alphas)
            losses.append(np.mean((X[left] @ coef + intercept - y[left][:, None]) ** 2, axis=0))
        self.alpha_ = alphas[np.argmin(np.mean(losses, axis=0))]
        coef, intercept = self.path(X, y, np.array([self.alpha_]))
        self.coef_, self.intercept_ = coef[:, 0], intercept[0]
        return self

    @staticmethod
    def path(X: np.ndarray, y: np.ndarray, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (p, alphas) and intercepts, with the settings of celer's `LassoCV`."""
        mean, middle = X.mean(axis=0), y.mean()
        options = dict(max_iter=100, tol=1e-4, prune=True)
        _, coef, _ = celer_path(np.asfortranarray(X - mean), y - middle, "lasso", alphas=alphas, **options)
        return coef, middle - mean @ coef

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X @ self.coef_ + self.intercept_


TABLES = {
    "diabetes": lambda k: real(tables.diabetes, k),
    "golub": lambda k: real(tables.golub, k),
    "n 1 000, p 200": lambda k: simulated(1000, 200, k),
    "n 100, p 5 000": lambda k: simulated(100, 5000, k),
}
MODELS = {
    "Lasso": lambda cv: estimators.Lasso(cv=cv),
    "LassoCV": lambda cv: LassoCV(cv=cv),
    "celer": lambda cv: CelerCV(cv),
    "ElasticNet": lambda cv: estimators.ElasticNet(cv=cv),
    "ElasticNetCV": lambda cv: ElasticNetCV(l1_ratio=SHARES, cv=cv),
}
INKS = dict(zip(MODELS, ("#C1121F", "#0072B2", "#009E73", "#CC79A7", "#999933"), strict=True))


def name(table: str, model: str) -> str:
    return f"{table}: {model}"


def penalties(model: object) -> tuple[float, float]:
    """alpha and the L1 penalty's share of it, in scikit-learn's words."""
    if not hasattr(model, "penalties_"):
        return float(model.alpha_), float(getattr(model, "l1_ratio_", 1.0))
    each = np.atleast_1d(model.penalties_)
    return float(each.sum()), float(each[0] / each.sum())


def judge(table: str, kind: str, k: int) -> dict[str, float]:
    """One fit: the error on other rows, what was chosen, seconds."""
    X, X_test, y, y_test = TABLES[table](k)
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    cv = list(KFold(FOLDS, shuffle=True, random_state=k).split(X))
    start, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of grids whose smallest penalties are not solved to tolerance
        model = MODELS[kind](cv).fit(X, y)
    clocks = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    alpha, share = penalties(model)
    loss = np.mean((model.predict(X_test) - y_test) ** 2) / np.var(y_test)
    chosen = {"alpha": alpha, "share": share, "features": int(np.count_nonzero(model.coef_))}
    return {"test_error": loss, **chosen, **clocks}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    made = [table for table in TABLES if table != "golub" or not packaged]
    made, count = (["diabetes"], 2) if smoke else (made, DRAWS)
    every = sorted(((table, kind) for table in made for kind in MODELS), key=lambda run: run[1] == "ElasticNet")
    for table, kind in (bar := tqdm(every, disable=None)):  # what takes longest comes last
        if (run := name(table, kind)) in log.finished():
            continue
        bar.set_description(run)
        jax.clear_caches()  # every run compiles what it needs in its first fit
        log.write("config", run, table=table, model=kind, **record.environment())
        errors = []
        for k in range(count):
            judged = judge(table, kind, k)
            errors.append(judged["test_error"])
            log.write("judged", run, k=k, **judged)
        log.write("end", run, test_error=np.mean(errors))


def error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def report(runs: dict[str, record.Run]) -> None:
    """Errors, gains on LassoCV draw by draw, alphas over LassoCV's, seconds; from the log alone."""
    rows = []
    for table in dict.fromkeys(run.config["table"] for run in runs.values()):
        peer = runs[name(table, "LassoCV")].judged
        for kind in [kind for kind in MODELS if name(table, kind) in runs]:
            it = runs[name(table, kind)].judged
            gain = peer["test_error"] - it["test_error"]
            ratio = f"{np.exp(np.median(np.log(it['alpha'] / peer['alpha']))):.3f}"
            rows.append(
                (
                    name(table, kind), f"{it['test_error'].mean():.4f} ({error(it['test_error']):.4f})",
                    "-" if kind == "LassoCV" else f"{gain.mean():+.4f} ({error(gain):.4f})",
                    f"{np.median(it['alpha']):.4f}", ratio, f"{np.median(it['share']):.2f}",
                    f"{np.median(it['features']):.0f}", f"{np.median(it['cpu_seconds']):.2f}",
                    f"{it['cpu_seconds'][0]:.2f}", f"{np.median(it['seconds']):.2f}",
                )
            )  # fmt: skip
    head = ("test error (standard error)", "mean", "gain on LassoCV", "alpha", "over LassoCV's", "L1 share", "features",
            "CPU s", "the first", "s")  # fmt: skip
    print(console.table(head, rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """Test error against seconds of the processor, a panel for each table."""
    style.use()
    names = list(dict.fromkeys(run.config["table"] for run in runs.values()))
    figure, axes = plt.subplots(1, len(names), figsize=(2.8 * len(names), 3.4), squeeze=False)
    for a, table in zip(axes[0], names, strict=True):
        for kind in [kind for kind in MODELS if name(table, kind) in runs]:
            it = runs[name(table, kind)].judged
            at = np.median(it["cpu_seconds"]), it["test_error"].mean()
            a.errorbar(*at, error(it["test_error"]), fmt="o", ms=5, color=INKS[kind], label=kind)
        a.set(title=table, xscale="log", xlim=(0.02, 100), xlabel="CPU seconds, a fit")
    axes[0, 0].set_ylabel("test error / variance")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=len(MODELS), loc="outside lower center")
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("lasso", __doc__.splitlines()[0], solve, report, draw, needs=tables.golub)
