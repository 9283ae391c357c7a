"""Delta-STN minus one part: what is each worth?

(a) w      -=  gradient of  L_train(y(w), u)                               decoupled: else w and phi both from (b)
(b) phi    -=  gradient of  E_e L_train(y(w) + dy/de (w, phi) e, u + e)    linearised: else y(w, phi, e); centred: else
                                                                           the gates see e and how far u is from its
                                                                           start; e ~ N(0, sigma^2)
(c) u, rho -=  gradient of  E_e L_valid - tau entropy(rho)                 learned scales: else rho stays; entropy: tau
pairs      e and -e, on half of the batch: else e alone, on all of it

The prediction can be linearised only where the gates are centred and w is decoupled, so these three are taken away in
turn; what is then left is STN, whose published schedule validates after every second step and not every fifth. The
others are changed one at a time. The MLP, hyperparameters, losses and data of `images.py` (Fashion-MNIST: 10 000
images to train, 5 000 to validate, 10 000 to test; packaged: digits), a number of epochs fixed for all, the last one
tested.
"""

import itertools
from functools import partial, reduce
from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from bilevel import stn
from experiments._harness import console, record, style
from experiments.networks import images

SEEDS, EPOCHS = (0, 1, 2), 50
DELTA = partial(stn.delta_stn, images.ADAM["MLP"])
METHODS = {
    "Delta-STN": DELTA(),
    "not linearised": DELTA(linearised=False),
    "nor decoupled": DELTA(linearised=False, decoupled=False),
    "nor centred": DELTA(linearised=False, decoupled=False, centred=False),
    "STN": stn.stn(images.ADAM["MLP"]),
    "no pairs": DELTA(antithetic=False),
    "fixed scales": DELTA(learn_scales=False),
    "no entropy": DELTA(entropy=0.0),
    "ten times the entropy": DELTA(entropy=1e-2),
}
UNTUNED = "start, not tuned"
COLOURS = {
    "Delta-STN": style.COLOURS["maid"], "not linearised": "#56B4E9", "nor decoupled": "#CC79A7",
    "nor centred": "#E69F00", "STN": "#009E73", "no pairs": "#44AA99", "fixed scales": "#D55E00",
    "no entropy": "#999933", "ten times the entropy": "#882255", UNTUNED: "#8A8A8A",
}  # fmt: skip


def one(log: record.Log, run: str, method: str, seed: int, packaged: bool, epochs: int) -> None:
    """A line for every epoch; the last has the test."""
    train, valid, test = images.data(packaged, seed)
    side, key, done = train[0].shape[-1], jax.random.key(seed), itertools.count(1)
    model = images.MLP(side, key)
    space = images.space(model, side)
    log.write("config", run, method=method, seed=seed, epochs=epochs, batch=images.BATCH, space=str(space),
              data="digits" if packaged else "Fashion-MNIST", **record.environment())  # fmt: skip

    def callback(so_far):
        log.write("step", run, k=next(done), **so_far.latest)

    losses = (images.train_loss, images.valid_loss, train, valid)
    options = {"key": key, "epochs": epochs, "batch_size": images.BATCH, "progress": False, "callback": callback}
    if method == UNTUNED:
        found = stn.replay(model, stn.Schedule.fixed(**images.starts(space)), *losses, images.ADAM["MLP"], **options)
    else:
        network = stn.convert(model, space, key=jax.random.fold_in(key, 1))
        found = stn.tune(network, space, *losses, METHODS[method], **options)
    log.write(
        "end", run, **images.judge(found.model, test), valid_loss=found.history["valid_loss"][-1],
        seconds=found.history["seconds"][-1], compile_seconds=found.compile_seconds, result=found.message,
    )  # fmt: skip


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    methods = ("STN", UNTUNED) if smoke else (*METHODS, UNTUNED)
    runs = list(itertools.product(SEEDS[:1] if smoke else SEEDS, methods))
    for seed, method in (bar := tqdm(runs, disable=None)):
        run = f"{method}, {seed}"
        bar.set_description(run)
        if run not in log.finished():
            one(log, run, method, seed, packaged, 3 if smoke else EPOCHS)


def groups(runs: dict[str, record.Run]) -> dict[str, list[record.Run]]:
    """By method: the runs of all seeds."""
    found = {m: [run for run in runs.values() if run.config["method"] == m] for m in COLOURS}
    return {method: group for method, group in found.items() if group}


def report(runs: dict[str, record.Run]) -> None:
    def spread(group, column, factor=1, digits=4):
        return console.spread(factor * np.array([run.end[column] for run in group]), digits)

    rows = [
        (
            method, spread(group, "valid_loss"), spread(group, "test_loss"), spread(group, "accuracy", 100, 2),
            f"{np.mean([run.end['seconds'] for run in group]):.0f}",
            f"{np.mean([run.end['compile_seconds'] for run in group]):.0f}", len(group),
        )
        for method, group in groups(runs).items()
    ]  # fmt: skip
    config = next(iter(runs.values())).config
    print(
        f"{config['data']}, {config['epochs']} epochs, tested after the last; mean and standard deviation over seeds\n"
    )
    print(console.table(("", "validation loss", "test loss", "test accuracy, %", "s", "s compiling", "seeds"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    table = groups(runs)
    k = reduce(np.intersect1d, (run.steps["k"] for group in table.values() for run in group))  # logs are thinned

    def courses(group, column):
        return np.array([run.steps[column][np.isin(run.steps["k"], k)] for run in group])

    figure, axes = plt.subplots(1, 2, figsize=(10.8, 4.4), sharey=True)
    chain = ("Delta-STN", "not linearised", "nor decoupled", "nor centred", "STN", UNTUNED)
    sides = {
        "one part after another": [m for m in chain if m in table],
        "one part": [m for m in table if m not in chain[1:]],
    }
    ends = []
    for a, (title, methods) in zip(axes, sides.items(), strict=True):
        for method in methods:
            loss = courses(table[method], "valid_loss")
            a.plot(k, loss.mean(0), color=COLOURS[method], label=method)
            a.fill_between(k, loss.min(0), loss.max(0), color=COLOURS[method], alpha=0.12, lw=0)
            ends.append(loss.mean(0))
        a.set(xlabel="epochs", title=title)
        a.legend()
    ends = np.array(ends)
    axes[0].set(ylabel="validation loss", ylim=(0.97 * ends.min(), 1.02 * np.median(ends[:, k <= 1 + k[-1] // 8])))
    style.save(figure, figures.with_name(f"{figures.name}_losses.png"))

    steps = next(iter(table.values()))[0].steps
    columns = [column for column in steps if f"scale of {column}" in steps]
    figure, axes = plt.subplots(2, 4, figsize=(12.6, 5.6), sharex=True)
    for a, column in zip(axes.flat, columns, strict=True):
        for method, group in table.items():
            if method != UNTUNED:
                a.plot(k, courses(group, column).mean(0), color=COLOURS[method], lw=1.3, label=method)
        a.set(title=column, yscale="log" if column == "decay" else "linear")
    for a in axes[-1]:
        a.set(xlabel="epochs")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    style.save(figure, figures.with_name(f"{figures.name}_schedules.png"))


if __name__ == "__main__":
    console.main(
        "ablation", "Delta-STN minus one part, on Fashion-MNIST.", solve, report, draw,
        needs=partial(images.everything, False),
    )  # fmt: skip
