"""min over theta  v(theta),    v(theta) = the least validation loss, over E epochs, of a network trained with theta.

Searches over hyperparameters that do not change while a network trains: random, grid, and Bayesian optimisation by
Optuna's TPE, without and with its median pruner. All four are one Optuna study that is asked for the next theta; they
differ in its sampler, its pruner and its first thetas. `Plain` is the training: one epoch is one program, compiled once
for all thetas, since their values are traced; it is the epoch of `stn.replay`, handed out one by one as a pruner needs.
`stn.replay` itself has the schedule as a constant of its program, and would compile again for every theta, which takes
longer than the training.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optuna
from jaxtyping import PRNGKeyArray, PyTree

from bilevel import stn
from bilevel.stn.epochs import Program

SEARCHES = ("random search", "grid search", "Optuna TPE", "Optuna TPE, pruner")

Values = dict[str, float | int]


class Plain:
    """A network trained with fixed hyperparameters, by the losses and the optimiser that a self-tuning one has.

    `model` is any of the networks to be trained, before `stn.convert`: they may differ in their weights.
    """

    def __init__(
        self, model: PyTree, space: stn.Space, train_loss: Callable, valid_loss: Callable, optimiser: Any, batch: int
    ):
        static = eqx.filter(model, eqx.is_inexact_array, inverse=True)

        def step(state, batch, key):
            weights, inner, values, count = state

            def loss(weights):
                return train_loss(stn.bind(eqx.combine(weights, static), None, values), batch, values, key)

            value, gradient = jax.value_and_grad(loss)(weights)
            updates, inner = optimiser.update(gradient, inner, weights)
            return (eqx.apply_updates(weights, updates), inner, values, count + 1), value

        def judge(state, batch):
            return {"valid_loss": valid_loss(eqx.nn.inference_mode(eqx.combine(state[0], static)), batch)}

        program = Program(
            train=step,
            valid=None,
            values=lambda state: state[2],
            scales=lambda state: {},
            judge=judge,
            count=lambda state: state[3],
            batch_size=batch,
        )
        self.space, self.losses, self.optimiser, self.static = space, (train_loss, valid_loss), optimiser, static
        self._epoch, self._compiled, self.compile_seconds = jax.jit(lambda *args: program.epoch(*args)), None, 0.0

    def compile(self, model: PyTree, train: PyTree, valid: PyTree, key: PRNGKeyArray) -> None:
        """Once, for data of these shapes; to be called before `epochs`."""
        if self._compiled is None:
            began = time.perf_counter()
            state = self._start(model, dict.fromkeys(self.space, 1))
            self._compiled = self._epoch.lower(state, train, valid, key).compile()
            next(self.epochs(model, dict.fromkeys(self.space, 0), train, valid, key))  # the small programs around it
            self.compile_seconds = time.perf_counter() - began

    def epochs(
        self, model: PyTree, values: Values, train: PyTree, valid: PyTree, key: PRNGKeyArray
    ) -> Iterator[tuple[PyTree, float]]:
        """(model, validation loss) after each epoch, without end."""
        state = self._start(model, values)
        for k in itertools.count():
            state, record = self._compiled(state, train, valid, jax.random.fold_in(key, k))
            yield eqx.combine(state[0], self.static), float(record["valid"]["valid_loss"])

    def _start(self, model, values):
        weights = eqx.filter(model, eqx.is_inexact_array)
        u, _ = self.space.start(jax.tree.leaves(weights)[0].dtype)
        values = {name: jnp.asarray(values[name], like.dtype) for name, like in self.space.values(u).items()}
        return weights, self.optimiser.init(weights), values, jnp.zeros((), jnp.int32)


class Trial(NamedTuple):
    """One training: how many epochs it had, which was the best of them (from 1), validation loss and model there."""

    values: Values
    epochs: int = 0
    best: int = 0
    value: float = math.inf
    model: PyTree = None


def trials(
    study: optuna.Study,
    ranges: dict[str, optuna.distributions.BaseDistribution],
    train: Callable[[Values], Iterator[tuple[PyTree, float]]],
    epochs: int,
) -> Iterator[Trial]:
    """Training after training, without end; `train(values)` generates (model, validation loss) epoch after epoch."""
    while True:
        asked, pruned = study.ask(ranges), False
        trial = Trial(asked.params)
        for k, (model, value) in zip(range(1, epochs + 1), train(asked.params), strict=False):
            trial = trial._replace(epochs=k)
            if value < trial.value:
                trial = trial._replace(best=k, value=value, model=model)
            asked.report(value, k)
            if pruned := asked.should_prune():
                break
        if pruned:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(asked, trial.value)
        yield trial


def study(search: str, first: list[Values], seed: int, warmup: int) -> optuna.Study:
    """For one of `SEARCHES`; the thetas of `first` come first, and of a grid these are all. The pruner leaves alone
    `warmup` epochs of every training, and the first five trainings."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tpe, prune = search.startswith("Optuna"), search.endswith("pruner")
    made = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed) if tpe else optuna.samplers.RandomSampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=warmup) if prune else optuna.pruners.NopPruner(),
    )
    for values in first:
        made.enqueue_trial(values)
    return made


def ranges(space: stn.Space, positive: tuple[float, float]) -> dict[str, optuna.distributions.BaseDistribution]:
    """Uniform on the range that a hyperparameter has in the space; log-uniform in `positive` for a `stn.Positive`."""

    def one(hyperparameter):
        if isinstance(hyperparameter, stn.Positive):
            return optuna.distributions.FloatDistribution(*positive, log=True)
        if isinstance(hyperparameter, stn.Integer):
            return optuna.distributions.IntDistribution(hyperparameter.low, hyperparameter.high)
        return optuna.distributions.FloatDistribution(hyperparameter.low, hyperparameter.high)

    return {name: one(h) for name, h in zip(space, space.hyperparameters, strict=True)}
