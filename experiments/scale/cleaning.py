"""Data hyper-cleaning: a weight for every example, half of which have a wrong label, learnt from clean ones."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt

from bilevel.problems import labelled
from experiments._harness import console, record, style
from experiments.scale import cleaning_runs as runs_of

jax.config.update("jax_enable_x64", True)

SETS = ((5_000, 5_000, 10_000), (20_000, 5_000, 10_000))  # learnt from, clean, test
PACKAGED, SMOKE = ((800, 500, 497),), ((200, 100, 100),)
BUDGETS = {20_000: 25.0, 5_000: 10.0}  # processor seconds of each of the other methods
ORDER = (runs_of.OURS, *runs_of.METHODS, runs_of.NONE, runs_of.TRUTH)
INKS = dict(zip(ORDER, ("#C1121F", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#8A8A8A", "#222222"), strict=True))


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    for sizes in SMOKE if smoke else PACKAGED if packaged else SETS:
        budget = 0.2 if smoke else BUDGETS.get(sizes[0], 5.0)
        runs_of.every(log, sizes, packaged, budget, 100 if smoke else 50_000, 1 if smoke else 3)


def of_set(runs: dict[str, record.Run], kind: str) -> dict[str, record.Run]:
    return {name: runs[f"{kind}, {name}"] for name in ORDER if f"{kind}, {name}" in runs}


def kinds(runs: dict[str, record.Run]) -> list[str]:
    return list(dict.fromkeys(run.split(", ")[0] for run in runs))


def reached(run: record.Run, error: float) -> str:
    """Processor seconds until the test error was `error`, or less."""
    there = np.flatnonzero(run.judged["test_error"] <= error) if run.judged else []
    return f"{run.judged['cpu_seconds'][there[0]]:.1f}" if len(there) else "-"


def report(runs: dict[str, record.Run]) -> None:
    for kind in kinds(runs):
        group, rows = of_set(runs, kind), []
        least = min((group[name].end["test_error"] for name in runs_of.METHODS if name in group), default=0.0)
        for name, run in group.items():
            end = run.end
            learnt = run.judged != {}
            own = f"{100 * end['own_error']:.2f} %" if "own_error" in end else "-"
            shares = [f"{end[key]:.3f}" if learnt else "-" for key in ("precision", "recall")]
            steps = "{:g}, {:g}".format(*run.config["rates"][:2]) if "rates" in run.config else "-"
            rows.append(
                (name, steps, f"{end['valid_loss']:.4f}", f"{100 * end['test_error']:.2f} %", own, *shares,
                 f"{end['cpu_seconds']:.1f}", f"{end['seconds']:.1f}", reached(run, least))
            )  # fmt: skip
        title = f"{kind} images" if run.config["packaged"] is False else f"{kind} digits"
        to = f"CPU s to {100 * least:.2f} %" if least else "CPU s to their best"
        head = (title, "steps", "clean loss", "test error", "of its w", "precision", "recall", "CPU s", "s")
        print(console.table((*head, to), rows), end="\n\n")
        if (mine := group.get(runs_of.OURS)) is not None:
            end = mine.end
            print(
                f"the default: {end['result']}, f = {end['value']:.5f} +- {end['value_error']:.0e}, cost {end['cost']}"
            )
        grid(runs, kind)


def grid(runs: dict[str, record.Run], kind: str) -> None:
    """The clean loss for every pair of steps after an eighth of the time: a row a method, a column an inner step."""
    rows = []
    for name in runs_of.METHODS:
        some = {run.config["rates"][0]: {} for key, run in runs.items() if key.startswith(f"{kind}, grid, {name},")}
        for run in (run for key, run in runs.items() if key.startswith(f"{kind}, grid, {name},")):
            inner, outer, _ = run.config["rates"]
            some[inner][outer] = float(run.end["valid_loss"] or np.nan)
        if len(some) == len(runs_of.INNER[name]):
            outer = sorted({step for losses in some.values() for step in losses})
            cells = (f"{inner:g}: " + " ".join(f"{some[inner][b]:.3f}" for b in outer) for inner in sorted(some))
            rows.append((f"{name}, {', '.join(f'{step:g}' for step in outer)}", *cells))
    if rows:
        print(console.table(("clean loss, outer steps", *["inner step: clean loss for each"] * 3), rows), end="\n\n")


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    every = kinds(runs)
    figure, axes = plt.subplots(len(every), 2, figsize=(9, 3.2 * len(every)), squeeze=False)
    for (left, right), kind in zip(axes, every, strict=True):
        group = of_set(runs, kind)
        if (mine := group.get(runs_of.OURS)) is not None:
            edges = np.linspace(0, 1, 21)
            for name, ink in (("right", style.GOOD), ("wrong", INKS[runs_of.OURS])):
                left.stairs(mine.end[name], edges, fill=True, alpha=0.6, color=ink, label=f"{name} labels")
        left.set(title=f"{kind} images", xlabel="weight learnt by the default", ylabel="images", yscale="log")
        left.legend()
        for name, run in group.items():
            if run.judged:
                errors = 100 * run.judged["test_error"]
                right.plot(run.judged["cpu_seconds"], errors, ".-", ms=3, color=INKS[name], label=name)
            else:
                right.axhline(100 * run.end["test_error"], color=INKS[name], ls="--", lw=1, label=name)
        right.set(xlabel="processor seconds", ylabel="test error, %", xscale="log")
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_formatter("")
        right.legend(fontsize=7)
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("cleaning", __doc__.splitlines()[0], solve, report, draw, needs=partial(labelled.mnist, 28))
