"""The runs of `lstm`: self-tuned, along a schedule, with fixed values, and the trainings of two searches."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optuna

from bilevel import stn
from bilevel.problems import text
from experiments._harness import record
from experiments.networks import language
from experiments.networks.language import LSTM, NAMES


class Sizes(NamedTuple):
    """Larger on request: these are chosen so that the longest run takes a quarter of an hour on two cores."""

    tokens: int = 200_000
    vocabulary: int = 4000
    units: int = 200
    length: int = 35
    batch: int = 20
    epochs: int = 15
    trials: int = 3  # of each search, the first of them shared: about Delta-STN's time


SMOKE = Sizes(tokens=4000, vocabulary=200, units=12, length=20, batch=20, epochs=2, trials=2)
START, OTHER_STARTS, GRID = 0.3, (0.9, 0.05, 0.7, 0.5), (0.2, 0.35, 0.5, 0.65, 0.8)
STD, AMPLITUDE, PERIOD = 0.05, 0.1, 1200  # of the noise, as in the published code; the period in batches
SEED = 0
METHODS = {"Delta-STN": stn.delta_stn, "STN": stn.stn}
SEARCHES = {
    "random search": lambda k: optuna.samplers.RandomSampler(seed=k),
    "Optuna TPE": lambda k: optuna.samplers.TPESampler(seed=1000 + k, n_startup_trials=5),
}
RATES, PENALTIES = NAMES[:5], NAMES[5:]
RANGES = {name: optuna.distributions.FloatDistribution(0.0, 0.95) for name in RATES} | {
    name: optuna.distributions.FloatDistribution(1e-3, 10.0, log=True) for name in PENALTIES
}
FIRST = dict.fromkeys(RATES, 0.05) | dict.fromkeys(PENALTIES, 0.1)  # where STN starts, and both searches
FIXED = "seven, fixed where STN starts"
SCHEDULE, HELD = "an LSTM along Delta-STN's schedule", "Delta-STN's last value, fixed"
GAUSSIAN, SINUSOIDAL = "the best fixed rate, Gaussian noise", "the best fixed rate, sinusoidal noise"


def tuned(method: str, start: float) -> str:
    return f"{method} from {start:g}"


def seven(method: str, k: int | None = None) -> str:
    return f"seven, {method}" if k is None else f"seven, {method}, trial {k}"


# One of each kind, for nearly all of a smoke run is compiling.
SMOKED = (tuned("Delta-STN", START), "fixed 0.2", SCHEDULE, GAUSSIAN, seven("STN"), FIXED, seven("Optuna TPE", 1))


class Study:
    """What the runs share: data, sizes, log. A run that the log has is not done again."""

    def __init__(self, log: record.Log, packaged: bool, smoke: bool):
        self.log, self.smoke, self.sizes = log, smoke, SMOKE if smoke else Sizes()
        make = language.packaged if packaged else text.corpus
        corpus = make(self.sizes.tokens, self.sizes.vocabulary)
        self.train, self.valid, self.test = (language.windows(part, self.sizes.length) for part in corpus[:3])
        self.vocabulary = len(corpus.words)
        self.steps = len(self.train.words) // self.sizes.batch
        self.config = {"source": "help()" if packaged else "State of the Union", "seed": SEED, **self.sizes._asdict()}

    def tune(self, name: str, method: str, space: stn.Space) -> None:
        """By STN or Delta-STN; the first schedule is kept beside the log at its full length, to be trained along."""
        if self.skips(name):
            return
        made = METHODS[method](language.WEIGHTS)
        model = language.convert(self._model(space.names), space, key=jax.random.key(SEED + 1))
        static = eqx.filter(model, eqx.is_inexact_array, inverse=True)

        def current(state):
            network = eqx.combine(state.weights, state.responses, static)
            return stn.bind(network, made.offset(space, state.u)), state.steps

        run = self._run(name, {"method": method}, current, lambda **options: stn.tune(
            model, space, language.train_loss, language.valid_loss, self.train, self.valid, made, **options
        ))  # fmt: skip
        if name == tuned("Delta-STN", START):
            run.schedule.save(self.schedule)

    def follow(self, name: str, schedule: stn.Schedule, **config: Any) -> None:
        """An ordinary training with the values of a schedule."""
        if self.skips(name):
            return
        model = self._model(tuple(schedule.values))
        static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
        self._run(name, config, lambda state: (eqx.combine(state[0], static), state[2]), lambda **options: stn.replay(
            model, schedule, language.train_loss, language.valid_loss, self.train, self.valid, language.WEIGHTS,
            **options,
        ))  # fmt: skip

    def skips(self, name: str) -> bool:
        return name in self.log.finished() or (self.smoke and name not in SMOKED)

    @property
    def schedule(self) -> Path:
        return self.log.path.with_suffix(".npz")

    def _model(self, names: tuple[str, ...]) -> LSTM:
        return LSTM(self.vocabulary, self.sizes.units, names, key=jax.random.key(SEED))

    def _run(self, name: str, config: dict, current: Callable, run: Callable[..., stn.Run]) -> stn.Run:
        """`current(state)` is the model and the number of steps. A line "step" an epoch, with the loss on the test set,
        whose `judging` seconds belong to nobody."""
        print(name, flush=True)
        self.log.checkpoints.mkdir(exist_ok=True)
        checkpoint = self.log.checkpoints / f"{self.log.path.stem}, {name}.npz"
        if not checkpoint.exists():
            self.log.write("config", name, **self.config, **config, **record.environment())

        def callback(so_far):
            state, entries = so_far.state, so_far.latest
            began = time.perf_counter()
            model, steps = current(state)
            tested = float(language.evaluate(model, self.test))
            judging = time.perf_counter() - began
            self.log.write("step", name, k=int(steps) // self.steps, test_loss=tested, **entries, judging=judging)

        found = run(
            key=jax.random.key(SEED + 2), epochs=self.sizes.epochs, batch_size=self.sizes.batch, callback=callback,
            checkpoint=checkpoint, resume="auto",
        )  # fmt: skip
        every = max(1, self.steps // 10)
        columns = {key: column[::every] for key, column in found.schedule.values.items()}
        schedule = {key: [float(f"{value:.4g}") for value in column] for key, column in columns.items()}
        self.log.write("end", name, schedule=schedule, message=found.message, compile_seconds=found.compile_seconds)
        checkpoint.unlink()
        return found


def trials(method: str) -> list[str]:
    """The runs of a search, or the one of STN, in their order; both searches begin with one that they share."""
    return [seven(method)] if method in METHODS else [FIXED, *(seven(method, k) for k in range(1, Sizes().trials))]


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    if smoke:
        jax.config.update("jax_disable_most_optimizations", True)  # and so it compiles twice as fast
    study = Study(log, packaged, smoke)

    def one(start):
        return stn.Space(output=stn.Rate(start))

    study.tune(tuned("Delta-STN", START), "Delta-STN", one(START))
    for rate in GRID:
        study.follow(f"fixed {rate:g}", stn.Schedule.fixed(output=rate), rate=rate)
    schedule = stn.Schedule.load(study.schedule)
    study.follow(SCHEDULE, schedule)
    study.follow(HELD, stn.Schedule.fixed(output=schedule.values["output"][-1]))
    best = best_fixed(record.read(log.path)).config["rate"]
    n = study.steps * study.sizes.epochs
    noise = STD * np.random.default_rng(SEED).normal(size=n), AMPLITUDE * np.sin(2 * np.pi * np.arange(n) / PERIOD)
    for name, part in zip((GAUSSIAN, SINUSOIDAL), noise, strict=True):
        study.follow(name, stn.Schedule({"output": np.clip(best + part, 0.0, 0.95).astype(np.float32)}))
    study.tune(tuned("STN", START), "STN", one(START))
    for start in OTHER_STARTS:
        study.tune(tuned("Delta-STN", start), "Delta-STN", one(start))

    space = stn.Space(
        **{name: stn.Rate(FIRST[name], draws="batch") for name in RATES},
        **{name: stn.Positive(FIRST[name], draws="batch") for name in PENALTIES},
    )
    for method in METHODS:
        study.tune(seven(method), method, space)
    study.follow(FIXED, stn.Schedule.fixed(**FIRST), values=FIRST)
    for k in range(1, study.sizes.trials):
        for method in SEARCHES:
            values = propose(method, k, record.read(log.path))
            study.follow(seven(method, k), stn.Schedule.fixed(**values), values=values)


def propose(method: str, k: int, runs: dict[str, record.Run]) -> dict[str, float]:
    """Trial k of a search after those before it, so that a search goes on where it was interrupted."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = optuna.create_study(sampler=SEARCHES[method](k))
    for trial in (runs[name] for name in trials(method)[:k]):
        search.add_trial(optuna.trial.create_trial(
            params=trial.config["values"], distributions=RANGES, value=trial.steps["valid_loss"].min()
        ))  # fmt: skip
    return search.ask(RANGES).params


def best_fixed(runs: dict[str, record.Run]) -> record.Run:
    """The fixed rate with the lowest validation loss."""
    return min((run for run in runs.values() if "rate" in run.config), key=lambda run: run.steps["valid_loss"].min())
