"""Cost and seconds to a target: certified quasi-Newton descent, with each of its parts left out, beside MAID.

    f(theta) <= f* + target, judged in closed form or by a solve of its own;  or ||z|| + omega <= tol, by the method

On the quadratic of section 4.1 of arXiv 2308.10098 (five draws, from ones, target 1e-3), the crossover quadratics
(lower condition number c^2, seven draws, 5e-3), and total variation on 25 Kodak images (1e-3; tol 1e-5; and sixteen
first accuracies and steps, 0.02). Every method solves the lower level by L-BFGS, but for one line each.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import crossover
import jax
import numpy as np
import record
import style
from matplotlib import pyplot as plt
from quadratic import minimum
from tqdm import tqdm

import bilevel
import problems
from problems import data
from problems.quadratic import uniform_data

jax.config.update("jax_enable_x64", True)

LBFGS = bilevel.LBFGS()
METHODS: dict[str, bilevel.AbstractMethod] = {
    "quasi-newton": bilevel.quasi_newton(),
    "over Nesterov": bilevel.quasi_newton(solver=bilevel.Nesterov()),
    "over Newton-CG": bilevel.quasi_newton(solver=bilevel.NewtonCG()),
    "no prediction": bilevel.QuasiNewton(predictor=bilevel.Previous()),
    "-z certified (C < 1)": bilevel.QuasiNewton(C=0.99),
    "C = 30": bilevel.QuasiNewton(C=30.0),
    "ten pairs": bilevel.QuasiNewton(pairs=10),
    "one pair": bilevel.QuasiNewton(pairs=1),
    "maid": bilevel.maid(solver=LBFGS),
    "fixed 1e-4": bilevel.fixed_accuracy(1e-4, solver=LBFGS),
    "hoag geometric": bilevel.hoag(bilevel.Geometric(0.9), solver=LBFGS),
}
# Whole methods first, then the parts: what is run first is there first.
ORDER = ("quasi-newton", "maid", "fixed 1e-4", "hoag geometric")
SEEDS, DRAWS, BUDGET, SMOKE = range(5), range(7), 10_000, 200
JUDGE = 1e-5  # in ||x||: f is then known to 1e-5
TV_START, TV_TOL = (-5.0, -5.0), 1e-5
SIXTEEN = tuple(itertools.product((1e2, 1.0, 1e-2, 1e-4), (1e-4, 1e-2, 1.0, 100.0)))
AIMS = {"quadratic": 1500, "TV": 1000, "TV, certified": 3000, "TV, sixteen": 1500}  # the largest cost of each


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not in the log yet."""
    budget = SMOKE if smoke else BUDGET
    train, _ = data.denoising_set("photographs" if packaged else "kodak", sigma=0.1, seed=0, size=24 if smoke else 96)
    tv = problems.TotalVariation(train.clean, train.noisy)
    best = float(tv_optimum(log, tv, smoke))
    tasks = []
    for name, method in sorted(METHODS.items(), key=lambda item: item[0] not in ORDER):
        for seed in list(SEEDS)[: 1 if smoke else None]:
            tasks.append((f"{name}, quadratic, {seed}", method, "quadratic", lambda s=seed: uniform_data(s), 1e-3))
        for c, seed in itertools.product(
            crossover.CONDITIONS[: 1 if smoke else None], list(DRAWS)[: 1 if smoke else None]
        ):
            tasks.append((f"{name}, crossover {c}, {seed}", method, f"crossover {c}",
                          lambda c=c, s=seed: crossover.designs(c, s), crossover.TARGET))  # fmt: skip
        tasks.append((f"{name}, TV", method, "TV", lambda: tv, 1e-3))
    for eps, step in SIXTEEN[: 2 if smoke else None]:
        method = bilevel.quasi_newton(eps, eps, step)
        tasks.append(
            (f"quasi-newton, TV, eps0 = delta0 = {eps:g}, step {step:g}", method, "TV, sixteen", lambda: tv, 0.02)
        )
    done = log.finished()
    for run, method, kind, problem, target in (bar := tqdm([t for t in tasks if t[0] not in done], disable=None)):
        bar.set_description(run)
        one(log, run, method, kind, problem(), target, best, budget)


def tv_optimum(log: record.Log, problem, smoke: bool) -> float:
    """f*, certified; written once."""
    runs = record.read(log.path)
    if "optimum" not in runs or runs["optimum"].end is None:
        at, limits = np.array(TV_START), {"tol": 1e-6, "max_cost": SMOKE if smoke else BUDGET, "max_steps": 200}
        solution = record.solve(log, "optimum", {"problem": "optimum"}, problem, at, bilevel.quasi_newton(), **limits)
        return solution.value
    return runs["optimum"].end["value"]


def one(
    log: record.Log,
    run: str,
    method: bilevel.AbstractMethod,
    kind: str,
    problem,
    target: float,
    best: float,
    budget: int,
) -> None:
    """One run until its target, and TV's until its certificate: a line for the settings, one for what it took."""
    exact = hasattr(problem, "closed_form")
    theta0 = np.ones(problem.A3.shape[1]) if exact else np.array(TV_START)
    best = minimum(problem) if exact else best
    scale = max(abs(best), 1) if kind.startswith("crossover") else 1
    log.write(
        "config", run, method=run.split(",")[0], problem=kind, target=target, max_cost=budget, **record.environment()
    )
    reached, judge = None, truth(problem, exact)
    tol = 0.0 if exact or kind == "TV, sixteen" else TV_TOL
    for state, info in bilevel.iterate(problem, theta0, method, tol=tol, max_cost=budget, max_steps=budget):  # noqa: B007
        above = (judge(state) - best) / scale
        if reached is None and above < target:
            reached = {"cost_to_target": state.counts.cost, "seconds_to_target": state.seconds}
            if tol == 0:
                break
    log.write(
        "end", run, above=above, cost=state.counts.cost, steps=state.steps, seconds=state.seconds,
        compile_seconds=state.compile_seconds, result="" if info.result is None else str(bilevel.RESULTS[info.result]),
        certified=bool(info.result == bilevel.RESULTS.converged) if info.result is not None else False,
        **(reached or {"cost_to_target": None, "seconds_to_target": None}),
    )  # fmt: skip


def truth(problem, exact: bool) -> Callable:
    """f at a state, which costs the method nothing: in closed form, or by a solve of its own to JUDGE."""
    if exact:
        return lambda state: problem.closed_form(state.theta).value

    def solved(state):
        x = bilevel.solve_lower(problem, state.theta, eps=JUDGE, x0=state.point.lower.x).x
        return float(problem.upper(x, state.theta))

    return solved


def cost(run: record.Run) -> float:
    return np.inf if run.end["cost_to_target"] is None else run.end["cost_to_target"]


def group(runs: dict[str, record.Run], method: str, problem: str) -> list[record.Run]:
    return [r for r in runs.values() if r.config.get("method") == method and r.config.get("problem") == problem]


def complete(runs: dict[str, record.Run]) -> list[str]:
    """The methods that have run on all problems; TV is the last."""
    return [name for name in METHODS if group(runs, name, "TV")]


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""

    def cell(costs):
        middle, most = np.median(costs), np.max(costs)
        text = [f"{v:.0f}" if np.isfinite(v) else "never" for v in (middle, most)]
        return text[0] if len(costs) == 1 else f"{text[0]} ({text[1]})"

    kinds = ["quadratic", *(f"crossover {c}" for c in crossover.CONDITIONS), "TV"]
    kinds = [kind for kind in kinds if group(runs, "quasi-newton", kind)]
    rows = []
    for name in complete(runs):
        tv = group(runs, name, "TV")
        end = str(tv[0].end["cost"]) if tv and tv[0].end["certified"] else "no"
        rows.append((name, *(cell([cost(r) for r in group(runs, name, kind)]) for kind in kinds), end))
    rows.append(("aim, each", *(str(AIMS.get(kind, "")) for kind in kinds), str(AIMS["TV, certified"])))
    print(record.table(("cost to the target", *kinds, f"TV, tol {TV_TOL:g}"), rows), end="\n\n")
    if sixteen := [cost(r) for r in group(runs, "quasi-newton", "TV, sixteen")]:
        print(f"quasi-newton, TV, sixteen first accuracies and steps: cost to 0.02 {min(sixteen):g} to "
              f"{max(sixteen):g} (aim {AIMS['TV, sixteen']})\n")  # fmt: skip
    print("Median (largest) of the draws.")


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The performance profile: the share of problems that a method solves at most `factor` times the least cost."""
    style.use()
    names = complete(runs)
    table = np.array([[cost(r) for kind in _kinds(runs) for r in group(runs, name, kind)] for name in names])
    table = table[:, np.isfinite(table.min(axis=0))]
    ratio = table / table.min(axis=0)
    figure, a = plt.subplots(figsize=(8.6, 4.8))
    factors = np.logspace(0, 3, 400)
    palette = plt.get_cmap("tab20")
    for k, (name, row) in enumerate(zip(names, ratio, strict=True)):
        share = [np.mean(row <= factor) for factor in factors]
        own = name in ("quasi-newton", "maid", "hoag geometric")
        colour = style.COLOURS.get(name, palette(k % 20))
        a.plot(factors, share, label=name, color=colour, lw=2.6 if own else 1.3, ls="-" if own else "--")
    a.set(xscale="log", ylim=(0, 1.02), xlabel="cost, in multiples of the least of all methods",
          ylabel="share of the problems solved", title="Performance profile")  # fmt: skip
    a.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    style.save(figure, f"{figures}_profile.png")


def _kinds(runs):
    return sorted(
        {r.config["problem"] for r in runs.values() if r.config.get("method") == "quasi-newton"} - {"TV, sixteen"}
    )


if __name__ == "__main__":
    record.main(
        "bench_methods",
        __doc__.splitlines()[0],
        solve,
        report,
        draw,
        needs=lambda: data.denoising_set("kodak", sigma=0.1),
    )
