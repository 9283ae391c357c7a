"""The front door: train a network and tune its hyperparameters in one run.

run = stn.tune(stn.convert(model, space, key=key), space, train_loss, valid_loss, train, valid, key=key)
run.model, run.values, run.schedule, run.best
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .._checkpoint import goes_on
from .._linalg.sharding import replicate
from .._processes import shared
from ._bind import responses
from ._effective import materialise
from ._result import Run, result
from .checks import check_data, check_limits, check_model, check_names
from .checks_losses import check_losses
from .epochs import Program
from .loaders import source
from .method import Method, delta_stn
from .running import run
from .space import Space
from .train import Losses, Training, raised, train_step, valid_step


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
    metrics: dict[str, Callable] | None = None,
    patience: int | None = None,
    callback: Callable[[Run], Any] | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 1,
    resume: bool | str = False,
    overwrite: bool = False,
) -> Run:
    """Train `model` on `train` and tune the hyperparameters of `space` on `valid`, in one run.

    **Arguments**

    - `model`: what `stn.convert(model, space, key=key)` returned.
    - `method`: `stn.delta_stn()` (the default), `stn.stn()`, or one with other optimisers.
    - `train_loss(model, batch, hyper, key)`: a scalar, the mean over the batch; `hyper` has the values by name, and
      layers such as `stn.Dropout("drop")` have theirs. The model is called as always, `jax.vmap(model)(x, key=keys)`.
      With draws for each example it is given batches of one, under vmap. Weight decay: `hyper["decay"] *
      stn.squared_norm(model)`; other terms of its weights: `stn.effective(model)`.
    - `valid_loss(model, batch)`: the same, in inference; `metrics`: more such functions by name, for the history.
    - `train`, `valid`: pytrees of arrays whose leading axis counts examples, shuffled and cut into batches of
      `batch_size`. Or loaders, or functions that return an iterable of batches for an epoch, `lambda: batches`.
    - `patience`: ends the run after so many epochs without a lower validation loss; `run.best` is kept in any case.
    - `progress`: a bar on a terminal or in a notebook.
    - `callback(run)`: after an epoch, with the `Run` so far, as `run.model` and `run.latest`; True ends it.
    - `checkpoint`: a file, written every `every` epochs and at the end; `resume=True` goes on from it, and on arrays
      the result equals that of a run never interrupted, bit for bit (seconds excepted); `resume="auto"` does if it is
      there, and starts if not; `overwrite=True` starts afresh.

    **Returns** a `Run`; one that stops being finite ends with the last epoch that was. **Raises** ValueError or
    TypeError for what cannot be run, before the first step, and says what to write instead.
    """
    method, metrics = delta_stn() if method is None else method, metrics or {}
    check_limits(epochs, every, patience)
    check_names(space, metrics)
    resumed = goes_on(checkpoint, resume, overwrite, shared((train, valid)))
    train, valid, some = check_data(train, valid, batch_size)
    check_model(model, space)
    losses, state = prepare(model, space, method, train_loss, valid_loss)
    state, key = replicate((state, key), some)
    check_losses(losses, state, *some, key)
    at = partial(_at, losses)
    ended = run(
        source(_program(losses, metrics, batch_size), train, valid), state, key, epochs=epochs, progress=progress,
        callback=callback, describe=partial(result, at), checkpoint=checkpoint, every=every, resumed=resumed,
        patience=patience, name="stn",
    )  # fmt: skip
    return result(at, *ended)


def _at(losses, state):
    """The ordinary model, the one that responds, and the values."""
    network, values = losses.model(eqx.combine(state.weights, state.responses)), losses.values(state.u)
    return materialise(network, losses.method.offset(losses.space, state.u), values), network, values


def _program(losses, metrics, batch_size):
    method, space = losses.method, losses.space
    measures = {"valid_loss": losses.valid_loss, **metrics}
    return Program(
        train=lambda state, batch, key: train_step(losses, state, batch, key),
        valid=lambda state, batch, key: valid_step(losses, state, batch, key),
        values=lambda state: losses.values(state.u),
        scales=lambda state: dict(zip(space, space.sigma(state.rho), strict=True)),
        judge=lambda state, batch: {name: losses.current(state, batch, one) for name, one in measures.items()},
        count=lambda state: state.steps,
        train_steps=method.train_steps, valid_steps=method.valid_steps, warmup=method.warmup, batch_size=batch_size,
    )  # fmt: skip


def prepare(
    model: PyTree, space: Space, method: Method, train_loss: Callable, valid_loss: Callable
) -> tuple[Losses, Training]:
    """The losses, and the state before the first step."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    double = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))
    losses = Losses(method, space, static, train_loss, valid_loss, raised(params)[1], double)
    return losses, start(model, space, method)


def start(model: PyTree, space: Space, method: Method) -> Training:
    """The state before the first step; u and rho are float32, float64 if JAX has it, whatever the weights are."""
    params, _ = raised(eqx.filter(model, eqx.is_inexact_array))
    phi, w = eqx.partition(params, responses(params))
    u, rho = space.start()
    pairs = ((method.weights, w), (method.responses, phi), (method.hyper, u), (method.scales, rho))
    return Training(w, phi, u, rho, tuple(optimiser.init(tree) for optimiser, tree in pairs), jnp.zeros((), jnp.int32))
