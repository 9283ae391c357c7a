"""Epoch after epoch: each is one compiled program; between them come the log, the checkpoint and the progress bar.

A run is a function of its key: epoch k draws from fold_in(key, k) and nothing else, so that a run resumed after epoch
k is the run that was interrupted, bit for bit.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from .. import _checkpoint as checkpoints
from .._bar import bar
from .compiled import compiled, text


class OUTCOMES(eqx.Enumeration):
    """Why a run ended."""

    completed = "All epochs were run."
    non_finite = (
        "A loss or a hyperparameter was not finite; what is returned is the end of the last epoch in which all were. "
        "Lower the learning rates, or narrow the ranges of the space."
    )
    checkpoint_failed = (
        "The checkpoint could not be written (is the disk full?). The last good one is untouched; free some space "
        "and resume."
    )


class Program(eqx.Module):
    """What an epoch is made of, as functions to be traced.

    - `train(state, batch, key) -> (state, loss)`. - `valid(state, batch, key) -> state`, or None: nothing is tuned.
    - `values(state)`, `scales(state)`: by name, as the next training step has them. - `loss(state, batch)`: the
      validation loss, evaluated after the epoch. - `count(state)`: training steps made so far.
    """

    train: Callable
    valid: Callable | None
    values: Callable
    scales: Callable
    loss: Callable
    count: Callable
    train_steps: int = eqx.field(static=True, default=1)
    valid_steps: int = eqx.field(static=True, default=1)
    warmup: int = eqx.field(static=True, default=0)
    batch_size: int = eqx.field(static=True, default=100)

    def epoch(self, state: PyTree, train: PyTree, valid: PyTree, key: PRNGKeyArray) -> tuple[PyTree, dict[str, Any]]:
        """(state, record): every example of `train` once, in batches of a random order (a last, smaller one is left
        out), and `valid_steps` validation batches after every `train_steps` of them."""
        n, m, size = _size(train), _size(valid), self.batch_size
        steps, sometimes = n // size, min(size, m)
        orders, valid_orders, steps_key = jax.random.split(key, 3)
        order = jax.random.permutation(orders, n)[: steps * size].reshape(steps, size)
        needed = (steps // self.train_steps + 1) * self.valid_steps * sometimes
        rounds = jax.random.split(valid_orders, math.ceil(needed / m))
        valid_order = jnp.concatenate([jax.random.permutation(one, m) for one in rounds])

        def tune(k, state):
            def one(state, j):
                at = k // self.train_steps * self.valid_steps + j
                batch = _take(valid, jax.lax.dynamic_slice(valid_order, (at * sometimes,), (sometimes,)))
                return self.valid(state, batch, jax.random.fold_in(steps_key, steps + at)), None

            return jax.lax.scan(one, state, jnp.arange(self.valid_steps))[0]

        def body(state, k):
            values, scales = self.values(state), self.scales(state)
            state, loss = self.train(state, _take(train, order[k]), jax.random.fold_in(steps_key, k))
            if self.valid is not None:
                count = self.count(state)
                due = (count > self.warmup * steps) & (count % self.train_steps == 0)
                state = jax.lax.cond(due, tune, lambda k, state: state, k, state)
            return state, {"losses": loss, "values": values, "scales": scales}

        state, record = jax.lax.scan(body, state, jnp.arange(steps))
        return state, {
            **record,
            "valid_loss": self.evaluate(state, valid),
            "end": (self.values(state), self.scales(state)),
        }

    def evaluate(self, state: PyTree, valid: PyTree) -> Array:
        """The mean of `loss` over all of `valid`, a batch at a time."""
        m, size = _size(valid), min(self.batch_size, _size(valid))
        whole = m // size * size
        batches = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), valid)
        total = size * jnp.sum(jax.lax.map(lambda batch: self.loss(state, batch), batches))
        if whole < m:
            total += (m - whole) * self.loss(state, jax.tree.map(lambda leaf: leaf[whole:], valid))
        return total / m


def run(
    program: Program, state: PyTree, train: PyTree, valid: PyTree, key: PRNGKeyArray, *, epochs: int, progress: bool,
    callback: Callable[[PyTree, dict[str, Any]], Any] | None, checkpoint: str | os.PathLike | None, every: int,
    resumed: bool, name: str,
) -> tuple[PyTree, dict[str, np.ndarray], dict[str, np.ndarray], OUTCOMES, float]:  # fmt: skip
    """(state, entries of every epoch, values at every training step, outcome, seconds of compilation) after `epochs`
    epochs, or fewer where a loss stops being finite. `resumed`: from the checkpoint; other arguments as in
    `tune`."""
    reserved = {"train_loss", "valid_loss", "seconds"} & set(program.values(state))
    if reserved:
        raise ValueError(f"the history has a column {reserved.pop()!r} of its own: rename that hyperparameter")
    began = time.perf_counter()
    traced = jax.jit(lambda *args: program.epoch(*args)).trace(state, train, valid, key)
    history: dict[str, list] = {"train_loss": [], "valid_loss": [], "seconds": []}
    prints = _fingerprint(traced, state, train, valid, key) if checkpoint is not None else {}
    if resumed:  # the program is told by its text, which JAX writes in other words in other versions
        state, history = checkpoints.load(checkpoint, state, prints, fragile=["model, losses or method"])
    epoch = compiled(traced, state, train, valid, key)
    compile_seconds = time.perf_counter() - began

    began = time.perf_counter() - (history["seconds"] or [0.0])[-1]
    outcome, done, saved = OUTCOMES.completed, len(history["valid_loss"]), len(history["valid_loss"])
    with bar(progress, total=epochs, initial=done, unit=" epochs", desc=name) as line:
        while done < epochs and outcome == OUTCOMES.completed:
            new, record = jax.block_until_ready(epoch(state, train, valid, jax.random.fold_in(key, done)))
            record = jax.tree.map(np.asarray, record)
            if all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(record)):
                state, done = new, done + 1
                latest = _note(history, record, time.perf_counter() - began)
                line.set_postfix_str(", ".join(f"{column} {entry:.4g}" for column, entry in latest.items()))
                line.update()
                if callback is not None:
                    callback(state, latest)
            else:
                outcome = OUTCOMES.non_finite
            due = done % every == 0 or done == epochs or outcome == OUTCOMES.non_finite
            if checkpoint is not None and due and done > saved:
                try:
                    checkpoints.save(checkpoint, state, history, prints)
                    saved = done
                except OSError:
                    outcome = OUTCOMES.checkpoint_failed
    steps = {column.removeprefix("step/"): np.asarray(history[column]) for column in history if column[:5] == "step/"}
    return state, {c: np.asarray(history[c]) for c in history if c[:5] != "step/"}, steps, outcome, compile_seconds


def _note(history, record, seconds):
    """Adds an epoch to the history: each entry its end, "step/..." every training step of it; returns the entries."""
    values, scales = record["end"]
    latest = {"train_loss": record["losses"].mean(), "valid_loss": record["valid_loss"], "seconds": seconds}
    latest |= values | {f"scale of {name}": scale for name, scale in scales.items()}
    for name, value in latest.items():
        history.setdefault(name, []).append(value)
    for name, column in record["values"].items():
        history.setdefault(f"step/{name}", []).extend(column)
    return latest


def _fingerprint(traced, state, train, valid, key):
    """The traced epoch is the model, the losses, the method and its optimisers with their constants, all in one."""
    raw = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    data = hashlib.sha256()
    for leaf in jax.tree.leaves((state, train, valid, raw)):
        data.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return {
        "model, losses or method": text(traced),
        "weights, data or key": data.hexdigest(),
        "versions": checkpoints.versions(),
    }


def _take(data, indices):
    return jax.tree.map(lambda leaf: leaf[indices], data)


def _size(data):
    return jax.tree.leaves(data)[0].shape[0]
