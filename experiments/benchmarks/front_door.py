"""min over theta  f(theta) = g(xhat(theta)),   xhat(theta) = argmin over x  h(x, theta): is "converged" the end?

The front door, `bilevel.solve(problem, theta0)` without a tolerance, on problems as people bring them: README's ridge
regression, scikit-learn's tables scaled and as they come, in float64 and float32, with one penalty and with one for
each feature, total variation from three starts, the paper's quadratic. The objective is written a second time, by
linear algebra in NumPy and SciPy (`front_door_objectives.py`): it says what f is where the run ended, and how low
SciPy's L-BFGS-B comes over it from the same start. `make front-door`, or
`python -m experiments.benchmarks.front_door`.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from tqdm import tqdm

from experiments._harness import console, record, style
from experiments.benchmarks.front_door_cases import CASES, MAX_COST
from experiments.benchmarks.front_door_cases import run as run_case

jax.config.update("jax_enable_x64", True)

SMOKE, SMOKE_BUDGET = ("ridge from 0", "quadratic, seed 0"), 300
NEAR, LEAST = 0.01, 1e-9  # what a converged run may be above SciPy's best; nothing below is drawn


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every case that is not in the log yet."""
    names = [name for name in (SMOKE if smoke else CASES) if name not in log.finished()]
    for name in (bar := tqdm(names, disable=None)):
        bar.set_description(name)
        case, budget = CASES[name], SMOKE_BUDGET if smoke else MAX_COST
        log.write(
            "config", name, hyperparameters=case.theta0.size, bounds=case.bounds, max_cost=budget,
            converges=case.converges, valleys=case.valleys, **record.environment(),
        )  # fmt: skip
        ended = run_case(case, max_cost=budget)
        truth = {key: v for key, v in ended._asdict().items() if key != "solution"}
        log.write("end", name, **record.summary(ended.solution), **truth, gap=ended.gap)


def report(runs: dict[str, record.Run]) -> None:
    """The table, from the log alone."""
    rows = []
    for name, (config, _, _, end) in runs.items():
        gap = (end["after"] - end["best"]) / abs(end["best"])
        rows.append((
            name, f"{end['before']:.5g}", f"{end['value']:.5g} +- {number(end['value_error'])}", f"{end['after']:.5g}",
            f"{end['best']:.5g}" + "*" * config["valleys"], f"{100 * gap:.2g} %",
            f"{end['last'] / end['first']:.1e}", end["cost"], end["result"].split(",")[0].split(".")[0][:60],
        ))  # fmt: skip
    header = ("case", "f, first", "value", "f there", "SciPy's", "above", "gradient", "cost", "result")
    print(console.table(header, rows))
    print("\n'above': of f there above SciPy's best, of the best. 'gradient': the exact one at the end, of its first")
    print("norm. *: many valleys, SciPy from where the run ended; the others from the same start")
    ends = [run.end for run in runs.values()]
    converged = [end for end in ends if end["converged"]]
    wrong = sum(end["after"] - end["best"] > NEAR * abs(end["best"]) for end in converged)
    missed = sum(abs(end["value"] - end["after"]) > (end["value_error"] or 0) for end in ends)
    print(f"\n{len(ends)} cases, {len(converged)} converged; of these, more than 1 % above SciPy's best: {wrong}")
    print(f"intervals that miss f: {missed}")


def number(value: float | None) -> str:
    """Two digits; what JSON could not hold was not finite."""
    return "inf" if value is None else f"{value:.1e}"


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The figure, from the log alone: a line a case, from f at the start to f at the end, above SciPy's best."""
    style.use()
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.28 * len(runs)))
    for row, run in enumerate(runs.values()):
        start, end = (
            max((run.end[key] - run.end["best"]) / abs(run.end["best"]), LEAST) for key in ("before", "after")
        )
        there = run.end["converged"]
        colour = style.COLOURS["quasi-newton"] if there and end > NEAR else style.GOOD if there else style.BOUND
        axes.plot([start, end], [row, row], color=colour, lw=1.2, alpha=0.6)
        axes.plot(start, row, "|", color="#777777", ms=9)
        axes.plot(end, row, "o", color=colour, ms=6)
    axes.axvline(NEAR, color=style.INK, lw=0.8, ls="--")
    axes.set(
        xscale="log",
        xlim=(LEAST / 2, None),
        xlabel="f above SciPy's best, of the best (at the left edge: level or below)",
    )
    axes.set_yticks(np.arange(len(runs)), list(runs))
    axes.invert_yaxis()
    looks = {"converged": style.GOOD, "not converged, and says so": style.BOUND,
             "converged, more than 1 % above": style.COLOURS["quasi-newton"]}  # fmt: skip
    handles = [Line2D([], [], marker="o", color=colour, lw=1.2, label=label) for label, colour in looks.items()]
    handles.append(Line2D([], [], marker="|", color="#777777", lw=0, ms=9, label="the start"))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.4, 1.0 + 1.6 / len(runs)), ncols=2)
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("front_door", __doc__.splitlines()[0], solve, report, draw)
