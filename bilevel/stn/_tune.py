"""The front door: train a network and tune its hyperparameters in one run; or train it along a schedule.

run = stn.tune(stn.convert(model, space, key=key), space, train_loss, valid_loss, train, valid, key=key)
run.model, run.values, run.schedule
stn.replay(model, run.schedule, train_loss, valid_loss, train, valid, optax.adam(1e-3), key=key)
"""

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .._checkpoint import goes_on
from ._convert import bind, materialise, responses
from .checks import check_data, check_limits, check_losses, check_model
from .epochs import OUTCOMES, Program, run
from .method import Method, delta_stn
from .schedule import Schedule
from .space import Space
from .train import Losses, State, train_step, valid_step


class Run(eqx.Module):
    """What a run found.

    **Attributes**

    - `model`: an ordinary Equinox model with the weights at the last hyperparameters, dropping at their rates: call
      `equinox.nn.inference_mode(run.model)` to predict. - `network`: the same with its response, for `stn.bind`.
    - `values`: the last hyperparameters by name. - `schedule`: theirs at each training step, a `Schedule`.
    - `history`: 1-D NumPy arrays with one entry for each epoch, as it ended: `train_loss` (its mean), `valid_loss`,
      `seconds` (running time so far), each hyperparameter by name and "scale of ..." its sigma.
    - `outcome`, `completed`, `message`: a member of `OUTCOMES`, whether all epochs were run, and it in words.
    - `compile_seconds`: tracing and compiling. - `state`: what a next step would start from.
    """

    model: PyTree
    network: PyTree
    values: dict[str, float | int]
    schedule: Schedule | None
    history: dict[str, np.ndarray]
    outcome: OUTCOMES
    compile_seconds: float
    state: Any

    @property
    def completed(self) -> bool:
        return bool(self.outcome == OUTCOMES.completed)

    @property
    def message(self) -> str:
        return str(OUTCOMES[self.outcome])


def tune(
    model: PyTree,
    space: Space,
    train_loss: Callable,
    valid_loss: Callable,
    train: PyTree,
    valid: PyTree,
    method: Method | None = None,
    *,
    key: PRNGKeyArray,
    epochs: int = 10,
    batch_size: int = 100,
    progress: bool = True,
    callback: Callable[[State, dict[str, Any]], Any] | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 1,
    resume: bool | str = False,
    overwrite: bool = False,
) -> Run:
    """Train `model` on `train` and tune the hyperparameters of `space` on `valid`, in one run.

    **Arguments**

    - `model`: what `stn.convert(model, space, key=key)` returned.
    - `train_loss(model, batch, hyper, key)`: a scalar, the mean over the batch; `hyper` has the values by name as
      scalars, and layers such as `stn.Dropout("drop")` in the model have theirs. The model is called as always,
      `jax.vmap(model)(x, key=keys)`. With draws for each example it is given batches of one, under vmap. Weight decay:
      `hyper["decay"] * stn.squared_norm(model)`. - `valid_loss(model, batch)`: the same, in inference.
    - `train`, `valid`: pytrees of arrays whose leading axis counts examples; a batch has the same structure.
    - `method`: `stn.delta_stn()` (the default), `stn.stn()`, or one with other optimisers.
    - `epochs`; `batch_size`: of both kinds of steps, at most the size of `train`.
    - `progress`: a bar on a terminal or in a notebook, never elsewhere. - `callback(state, entries)`: after an epoch,
      with what it adds to the history. - `checkpoint`: a file, written every `every` epochs and at the end;
      `resume=True` goes on from it, and the result equals that of a run never interrupted, bit for bit (seconds
      excepted); `resume="auto"` does if it is there, and starts if not; `overwrite=True` starts afresh.

    **Returns** a `Run`. A run that stops being finite ends with the last epoch that was, and `run.message` says so.

    **Raises** ValueError or TypeError for what cannot be run, and says what to write instead.
    """
    method = delta_stn() if method is None else method
    check_limits(epochs, every)
    resumed = goes_on(checkpoint, resume, overwrite)
    train, valid = check_data(train, valid, batch_size)
    check_model(model, space)
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    losses, state = Losses(method, space, static, train_loss, valid_loss), start(model, space, method)
    check_losses(losses, state, train, valid, key)
    state, history, steps, outcome, seconds = run(
        _program(losses, batch_size), state, train, valid, key, epochs=epochs, progress=progress, callback=callback,
        checkpoint=checkpoint, every=every, resumed=resumed, name="stn",
    )  # fmt: skip
    network = eqx.combine(state.weights, state.responses, static)
    values = space.values(state.u)
    return Run(
        materialise(network, None if method.centred else state.u, values), network,
        {name: value.item() for name, value in values.items()}, Schedule(steps) if steps else None, history, outcome,
        seconds, state,
    )  # fmt: skip


def _program(losses, batch_size):
    method, space = losses.method, losses.space
    return Program(
        train=lambda state, batch, key: train_step(losses, state, batch, key),
        valid=lambda state, batch, key: valid_step(losses, state, batch, key),
        values=lambda state: space.values(state.u),
        scales=lambda state: dict(zip(space, space.sigma(state.rho), strict=True)),
        loss=losses.current,
        count=lambda state: state.steps,
        train_steps=method.train_steps, valid_steps=method.valid_steps, warmup=method.warmup, batch_size=batch_size,
    )  # fmt: skip


def start(model: PyTree, space: Space, method: Method) -> State:
    """The state before the first step; u and rho have the dtype of the model's weights."""
    params = eqx.filter(model, eqx.is_inexact_array)
    phi, w = eqx.partition(params, responses(params))
    u, rho = space.start(jax.tree.leaves(w)[0].dtype)
    pairs = ((method.weights, w), (method.responses, phi), (method.hyper, u), (method.scales, rho))
    return State(w, phi, u, rho, tuple(optimiser.init(tree) for optimiser, tree in pairs), jnp.zeros((), jnp.int32))


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
    callback: Callable[[Any, dict[str, Any]], Any] | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 1,
    resume: bool | str = False,
    overwrite: bool = False,
) -> Run:
    """Train an ordinary model, one that was not converted, with hyperparameters from a schedule: one that `tune`
    recorded, or `Schedule.fixed(drop=0.3)` for a plain training. Nothing is tuned on `valid`; the history has its loss.

    `optimiser`: of optax. Other arguments, the result and the errors as in `tune`, with the same functions.
    """
    check_limits(epochs, every)
    resumed = goes_on(checkpoint, resume, overwrite)
    train, valid = check_data(train, valid, batch_size)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def step(state, batch, key):
        params, inner, count = state
        values = schedule.at(count)
        loss, gradient = jax.value_and_grad(
            lambda params: train_loss(bind(eqx.combine(params, static), None, values), batch, values, key)
        )(params)
        updates, inner = optimiser.update(gradient, inner, params)
        return (eqx.apply_updates(params, updates), inner, count + 1), loss

    program = Program(
        train=step,
        valid=None,
        values=lambda state: schedule.at(state[2]),
        scales=lambda state: {},
        loss=lambda state, batch: valid_loss(eqx.nn.inference_mode(eqx.combine(state[0], static)), batch),
        count=lambda state: state[2],
        batch_size=batch_size,
    )
    state, history, steps, outcome, seconds = run(
        program, (params, optimiser.init(params), jnp.zeros((), jnp.int32)), train, valid, key, epochs=epochs,
        progress=progress, callback=callback, checkpoint=checkpoint, every=every, resumed=resumed, name="replay",
    )  # fmt: skip
    values = schedule.at(state[2])
    trained = eqx.combine(state[0], static)
    return Run(
        materialise(trained, None, values), trained, {name: value.item() for name, value in values.items()},
        Schedule(steps) if steps else None, history, outcome, seconds, state,
    )  # fmt: skip
