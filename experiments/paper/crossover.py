"""min over theta  ||A1 xhat(theta) - b1||^2,   xhat(theta) = argmin over x  ||A2 x + A3 theta - b2||^2.

When does choosing the accuracy adaptively pay? The cost of maid() and of `fixed_accuracy(1e-4)` to come within
(f - f*) / max(|f*|, 1) < 5e-3 of the minimum, as the designs' condition number c grows:

    A_i = Q_i diag(logspace(0, log10 c, 4)),   Q_i (80, 4) with orthonormal columns,   b_i normal,   theta0 = ones.

The lower level then has condition number c^2. Both methods are steepest descent with the same line search over the same
lower-level solver: gradient descent, Nesterov's, or Newton-CG (one Newton step by conjugate gradients, h being
quadratic). The norms are not halved: `Quadratic` halves them, so all data are scaled by sqrt(2). f is judged in
closed form after every step, which costs the methods nothing.

The upper level's condition number is up to c^2 times that of (Q2^T Q3)^T Q2^T Q3, a matter of luck: 30 to 30 000 at
c = 2. So some draws need tens of thousands of steps of steepest descent at any accuracy; runs end after `MAX_STEPS`
outer steps or a cost of `BUDGET`, and the table and the figure say where. `make crossover`, or
`python -m experiments.paper.crossover`.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter
from tqdm import tqdm

import bilevel
from bilevel.problems.quadratic import Quadratic
from experiments._harness import console, record, style
from experiments.paper.quadratic import minimum, upper_condition

jax.config.update("jax_enable_x64", True)

CONDITIONS, SEEDS, TARGET, FIXED = (2, 5, 10, 20, 30), range(7), 5e-3, 1e-4
MAX_STEPS, SMOKE_STEPS, BUDGET = 1500, 30, 5_000_000
SOLVERS = {
    "GradientDescent": bilevel.GradientDescent(),
    "Nesterov": bilevel.Nesterov(),
    "NewtonCG": bilevel.NewtonCG(),
}
COLOURS = {"maid": style.COLOURS["maid"], "fixed 1e-4": style.COLOURS["fixed 1e-5"]}


def designs(c: float, seed: int) -> Quadratic:
    """The problem, drawn in NumPy float64."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((3, 80, 4)))[0]
    A1, A2, A3 = np.sqrt(2) * Q * np.logspace(0, np.log10(c), 4)
    b1, b2 = np.sqrt(2) * rng.standard_normal((2, 80))
    return Quadratic(A1, A2, A3, b1, b2)


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not in the log yet."""
    done = log.finished()
    conditions, seeds = (CONDITIONS[:2], SEEDS[:2]) if smoke else (CONDITIONS, SEEDS)
    names = [(c, seed, solver, m) for c in conditions for seed in seeds for solver in SOLVERS for m in COLOURS]
    for c, seed, solver, method in tqdm(names, unit="runs", disable=None):
        run = f"{method}, {solver}, c = {c}, seed {seed}"
        if run not in done:
            settings = {"method": method, "solver": solver, "c": c, "seed": seed}
            one(log, run, designs(c, seed), method, solver, SMOKE_STEPS if smoke else MAX_STEPS, settings)


def one(
    log: record.Log, run: str, problem: Quadratic, method: str, solver: str, max_steps: int, settings: dict
) -> None:
    """One run until the target or a budget: a line for its settings, one for what it took."""
    inner = SOLVERS[solver]
    rule = bilevel.maid(solver=inner) if method == "maid" else bilevel.fixed_accuracy(FIXED, solver=inner)
    best, theta0 = minimum(problem), np.ones(4)

    def excess(theta):
        return (problem.closed_form(theta).value - best) / max(abs(best), 1)

    limits = {"max_cost": BUDGET, "max_steps": max_steps}
    condition = upper_condition(problem)
    log.write("config", run, **settings, **limits, target=TARGET, upper_condition=condition, **record.environment())
    smallest = np.inf
    for state, info in bilevel.iterate(problem, theta0, rule, tol=0, **limits):
        smallest = min(smallest, info.eps)
        if (above := excess(state.theta)) < TARGET:
            break
    if above < TARGET:
        outcome = "reached"
    elif any(info.result == limit for limit in (bilevel.RESULTS.max_steps_reached, bilevel.RESULTS.max_cost_reached)):
        outcome = "budget"
    else:
        outcome = "stopped"
    log.write(
        "end", run, outcome=outcome, above_start=excess(theta0), above=above, cost=state.counts.cost,
        steps=state.steps, smallest_eps=smallest, seconds=state.seconds, compile_seconds=state.compile_seconds,
        **state.counts._asdict(), result=None if info.result is None else str(bilevel.RESULTS[info.result]),
    )  # fmt: skip


def group(runs: dict[str, record.Run], method: str, solver: str, c: float) -> list[record.Run]:
    """The runs of all draws, by seed."""
    which = {"method": method, "solver": solver, "c": c}
    return sorted((r for r in runs.values() if which.items() <= r.config.items()), key=lambda r: r.config["seed"])


def costs(group: list[record.Run]) -> np.ndarray:
    """The cost to the target by seed; infinite where it was not reached."""
    return np.array([run.end["cost"] if run.end["outcome"] == "reached" else np.inf for run in group])


def conditions(runs: dict[str, record.Run]) -> list[float]:
    return sorted({run.config["c"] for run in runs.values()})


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""

    def cell(group):
        cost, ends = costs(group), [run.end["outcome"] for run in group]
        numbers = [f"{v:.0f}" if np.isfinite(v) else "never" for v in (np.median(cost), cost.min(), cost.max())]
        return "{} ({} to {})".format(*numbers), f"{ends.count('stopped')} + {ends.count('budget')}"

    rows = []
    for solver in SOLVERS:
        for c in conditions(runs):
            maid, fixed = (group(runs, method, solver, c) for method in COLOURS)
            ratio = np.array(
                [f / m for m, f in zip(costs(maid), costs(fixed), strict=True) if np.isfinite([m, f]).all()]
            )
            ratios = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})" if len(ratio) else "-"
            cheaper = f"{(ratio > 1).sum()} of {len(ratio)}"
            rows.append((f"{solver}, c = {c:g}", *cell(maid), *cell(fixed), ratios, cheaper))
    header = ("cost to the target", "maid", "never", "fixed 1e-4", "never", "fixed / maid", "maid cheaper")
    print(console.table(header, rows))
    draws = len(group(runs, "maid", "Nesterov", conditions(runs)[0]))
    limit = next(iter(runs.values())).config["max_steps"]
    print(f"\nMedian (least to most) of {draws} draws; the ratio draw by draw, where both reach the target.")
    print(f"Never: stopped without a certified decrease + ended by {limit} outer steps or a cost of {BUDGET:g}.\n")
    rows = []
    for c in conditions(runs):
        runs_c = group(runs, "maid", "Nesterov", c)
        upper = " ".join(f"{run.config['upper_condition']:.0e}" for run in runs_c)
        rows.append((f"{c:g}", f"{c**2:g}", upper, " ".join(str(run.end["steps"]) for run in runs_c)))
    print(console.table(("c", "lower condition", "upper condition, by draw", "outer steps, maid with Nesterov"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The figure, from the log alone."""
    style.use()
    cs = conditions(runs)
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.6), sharey=True)
    reached = np.concatenate([costs([run]) for run in runs.values()])
    top = 2 * reached[np.isfinite(reached)].max()
    marks = {"stopped": ("X", top), "budget": ("^", 3 * top)}
    for a, solver in zip(axes, SOLVERS, strict=True):
        for (method, colour), shift in zip(COLOURS.items(), (0.95, 1.05), strict=True):
            groups = [group(runs, method, solver, c) for c in cs]
            a.plot(cs, [np.median(costs(g)) for g in groups], "-", color=colour, lw=2.2)
            for c, g in zip(cs, groups, strict=True):
                a.plot(np.full(len(g), c * shift), costs(g), "o", color=colour, ms=5, alpha=0.5, mew=0)
                for outcome, (marker, height) in marks.items():
                    if many := sum(run.end["outcome"] == outcome for run in g):
                        a.plot(c * shift, height, marker, color=colour, ms=6)
                        a.annotate(f"{many}", (c * shift, height), (0, 6), textcoords="offset points", ha="center",
                                   color=colour, fontsize=8)  # fmt: skip
        a.set(xscale="log", yscale="log", xlabel="condition number c of the designs", title=solver)
        a.xaxis.set_major_locator(FixedLocator(cs))
        a.xaxis.set_major_formatter("{x:g}")
        a.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(f"cost until (f - f*) / max(|f*|, 1) < {TARGET:g}")
    handles = [Line2D([], [], color=colour, lw=2.2, label=f"{method}, median") for method, colour in COLOURS.items()]
    words = {"o": "one draw", "X": "never: no certified decrease", "^": "never: budget spent"}
    handles += [Line2D([], [], color=style.INK, marker=m, ms=6, ls="", mew=0, label=w) for m, w in words.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    style.save(figure, f"{figures}_costs.png")


if __name__ == "__main__":
    console.main("crossover", __doc__.splitlines()[2], solve, report, draw)
