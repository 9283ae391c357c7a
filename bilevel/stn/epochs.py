"""An epoch over data in memory, as one compiled program; `loaders.py` has those that come in batches.

An epoch is a function of its state and key, and nothing else.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._processes import whole
from .compiled import compiled, text


class OUTCOMES(eqx.Enumeration):
    """Why a run ended."""

    completed = "All epochs were run."
    running = "The run goes on."
    stopped = "The callback returned True."
    no_improvement = "The validation loss did not fall any more for as many epochs as `patience` allows."
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

    - `train(state, batch, key) -> (state, loss)`.
    - `valid(state, batch, key) -> state`, or None: nothing is tuned.
    - `values(state)`, `scales(state)`: by name, as the next training step has them.
    - `judge(state, batch)`: the validation loss and the metrics by name, evaluated after the epoch.
    - `count(state)`: training steps so far.
    """

    train: Callable
    valid: Callable | None
    values: Callable
    scales: Callable
    judge: Callable
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
            "valid": self.evaluate(state, valid),
            "end": (self.values(state), self.scales(state)),
        }

    def evaluate(self, state: PyTree, valid: PyTree) -> dict[str, Array]:
        """The means of `judge` over all of `valid`, a batch at a time."""
        m, size = _size(valid), min(self.batch_size, _size(valid))
        whole = m // size * size
        batches = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), valid)
        judged = jax.lax.map(lambda batch: self.judge(state, batch), batches)
        total = jax.tree.map(lambda column: size * jnp.sum(column), judged)
        if whole < m:
            rest = self.judge(state, jax.tree.map(lambda leaf: leaf[whole:], valid))
            total = jax.tree.map(lambda sum, last: sum + (m - whole) * last, total, rest)
        return jax.tree.map(lambda sum: sum / m, total)


class Arrays:
    """Data in memory, whose epochs are one program."""

    def __init__(self, program: Program, train: PyTree, valid: PyTree):
        self.program, self.data = program, (train, valid)

    def trace(self, state: PyTree, key: PRNGKeyArray) -> dict[str, str]:
        """What a resumed run must share with the interrupted one. The traced epoch is the model, the losses, the method
        and its optimisers with their constants, all in one."""
        self.traced = jax.jit(lambda *args: self.program.epoch(*args)).trace(state, *self.data, key)
        return {"model, losses or method": text(self.traced), "weights, data or key": digest((state, *self.data), key)}

    def compile(self, state: PyTree, key: PRNGKeyArray) -> None:
        self.compiled = compiled(self.traced, state, *self.data, key)

    def epoch(self, state: PyTree, k: int, key: PRNGKeyArray) -> tuple[PyTree, dict[str, Any]]:
        """Epoch k from `state`, its record in NumPy arrays."""
        new, record = jax.block_until_ready(self.compiled(state, *self.data, key))
        record = jax.tree.map(np.asarray, record)
        return new, {**record, "train_loss": record.pop("losses").mean()}


def digest(tree: PyTree, key: PRNGKeyArray) -> str:
    """Of the numbers in a tree and a key."""
    raw = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    data = hashlib.sha256()
    for leaf in jax.tree.leaves((tree, raw)):
        data.update(np.ascontiguousarray(whole(leaf)).tobytes())
    return data.hexdigest()


def _take(data, indices):
    return jax.tree.map(lambda leaf: leaf[indices], data)


def _size(data):
    return jax.tree.leaves(data)[0].shape[0]
