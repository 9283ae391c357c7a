"""min over lambda  L_valid(w(lambda)),   w(lambda) = argmin over w of E L_train(w, lambda), lambda of 15 numbers.

All 60 000 images of Fashion-MNIST: 50 000 to train and 10 000 to validate, drawn by seed; its 10 000 test images judge.
The CNN of `images` with twice the channels and units, and

    dropout of pixels and after three layers   4        brightness, contrast             2
    input noise                                1        shift, in parts of the side      1
    length and number of the holes of cutout   2        label smoothing                  1
                                                        weight decay of each layer       4

Mixup is none of them: it pairs the examples of a batch, so all draws would have to be shared by a batch.

Random search, Optuna's TPE with its median pruner and Delta-STN have `BUDGET` seconds each, without compiling, log and
tests; what begins inside counts. A training of a search has `EPOCHS` epochs, its first one the values where Delta-STN
starts, and first weights, losses, optimiser and order of batches are the same for all. The epoch with the least
validation loss is the one tested, whatever the method.

Then Delta-STN's schedule is replayed on a network twice as wide, which nothing tunes, until the epoch with the least
validation loss (of the schedule's first `REPLAYED`); beside it, for as many epochs, the values that the schedule ends
with there and those it starts with, held.
"""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from experiments._harness import console, record, style
from experiments.networks import fashion
from experiments.networks.images import everything
from experiments.networks.tune_runs import ALONG, LAST, METHODS, REPLAYS, START, TUNED, solve

MEASURED = ("value", "test_loss", "accuracy")
COLOURS = {ALONG: fashion.COLOURS[TUNED], LAST: "#D55E00", START: "#8A8A8A"}


def keep(runs: dict[str, record.Run]) -> dict[str, set[int]]:
    return {name: fashion.bests(run) for name, run in runs.items()}


def groups(runs: dict[str, record.Run], kinds: tuple[str, ...]) -> dict[str, list[record.Run]]:
    """By kind: the runs of all seeds."""
    found = {kind: [run for run in runs.values() if run.config["method"] == kind] for kind in kinds}
    return {kind: group for kind, group in found.items() if group}


def report(runs: dict[str, record.Run]) -> None:
    methods, rows = groups(runs, METHODS), []
    first = [
        run._replace(steps={name: column[:1] for name, column in run.steps.items()}) for run in methods[METHODS[0]]
    ]
    for label, group in {"its start, not tuned": first, **methods}.items():
        best = [run.steps["value"].argmin() for run in group]
        found = [[run.steps[name][k] for run, k in zip(group, best, strict=True)] for name in MEASURED]
        made = [
            (1, len(s["k"])) if label == TUNED else (len(s["k"]), s["epochs"].sum()) for s in (r.steps for r in group)
        ]
        seconds = np.mean([run.steps["seconds"][-1] for run in group])
        rows.append((label, *shown(found), *(f"{n:.0f}" for n in (*np.mean(made, axis=0), seconds)), len(group)))
    header = ("validation loss", "test loss", "test accuracy, %")
    data = next(iter(runs.values())).config["data"]
    print(console.table((data, *header, "trainings", "epochs", "seconds", "seeds"), rows) + "\n")

    rows = []
    for label, group in groups(runs, REPLAYS).items():
        found = [[run.end[name] for run in group] for name in MEASURED]
        epochs = np.mean([(run.end["k"], run.config["epochs"]) for run in group], axis=0)
        rows.append((label, *shown(found), *(f"{n:.0f}" for n in epochs), len(group)))
    print(console.table(("a network twice as wide", *header, "best epoch", "of", "seeds"), rows))


def shown(found: list[list[float]]) -> tuple[str, ...]:
    """Of each of `MEASURED`, by seed."""
    value, loss, accuracy = found
    return console.spread(value, 4), console.spread(loss, 4), console.spread(100 * np.array(accuracy), 2)


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    methods = groups(runs, METHODS)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.8, 4.4))
    fashion.race(left, methods, min(run.end["seconds"] for group in methods.values() for run in group))
    left.set(ylabel="least validation loss so far")
    left.legend()
    for label, group in groups(runs, REPLAYS).items():
        for i, run in enumerate(group):
            right.plot(run.steps["k"], run.steps["value"], color=COLOURS[label], lw=1.3, label=None if i else label)
    right.set(xlabel="epochs", ylabel="validation loss", title="a network twice as wide")
    right.legend()
    style.save(figure, figures.with_name(f"{figures.name}_losses.png"))
    if TUNED in methods:
        fashion.schedules({TUNED: methods[TUNED]}, (3, 5), figures)


if __name__ == "__main__":
    console.main(
        "tune", "Self-tuning of 15 hyperparameters on all of Fashion-MNIST, and its schedule on a wider network.",
        solve, report, draw, needs=partial(everything, False), keep=keep,
    )  # fmt: skip
