"""min over theta  1/n sum 1/2 ||xhat_i(theta) - clean_i||^2,   xhat_i(theta) = argmin of the total-variation energy.

The paper's setting (section 4.2 of arXiv 2308.10098): 25 Kodak images, grey, 96 x 96, noise 0.1, theta = (log weight,
log smoothing) from (-5, -5). Reads kodak/ in the folder that BILEVEL_DATA names, or else packaged photographs.

Solves: the optimum, by BFGS on hypergradients to eps = 1e-9; maid() with defaults (`tv_starts.py` has it from other
starts); fixed accuracies and HOAG's schedules; and optimisers from elsewhere, derivative-free and quasi-Newton, over
the same lower-level solver.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt

from bilevel.problems import data
from experiments._harness import console, record, style
from experiments.paper.tv_runs import ELSEWHERE, FIXED, HOAG, THETA0, TOL, solve

NEAR, NEARER = 0.02, 0.002  # how close to the optimal value
ENDS = "above at end", "gradient at end", "cost", "steps"
TARGETS = {NEAR: 3000, NEARER: 15_000}  # the cost it may take maid()
COST = "cost: gradients and products of the lower level"


class Curve(NamedTuple):
    """How far f is above the optimum, at what cost, after how many seconds and steps."""

    cost: np.ndarray
    seconds: np.ndarray
    above: np.ndarray
    k: np.ndarray

    def to(self, within: float, what: str = "cost") -> float:
        """What it took to come so close first; infinite if it never did."""
        reached = np.flatnonzero(self.above <= within)
        return float(getattr(self, what)[reached[0]]) if len(reached) else np.inf

    def at(self, cost: float, what: str = "above") -> float:
        """How far above at that cost."""
        return float(getattr(self, what)[np.flatnonzero(self.cost <= cost)[-1]])


def curve(run: record.Run, best: float) -> Curve:
    """Wherever that is known to a tenth from the run's own interval, whose upper end counts, or where it was judged."""
    steps, judged = run.steps, run.judged
    known = np.zeros(len(steps["k"]), bool)
    upper = np.full(len(known), np.nan)
    if "value_error" in steps:
        upper = steps["value"] + steps["value_error"] - best
        known = steps["value_error"] <= 0.1 * upper
    when = np.searchsorted(steps["k"], judged["k"])
    cost, seconds, k = (np.concatenate([steps[key][known], steps[key][when]]) for key in ("cost", "seconds", "k"))
    if "value_error" in steps:  # the judge saw theta_k before its gradient was known
        cost[known.sum() :] = judged["cost"]
    above = np.concatenate([upper[known], judged["value"] - best])
    order = np.argsort(seconds if np.isnan(cost).any() else cost, kind="stable")
    return Curve(cost[order], seconds[order], above[order], k[order])


def curves(runs: dict[str, record.Run]) -> dict[str, Curve]:
    """By name, of the runs that were judged."""
    best = runs["optimum"].end["value"]
    return {name: curve(run, best) for name, run in runs.items() if len(run.judged)}


def keep(runs: dict[str, record.Run]) -> dict[str, set[int]]:
    """The steps that the tables name: the first so close, and where maid() was when a fixed accuracy stopped."""
    of = curves(runs)
    found = {name: {int(k) for within in TARGETS if np.isfinite(k := of[name].to(within, "k"))} for name in of}
    if "maid" in of:
        found["maid"] |= {int(of["maid"].at(of[name].cost[-1], "k")) for name in FIXED if name in of}
    return found


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    best, psnr, of = runs["optimum"].end, runs["psnr"].end, curves(runs)
    print(f"Optimum at ({best['theta'][0]:.5f}, {best['theta'][1]:.5f}): {best['value']:.8f} +- "
          f"{best['value_error']:.0e}, norm of the gradient {best['gradient_norm']:.0e} +- "
          f"{best['gradient_error']:.0e}")  # fmt: skip
    print(
        "Mean PSNR: {noisy:.2f} dB noisy, {initial:.2f} dB at (-5, -5), {learnt:.2f} dB at the optimum\n".format(**psnr)
    )

    def took(name, what="cost"):
        return [number(of[name].to(within, what), what) for within in TARGETS]

    methods = ("maid", *FIXED, *HOAG)
    heads = [f"cost to {w}" for w in TARGETS]
    rows = []
    for name in (*methods, *ELSEWHERE):
        met = {True: "met", False: "no", None: "-"}[runs[name].end.get("converged")]
        rows.append((name, *took(name), *ends(runs[name], best["value"]), met))
    print(console.table(("from (-5, -5)", *heads, *ENDS, f"tol {TOL:g}"), rows))
    print(f"aim for maid: {', '.join(f'{within} within {cost}' for within, cost in TARGETS.items())}\n")

    rows = [
        (name, *took(name, "seconds"), f"{runs[name].end['seconds']:.1f}", f"{runs[name].end['compile_seconds']:.1f}")
        for name in ("maid", "hoag geometric", *ELSEWHERE)
    ]
    print(console.table(("seconds", *(f"to {w}" for w in TARGETS), "at the end", "compiling"), rows) + "\n")

    rows = []
    for name in FIXED:
        cost, maid = of[name].cost[-1], of["maid"]
        stops = f"{of[name].above[-1]:.1e} above at a cost of {cost:.0f}"
        rows.append((name, f"{stops}; maid is {maid.at(cost):.1e} above there, {maid.above[-1]:.1e} at its end"))
    print(console.table(("fixed accuracies", "stop"), rows))


def ends(run: record.Run, best: float) -> tuple[str, str, str, int | str]:
    """A table's last columns, `ENDS`."""
    norm, error = run.end.get("gradient_norm"), run.end.get("gradient_error")
    interval = "-" if norm is None or error is None else f"{norm:.1e} +- {error:.0e}"
    cost = "-" if run.end["cost"] is None else f"{run.end['cost']:.0f}"
    return f"{run.judged['value'][-1] - best:.1e}", interval, cost, run.end.get("steps", "-")


def number(value: float, what: str = "cost") -> str:
    return "never" if np.isinf(value) else "-" if np.isnan(value) else f"{value:.{1 if what == 'seconds' else 0}f}"


def plot(axes, curve: Curve, **settings) -> None:
    axes.plot(curve.cost, np.maximum(curve.above, 1e-8), **settings)
    axes.set(xscale="log", yscale="log", xlabel=COST)


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The figures, from the log and the pictures beside it."""
    style.use()
    best, of = runs["optimum"].end, curves(runs)
    figure, axes = plt.subplots(1, 2, figsize=(12.4, 4.8), sharex=True, sharey=True)
    sides = {
        "the same descent, other accuracies": ("maid", *FIXED, *HOAG),
        "optimisers from elsewhere": ("maid", *ELSEWHERE[:3]),
    }
    for a, (title, names) in zip(axes, sides.items(), strict=True):
        for name in names:
            maid = name == "maid"
            plot(a, of[name], color=style.COLOURS[name], label=name, lw=2.6 if maid else 1.6, zorder=3 if maid else 2)
        a.set(title=f"Total variation from $\\theta$ = (-5, -5): {title}", xlim=(30, None))
        a.legend(loc="lower left")
    axes[0].set(ylabel="value above the optimum")
    style.save(figure, f"{figures}_methods.png")

    pictures = dict(np.load(beside.with_suffix(".npz")))
    labels = {
        "noisy": "noisy",
        "initial": "$\\theta$ = ({:g}, {:g})".format(*THETA0),
        "learnt": "optimum ({:.2f}, {:.2f})".format(*best["theta"]),
        "clean": "clean",
    }
    figure, axes = plt.subplots(len(pictures["clean"]), 4, figsize=(8.4, 8.9))
    for i, row in enumerate(axes):
        for a, (key, label) in zip(row, labels.items(), strict=True):
            quality = "" if key == "clean" else f"{pictures[f'psnr_{key}'][i]:.1f} dB"
            style.picture(a, pictures[key][i] / 255, f"{label}\n{quality}" if i == 0 else quality)
    style.save(figure, f"{figures}_pictures.png")


if __name__ == "__main__":
    console.main("tv", "The paper's total-variation experiment.", solve, report, draw, needs=data.kodak, keep=keep)
