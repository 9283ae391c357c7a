"""The runs of `fashion`: four searches and two self-tunings, each until its budget is spent."""

import itertools
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from tqdm import tqdm

from bilevel import stn
from experiments._harness import record
from experiments.networks import searches
from experiments.networks.images import ADAM, BATCH, NETWORKS, data, judge, space, starts, train_loss, valid_loss

SELF_TUNING = {"STN": stn.stn, "Delta-STN": stn.delta_stn}
METHODS = (*searches.SEARCHES, *SELF_TUNING)
SEEDS, TRAININGS, EPOCHS = (0, 1, 2), 20, 15
DECAYS = (1e-7, 1e-2)  # for the searches; self-tuning has no bounds there
GRID = (0.0, 0.3, 0.6), (0.0, 0.3, 0.6), (1e-6, 1e-4)  # all dropouts, all augmentations (parts of the range), decay
PRUNE_AFTER = 3  # one in so many of a training's epochs
SMOKE = {"MLP": [m for m in METHODS if m != "STN"], "CNN": ["random search", "STN"]}  # each method, each network
CLOCK = record.CompileClock()


class Budget(NamedTuple):
    """Spent when all three are."""

    seconds: float
    gradients: int
    trainings: int = 0

    def spent(self, seconds: float, gradients: int, trainings: int) -> bool:
        return seconds >= self.seconds and gradients >= self.gradients and trainings >= self.trainings


def search(log, run, config, plain, model, sets, budget: Budget) -> dict[str, Any]:
    """A line for every training; the run's last line."""
    (train, valid, test), method, seed, epochs = sets, config["method"], config["seed"], config["epochs"]
    key = jax.random.key(seed)
    plain.compile(model, train, valid, key)
    per_epoch, first = len(train[1]) // BATCH, grid(plain.space) if method == "grid search" else [starts(plain.space)]
    first = [first[k] for k in np.random.default_rng(seed).permutation(len(first))]
    study = searches.study(method, first, seed, epochs // PRUNE_AFTER)
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


def self_tune(log, run, config, plain, model, sets, budget: Budget, schedule: Path | None = None) -> dict[str, Any]:
    """A line for every epoch, with the test of those that are the best so far; the run's last line. The schedule goes
    into the file of that name."""
    (train, valid, test), key = sets, jax.random.key(config["seed"])
    method = SELF_TUNING[config["method"]](plain.optimiser)
    network = stn.convert(model, plain.space, key=jax.random.fold_in(key, 1))
    static = eqx.filter(network, eqx.is_inexact_array, inverse=True)
    judge(model, test)  # compiles
    compiled, per_epoch, aside, best, k, last = CLOCK.seconds, len(train[1]) // BATCH, 0.0, math.inf, 0, {}

    def callback(so_far):
        state, entries = so_far.state, so_far.latest
        nonlocal aside, best, k, last
        paused, k, value = time.perf_counter(), k + 1, float(entries["valid_loss"])
        now = eqx.combine(state.weights, state.responses, static)
        tested = {"test_loss": math.nan, "accuracy": math.nan}
        if value < best:
            best, tested = value, judge(stn.materialise(now, method.offset(plain.space, state.u)), test)
        last = {"seconds": entries["seconds"] - aside, "gradients": gradients(method, k * per_epoch, per_epoch)}
        others = {name: entry for name, entry in entries.items() if name not in ("seconds", "valid_loss")}
        log.write("step", run, k=k, value=value, **last, **tested, **others)
        aside += time.perf_counter() - paused  # the seconds of `entries` run on while this does
        return budget.spent(**last, trainings=0)

    found = stn.tune(
        network, plain.space, *plain.losses, train, valid, method, key=key, epochs=sys.maxsize, batch_size=BATCH,
        progress=False, callback=callback,
    )  # fmt: skip
    if schedule is not None:
        found.schedule.save(schedule)
    stopped = found.outcome == stn.OUTCOMES.stopped
    result = "The budget was used up." if stopped else found.message
    return last | {"compile_seconds": CLOCK.seconds - compiled, "result": result}


def gradients(method: stn.Method, steps: int, per_epoch: int) -> int:
    """Taken in so many training steps."""
    rounds = steps // method.train_steps - method.warmup * per_epoch // method.train_steps
    return steps * (2 if method.decoupled else 1) + method.valid_steps * max(0, rounds)


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
