"""Test losses of linear models whose penalties were learnt: one, per group, per feature, per weight; a grid's beside.

On six tables, ten random halves each, or more: on one half the penalties minimise the loss of rows left out, a quarter
of them once, or 5 or 10 folds; then the weights are learnt from that whole half, and the other half judges. Squared
error in units of the targets' variance, or log loss. The grid is scikit-learn's RidgeCV or LogisticRegressionCV on the
same folds, 25 penalties, four a decade.
"""

import time
import warnings
from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from bilevel import estimators
from experiments._harness import console, record, style
from experiments.statistics import tables

TABLES = (tables.diabetes, tables.products, tables.cancer, tables.wine, tables.digits, tables.golub)
DEAR = (tables.golub, tables.digits)  # the others first: they are done in a tenth of the time
FOLDS = (5, 1, 10)
SHARED = ("grid", "one", "group", "feature", "weight")
SPLITS, TOL, STEPS = 10, 1e-3, 60
GRID = np.logspace(-3, 3, 25)
INKS = dict(zip(SHARED, ("#999933", "#0072B2", "#009E73", "#C1121F", "#CC79A7"), strict=True))


def name(table: str, shared: str, folds: int) -> str:
    return f"{table}, {shared}, {folds}"


def splits(table: tables.Table, y: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and rows left out, stratified where the targets are classes."""
    if folds == 1:
        kind = StratifiedShuffleSplit if table.classes else ShuffleSplit
        return list(kind(1, test_size=0.25, random_state=seed).split(y, y))
    kind = StratifiedKFold if table.classes else KFold
    return list(kind(folds, shuffle=True, random_state=seed).split(y, y))


def model(table: tables.Table, shared: str, cv: list) -> object:
    """Not yet fitted."""
    if shared == "grid":
        if not table.classes:
            return RidgeCV(GRID, cv=cv, scoring="neg_mean_squared_error")
        solver = "newton-cholesky" if table.X.shape[1] < 200 else "lbfgs"  # forty times as fast as lbfgs on wine
        options = dict(l1_ratios=(0,), use_legacy_attributes=False, max_iter=5000, tol=1e-6, solver=solver)
        return LogisticRegressionCV(Cs=1 / GRID, cv=cv, scoring="neg_log_loss", **options)
    kind = estimators.LogisticRegression if table.classes else estimators.Ridge
    return kind(cv=cv, penalties=table.groups if shared == "group" else shared, tol=TOL, max_steps=STEPS)


def judge(table: tables.Table, shared: str, folds: int, k: int) -> dict[str, float]:
    """One split of the table: the test loss, and seconds."""
    outer = StratifiedShuffleSplit if table.classes else ShuffleSplit
    rows = outer(k + 1, train_size=table.share, random_state=0).split(table.X, table.y)
    *_, (train, test) = rows
    scaler = StandardScaler().fit(table.X[train])
    X, X_test = (scaler.transform(table.X[part]) for part in (train, test))
    start, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that are spent, and classes that are in few rows
        fitted = model(table, shared, splits(table, table.y[train], folds, k)).fit(X, table.y[train])
    clocks = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    if table.classes:
        loss = log_loss(table.y[test], fitted.predict_proba(X_test), labels=fitted.classes_)
    else:
        loss = np.mean((fitted.predict(X_test) - table.y[test]) ** 2)
    return {"test_loss": loss, **clocks, "converged": shared == "grid" or fitted.solution_.converged}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    made = [tables.iris if packaged and make is tables.golub else make for make in TABLES]
    made, folds, count = ([tables.diabetes, tables.iris], (1, 3), 2) if smoke else (made, FOLDS, SPLITS)
    every = [(make, shared, k) for k in folds for make in made for shared in SHARED]
    every.sort(key=lambda run: run[0] in DEAR)
    for make, shared, k in (bar := tqdm(every, disable=None)):
        run, table = name(make.__name__, shared, k), make()
        single = not table.classes or len(np.unique(table.y)) == 2
        if run in log.finished() or (shared == "weight" and single):  # weights are features there
            continue
        bar.set_description(run)
        jax.clear_caches()  # no program serves two runs: all of them would be gigabytes
        config = {"rows": len(table.y), "features": table.X.shape[1], "groups": len(np.unique(table.groups))}
        log.write("config", run, table=make.__name__, shared=shared, folds=k, **config, **record.environment())
        losses = []
        for split in range(count):
            judged = judge(table, shared, k, split)
            losses.append(judged["test_loss"])
            log.write("judged", run, k=split, **judged)
        log.write("end", run, test_loss=np.mean(losses), standard_error=error(np.array(losses)))


def error(losses: np.ndarray) -> float:
    """Of the mean."""
    return float(np.std(losses, ddof=1) / len(losses) ** 0.5)


def gained(run: record.Run, grid: record.Run) -> np.ndarray:
    """By how much its test losses are below the grid's, on the splits that both have."""
    some = min(len(run.judged["test_loss"]), len(grid.judged["test_loss"]))
    return grid.judged["test_loss"][:some] - run.judged["test_loss"][:some]


def cell(runs: dict[str, record.Run], table: str, shared: str, folds: int) -> tuple[str, str]:
    """The mean test loss, and what it gains on the grid's on the same folds, split by split, with standard errors."""
    run, grid = (runs.get(name(table, kind, folds)) for kind in (shared, "grid"))
    if run is None or grid is None:
        return "-", "-"
    loss = run.judged["test_loss"]
    gain = gained(run, grid)
    shown = "-" if shared == "grid" else f"{gain.mean():+.4f} ({error(gain):.4f})"
    return f"{loss.mean():.4f} ({error(loss):.4f})", shown


def report(runs: dict[str, record.Run]) -> None:
    """The table, from the log alone."""
    folds = sorted({run.config["folds"] for run in runs.values()})
    rows = []
    for table in dict.fromkeys(run.config["table"] for run in runs.values()):
        for shared in SHARED:
            cells = [cell(runs, table, shared, k) for k in folds]
            if any(loss != "-" for loss, _ in cells):
                rows.append((f"{table}, {shared}", *(c for pair in cells for c in pair)))
    titles = [title for k in folds for title in ("one split" if k == 1 else f"{k} folds", "gain on the grid")]
    print(console.table(("mean test loss (standard error)", *titles), rows), end="\n\n")
    rows = []
    for shared in SHARED:
        some = [run.judged for run in runs.values() if run.config["shared"] == shared]
        if some:
            keys = ("cpu_seconds", "seconds", "converged")
            cpu, seconds, converged = (np.concatenate([judged[key] for judged in some]) for key in keys)
            clocks = f"{np.median(cpu):.2f}", f"{cpu.sum():.0f}", f"{seconds.sum():.0f}"
            rows.append((shared, *clocks, f"{100 * converged.mean():.0f} %"))
    print(console.table(("penalties", "median CPU s, a fit", "CPU s, all", "s, all", "converged"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The gains on the grid's test loss on the same folds, with two standard errors."""
    style.use()
    names = list(dict.fromkeys(run.config["table"] for run in runs.values()))
    folds = sorted({run.config["folds"] for run in runs.values()})
    figure, axes = plt.subplots(1, len(names), figsize=(2.2 * len(names), 3.6), squeeze=False)
    for a, table in zip(axes[0], names, strict=True):
        for j, shared in enumerate(SHARED[1:]):
            for i, k in enumerate(folds):
                run, grid = (runs.get(name(table, kind, k)) for kind in (shared, "grid"))
                if run is None or grid is None:
                    continue
                gain = gained(run, grid)
                label = f"per {shared}" if shared != "one" else shared
                a.errorbar(i + 0.15 * (j - 1.5), gain.mean(), 2 * error(gain), fmt="o", ms=4, color=INKS[shared],
                           label=label if i == 0 else None)  # fmt: skip
        a.axhline(0, color=style.INK, lw=0.8)
        a.set(title=table, xticks=range(len(folds)), xticklabels=[str(k) for k in folds], xlabel="folds")
    axes[0, 0].set_ylabel("test loss less than the grid's")
    max(axes[0], key=lambda a: len(a.get_legend_handles_labels()[1])).legend()  # not all tables have all kinds
    style.save(figure, f"{figures}_gains.png")


if __name__ == "__main__":
    console.main("penalties", __doc__.splitlines()[0], solve, report, draw, needs=tables.golub)
