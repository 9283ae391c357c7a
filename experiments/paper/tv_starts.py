"""min over theta  1/n sum 1/2 ||xhat_i(theta) - clean_i||^2 by maid(), from many starts: is there nothing to choose?

The total-variation problem of `tv.py`, from the paper's ten pairs of first accuracies, from 16 pairs of first accuracy
and first step, and from three bad theta.
"""

import itertools
from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from tqdm import tqdm

import bilevel
from bilevel.problems import data
from experiments._harness import console, record, style
from experiments.paper import tv, tv_runs

jax.config.update("jax_enable_x64", True)

# fmt: off
TEN = ((10, 100), (10, 0.01), (100, 100), (10, 20), (10, 0.1), (10, 10), (1, 1), (0.1, 0.1), (1e-3, 1e-3), (1e-5, 1e-5))
# fmt: on
ACCURACIES, STEPS, SIXTEEN_BUDGET = (1e2, 1.0, 1e-2, 1e-4), (1e-4, 1e-2, 1.0, 100.0), 3500
BAD_STARTS = ((0.0, 0.0), (-10.0, -3.0), (2.0, -8.0))


def plan() -> dict[str, tuple]:
    """By name: the method, what it may cost, and where it starts if not at (-5, -5)."""
    runs = {ten(eps, delta): (bilevel.maid(eps, delta), tv_runs.BUDGET) for eps, delta in TEN}
    for eps, step in itertools.product(ACCURACIES, STEPS):
        runs[sixteen(eps, step)] = bilevel.maid(eps, eps, step), SIXTEEN_BUDGET
    return runs | {bad(theta0): (bilevel.maid(), tv_runs.LONG, theta0) for theta0 in BAD_STARTS}


def ten(eps: float, delta: float) -> str:
    return f"maid, eps0 {eps:g}, delta0 {delta:g}"


def sixteen(eps: float, step: float) -> str:
    return f"maid, eps0 = delta0 = {eps:g}, step {step:g}"


def bad(theta0: tuple[float, float]) -> str:
    return "maid from ({:g}, {:g})".format(*theta0)


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log, and the optimum that they are measured by."""
    here, done = tv_runs.setting(packaged, smoke), log.finished()
    if "optimum" not in done:
        tv_runs.optimum(here.problem, log, here.config)
    for name, run in (bar := tqdm([item for item in plan().items() if item[0] not in done], disable=None)):
        bar.set_description(name)
        here.run(log, name, *run)


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    best, made = runs["optimum"].end["value"], tv.curves(runs)

    def took(name):
        return [tv.number(made[name].to(within)) for within in tv.TARGETS]

    heads = [f"cost to {w}" for w in tv.TARGETS]
    rows = [(f"eps0 {e:g}, delta0 {d:g}", *took(ten(e, d)), *tv.ends(runs[ten(e, d)], best)[:3:2]) for e, d in TEN]
    print(console.table(("the paper's ten", *heads, "above at end", "cost"), rows) + "\n")

    rows = [
        (f"eps0 = delta0 = {eps:g}", *(tv.number(made[sixteen(eps, step)].to(tv.NEAR)) for step in STEPS))
        for eps in ACCURACIES
    ]
    print(console.table((f"cost to {tv.NEAR}", *(f"step {step:g}" for step in STEPS)), rows))
    print(f"aim: each within {SIXTEEN_BUDGET}\n")

    def spread(names, within):
        costs = [made[name].to(within) for name in names]
        factor = f", factor {max(costs) / min(costs):.2g}" if np.isfinite(max(costs)) else ""
        return f"{tv.number(min(costs))} to {tv.number(max(costs))}{factor}"

    tens, sixteens = [ten(*pair) for pair in TEN], [sixteen(*pair) for pair in itertools.product(ACCURACIES, STEPS)]
    rows = [(f"ten eps0, delta0: cost to {within}", spread(tens, within)) for within in tv.TARGETS]
    rows.append((f"sixteen eps0 = delta0, steps: cost to {tv.NEAR}", spread(sixteens, tv.NEAR)))
    print(console.table(("from least to most", "measured"), rows) + "\n")

    rows = []
    for name in map(bad, BAD_STARTS):
        theta = "({:.4f}, {:.4f})".format(*runs[name].end["theta"])
        rows.append((name, theta, took(name)[0], *tv.ends(runs[name], best)))
    print(console.table(("bad starts", "theta", heads[0], *tv.ENDS), rows))
    print("\n".join(f"{name}: {runs[name].end['result']}" for name in map(bad, BAD_STARTS)))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The figures, from the log alone."""
    style.use()
    curves_of = tv.curves(runs)

    figure, a = plt.subplots(figsize=(8.6, 4.8))
    for pair, colour in zip(TEN, plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(TEN))), strict=True):
        tv.plot(
            a,
            curves_of[ten(*pair)],
            color=colour,
            lw=1.5,
            label="$\\epsilon_0$ = {:g}, $\\delta_0$ = {:g}".format(*pair),
        )
    a.set(ylabel="value above the optimum", xlim=(30, None), title="maid(): the paper's ten first accuracies, one end")
    a.legend(loc="upper left", bbox_to_anchor=(1, 1))
    style.save(figure, f"{figures}_ten.png")

    # the 16 runs: colour says the first accuracy, line style the first step
    shades = dict(zip(ACCURACIES, plt.get_cmap("viridis")([0.05, 0.35, 0.6, 0.85]), strict=True))
    dashes = dict(zip(STEPS, (":", "-.", "--", "-"), strict=True))
    keys = [Line2D([], [], color=c, label=f"$\\epsilon_0$ = $\\delta_0$ = {eps:g}") for eps, c in shades.items()]
    keys += [Line2D([], [], color=style.INK, ls=ls, label=f"step {step:g}") for step, ls in dashes.items()]
    pairs = [(sixteen(eps, step), {"color": shades[eps], "ls": dashes[step]}) for eps in ACCURACIES for step in STEPS]

    figure, a = plt.subplots(figsize=(8.6, 4.8))
    for name, look in pairs:
        tv.plot(a, curves_of[name], lw=1.5, **look)
    a.axhline(tv.NEAR, color=style.INK, lw=0.8)
    a.set(
        ylabel="value above the optimum", xlim=(50, None), title="maid(): sixteen first accuracies and steps, one end"
    )
    a.legend(handles=keys, loc="upper left", bbox_to_anchor=(1, 1))
    style.save(figure, f"{figures}_sixteen.png")

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharex=True, sharey=True)
    for a, key, title in zip(axes, ("eps", "delta"), ("$\\epsilon$: lower level", "$\\delta$: adjoint"), strict=True):
        for name, look in pairs:
            a.plot(runs[name].steps["cost"], runs[name].steps[key], lw=1.4, **look)
        a.set(xscale="log", yscale="log", xlabel=tv.COST, title=f"{title}, as reached")
    axes[1].legend(handles=keys, loc="upper left", bbox_to_anchor=(1, 1))
    style.save(figure, f"{figures}_accuracies.png")


if __name__ == "__main__":
    console.main(
        "tv_starts", "The total-variation experiment from many starts.", solve, report, draw,
        needs=data.kodak, keep=tv.keep,
    )  # fmt: skip
