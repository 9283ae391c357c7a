"""How small a logistic model's penalties may become: test losses with the least at 1e-2, 1e-4 and 1e-6.

The estimators look for penalties in a box; rows left out that are all told apart want no penalty whatever, so the
lower end of the box decides there. The runs of `penalties` with five folds again, the lower end moved.
"""

from pathlib import Path
from unittest import mock

import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from bilevel.estimators import _learn
from experiments._harness import console, record, style
from experiments.statistics import penalties, tables

TABLES = (tables.cancer, tables.wine)
SHARED = ("group", "feature")
FLOORS, SPLITS = (1e-2, 1e-4, 1e-6), 5
INKS = dict(zip(FLOORS, ("#E69F00", "#0072B2", "#C1121F"), strict=True))


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    made, count = ((tables.iris,), 2) if smoke else (TABLES, SPLITS)
    every = [(make, shared, floor) for make in made for shared in SHARED for floor in FLOORS]
    for make, shared, floor in (bar := tqdm(every, disable=None)):
        if (run := f"{make.__name__}, {shared}, {floor:g}") in log.finished():
            continue
        bar.set_description(run)
        table = make()
        log.write("config", run, table=make.__name__, shared=shared, floor=floor, **record.environment())
        losses = []
        for split in range(count):
            with mock.patch.object(_learn, "SEVERAL", floor):
                judged = penalties.judge(table, shared, 5, split)
            losses.append(judged["test_loss"])
            log.write("judged", run, k=split, **judged)
        log.write("end", run, test_loss=np.mean(losses), standard_error=penalties.error(np.array(losses)))


def named(runs: dict[str, record.Run]) -> list[str]:
    return list(dict.fromkeys(run.rsplit(", ", 1)[0] for run in runs))


def report(runs: dict[str, record.Run]) -> None:
    """The mean test losses, and by how much those of 1e-2 are lower, split by split."""
    rows = []
    for name in named(runs):
        losses = {floor: runs[f"{name}, {floor:g}"].judged["test_loss"] for floor in FLOORS}
        gains = [losses[floor] - losses[1e-2] for floor in FLOORS if floor != 1e-2]
        shown = [f"{gain.mean():+.4f} ({penalties.error(gain):.4f})" for gain in gains]
        rows.append((name, *(f"{losses[floor].mean():.4f}" for floor in FLOORS), *shown))
    head = ("mean test loss", *(f"least {floor:g}" for floor in FLOORS), "1e-2's gain on 1e-4", "on 1e-6")
    print(console.table(head, rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    names = named(runs)
    figure, axes = plt.subplots(figsize=(7, 4))
    for j, floor in enumerate(FLOORS):
        losses = [runs[f"{name}, {floor:g}"].judged["test_loss"] for name in names]
        places, errors = np.arange(len(names)) + 0.2 * (j - 1), [2 * penalties.error(loss) for loss in losses]
        means = [loss.mean() for loss in losses]
        axes.errorbar(places, means, errors, fmt="o", ms=4, color=INKS[floor], label=f"least {floor:g}")
    axes.set(xticks=range(len(names)), ylabel="test loss")
    axes.set_xticklabels(names, rotation=30, ha="right")
    axes.legend()
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("floors", __doc__.splitlines()[0], solve, report, draw)
