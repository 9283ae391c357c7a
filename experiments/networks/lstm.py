"""min over u  CE_valid(w(u)),   w(u): an LSTM language model trained with hyperparameters u, which may vary as it goes.

The study of arXiv 1903.03088 on the State of the Union addresses (there: Penn Treebank). First output dropout alone:
does Delta-STN find the same schedule from five starts, and is it the schedule that helps? Against STN and fixed rates;
the best of them with the noise of that paper, Gaussian and sinusoidal; the last value that Delta-STN came to, held from
the beginning; and an ordinary LSTM trained along the recorded schedule. Then all seven hyperparameters of `language`,
against random search and Optuna's TPE at equal wall-clock; every draw is for a batch there, for DropConnect's sake.

Perplexities are of the epoch with the lowest validation loss. Runs come in an order that tells most first, each goes on
from its own checkpoint; the first weights and the order of the examples are the same in all of them.
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

from bilevel.problems import text
from experiments._harness import console, record, style
from experiments.networks.language import NAMES
from experiments.networks.lstm_runs import (
    GAUSSIAN,
    HELD,
    METHODS,
    OTHER_STARTS,
    SCHEDULE,
    SEARCHES,
    SINUSOIDAL,
    START,
    best_fixed,
    seven,
    solve,
    trials,
    tuned,
)

COLOURS = {
    "Delta-STN": style.COLOURS["maid"], "STN": style.COLOURS["hoag quadratic"], "random search": "#8A8A8A",
    "Optuna TPE": style.COLOURS["Optuna TPE"], SCHEDULE: style.COLOURS["hoag geometric"], "fixed": "#111111",
    HELD: style.COLOURS["DFO-LS"], GAUSSIAN: style.COLOURS["Nelder-Mead"], SINUSOIDAL: style.COLOURS["hoag cubic"],
}  # fmt: skip


def seconds(run: record.Run) -> np.ndarray:
    """At the end of each epoch, without compiling and without the tests after the epochs before it."""
    judging = run.steps["judging"]
    return run.steps["seconds"] - (np.cumsum(judging) - judging)


def search(method: str, runs: dict[str, record.Run]) -> dict[str, np.ndarray]:
    """The runs of `trials` that are finished, one after another: an entry for each epoch."""
    parts = [(runs[name], seconds(runs[name])) for name in trials(method) if name in runs]
    begins = np.cumsum([0.0, *(when[-1] for _, when in parts)])
    columns = [
        {"seconds": begin + when, "valid": run.steps["valid_loss"], "test": run.steps["test_loss"]}
        for (run, when), begin in zip(parts, begins, strict=False)
    ]
    return {key: np.concatenate([column[key] for column in columns]) for key in columns[0]} if columns else {}


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for name, run in runs.items():
        if not name.startswith("seven"):
            best, rates = run.steps["valid_loss"].argmin(), run.steps["output"]
            rows.append((
                name, f"{math.exp(run.steps['valid_loss'][best]):.2f}", f"{math.exp(run.steps['test_loss'][best]):.2f}",
                run.steps["k"][best], f"{rates[best]:.3f}", f"{rates[-1]:.3f}",
            ))  # fmt: skip
    header = ("valid perplexity", "test", "at epoch", "rate there", "last rate")
    print(console.table(("output dropout alone", *header), rows) + "\n")

    found = {method: columns for method in (*METHODS, *SEARCHES) if (columns := search(method, runs))}
    if not found:
        return
    until, rows = next(iter(found.values()))["seconds"][-1], []  # Delta-STN's time
    for method, columns in found.items():
        cells = []
        for limit in (until, math.inf):
            valid = columns["valid"][columns["seconds"] <= limit]
            best = valid.argmin() if len(valid) else None
            cells += ["-"] * 2 if best is None else [f"{math.exp(columns[key][best]):.2f}" for key in ("valid", "test")]
        trainings = sum(name in runs for name in trials(method))
        rows.append((method, *cells, trainings, f"{columns['seconds'][-1]:.0f}"))
    header = (f"valid by {until:.0f} s", "test", "valid in the end", "test", "trainings", "s")
    print(console.table(("seven hyperparameters", *header), rows) + "\n")
    names = [seven(method) for method in METHODS if seven(method) in runs]
    rows = [(name, *(f"{runs[name].steps[key][-1]:.3g}" for key in NAMES)) for name in names]
    print(console.table(("the last values", *NAMES), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    fixed, starts = best_fixed(runs), sorted((START, *OTHER_STARTS))
    figure, a = plt.subplots(figsize=(6.8, 3.8))
    colours = dict(zip(starts, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(starts))), strict=True))
    for start, method in ((start, method) for start in starts for method in METHODS):
        if tuned(method, start) in runs:
            run, dashes = runs[tuned(method, start)], "-" if method == "Delta-STN" else "--"
            rates = np.array(run.end["schedule"]["output"])
            epochs = np.linspace(0, run.steps["k"][-1], len(rates))
            a.plot(epochs, rates, dashes, color=colours[start], label=tuned(method, start))
    a.axhline(fixed.config["rate"], color=style.INK, ls=":", lw=1.2, label="best fixed rate")
    a.set(xlabel="epoch", ylabel="output dropout", ylim=(0, 1))
    a.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*a.get_legend_handles_labels(), loc="outside right center")
    style.save(figure, f"{figures}_schedules.png")

    figure, a = plt.subplots(figsize=(8.4, 4.4))
    lines = {f"fixed {fixed.config['rate']:g}": "fixed", SCHEDULE: SCHEDULE, HELD: HELD, GAUSSIAN: GAUSSIAN,
             SINUSOIDAL: SINUSOIDAL, tuned("Delta-STN", START): "Delta-STN", tuned("STN", START): "STN"}  # fmt: skip
    lowest, highest = math.inf, 0.0
    for name, run in runs.items():
        perplexity = np.exp(run.steps["valid_loss"])
        if name in lines:
            a.plot(run.steps["k"], perplexity, color=COLOURS[lines[name]], label=name, zorder=3)
            lowest, highest = min(lowest, perplexity.min()), max(highest, perplexity[-1])
        elif "rate" in run.config:
            a.plot(run.steps["k"], perplexity, color="#CCCCCC", lw=1.2)
    a.plot([], [], color="#CCCCCC", lw=1.2, label="the other fixed rates")
    a.set(xlabel="epoch", ylabel="validation perplexity", ylim=(0.98 * lowest, max(1.3 * lowest, 1.02 * highest)))
    a.xaxis.get_major_locator().set_params(integer=True)
    a.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    style.save(figure, f"{figures}_perplexity.png")

    figure, a = plt.subplots(figsize=(6.4, 4.2))
    for method in (*METHODS, *SEARCHES):
        if columns := search(method, runs):
            best = np.minimum.accumulate(np.exp(columns["valid"]))
            width = 3.4 if method == "random search" else 1.8  # the searches share their beginning
            a.step(columns["seconds"], best, where="post", color=COLOURS[method], label=method, lw=width)
    a.set(xscale="log", xlabel="seconds, without compiling", ylabel="best validation perplexity so far")
    a.xaxis.set_minor_formatter(NullFormatter())
    a.legend()
    style.save(figure, f"{figures}_seven.png")


if __name__ == "__main__":
    console.main("lstm", "An LSTM language model that tunes itself.", solve, report, draw, needs=text.addresses)
