"""Data that come in batches: from a loader, or from a function that returns an iterable of them for each epoch.

Each batch, a last smaller one too, makes a training step by a program compiled once for its shape; the next one is
fetched while it runs. Validation steps go through the validation batches again and again, in their order.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .compiled import text
from .epochs import Arrays, Program, digest


def comes_in_batches(data: Any) -> bool:
    """Whether this is a loader, or a function that makes one, and no tree of arrays."""
    tree = isinstance(data, tuple | list | dict | eqx.Module) or hasattr(data, "shape")
    return not tree and (callable(data) or hasattr(data, "__iter__"))


def batches(name: str, data: Any) -> Iterator[PyTree]:
    """The batches of one epoch. Raises ValueError where there is none, TypeError for what has no batches."""
    source = data() if callable(data) else data
    if not hasattr(source, "__iter__"):
        raise TypeError(f"{name} must be arrays, an iterable of batches or a function that returns one; not {data!r}")
    if iter(source) is source and not callable(data):
        raise ValueError(
            f"{name} is an iterator, which ends after one epoch: pass a function that returns a new one for each, "
            f"{name}=lambda: ..., or what the iterator was made from"
        )
    none = True
    for batch in source:
        none = False
        yield jax.tree.map(jnp.asarray, batch)
    if none:
        raise ValueError(f"{name} has no batches: if it is a generator, pass the function that makes it")


class Batches:
    """Data in batches, for `run`; the interface of `epochs.Arrays`."""

    def __init__(self, program: Program, train: Any, valid: Any):
        self.program, self.train, self.valid = program, train, valid
        self.step = jax.jit(self._step)
        self.tune = None if program.valid is None else jax.jit(program.valid)
        self.judge = jax.jit(program.judge)
        self.again = itertools.chain.from_iterable(batches("valid", valid) for _ in itertools.count())

    def _step(self, state: PyTree, batch: PyTree, key: PRNGKeyArray) -> tuple[PyTree, dict[str, Any]]:
        values, scales = self.program.values(state), self.program.scales(state)
        state, loss = self.program.train(state, batch, key)
        return state, {"losses": loss, "values": values, "scales": scales}

    def trace(self, state: PyTree, key: PRNGKeyArray) -> dict[str, str]:
        """As in `Arrays`, but for the data, which nobody can look at before they come."""
        traced = self.step.trace(state, next(batches("train", self.train)), key)
        return {"model, losses or method": text(traced), "weights or key": digest(state, key)}

    def compile(self, state: PyTree, key: PRNGKeyArray) -> None:
        """On first use, for each shape."""

    def epoch(self, state: PyTree, k: int, key: PRNGKeyArray) -> tuple[PyTree, dict[str, Any]]:
        """Epoch k from `state`, its record in NumPy arrays."""
        program, records, sizes = self.program, [], []
        count = int(program.count(state))
        for batch in batches("train", self.train):
            own = jax.random.fold_in(key, count)
            state, record = self.step(state, batch, own)
            records.append(record)
            sizes.append(_size(batch))
            count += 1
            if self.tune is not None and k >= program.warmup and count % program.train_steps == 0:
                for j in range(program.valid_steps):
                    state = self.tune(state, next(self.again), jax.random.fold_in(own, 1 + j))
        record = jax.tree.map(lambda *column: np.stack([np.asarray(one) for one in column]), *records)
        judged = [(_size(batch), self.judge(state, batch)) for batch in batches("valid", self.valid)]
        m = sum(size for size, _ in judged)
        valid = {name: np.asarray(sum(size * one[name] for size, one in judged) / m) for name in judged[0][1]}
        end = jax.tree.map(np.asarray, (program.values(state), program.scales(state)))
        train_loss = np.average(record.pop("losses"), weights=sizes)
        return state, {**record, "train_loss": train_loss, "valid": valid, "end": end}


def source(program: Program, train: Any, valid: Any) -> Arrays | Batches:
    """Where epochs come from: `check_data` saw that both are of one kind."""
    return Batches(program, train, valid) if comes_in_batches(train) else Arrays(program, train, valid)


def _size(batch: PyTree) -> int:
    shapes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(eqx.filter(batch, eqx.is_array))}
    if len(shapes) != 1 or () in shapes:
        raise ValueError(f"a batch must be a tree of arrays with one leading axis, the examples; its axes are {shapes}")
    return shapes.pop()[0]
