"""Epoch after epoch, and between them the log, the callback, the best model, the checkpoint and the progress bar.

A run on arrays is a function of its key: epoch k draws from fold_in(key, k) and nothing else, so that a run resumed
after epoch k is the run that was interrupted, bit for bit.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .. import _checkpoint as checkpoints
from .._arguments import yes
from .._bar import bar
from .epochs import OUTCOMES

OWN = {"train_loss", "valid_loss", "seconds"}


def run(
    source: Any, state: PyTree, key: PRNGKeyArray, *, epochs: int, progress: bool, callback: Callable | None,
    describe: Callable, checkpoint: str | os.PathLike | None, every: int, resumed: bool, patience: int | None,
    name: str,
) -> tuple[PyTree, PyTree, dict[str, list], OUTCOMES, float]:  # fmt: skip
    """(state, state of the least validation loss, history, outcome, seconds of compilation) after `epochs` epochs, or
    fewer. `source`: `Arrays` or `Batches`; `describe(state, best, history, outcome, seconds)`: what the callback gets;
    `resumed`: from the checkpoint; other arguments as in `tune`."""
    began = time.perf_counter()
    prints = source.trace(state, key) | {"versions": checkpoints.versions()}
    history: dict[str, list] = {"train_loss": [], "valid_loss": [], "seconds": []}
    best = state
    if resumed:  # the program is told by its text, which JAX writes in other words in other versions
        (state, best), history = checkpoints.load(
            checkpoint, (state, best), prints, fragile=["model, losses or method"]
        )
    source.compile(state, key)
    compile_seconds = time.perf_counter() - began

    began = time.perf_counter() - (history["seconds"] or [0.0])[-1]
    done = saved = len(history["valid_loss"])
    outcome = _next(history, patience, OUTCOMES.running)
    with bar(progress, total=epochs, initial=done, unit=" epochs", desc=name) as line:
        while done < epochs and outcome == OUTCOMES.running:
            new, record = source.epoch(state, done, jax.random.fold_in(key, done))
            if all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(record)):
                state, done = new, done + 1
                latest = _note(history, record, time.perf_counter() - began)
                best = state if best_epoch(history) == done - 1 else best
                line.set_postfix_str(
                    ", ".join(f"{column} {entry:.4g}" for column, entry in latest.items() if "[" not in column)
                )
                line.update()
                outcome = _next(history, patience, outcome)
                if callback is not None and yes(callback(describe(state, best, history, outcome, compile_seconds))):
                    outcome = OUTCOMES.stopped
            else:
                outcome = OUTCOMES.non_finite
            due = done % every == 0 or done == epochs or outcome != OUTCOMES.running
            if checkpoint is not None and due and done > saved:
                try:
                    checkpoints.save(checkpoint, (state, best), history, prints)
                    saved = done
                except OSError:
                    outcome = OUTCOMES.checkpoint_failed
    outcome = OUTCOMES.completed if outcome == OUTCOMES.running else outcome
    return state, best, history, outcome, compile_seconds


def best_epoch(history: dict[str, Any]) -> int:
    """The one with the least validation loss."""
    return int(np.argmin(history["valid_loss"])) if len(history["valid_loss"]) else 0


def _next(history, patience, outcome):
    waited = len(history["valid_loss"]) - 1 - best_epoch(history)
    return OUTCOMES.no_improvement if patience is not None and waited >= patience else outcome


def _note(history, record, seconds):
    """Adds an epoch to the history: each entry its end, "step/..." every training step of it; returns the entries."""
    values, scales = record["end"]
    latest = {"train_loss": record["train_loss"], **record["valid"], "seconds": seconds}
    for name, value in values.items():
        latest |= {name: value} if value.ndim == 0 else {f"{name}[{k}]": one for k, one in enumerate(value)}
    latest |= {f"scale of {name}": scale for name, scale in scales.items()}
    for name, value in latest.items():
        history.setdefault(name, []).append(value)
    for name, column in record["values"].items():
        history.setdefault(f"step/{name}", []).extend(column)
    return latest
