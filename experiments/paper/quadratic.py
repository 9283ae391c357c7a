"""min over theta  f(theta) = 1/2 ||A1 xhat(theta) - b1||^2,   xhat(theta) = argmin_x 1/2 ||A2 x + A3 theta - b2||^2.

Adaptive against fixed accuracy where everything is known in closed form: f - f* is exact, and every certificate can be
compared with the error that it bounds. Section 4.1 of arXiv 2308.10098: A_i 1000 x 10, uniform on [0, 1], from ones,
maid() from the first accuracies 1e-1, 1e-3, 1e-5 and fixed accuracies of the same size; here also maid() with its
defaults, HOAG's schedules, and five draws of the data.

The lower level has condition number about 37. The upper one, the Hessian K^T A1^T A1 K with K = H^{-1} A2^T A3, has one
large eigenvalue, because all entries of A_i have the same mean, the next is a thousandth of it and the smallest, by the
draw, 1e-5 to 1e-8 of it. So the first steps gain nearly two digits and then steepest descent crawls, whatever its
accuracy: f* is out of reach, and what is compared is how far a budget goes. `make quadratic`.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from tqdm import tqdm

import bilevel
from bilevel.problems.quadratic import Quadratic, uniform_data
from experiments._harness import console, record, style

jax.config.update("jax_enable_x64", True)

SEEDS, BUDGET, SMOKE_BUDGET = range(5), 50_000, 400
PER_DECADE = 6  # steps written while the cost grows tenfold; checked is every one
FIRST = {"1e-1": 1e-1, "1e-3": 1e-3, "1e-5": 1e-5}  # the paper's first, and fixed, accuracies
METHODS = {
    "maid": bilevel.maid(),
    **{f"maid from {name}": bilevel.maid(eps, eps) for name, eps in FIRST.items()},
    **{f"fixed {name}": bilevel.fixed_accuracy(eps) for name, eps in FIRST.items()},
    "hoag geometric": bilevel.hoag(bilevel.Geometric(0.9)),
    "hoag quadratic": bilevel.hoag(bilevel.Polynomial(2)),
    "hoag cubic": bilevel.hoag(bilevel.Polynomial(3)),
}
SHADES = dict(zip(METHODS, ("#0072B2", "#56B4E9", "#CC79A7", "#D55E00"), strict=False))  # of maid()'s four
BOUNDS = {
    "eps": ("distance", "lower level: $\\|x - \\hat{x}\\| \\leq \\epsilon$"),
    "value_error": ("value_off", "value: $|g(x) - f| \\leq$ its certificate"),
    "gradient_error": ("gradient_off", "gradient: $\\|z - \\nabla f\\| \\leq \\omega$"),
}


def minimum(problem: Quadratic) -> float:
    """f* = min over x of g(x): xhat reaches every x where A2^T A3 has full row rank, as it has here."""
    A1, b1 = np.asarray(problem.A1), np.asarray(problem.b1)
    return 0.5 * np.linalg.norm(A1 @ np.linalg.lstsq(A1, b1)[0] - b1) ** 2


def upper_condition(problem: Quadratic) -> float:
    """The condition number of f's Hessian, K^T A1^T A1 K with K = H^{-1} J."""
    A1, A2, A3 = (np.asarray(v) for v in (problem.A1, problem.A2, problem.A3))
    return np.linalg.cond(A1 @ np.linalg.lstsq(A2, A3)[0]) ** 2


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not in the log yet."""
    budget, done = SMOKE_BUDGET if smoke else BUDGET, log.finished()
    names = [(seed, method) for seed in (SEEDS[:1] if smoke else SEEDS) for method in METHODS]
    with tqdm(total=budget * len(names), unit="products", disable=None) as bar:
        for seed, name in names:
            if f"{name}, seed {seed}" not in done:
                bar.set_description(f"{name}, seed {seed}")
                one(log, uniform_data(seed), name, seed, budget)
            bar.update(budget)


def one(log: record.Log, problem: Quadratic, name: str, seed: int, budget: int) -> None:
    """One run, each of its steps compared with the closed form.

    A step's line has theta_k's certificates (`eps` is that of the x the step reached) and the true errors beside them.
    The last line counts the bounds that failed, of all steps, and the accepted steps after which f was larger.
    """
    run, best, next_line = f"{name}, seed {seed}", minimum(problem), 0.0
    J = np.asarray(problem.A2.T @ problem.A3)
    condition = {"lower": problem.L / problem.mu, "upper": upper_condition(problem)}
    theta0 = np.ones(J.shape[1])
    log.write(
        "config", run, method=name, seed=seed, max_cost=budget, condition=condition, minimum=best,
        above_start=problem.closed_form(theta0).value - best, **record.environment())  # fmt: skip
    tightest = dict.fromkeys(BOUNDS, 0.0)
    failed = increases = checked = 0
    previous = np.inf
    for state, info in bilevel.iterate(problem, theta0, METHODS[name], tol=0, max_cost=budget, max_steps=budget):
        here, reached, x = problem.closed_form(info.theta), problem.closed_form(state.theta), state.point.lower
        row = {
            "k": info.steps, "cost": info.counts.cost, "above": here.value - best, "step": info.step,
            "eps": float(x.error), "distance": np.linalg.norm(np.asarray(x.x) - reached.x),
            "value_error": info.value_error, "value_off": abs(info.value - here.value),
            "gradient_error": info.gradient_error, "delta": info.delta,
            "gradient_off": off(-J.T @ np.asarray(state.memory.q), info.gradient_norm, here.gradient),
        }  # fmt: skip
        for bound, (truth, _) in BOUNDS.items():
            if np.isfinite(row[truth]):
                checked += 1
                failed += row[truth] > row[bound]
                tightest[bound] = max(tightest[bound], row[truth] / row[bound])
        increases += here.value > previous
        previous = here.value
        if info.counts.cost >= next_line or info.result is not None:
            next_line = info.counts.cost * 10 ** (1 / PER_DECADE)
            log.write("step", run, **{key: v if key in ("k", "cost") else float(f"{v:.4g}") for key, v in row.items()})
    log.write(
        "end", run, above=here.value - best, theta=state.theta, result=str(bilevel.RESULTS[info.result]),
        steps=state.steps, cost=state.counts.cost, **state.counts._asdict(), seconds=state.seconds,
        compile_seconds=state.compile_seconds, checked=checked, failed=failed, tightest=tightest, increases=increases,
    )  # fmt: skip


def off(z: np.ndarray, norm: float, exact: np.ndarray) -> float:
    """How far z, of the last adjoint, is from the gradient; nan where that was not known. A step that ends its run is
    not remembered, and z then of the step before, with another norm than was told: the norms are compared."""
    return np.linalg.norm(z - exact) if np.isclose(np.linalg.norm(z), norm) else abs(norm - np.linalg.norm(exact))


def of(runs: dict[str, record.Run], method: str) -> list[record.Run]:
    """The method's runs, by seed."""
    return [run for run in runs.values() if run.config["method"] == method]


def remaining(run: record.Run, cost: np.ndarray | float) -> np.ndarray:
    """(f - f*) / (f(theta0) - f*) of the last theta known at that cost; 1 before the first."""
    last = np.searchsorted(run.steps["cost"], cost, side="right") - 1
    return np.where(last < 0, 1.0, run.steps["above"][last] / run.config["above_start"])


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    budget = next(iter(runs.values())).config["max_cost"]
    levels = [level for level in (100, 200, 300, 1000, 10_000) if level < budget] + [budget]
    rows = []
    for method in METHODS:
        group = of(runs, method)
        left = [f"{np.median([remaining(run, level) for run in group]):.2e}" for level in levels]
        ends = [run.end["cost"] for run in group]
        rows.append((method, *left, f"{np.median(ends):.0f}", sum(run.end["increases"] for run in group)))
    header = ("f - f*, of its first value", *(f"cost {level:g}" for level in levels), "cost at end", "f rose")
    print(f"medians over {len(of(runs, 'maid'))} draws of the data\n")
    print(console.table(header, rows))
    print("\n'f rose': accepted steps, of all draws, after which the exact f was larger\n")
    rows = []
    for run in of(runs, "maid"):
        lower, upper = run.config["condition"]["lower"], run.config["condition"]["upper"]
        first, last = run.config["above_start"], run.end["above"]
        rows.append((run.config["seed"], f"{lower:.1f}", f"{upper:.1e}", f"{run.config['minimum']:.4f}",
                     f"{first:.0f}", f"{last:.2f}", run.end["steps"]))  # fmt: skip
    header = ("maid, seed", "condition, lower", "upper", "f*", "f - f*, first", "last", "steps")
    print(console.table(header, rows))
    rows = []
    for method in METHODS:
        ends = [run.end for run in of(runs, method)]
        tightest = (f"{max(end['tightest'][bound] for end in ends):.4g}" for bound in BOUNDS)
        rows.append((method, sum(end["checked"] for end in ends), sum(end["failed"] for end in ends), *tightest))
    header = ("bounds against truth", "checked", "failed", "largest truth/bound: x", "value", "gradient")
    print(f"\n{console.table(header, rows)}")


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The figures, from the log alone."""
    style.use()
    budget = next(iter(runs.values())).config["max_cost"]
    grid, label = np.geomspace(30, budget, 200), "cost: gradients and products of the lower level"

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    sides = [("fixed 1e-1", "fixed 1e-3", "fixed 1e-5", "maid"), [m for m in METHODS if "hoag" in m] + ["maid"]]
    bottom = min(run.end["above"] / run.config["above_start"] for run in runs.values()) / 2
    for a, methods, title in zip(axes, sides, ("fixed accuracies", "HOAG's schedules"), strict=True):
        for method in methods:
            colour, group = style.COLOURS[method], of(runs, method)
            ends = np.median([run.end["cost"] for run in group])
            shown = grid[grid <= ends]
            for run in group:
                a.plot(shown, remaining(run, shown), color=colour, lw=0.8, alpha=0.4)
            median = np.median([remaining(run, shown) for run in group], axis=0)
            a.plot(shown, median, color=colour, lw=2.6 if method == "maid" else 1.9, label=method)
            if ends < budget / 2:
                a.plot(shown[-1], median[-1], "X", color=colour, ms=10, mec="white", zorder=4)
        a.set(xscale="log", yscale="log", ylim=(bottom, 3), xlabel=label, title=f"maid() against {title}")
        handles = a.get_legend_handles_labels()[0]
        handles.append(Line2D([], [], color=style.INK, lw=0.8, alpha=0.5, label="each draw; thick: median"))
        if "fixed 1e-1" in methods:
            handles.append(
                Line2D([], [], marker="X", color="#8A8A8A", ls="", ms=9, label="ends: no certified decrease")
            )
        a.legend(handles=handles, loc="upper right")
    tops = {np.nanmax(run.steps["above"]) / run.config["above_start"]: m for m in sides[1] for run in of(runs, m)}
    if (worst := max(tops)) > 3:
        leaves = f"a draw of {tops[worst]} diverges, to {worst:.0e}"
        axes[1].text(0.03, 0.04, leaves, transform=axes[1].transAxes)
    axes[0].set_ylabel("$f(\\theta) - f^*$, of its first value")
    style.save(figure, f"{figures}_methods.png")

    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.2))
    for a, (bound, (truth, title)) in zip(axes, BOUNDS.items(), strict=True):
        for run in of(runs, "maid"):
            a.plot(run.steps["cost"], run.steps[bound], color=style.BOUND, lw=1.4)
            a.plot(run.steps["cost"], run.steps[truth], color=style.COLOURS["maid"], lw=1.4)
        a.set(xscale="log", yscale="log", xlabel=label, title=title)
    handles = [
        Line2D([], [], color=style.BOUND, label="certified bound"),
        Line2D([], [], color=style.COLOURS["maid"], label="true error, closed form"),
    ]
    axes[0].legend(handles=handles, loc="upper right")
    style.save(figure, f"{figures}_bounds.png")

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for a, key, title in zip(axes, ("eps", "delta"), ("$\\epsilon$: lower level", "$\\delta$: adjoint"), strict=True):
        for method, shade in SHADES.items():
            for i, run in enumerate(of(runs, method)):
                a.plot(run.steps["cost"], run.steps[key], color=shade, lw=1.3, label=None if i else method)
        a.set(xscale="log", yscale="log", xlabel=label, title=f"{title}, as reached")
    axes[0].legend(loc="upper right")
    style.save(figure, f"{figures}_accuracies.png")


if __name__ == "__main__":
    console.main("quadratic", __doc__.splitlines()[2], solve, report, draw)
