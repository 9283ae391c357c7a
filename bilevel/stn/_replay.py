"""Train along a schedule.

stn.replay(model, run.schedule, train_loss, valid_loss, train, valid, optax.adam(1e-3), key=key)
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from .._checkpoint import goes_on
from ._bind import bind
from ._effective import materialise
from ._result import Run, result
from .checks import check_data, check_limits, check_names
from .epochs import Program
from .loaders import source
from .running import run
from .schedule import Schedule
from .train import descend, lowered, raised


def replay(
    model: PyTree,
    schedule: Schedule,
    train_loss: Callable,
    valid_loss: Callable,
    train: PyTree,
    valid: PyTree,
    optimiser: Any,
    *,
    key: PRNGKeyArray,
    epochs: int = 10,
    batch_size: int = 100,
    progress: bool = True,
    metrics: dict[str, Callable] | None = None,
    patience: int | None = None,
    callback: Callable[[Run], Any] | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 1,
    resume: bool | str = False,
    overwrite: bool = False,
) -> Run:
    """Train an ordinary model, one that was not converted, with hyperparameters from a schedule: one that `tune`
    recorded, or `Schedule.fixed(drop=0.3)` for a plain training. Nothing is tuned on `valid`; the history has its loss.

    `optimiser`: of optax. Other arguments, the result and the errors as in `tune`, with the same functions.
    """
    check_limits(epochs, every, patience)
    check_names(schedule.values, metrics := metrics or {})
    resumed = goes_on(checkpoint, resume, overwrite)
    train, valid, _ = check_data(train, valid, batch_size)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params, dtypes = raised(params)
    network = lambda params: eqx.combine(lowered(params, dtypes), static)  # noqa: E731

    def step(state, batch, key):
        params, inner, count = state
        values = schedule.at(count)
        at_weights = lambda params: train_loss(bind(network(params), None, values), batch, values, key)  # noqa: E731
        loss, gradient = jax.value_and_grad(at_weights)(params)
        params, inner = descend(optimiser, gradient, inner, params, loss)
        return (params, inner, count + 1), loss

    def judge(state, batch):
        model = eqx.nn.inference_mode(network(state[0]))
        return {name: measure(model, batch) for name, measure in {"valid_loss": valid_loss, **metrics}.items()}

    def at(state):
        trained, values = network(state[0]), schedule.at(state[2])
        return materialise(trained, None, values), trained, values

    program = Program(
        train=step, valid=None, values=lambda state: schedule.at(state[2]), scales=lambda state: {}, judge=judge,
        count=lambda state: state[2], batch_size=batch_size,
    )  # fmt: skip
    ended = run(
        source(program, train, valid), (params, optimiser.init(params), jnp.zeros((), jnp.int32)), key, epochs=epochs,
        progress=progress, callback=callback, describe=partial(result, at), checkpoint=checkpoint, every=every,
        resumed=resumed, patience=patience, name="replay",
    )  # fmt: skip
    return result(at, *ended)
