"""Cost and seconds until f <= target, methods x problems.

Certified quasi-Newton descent, MAID, a fixed accuracy, HOAG, and SciPy's L-BFGS-B over accurate gradients, ours and
jaxopt's.

f is judged outside the clock, in closed form or by an accurate solve. Cost counts every gradient and product of the
lower level (jaxopt counts nothing). Seconds are of this process alone: caches are cleared before each repetition on TV
and digits, and before the first draw on the others, so every method pays for what it compiles. Every method solves the
lower level by L-BFGS. `make bench`; `make bench-full` adds FoE, MNIST, and the default with its parts left out.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

from bilevel.problems import data, labelled
from experiments._harness import console, record, style
from experiments.benchmarks.bench_methods_runs import (
    CERTIFIED,
    DEFAULT,
    METHODS,
    PARTS,
    REPEATED,
    SHOWN,
    SIXTEEN,
    solve,
)


class Result(NamedTuple):
    """A method on one row of the table: medians over its draws, infinite where most were not solved."""

    cost: float
    seconds: float
    compile_seconds: float
    solved: int
    draws: int


def results(runs: dict[str, record.Run], kind: str, name: str) -> Result | None:
    """Compilation is the largest of the draws: where they are of one shape, the first compiles for all."""
    own = [r.end["reached"] for r in runs.values() if (r.config.get("problem"), r.config.get("method")) == (kind, name)]
    if not own:
        return None
    never = {"cost": np.inf, "seconds": np.inf, "compile_seconds": 0.0}
    rows = [reached or never for reached in own]
    columns = {key: [np.nan if row[key] is None else row[key] for row in rows] for key in never}
    median = {key: float(np.median(column)) for key, column in columns.items()}
    compiling = median if kind.startswith(REPEATED) else {"compile_seconds": max(columns["compile_seconds"])}
    return Result(median["cost"], median["seconds"], compiling["compile_seconds"], sum(map(bool, own)), len(own))


def cell(result: Result | None) -> str:
    if result is None:
        return ""
    share = "" if result.solved == result.draws else f" [{result.solved}/{result.draws}]"
    if not np.isfinite(result.seconds):
        return f"never{share}"
    cost = "-" if np.isnan(result.cost) else f"{result.cost:.0f}"
    return f"{cost}; {result.seconds:.2f} + {result.compile_seconds:.1f} s{share}"


def kinds(runs: dict[str, record.Run]) -> list[str]:
    return list(dict.fromkeys(run.config["problem"] for run in runs.values() if "problem" in run.config))


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    rows = [kind for kind in kinds(runs) if kind != SIXTEEN]
    body = [(kind, *(cell(results(runs, kind, name)) for name in METHODS)) for kind in rows]
    print(console.table(("cost; s running + s compiling", *METHODS), body))
    print("Medians; [k/n]: solved k of n, never: not half of them. Compiling: the median where a problem is repeated,")
    print("on TV and digits, else the first draw's, which compiles for all.")
    lost, told = [], 0
    for kind in rows:
        costs = {name: r.cost for name in METHODS if (r := results(runs, kind, name)) and np.isfinite(r.cost)}
        told += bool(costs)
        if costs and min(costs, key=costs.get) != DEFAULT:
            best = min(costs, key=costs.get)
            lost.append(f"{kind} (to {best}, {costs[best]:.0f})")
    print(f"{DEFAULT} has the least cost on {told - len(lost)} of {told}; it loses {'; '.join(lost) or 'nowhere'}.\n")

    body = []
    for kind in rows:
        seconds = {name: r.seconds for name in METHODS if (r := results(runs, kind, name)) and np.isfinite(r.seconds)}
        if DEFAULT in seconds:
            fastest = min(seconds, key=seconds.get)
            ratio = f"{seconds[DEFAULT] / seconds[fastest]:.2f}"
            body.append((kind, f"{seconds[DEFAULT]:.2f}", fastest, f"{seconds[fastest]:.2f}", ratio))
    print(console.table((f"seconds running, {DEFAULT}", "s", "the fastest", "s", "ratio to the fastest"), body))
    print()
    if variants := [name for name in PARTS if results(runs, "TV", name)]:
        cheap = [kind for kind in rows if results(runs, kind, variants[0])]
        body = []
        for name in (DEFAULT, *variants):
            costs = [results(runs, kind, name) for kind in cheap]
            body.append(
                (name, *("" if r is None else f"{r.cost:.0f}" if np.isfinite(r.cost) else "never" for r in costs))
            )
        print(console.table(("cost, a part left out", *cheap), body), end="\n\n")
    if sixteen := [run.end["reached"] for run in runs.values() if run.config.get("problem") == SIXTEEN]:
        costs = [np.inf if reached is None else reached["cost"] for reached in sixteen]
        print(f"{DEFAULT}, TV, {len(costs)} first accuracies and steps: cost to 0.02 {min(costs):g} to {max(costs):g}")


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The performance profiles: the share of problems that a method solves at most `factor` times the least."""
    style.use()
    rows = [kind for kind in kinds(runs) if kind not in (SIXTEEN, CERTIFIED)]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    measures = {"cost": lambda r: r.cost, "seconds, compilation included": lambda r: r.seconds + r.compile_seconds}
    for a, (label, measure) in zip(axes, measures.items(), strict=True):
        values = {name: [np.inf if (r := results(runs, kind, name)) is None else measure(r) for kind in rows]
                  for name in METHODS}  # fmt: skip
        table = np.array(list(values.values()))
        table[np.isnan(table)] = np.inf  # nobody counted
        table = table[:, np.isfinite(table.min(axis=0))]
        factors = np.logspace(0, 3, 400)
        for name, row in zip(values, table / table.min(axis=0), strict=True):
            if np.isfinite(row).any():
                share = [np.mean(row <= factor) for factor in factors]
                a.plot(factors, share, label=name, color=style.COLOURS[name], lw=2.6 if name == DEFAULT else 1.5)
        a.set(
            xscale="log", ylim=(0, 1.02), xlabel=f"{label}: multiples of the least", title=f"{table.shape[1]} problems"
        )
    axes[0].set(ylabel="share of the problems solved")
    axes[1].legend(loc="lower right")
    style.save(figure, figures.with_name(f"{figures.name}_profile.png"))

    shown = [kind for kind in SHOWN if kind in rows]
    figure, axes = plt.subplots(2, len(shown), figsize=(4.2 * len(shown), 7.6), squeeze=False)
    for column, kind in zip(axes.T, shown, strict=True):
        for name in METHODS:
            run = runs.get(f"{name}, {kind}, 0")
            if run is None or "f" not in run.judged:
                continue
            above = np.maximum(run.judged["f"] - run.config["best"], 1e-6)
            total = run.judged["seconds"] + run.judged["compile_seconds"]
            for a, x in zip(column, (run.judged["cost"], total), strict=True):
                if np.isfinite(x).any():
                    a.step(x, above, where="post", color=style.COLOURS[name], label=name, marker=".", ms=5)
        for a, label in zip(column, ("cost", "seconds, compilation included"), strict=True):
            aim = next(
                run.config["target"] - run.config["best"] for run in runs.values() if run.config.get("problem") == kind
            )
            a.axhline(aim, color="#777777", ls="--", lw=1)
            a.set(xscale="log", yscale="log", xlabel=label, title=kind)
            a.xaxis.set_minor_formatter(NullFormatter())
    for row in axes:
        row[0].set(ylabel="f, above the best where that is known")
    axes[0, 0].legend()
    style.save(figure, figures.with_name(f"{figures.name}_curves.png"))


def main(full: bool) -> None:
    """Both benchmarks have one log, so either adds to what the other has with --resume."""

    def needs():
        data.kodak()
        if full:
            labelled.mnist()

    console.main("bench_methods", __doc__.splitlines()[0], partial(solve, full=full), report, draw, needs=needs)


if __name__ == "__main__":
    main(full=False)
