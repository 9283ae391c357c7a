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

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

from bilevel import stn
from bilevel.problems import labelled
from experiments._harness import console, record, style
from experiments.networks import searches

ADAM = {"MLP": optax.adam(1e-3), "CNN": optax.adam(3e-3)}
SELF_TUNING = {"STN": stn.stn, "Delta-STN": stn.delta_stn}
METHODS = (*searches.SEARCHES, *SELF_TUNING)
SEEDS, TRAININGS, EPOCHS, BATCH = (0, 1, 2), 20, 15, 100
WIDTH, CHANNELS, DENSE = 128, (8, 16), 64
DECAYS = (1e-7, 1e-2)  # for the searches; self-tuning has no bounds there
GRID = (0.0, 0.3, 0.6), (0.0, 0.3, 0.6), (1e-6, 1e-4)  # all dropouts, all augmentations (parts of the range), decay
PRUNE_AFTER = 5  # epochs
SMOKE = {"MLP": [m for m in METHODS if m != "STN"], "CNN": ["random search", "STN"]}  # each method, each network
COLOURS = style.COLOURS | {
    "random search": "#8A8A8A", "grid search": "#E69F00", "Optuna TPE, pruner": "#CC79A7",
    "STN": "#009E73", "Delta-STN": "#0072B2", "MLP": "#0072B2", "CNN": "#D55E00",
}  # fmt: skip
CLOCK = record.CompileClock()


class MLP(eqx.Module):
    layers: list[eqx.nn.Linear]
    drops: list[stn.Dropout]

    def __init__(self, side: int, key: PRNGKeyArray):
        sizes, keys = (side**2, WIDTH, WIDTH, 10), jax.random.split(key, 3)
        self.layers = [eqx.nn.Linear(*pair, key=k) for pair, k in zip(itertools.pairwise(sizes), keys, strict=True)]
        self.drops = [stn.Dropout("drop1"), stn.Dropout("drop2")]

    def __call__(self, image: Array, *, key: PRNGKeyArray | None = None) -> Array:
        x, keys = image.ravel(), [None] * 2 if key is None else jax.random.split(key, 2)
        for layer, drop, k in zip(self.layers[:-1], self.drops, keys, strict=True):
            x = drop(jax.nn.relu(layer(x)), key=k)
        return self.layers[-1](x)


class Convolution(eqx.Module):
    """Of (height, width, channels), with one pixel of padding, as a product with patches: XLA's own is many times
    slower inside a compiled loop on CPUs (jax-ml/jax#12868), its derivative with respect to the kernel above all."""

    linear: eqx.nn.Linear
    kernel: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        x = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        reach = len(x) - self.kernel + 1
        places = [slice(i, i + reach, self.stride) for i in range(self.kernel)]
        patches = jnp.concatenate([x[rows, columns] for rows in places for columns in places], axis=-1)
        return jax.vmap(jax.vmap(self.linear))(patches)


class CNN(eqx.Module):
    layers: list[Convolution | eqx.nn.Linear]
    drops: list[stn.Dropout]

    def __init__(self, side: int, key: PRNGKeyArray):
        one, two, three, four = jax.random.split(key, 4)
        first, second = CHANNELS
        grid = (side - 3) // 3 + 1
        grid = (grid - 1) // 2 + 1
        self.layers = [
            Convolution(eqx.nn.Linear(5 * 5, first, key=one), kernel=5, stride=3),
            Convolution(eqx.nn.Linear(3 * 3 * first, second, key=two), kernel=3, stride=2),
            eqx.nn.Linear(second * grid**2, DENSE, key=three),
            eqx.nn.Linear(DENSE, 10, key=four),
        ]
        channels = {"shared": (0, 1)}  # dropped as a whole
        self.drops = [stn.Dropout("drop1", **channels), stn.Dropout("drop2", **channels), stn.Dropout("drop3")]

    def __call__(self, image: Array, *, key: PRNGKeyArray | None = None) -> Array:
        x, keys = jnp.moveaxis(image, 0, -1), [None] * 3 if key is None else jax.random.split(key, 3)
        for i, (layer, drop, k) in enumerate(zip(self.layers[:-1], self.drops, keys, strict=True)):
            x = drop(jax.nn.relu(layer(x.ravel() if i == 2 else x)), key=k)
        return self.layers[-1](x)


NETWORKS = {"MLP": MLP, "CNN": CNN}


def space(model: MLP | CNN, side: int) -> stn.Space:
    """All regularisation is weak at the start."""
    return stn.Space(
        **{drop.name: stn.Rate(0.05, high=0.75) for drop in model.drops},
        noise=stn.Real(0.05, 0, 0.5),
        length=stn.Integer(side // 8, 0, side // 2),
        holes=stn.Integer(1, 0, 3),
        brightness=stn.Real(0.05, 0, 1),
        contrast=stn.Real(0.05, 0, 1),
        decay=stn.Positive(1e-5),
    )


def augmented(image: Array, hyper: dict[str, Array], key: PRNGKeyArray) -> Array:
    one, two, three, four = jax.random.split(key, 4)
    image = stn.augment.noise(image, hyper["noise"], one)  # first: XLA would draw it again for each patch of the CNN
    image = stn.augment.brightness(image, hyper["brightness"], two)
    image = stn.augment.contrast(image, hyper["contrast"], three)
    return stn.augment.cutout(image, stn.augment.Holes(hyper["length"], hyper["holes"]), four)


def train_loss(model: Callable, batch: tuple, hyper: dict[str, Array], key: PRNGKeyArray) -> Array:
    images, labels = batch
    one, two = jax.random.split(key, (2, len(images)))
    images = jax.vmap(lambda image, key: augmented(image, hyper, key))(images, one)
    logits = jax.vmap(lambda image, key: model(image, key=key))(images, two)
    return cross_entropy(logits, labels) + hyper["decay"] * stn.squared_norm(model)


def valid_loss(model: Callable, batch: tuple) -> Array:
    return cross_entropy(jax.vmap(model)(batch[0]), batch[1])


def cross_entropy(logits: Array, labels: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@eqx.filter_jit
def _judge(model, images, labels):
    logits = jax.vmap(eqx.nn.inference_mode(model))(images)
    return cross_entropy(logits, labels), jnp.mean(jnp.argmax(logits, 1) == labels)


def judge(model: PyTree, test: tuple) -> dict[str, float]:
    loss, accuracy = _judge(model, *test)
    return {"test_loss": float(loss), "accuracy": float(accuracy)}


@cache
def everything(packaged: bool) -> Any:
    return labelled.digits(np.float32) if packaged else labelled.fashion_mnist(28, np.float32)


def data(packaged: bool, seed: int) -> list[tuple[Array, Array]]:
    """Training, validation and test set: images (n, 1, side, side) and labels (n,)."""
    if packaged:
        parts = labelled.split(everything(True), (900, 400, 497), seed=seed)
    else:
        parts = (*labelled.split(everything(False).train, (10_000, 5_000), seed=seed), everything(False).test)
    side = math.isqrt(parts[0].features.shape[1])
    return [(jnp.asarray(part.features.reshape(-1, 1, side, side)), jnp.asarray(part.labels)) for part in parts]


class Budget(NamedTuple):
    """Spent when all three are."""

    seconds: float
    gradients: int
    trainings: int = 0

    def spent(self, seconds: float, gradients: int, trainings: int) -> bool:
        return seconds >= self.seconds and gradients >= self.gradients and trainings >= self.trainings


class Spent(Exception):
    """The budget has ended."""


def search(log, run, config, plain, model, sets, budget: Budget) -> dict[str, Any]:
    """A line for every training; the run's last line."""
    (train, valid, test), method, seed, epochs = sets, config["method"], config["seed"], config["epochs"]
    key = jax.random.key(seed)
    plain.compile(model, train, valid, key)
    per_epoch, first = len(train[1]) // BATCH, grid(plain.space) if method == "grid search" else [starts(plain.space)]
    first = [first[k] for k in np.random.default_rng(seed).permutation(len(first))]
    study = searches.study(method, first, seed, min(PRUNE_AFTER, epochs))
    ranges = searches.ranges(plain.space, DECAYS)
    began, aside, gradients = time.perf_counter(), 0.0, 0
    trials = searches.trials(study, ranges, lambda values: plain.epochs(model, values, train, valid, key), epochs)
    for k, trial in enumerate(itertools.islice(trials, len(first)) if method == "grid search" else trials, 1):
        seconds, paused = time.perf_counter() - began - aside, time.perf_counter()
        gradients += trial.epochs * per_epoch
        row = {"value": trial.value, "seconds": seconds, "gradients": gradients, "epochs": trial.epochs}
        log.write(
            "step",
            run,
            k=k,
            **row,
            best=trial.best,
            **judge(trial.model if trial.best else model, test),
            **trial.values,
        )
        if budget.spent(seconds, gradients, k):
            break
        aside += time.perf_counter() - paused
    return {"seconds": seconds, "gradients": gradients, "compile_seconds": plain.compile_seconds}


def self_tune(log, run, config, plain, model, sets, budget: Budget) -> dict[str, Any]:
    """A line for every epoch, with the test of those that are the best so far; the run's last line."""
    (train, valid, test), key = sets, jax.random.key(config["seed"])
    method = SELF_TUNING[config["method"]](plain.optimiser)
    network = stn.convert(model, plain.space, key=jax.random.fold_in(key, 1))
    static = eqx.filter(network, eqx.is_inexact_array, inverse=True)
    judge(model, test)  # compiles
    compiled, per_epoch, aside, best, k, last = CLOCK.seconds, len(train[1]) // BATCH, 0.0, math.inf, 0, {}

    def callback(state, entries):
        nonlocal aside, best, k, last
        paused, k, value = time.perf_counter(), k + 1, float(entries["valid_loss"])
        now = eqx.combine(state.weights, state.responses, static)
        tested = {"test_loss": math.nan, "accuracy": math.nan}
        if value < best:
            best, tested = value, judge(stn.materialise(now, None if method.centred else state.u), test)
        last = {"seconds": entries["seconds"] - aside, "gradients": gradients(method, k * per_epoch, per_epoch)}
        others = {name: entry for name, entry in entries.items() if name not in ("seconds", "valid_loss")}
        log.write("step", run, k=k, value=value, **last, **tested, **others)
        if budget.spent(**last, trainings=0):
            raise Spent
        aside += time.perf_counter() - paused  # the seconds of `entries` run on while this does

    result = "The budget was used up."
    with contextlib.suppress(Spent):
        result = stn.tune(
            network, plain.space, train_loss, valid_loss, train, valid, method, key=key, epochs=sys.maxsize,
            batch_size=BATCH, progress=False, callback=callback,
        ).message  # fmt: skip
    return last | {"compile_seconds": CLOCK.seconds - compiled, "result": result}


def gradients(method: stn.Method, steps: int, per_epoch: int) -> int:
    """Taken in so many training steps."""
    rounds = steps // method.train_steps - method.warmup * per_epoch // method.train_steps
    return steps * (2 if method.decoupled else 1) + method.valid_steps * max(0, rounds)


def starts(space: stn.Space) -> searches.Values:
    return {name: one.start for name, one in zip(space, space.hyperparameters, strict=True)}


def grid(space: stn.Space) -> list[searches.Values]:
    def value(one, part):
        exact = one.low + part * (one.high - one.low)
        return round(exact) if isinstance(one, stn.Integer) else exact

    pairs = list(zip(space, space.hyperparameters, strict=True))
    return [
        {
            name: decay if isinstance(one, stn.Positive) else value(one, drop if isinstance(one, stn.Rate) else augment)
            for name, one in pairs
        }
        for drop, augment, decay in itertools.product(*GRID)
    ]


def name(method: str, network: str, seed: int) -> str:
    return f"{method}, {network}, {seed}"


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    trainings, epochs, seeds = (6, 2, SEEDS[:1]) if smoke else (TRAININGS, EPOCHS, SEEDS)
    jax.config.update("jax_disable_most_optimizations", smoke)  # most of a smoke run is compiling
    runs = [
        (network, seed, method)
        for network, seed, method in itertools.product(NETWORKS, seeds, METHODS)
        if name(method, network, seed) not in log.finished() and (not smoke or method in SMOKE[network])
    ]
    plains: dict[str, searches.Plain] = {}
    for network, seed, method in (bar := tqdm(runs, disable=None)):
        run = name(method, network, seed)
        bar.set_description(run)
        sets = data(packaged, seed)
        side = sets[0][0].shape[-1]
        model = NETWORKS[network](side, jax.random.key(seed))
        if network not in plains:
            plains[network] = searches.Plain(model, space(model, side), train_loss, valid_loss, ADAM[network], BATCH)
        if method == METHODS[0]:
            budget = Budget(0.0, 0, trainings)
        else:
            random = record.read(log.path)[name(METHODS[0], network, seed)].end
            budget = Budget(random["seconds"], random["gradients"])
        config = {"method": method, "network": network, "seed": seed, "data": "digits" if packaged else "Fashion-MNIST"}
        config |= {"sizes": [len(part[1]) for part in sets], "batch": BATCH, "epochs": epochs}
        log.write("config", run, **config, space=str(plains[network].space), **record.environment())
        run_it = self_tune if method in SELF_TUNING else search
        log.write("end", run, **run_it(log, run, config, plains[network], model, sets, budget))


def found(run: record.Run, by: str, limit: float) -> tuple[int, int]:
    """(which step is the best of those that began before `limit` seconds or gradients, which is the last of these)."""
    last = min(int(np.searchsorted(run.steps[by], limit)), len(run.steps["k"]) - 1)
    return int(np.nanargmin(run.steps["value"][: last + 1])), last


def keep(runs: dict[str, record.Run]) -> dict[str, set[int]]:
    """The trainings of a search; the epochs of a self-tuned network that are the best so far or in which a budget
    ended, and every other one of Delta-STN's, whose schedules are drawn."""
    kept = {}
    for key, run in runs.items():
        value, random = run.steps["value"], runs[name(METHODS[0], run.config["network"], run.config["seed"])].end
        best = value < np.fmin.accumulate(np.append(np.inf, value[:-1]))
        ends = [found(run, by, random[by])[1] for by in ("seconds", "gradients")]
        every = {"Delta-STN": 2, "STN": len(value)}.get(run.config["method"], 1)
        kept[key] = {int(k) for k in (*run.steps["k"][best], *run.steps["k"][ends], *run.steps["k"][::every])}
    return kept


def groups(runs: dict[str, record.Run]) -> dict[str, dict[str, list[record.Run]]]:
    """By network and method: the runs of all seeds for which there is a budget."""
    table: dict[str, dict[str, list[record.Run]]] = {}
    for network, method, seed in itertools.product(NETWORKS, METHODS, SEEDS):
        if name(METHODS[0], network, seed) in runs and name(method, network, seed) in runs:
            table.setdefault(network, {}).setdefault(method, []).append(runs[name(method, network, seed)])
    return table


def report(runs: dict[str, record.Run]) -> None:
    def spread(numbers, digits):
        return f"{np.mean(numbers):.{digits}f} ± {np.std(numbers, ddof=min(1, len(numbers) - 1)):.{digits}f}"

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
                label, spread(columns["value"], 4), spread(columns["test_loss"], 4),
                spread(100 * np.array(columns["accuracy"]), 2), f"{np.mean(columns['inside']):.0f} {what}", len(group),
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
        for method, group in methods.items():
            grid = np.geomspace(
                max(run.steps["seconds"][0] for run in group), min(run.steps["seconds"][-1] for run in group), 200
            )
            best = np.array([so_far(run, grid) for run in group])
            a.plot(grid, best.mean(0), color=COLOURS[method], label=method)
            a.fill_between(grid, best.min(0), best.max(0), color=COLOURS[method], alpha=0.15, lw=0)
        budget = np.mean([run.end["seconds"] for run in methods[METHODS[0]]])
        a.axvline(budget, color=style.INK, ls=":", lw=1, label="the budget of seconds")
        a.set(xscale="log", xlabel="seconds, without compilation", title=network)
        a.xaxis.set_minor_formatter(NullFormatter())
        a.set_ylim(top=1.2 * max(np.nanmin(run.steps["value"]) for run in methods[METHODS[0]]))
    axes[0, 0].set(ylabel="least validation loss so far")
    figure.legend(
        *max((a.get_legend_handles_labels() for a in axes[0]), key=lambda both: len(both[1])),
        loc="outside lower center",
        ncols=4,
    )
    style.save(figure, figures.with_name(f"{figures.name}_seconds.png"))

    tuned = {network: methods["Delta-STN"] for network, methods in table.items() if "Delta-STN" in methods}
    scales = "scale of "
    names = [[c.removeprefix(scales) for c in group[0].steps if c.startswith(scales)] for group in tuned.values()]
    figure, axes = plt.subplots(3, 3, figsize=(9.6, 6.6), sharex=True)
    for a, column in itertools.zip_longest(axes.flat, max(names, key=len)):
        a.set_visible(column is not None)
        for network, group in tuned.items():
            for i, run in enumerate(run for run in group if column in run.steps):
                label = network if i == 0 else None
                a.plot(run.steps["k"], run.steps[column], color=COLOURS[network], lw=1.2, label=label)
        a.set(title=column, yscale="log" if column == "decay" else "linear")
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
