"""min over lambda  L_valid(w(lambda)),   w(lambda) = argmin over w of E L_train(w, lambda), E over what is random.

Fashion-MNIST: 10 000 images to train and 5 000 to validate, drawn by seed from the 60 000; its 10 000 test images
judge. An MLP with 8 hyperparameters and a CNN with 9: dropout after each hidden layer, input noise, length and number
of the holes of cutout, brightness, contrast, weight decay. STN and Delta-STN tune them in one run; four searches train
again and again with fixed ones.

Random search makes `TRAININGS` trainings of `EPOCHS` epochs. What they took, in seconds and in gradients, is the budget
of the others with the same seed: each goes on until both are used up, so that one log gives both tables. A gradient is
one of a mini-batch: a training step of Delta-STN takes two (weights, response), one of STN one, and a validation step
of either takes one. So a self-tuned network sees many more epochs than one training of a search, and part of what it
gains may be that. Random search and TPE begin with the values where self-tuning starts; the grid is one of 18.

All have the same first weights, order of batches, losses and optimiser. The epoch with the least validation loss is the
one tested, whatever the method. What begins inside a budget counts. Seconds leave out compiling, log and tests.
"""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

from experiments._harness import console, record, style
from experiments.networks.fashion_runs import METHODS, SEEDS, SELF_TUNING, name, solve
from experiments.networks.images import NETWORKS, everything

COLOURS = style.COLOURS | {
    "random search": "#8A8A8A", "grid search": "#E69F00", "Optuna TPE, pruner": "#CC79A7",
    "STN": "#009E73", "Delta-STN": "#0072B2", "MLP": "#0072B2", "CNN": "#D55E00",
}  # fmt: skip


def found(run: record.Run, by: str, limit: float) -> tuple[int, int]:
    """(which step is the best of those that began before `limit` seconds or gradients, which is the last of these)."""
    last = min(int(np.searchsorted(run.steps[by], limit)), len(run.steps["k"]) - 1)
    return int(np.nanargmin(run.steps["value"][: last + 1])), last


def keep(runs: dict[str, record.Run]) -> dict[str, set[int]]:
    """The trainings of a search; the epochs of a self-tuned network that are the best so far or in which a budget
    ended, and every other one of Delta-STN's, whose schedules are drawn."""
    kept = {}
    for key, run in runs.items():
        random = runs[name(METHODS[0], run.config["network"], run.config["seed"])].end
        ends = [found(run, by, random[by])[1] for by in ("seconds", "gradients")]
        every = {"Delta-STN": 2, "STN": len(run.steps["k"])}.get(run.config["method"], 1)
        kept[key] = bests(run) | {int(k) for k in (*run.steps["k"][ends], *run.steps["k"][::every])}
    return kept


def bests(run: record.Run) -> set[int]:
    """The steps that are the best so far."""
    value = run.steps["value"]
    return {int(k) for k in run.steps["k"][value < np.fmin.accumulate(np.append(np.inf, value[:-1]))]}


def groups(runs: dict[str, record.Run]) -> dict[str, dict[str, list[record.Run]]]:
    """By network and method: the runs of all seeds for which there is a budget."""
    table: dict[str, dict[str, list[record.Run]]] = {}
    for network, method, seed in itertools.product(NETWORKS, METHODS, SEEDS):
        if name(METHODS[0], network, seed) in runs and name(method, network, seed) in runs:
            table.setdefault(network, {}).setdefault(method, []).append(runs[name(method, network, seed)])
    return table


def report(runs: dict[str, record.Run]) -> None:
    for (network, methods), by in itertools.product(groups(runs).items(), ("seconds", "gradients")):
        rows, limits = [], []
        for label, group in {"its start, not tuned": methods[METHODS[0]], **methods}.items():
            columns = {"value": [], "test_loss": [], "accuracy": [], "inside": []}
            for run in group:
                limit = runs[name(METHODS[0], network, run.config["seed"])].end[by]
                best, last = found(run, by, limit) if label in methods else (0, 0)
                for column in ("value", "test_loss", "accuracy"):
                    columns[column].append(run.steps[column][best])
                columns["inside"].append(run.steps["k"][last])
                limits.append(limit)
            what = "epochs" if label in SELF_TUNING else "trainings"
            rows.append((
                label, console.spread(columns["value"], 4), console.spread(columns["test_loss"], 4),
                console.spread(100 * np.array(columns["accuracy"]), 2), f"{np.mean(columns['inside']):.0f} {what}",
                len(group),
            ))  # fmt: skip
        title = f"{network}, {np.mean(limits):.0f} {by}"
        print(
            console.table((title, "validation loss", "test loss", "test accuracy, %", "it made", "seeds"), rows) + "\n"
        )


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    table = groups(runs)
    figure, axes = plt.subplots(1, len(table), figsize=(5.2 * len(table), 4.4), squeeze=False)
    for a, (network, methods) in zip(axes[0], table.items(), strict=True):
        race(a, methods, np.mean([run.end["seconds"] for run in methods[METHODS[0]]]))
        a.set(title=network)
    axes[0, 0].set(ylabel="least validation loss so far")
    figure.legend(
        *max((a.get_legend_handles_labels() for a in axes[0]), key=lambda both: len(both[1])),
        loc="outside lower center",
        ncols=4,
    )
    style.save(figure, figures.with_name(f"{figures.name}_seconds.png"))

    tuned = {network: methods["Delta-STN"] for network, methods in table.items() if "Delta-STN" in methods}
    schedules(tuned, (3, 3), figures)


def race(a: plt.Axes, methods: dict[str, list[record.Run]], budget: float) -> None:
    """Least validation loss so far against seconds, by method: mean and range of the seeds."""
    for method, group in methods.items():
        grid = np.geomspace(
            max(run.steps["seconds"][0] for run in group), min(run.steps["seconds"][-1] for run in group), 200
        )
        best = np.array([so_far(run, grid) for run in group])
        a.plot(grid, best.mean(0), color=COLOURS[method], label=method)
        a.fill_between(grid, best.min(0), best.max(0), color=COLOURS[method], alpha=0.15, lw=0)
    a.axvline(budget, color=style.INK, ls=":", lw=1, label="the budget of seconds")
    a.set(xscale="log", xlabel="seconds, without compilation")
    a.xaxis.set_minor_formatter(NullFormatter())
    a.set_ylim(top=1.2 * max(np.nanmin(run.steps["value"]) for run in methods[METHODS[0]]))


def schedules(tuned: dict[str, list[record.Run]], grid: tuple[int, int], figures: Path) -> None:
    """Every hyperparameter against epochs, all seeds, by what `COLOURS` tells apart."""
    scales = "scale of "
    names = [[c.removeprefix(scales) for c in group[0].steps if c.startswith(scales)] for group in tuned.values()]
    rows, columns = grid
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.2 * rows), sharex=True)
    for a, column in itertools.zip_longest(axes.flat, max(names, key=len)):
        a.set_visible(column is not None)
        for label, group in tuned.items():
            for i, run in enumerate(run for run in group if column in run.steps):
                shown = label if i == 0 else None
                a.plot(run.steps["k"], run.steps[column], color=COLOURS[label], lw=1.2, label=shown)
        a.set(title=column, yscale="log" if column is not None and column.startswith("decay") else "linear")
        a.yaxis.set_minor_formatter(NullFormatter())
    for a in axes[-1]:
        a.set(xlabel="epochs")
    axes.flat[0].legend()
    style.save(figure, figures.with_name(f"{figures.name}_schedule.png"))


def so_far(run: record.Run, seconds: np.ndarray) -> np.ndarray:
    least = np.minimum.accumulate(run.steps["value"])
    return least[np.maximum(np.searchsorted(run.steps["seconds"], seconds, side="right") - 1, 0)]


if __name__ == "__main__":
    console.main(
        "fashion", "Self-tuning networks against searches on Fashion-MNIST.", solve, report, draw,
        needs=partial(everything, False), keep=keep,
    )  # fmt: skip
