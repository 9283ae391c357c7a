"""min over theta  5-fold error of ridge regression with K(theta) = sum_g e^{theta_g} X_g X_g^T: ours and himalaya's.

himalaya's generated sets: 600 rows to learn from and 300 to judge by, 1 000 features a group, 50 targets; 3 groups, of
which every target has the same shares, and 20, with shares of its own for each target. himalaya learns a theta for
every target, by random search or by its hypergradient, each with two budgets; here `kernels.KernelRidge`, one theta
for all targets, or one each, in one descent. r2 on the rows to judge by, mean over targets, against seconds.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from himalaya.kernel_ridge import (
    solve_multiple_kernel_ridge_hyper_gradient,
    solve_multiple_kernel_ridge_random_search,
)
from himalaya.utils import generate_multikernel_dataset
from matplotlib import pyplot as plt
from sklearn.model_selection import KFold
from tqdm import tqdm

import bilevel
from experiments._harness import console, record, style
from experiments.statistics.kernels import KernelRidge, predict, weights

jax.config.update("jax_enable_x64", True)

FOLDS, SEED = 5, 0
SHARES = np.array([0.5, 0.3, 0.2])  # as in himalaya's gallery
ALPHAS = np.logspace(-5, 5, 11)
STARTS = np.arange(-14.0, -3.0, 1.0)  # one theta for all groups: the best of these begins
BOX = (-20.0, -4.0)  # beyond, kernels of 1 000 features leave the penalty nothing to do: they interpolate


class Sets(NamedTuple):
    """Kernels of the rows to learn from, and from those to the rows to judge by; targets. float32, as generated."""

    Ks: np.ndarray
    Ks_test: np.ndarray
    Y: np.ndarray
    Y_test: np.ndarray


def generated(groups: int, targets: int, rows: int) -> Sets:
    shares = np.tile(SHARES[None], (targets, 1)) if groups == len(SHARES) else None
    X, X_test, Y, Y_test, _, sizes = generate_multikernel_dataset(
        n_kernels=groups, n_targets=targets, n_samples_train=rows, n_samples_test=rows // 2, kernel_weights=shares,
        random_state=SEED,
    )  # fmt: skip
    ends = np.cumsum(sizes)[:-1]
    parts = list(zip(np.split(X, ends, axis=1), np.split(X_test, ends, axis=1), strict=True))
    return Sets(np.stack([A @ A.T for A, _ in parts]), np.stack([B @ A.T for A, B in parts]), Y, Y_test)


def random_search(sets: Sets, budget: int) -> np.ndarray:
    return solve_multiple_kernel_ridge_random_search(
        sets.Ks, sets.Y, n_iter=budget, alphas=ALPHAS, cv=FOLDS, random_state=SEED, progress_bar=False
    )[0]


def hypergradient(sets: Sets, budget: int) -> np.ndarray:
    return solve_multiple_kernel_ridge_hyper_gradient(
        sets.Ks, sets.Y, cv=FOLDS, max_iter=budget, initial_deltas="ridgecv",
        random_state=SEED, progress_bar=False,
    )[0]  # fmt: skip


def folds(sets: Sets) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(KFold(FOLDS).split(sets.Y))


@jax.jit
def at_starts(problem: KernelRidge, thetas):
    """f of each target at each theta."""

    def values(theta):
        exact = problem.preconditioner(None, theta)(problem.Y[problem.rows])
        return problem.errors(exact, theta)

    return jax.lax.map(values, thetas)


def learn(sets: Sets, budget: int, shared: bool) -> np.ndarray:
    """theta (groups,) for all targets, or (groups, targets): a descent each, for each has its own step lengths."""
    problem = KernelRidge(sets.Ks.astype(float), sets.Y.astype(float), folds(sets))
    values = np.asarray(at_starts(problem, jnp.asarray(np.repeat(STARTS[:, None], len(sets.Ks), axis=1))))
    if shared:
        return descend(problem, STARTS[np.argmin(values.sum(axis=1))], budget)
    each = [
        descend(eqx.tree_at(lambda all_: all_.Y, problem, problem.Y[:, [t]]), STARTS[best], budget)
        for t, best in enumerate(np.argmin(values, axis=0))
    ]
    return np.stack(each, axis=1)


def descend(problem: KernelRidge, start: float, budget: int) -> np.ndarray:
    method, theta = bilevel.quasi_newton(solver=bilevel.NewtonCG()), np.full(len(problem.kernels), start)
    return bilevel.solve(problem, theta, method, bounds=BOX, max_steps=budget, tol=1e-6, progress=False).theta


class Kind(NamedTuple):
    """theta (groups,) or (groups, targets) by `learn(sets, budget)`."""

    learn: Callable[[Sets, int], np.ndarray]
    budgets: tuple[int, ...]
    ink: str


KINDS = {
    "one theta": Kind(partial(learn, shared=True), (3, 10, 40), "#C1121F"),
    "a theta for each target": Kind(partial(learn, shared=False), (3, 10), "#E69F00"),
    "himalaya, random search": Kind(random_search, (3, 10), "#0072B2"),
    "himalaya, hypergradient": Kind(hypergradient, (3, 10), "#009E73"),
}


def name(groups: int, kind: str, budget: int) -> str:
    return f"{groups} groups: {kind}, {budget}"


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    cases, targets, rows = ((3,), 4, 100) if smoke else ((3, 20), 50, 600)
    made = {groups: generated(groups, targets, rows) for groups in cases}
    every = [(groups, kind, budget) for groups in cases for kind, it in KINDS.items() for budget in it.budgets]
    every.sort(key=lambda run: (run[1] == "a theta for each target", run[2]))  # what takes longest comes last
    if smoke:
        every = [run for run in every if run[2] == KINDS[run[1]].budgets[0]]
    for groups, kind, budget in (bar := tqdm(every, disable=None)):
        if (run := name(groups, kind, budget)) in log.finished():
            continue
        bar.set_description(run)
        log.write("config", run, groups=groups, method=kind, budget=budget, **record.environment())
        compiling, wall, cpu = record.CompileClock(), time.perf_counter(), time.process_time()
        theta = KINDS[kind].learn(made[groups], budget)
        clocks = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "compile_seconds": compiling.seconds,
        }
        log.write("end", run, r2=float(np.mean(r2(made[groups], np.asarray(theta, float)))), **clocks)


def r2(sets: Sets, theta: np.ndarray) -> np.ndarray:
    """Of each target on the rows to judge by, weights learnt from all others."""
    Ks, Ks_test, Y, Y_test = (part.astype(float) for part in sets)
    residual = Y_test - predict(Ks_test, weights(Ks, Y, theta), theta)
    return 1 - np.sum(residual**2, axis=0) / np.sum((Y_test - Y_test.mean(axis=0)) ** 2, axis=0)


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for run, it in runs.items():
        clocks = (f"{it.end[key]:.1f}" for key in ("cpu_seconds", "seconds", "compile_seconds"))
        rows.append((run, f"{it.end['r2']:.4f}", *clocks))
    print(console.table(("r2 on other rows, budget", "r2", "CPU s", "s", "of it compiling"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    cases = list(dict.fromkeys(it.config["groups"] for it in runs.values()))
    figure, axes = plt.subplots(1, len(cases), figsize=(4.4 * len(cases), 3.6), squeeze=False)
    for a, groups in zip(axes[0], cases, strict=True):
        for kind, (_, _, ink) in KINDS.items():
            some = [it.end for it in runs.values() if (it.config["groups"], it.config["method"]) == (groups, kind)]
            a.plot([end["cpu_seconds"] for end in some], [end["r2"] for end in some], "o-", color=ink, label=kind)
        a.set(title=f"{groups} groups", xscale="log", xlabel="CPU seconds, compiling included")
    axes[0, 0].set_ylabel("r2 on other rows")
    axes[0, 0].legend()
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("groups", __doc__.splitlines()[0], solve, report, draw)
