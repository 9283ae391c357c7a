"""min over theta  1/n_v sum CE(W^T v_i, y_i),    W(theta) = argmin of 1/n sum CE(W^T a_i, y_i) + 1/2 sum e^theta W^2.

What people use today, on one problem: scikit-learn's 1 797 digits 8 x 8 with noise added (without it almost no penalty
is best), split in three, with 1, 64 (per pixel) and 640 (per weight) log penalties in [-8, 6], from 0. maid() and
SciPy's L-BFGS-B over `bilevel.hypergradient`, L-BFGS-B over jaxopt's implicit differentiation, Optuna's TPE, and
scikit-learn's `LogisticRegressionCV` on a grid. Validation loss and accuracy on the third part, against seconds with
compilation.
"""

import math
import warnings
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optuna
import scipy.optimize
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegressionCV
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import data, labelled
from experiments._harness import console, counted, record, style

jax.config.update("jax_enable_x64", True)

SHAPES = {1: (), 64: (64, 1), 640: (64, 10)}
METHODS = ("maid", "L-BFGS-B", "L-BFGS-B, jaxopt", "Optuna TPE", "scikit-learn grid")
MOST = {"Optuna TPE": 64, "scikit-learn grid": 1}  # penalties
SIZES, NOISE, SEED = (800, 500, 497), 0.3, 0
BOX = (-8.0, 6.0)
GRID = np.arange(BOX[1], BOX[0] - 0.1, -0.5)  # from the strongest penalty, each fit from the last
BUDGET, SECONDS = 20_000, 15.0  # per run; maid() knows no seconds, L-BFGS-B has both
TOL, EPS, JAXOPT_TOL, TPE_EPS = 1e-4, 1e-5, 1e-8, 1e-4
TRIALS = 300
NEAR = 0.01  # of the best validation loss
SOLVER = bilevel.LBFGS()  # the method that jaxopt uses too


class ScikitLearn:
    """f by scikit-learn's `LogisticRegressionCV` with the split as its only fold, C = 1 / (n e^theta): all of `GRID` at
    the first call."""

    def __init__(self, train: labelled.Labelled, valid: labelled.Labelled):
        self.train, self.valid, self.fits = train, valid, None

    def __call__(self, theta: np.ndarray) -> counted.Answer:
        if self.fits is None:
            self.fits = dict(zip(GRID, self.fit(), strict=True))
        value, weights = self.fits[float(theta)]
        return counted.Answer(value, value, math.nan, weights)

    def fit(self) -> list[tuple[float, np.ndarray]]:
        """The validation loss and the weights, (features, classes), of every penalty."""
        n = len(self.train.labels)
        features, labels = (np.concatenate(parts) for parts in zip(self.train, self.valid, strict=True))
        model = LogisticRegressionCV(
            Cs=np.exp(-GRID) / n, cv=[(np.arange(n), np.arange(n, len(labels)))], scoring="neg_log_loss", refit=False,
            fit_intercept=False, tol=1e-8, max_iter=10_000, solver="newton-cg",
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of attributes that a later version will have
            model.fit(features, labels)
        losses = -np.ravel(next(iter(model.scores_.values())))
        weights = np.stack([path[0] for path in model.coefs_paths_.values()], axis=-1)
        return list(zip(losses, weights, strict=True))


def name(method: str, penalties: int) -> str:
    return f"{method}, {penalties}"


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    digits = labelled.digits()
    digits = digits._replace(features=data.add_noise(digits.features, NOISE, seed=SEED))
    train, valid, test = labelled.split(digits, SIZES, seed=SEED)
    problem = problems.LogisticRegression(*train, *valid)
    config = {"data": "digits", "sizes": SIZES, "noise": NOISE, "seed": SEED}

    def judge(theta, x):  # the model that the method has, not one solved more accurately
        accuracy = problem.accuracy(x, test.features, test.labels)
        return {"value": float(problem.upper(x, theta)), "accuracy": float(accuracy)}

    runs = [
        (method, n)
        for n in list(SHAPES)[: 2 if smoke else 3]
        for method in METHODS
        if n <= MOST.get(method, n) and name(method, n) not in log.finished()
    ]
    for method, penalties in (bar := tqdm(runs, disable=None)):
        bar.set_description(name(method, penalties))
        theta0 = np.zeros(SHAPES[penalties])
        if not smoke:
            jax.clear_caches()  # so that each method pays for what it compiles
        if method == "maid":
            record.solve(
                log, name(method, penalties), config | {"solver": "LBFGS"}, problem, theta0,
                bilevel.maid(solver=SOLVER), judge=judge, bounds=BOX, tol=TOL, max_cost=500 if smoke else BUDGET,
                max_steps=100_000, progress=False,
            )  # fmt: skip
        else:
            answer = {
                "L-BFGS-B": lambda: counted.Gradient(problem, EPS, SOLVER),
                "L-BFGS-B, jaxopt": lambda: counted.Implicit(problem, theta0, JAXOPT_TOL),  # noqa: B023
                "Optuna TPE": lambda: counted.Value(problem, TPE_EPS, SOLVER),
                "scikit-learn grid": lambda: ScikitLearn(train, valid),
            }[method]()
            optimise = {"Optuna TPE": tpe, "scikit-learn grid": grid}.get(method, lbfgsb)
            counted.run(
                log, name(method, penalties), config, answer, partial(optimise, theta0=theta0), judge=judge,
                max_cost=BUDGET, max_seconds=1 if smoke else SECONDS,
            )  # fmt: skip


def lbfgsb(f, theta0: np.ndarray) -> None:
    def flat(theta):
        value, gradient = f(theta.reshape(theta0.shape))
        return value, gradient.ravel()

    options = {"gtol": TOL / 10, "ftol": 1e-12, "maxiter": 10_000, "maxfun": 10_000}
    scipy.optimize.minimize(
        flat, theta0.ravel(), jac=True, method="L-BFGS-B", bounds=[BOX] * theta0.size, options=options
    )


def tpe(f, theta0: np.ndarray) -> None:
    def objective(trial):
        theta = [trial.suggest_float(f"theta{i}", *BOX) for i in range(theta0.size)]
        return f(np.reshape(theta, theta0.shape))

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED))
    study.enqueue_trial({f"theta{i}": v for i, v in enumerate(theta0.ravel())})
    study.optimize(objective, n_trials=TRIALS)


def grid(f, theta0: np.ndarray) -> None:
    for theta in GRID:
        f(np.asarray(theta))


def by_penalties(runs: dict[str, record.Run]) -> dict[int, dict[str, record.Run]]:
    every = {n: {m: runs[name(m, n)] for m in METHODS if name(m, n) in runs} for n in SHAPES}
    return {n: group for n, group in every.items() if group}


def best(group: dict[str, record.Run]) -> float:
    return min(run.judged["value"][-1] for run in group.values())


def report(runs: dict[str, record.Run]) -> None:
    for penalties, group in by_penalties(runs).items():
        lowest, rows = best(group), []
        for method, run in group.items():
            near = np.flatnonzero(run.judged["value"] <= (1 + NEAR) * lowest)
            rows.append((
                method, f"{run.judged['value'][-1]:.5f}", f"{run.judged['accuracy'][-1]:.3f}",
                f"{counted.seconds(run)[near[0]]:.1f}" if len(near) else "never",
                f"{run.end['seconds']:.1f}", f"{run.end['compile_seconds']:.1f}",
                "-" if run.end["cost"] is None else f"{run.end['cost']:.0f}",
                run.end["calls"] if "calls" in run.end else run.end["steps"] + 1,
            ))  # fmt: skip
        header = ("validation loss", "test accuracy", f"s to {NEAR:.0%}", "s", "s compiling", "cost", "thetas")
        print(console.table((f"{penalties} penalt{'y' if penalties == 1 else 'ies'}", *header), rows) + "\n")
    print(
        f"s to {NEAR:.0%}: compilation included, to {NEAR:.0%} above the lowest validation loss that any method found"
    )


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    groups = by_penalties(runs)
    figure, axes = plt.subplots(1, len(groups), figsize=(4.2 * len(groups), 4.2), sharey=True, squeeze=False)
    for a, (penalties, group) in zip(axes[0], groups.items(), strict=True):
        lowest = best(group)
        for method, run in group.items():
            above = np.maximum(run.judged["value"] - lowest, 1e-5)
            a.step(
                counted.seconds(run), above, where="post", color=style.COLOURS[method], label=method, marker=".", ms=6
            )
        a.set(xscale="log", yscale="log", xlabel="seconds, compilation included")
        a.set(title=f"{penalties} penalt{'y' if penalties == 1 else 'ies'}")
    axes[0, 0].set(ylabel="validation loss above the best found")
    axes[0, 0].legend(loc="lower left")
    style.save(figure, figures.with_name(f"{figures.name}_seconds.png"))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="optuna")
    console.main("peers", "What people use today, on digits.", solve, report, draw)
