"""Tables with many columns or many penalties, by the estimators: seconds, memory, and what unseen rows say.

    wide      200 rows, 20 000 columns, dense, ten of which matter: one penalty by five folds, and one for each column
    sparse    20 000 rows, 20 000 columns, a thousandth of them not zero, 5 classes: one penalty by three folds
    digits    60 000 digits of 12 x 12, 10 classes: one penalty by five folds, and one for each of the 1 440 weights

Every fit is a process of its own. Memory is what the process grew by at most, from before `fit`. Errors are of rows
that no fit has seen: of squares, over the targets' variance; of classes, in per cent. Of classes, many penalties end
after ten steps. Reads mnist/ in the folder that BILEVEL_DATA names; without it there are no digits. `make wide`.
"""

import concurrent.futures
import multiprocessing
import resource
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
from matplotlib import pyplot as plt
from tqdm import tqdm

from experiments._harness import console, record, style

MIB = 2**20
DEAR = 10  # steps, where one takes half a minute


class Rows(NamedTuple):
    """To learn from and to judge by."""

    X: object
    y: np.ndarray
    X_test: object
    y_test: np.ndarray


def dense(classes: bool, smoke: bool) -> Rows:
    """Normal columns; three times as much signal as noise."""
    (n, p), rng = (20, 40) if smoke else (200, 20_000), np.random.default_rng(0)
    X = rng.standard_normal((2 * n, p))
    signal = X[:, :10] @ rng.standard_normal(10)
    noisy = signal + np.std(signal) / 3 * rng.standard_normal(2 * n)
    y = noisy > np.median(noisy) if classes else noisy
    return Rows(X[:n], y[:n], X[n:], y[n:])


def sparse(smoke: bool) -> Rows:
    """Counts of rare things, a fiftieth of which tell the class."""
    n, p = (100, 20) if smoke else (20_000, 20_000)
    rng = np.random.default_rng(0)
    X = scipy.sparse.random_array((2 * n, p), density=0.2 if smoke else 1e-3, format="csr", rng=rng)
    W = rng.standard_normal((p, 5)) * (rng.random((p, 1)) < 0.02) * 20
    y = np.argmax(X @ W + rng.gumbel(size=(2 * n, 5)), axis=1)
    return Rows(X[:n], y[:n], X[n:], y[n:])


def digits(smoke: bool) -> Rows:
    from bilevel.problems import labelled

    train, test = labelled.mnist(12, np.float64)
    few = slice(500 if smoke else None)
    return Rows(train.features[few], train.labels[few], test.features, test.labels)


class Case(NamedTuple):
    rows: partial
    model: str
    penalties: str
    folds: int
    max_steps: int = 200  # of the descent, the estimators' own


CASES = {
    "wide, least squares, one": Case(partial(dense, False), "Ridge", "one", 5),
    "wide, least squares, a column": Case(partial(dense, False), "Ridge", "feature", 5),
    "wide, two classes, one": Case(partial(dense, True), "LogisticRegression", "one", 5),
    "sparse, five classes, one": Case(sparse, "LogisticRegression", "one", 3),
    "digits, one": Case(digits, "LogisticRegression", "one", 5),
    "digits, a weight": Case(digits, "LogisticRegression", "weight", 5, DEAR),
    "wide, two classes, a column": Case(partial(dense, True), "LogisticRegression", "feature", 5, DEAR),
}


def fit(name: str, smoke: bool) -> dict[str, object]:
    """One fit, in this process."""
    from bilevel import estimators

    case = CASES[name]
    rows = case.rows(smoke)
    before, began, cpu = memory(), time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how it ended is in the table
        model = getattr(estimators, case.model)(cv=case.folds, penalties=case.penalties, max_steps=case.max_steps)
        model.fit(rows.X, rows.y)
    clocks = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    found, said = model.predict(rows.X_test), model.solution_
    if case.model == "Ridge":
        error = float(np.mean((found - rows.y_test) ** 2) / np.var(rows.y_test))
    else:
        error = 100 * float(np.mean(found != rows.y_test))
    ended = {"steps": said.steps, "cost": said.cost, "value": said.value, "result": said.message}
    return {"error": error, "penalties": int(np.size(model.penalties_)), "growth": memory() - before} | clocks | ended


def memory() -> int:
    """The most that this process ever had, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every fit that is not finished in the log."""
    for name in (bar := tqdm([n for n in CASES if not (packaged and n.startswith("digits"))], disable=None)):
        if name in log.finished():
            continue
        bar.set_description(name)
        log.write("config", name, **record.environment())
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as alone:
            log.write("end", name, **alone.submit(fit, name, smoke).result())


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for name, run in runs.items():
        end = run.end
        clocks = (f"{end[key]:.1f}" for key in ("seconds", "cpu_seconds"))
        shown = f"{end['growth'] / MIB:.0f}", end["penalties"], end["steps"], end["cost"]
        ended = end["result"].split(" (")[0].split(".")[0]
        rows.append((name, *clocks, *shown, f"{end['value']:.4f}", f"{end['error']:.4g}", ended))
    head = ("", "s", "CPU s", "MiB", "penalties", "steps", "cost", "f", "error", "ended as")
    print(console.table(head, rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """Seconds and memory of each fit."""
    style.use()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for a, key, unit, name in zip(axes, ("seconds", "growth"), (1, MIB), ("seconds", "memory, MiB"), strict=True):
        a.barh(list(runs), [run.end[key] / unit for run in runs.values()], color="#0072B2")
        a.set(xlabel=name)
    axes[0].set(xscale="log", xlim=(1, None))
    axes[0].invert_yaxis()
    style.save(figure, f"{figures}.png")


def needs() -> Rows:
    return digits(False)


if __name__ == "__main__":
    console.main("wide", __doc__.splitlines()[0], solve, report, draw, needs=needs)
