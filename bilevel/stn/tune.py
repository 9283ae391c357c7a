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

from .convert import bind, materialise, responses
from .epochs import OUTCOMES, Program, check_data, check_limits, run
from .layers import Response
from .schedule import Schedule
from .space import Space
from .train import Losses, Method, State, delta_stn, train_step, valid_step


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
    resume: bool = False,
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
    - `progress`: a bar on the terminal; never elsewhere. - `callback(state, entries)`: after every epoch, with what it
      adds to the history. - `checkpoint`: a file, written every `every` epochs and at the end; `resume=True` goes on
      from it, and the result equals that of a run never interrupted, bit for bit (seconds excepted).

    **Returns** a `Run`. A run that stops being finite ends with the last epoch that was, and `run.message` says so.

    **Raises** ValueError or TypeError for what cannot be run, and says what to write instead.
    """
    method = delta_stn() if method is None else method
    check_limits(epochs, every, checkpoint, resume)
    train, valid = check_data(train, valid, batch_size)
    _check_model(model, space)
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    losses, state = Losses(method, space, static, train_loss, valid_loss), start(model, space, method)
    _check_losses(losses, state, train, valid, key)
    program = Program(
        train=lambda state, batch, key: train_step(losses, state, batch, key),
        valid=lambda state, batch, key: valid_step(losses, state, batch, key),
        values=lambda state: space.values(state.u),
        scales=lambda state: dict(zip(space, space.sigma(state.rho), strict=True)),
        loss=losses.current,
        count=lambda state: state.steps,
        train_steps=method.train_steps, valid_steps=method.valid_steps, warmup=method.warmup, batch_size=batch_size,
    )  # fmt: skip
    state, history, steps, outcome, seconds = run(
        program, state, train, valid, key, epochs=epochs, progress=progress, callback=callback,
        checkpoint=checkpoint, every=every, resume=resume, name="stn",
    )  # fmt: skip
    network = eqx.combine(state.weights, state.responses, static)
    values = space.values(state.u)
    return Run(
        materialise(network, None if method.centred else state.u, values), network,
        {name: value.item() for name, value in values.items()}, Schedule(steps) if steps else None, history, outcome,
        seconds, state,
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
    resume: bool = False,
) -> Run:
    """Train an ordinary model, one that was not converted, with hyperparameters from a schedule: one that `tune`
    recorded, or `Schedule.fixed(drop=0.3)` for a plain training. Nothing is tuned on `valid`; the history has its loss.

    `optimiser`: of optax. Other arguments, the result and the errors as in `tune`, with the same functions.
    """
    check_limits(epochs, every, checkpoint, resume)
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
        progress=progress, callback=callback, checkpoint=checkpoint, every=every, resume=resume, name="replay",
    )  # fmt: skip
    values = schedule.at(state[2])
    trained = eqx.combine(state[0], static)
    return Run(
        materialise(trained, None, values), trained, {name: value.item() for name, value in values.items()},
        Schedule(steps) if steps else None, history, outcome, seconds, state,
    )  # fmt: skip


def _check_model(model, space):
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Response))
    found = [node for node in nodes if isinstance(node, Response)]
    if not found:
        raise ValueError("this model does not respond to hyperparameters: pass stn.convert(model, space, key=key)")
    sizes = {gate.shape[-1] for node in found for gate in node.gates.values()}
    if sizes != {len(space)}:
        raise ValueError(
            f"the model was converted for {', '.join(map(str, sizes))} hyperparameters, but the space has "
            f"{len(space)}: convert it with the space that you tune"
        )


def _check_losses(losses, state, train, valid, key):
    """Both are scalars, and the validation loss depends on the model."""
    params = eqx.combine(state.weights, state.responses)
    one, two = (jax.tree.map(lambda leaf: leaf[:1], data) for data in (train, valid))
    shapes = {
        "train_loss(model, batch, hyper, key)": jax.eval_shape(losses.unperturbed, params, state.u, one, key),
        "valid_loss(model, batch)": jax.eval_shape(losses.current, state, two),
    }
    for name, shape in shapes.items():
        if getattr(shape, "shape", None) != () or not jnp.issubdtype(shape.dtype, jnp.floating):
            raise TypeError(f"{name} must return a scalar of floating dtype, the mean over the batch; not {shape}")

    def loss(weights):
        return losses.response(eqx.combine(weights, state.responses), None, two)

    # a derivative along a direction that no symmetry singles out
    keys = iter(jax.random.split(key, len(jax.tree.leaves(state.weights))))
    direction = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), state.weights)
    value, slope = jax.jit(lambda w, dw: jax.jvp(loss, (w,), (dw,)))(state.weights, direction)
    if not bool(jnp.isfinite(value)):
        raise ValueError(f"valid_loss is {float(value)} before the first step: check the data and the model")
    if not bool(slope != 0):
        raise ValueError(
            "valid_loss does not depend on the model it is given, so it cannot tune anything: compute it from "
            "jax.vmap(model)(x), with the model of its own first argument"
        )
