"""A run: step after step until one of them, or something from outside, says that it ends; recorded, saved and shown."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from . import _checkpoint as checkpoints
from ._arguments import yes
from ._counts import Counts
from ._interrupt import Interrupt
from ._outer.method import AbstractMethod, Info, State
from ._processes import anywhere, shared
from ._results import RESULTS, Solution, told

COLUMNS = ("value", "value_error", "gradient_norm", "gradient_error", "eps", "delta", "step")
MOST = 10_000_000  # numbers of all theta_k together; beyond, none are kept


class Record:
    """What is known of theta_0, theta_1, ...: lists by name, with one entry for each, and the leaves of theta_k itself
    under "theta/0", "theta/1", ..., until they are too many."""

    def __init__(self, theta: PyTree):
        leaves, self.structure = jax.tree.flatten(theta)
        self.thetas = [f"theta/{i}" for i in range(len(leaves))]
        names = (*COLUMNS, *Counts._fields, "cost", "seconds", *self.thetas)
        self.columns: dict[str, list] = {name: [] for name in names}
        self.size = sum(leaf.size for leaf in leaves)

    def __len__(self) -> int:
        return len(self.columns["value"])

    def add(self, info: Info) -> None:
        new = {name: getattr(info, name) for name in COLUMNS}
        new |= info.counts._asdict() | {"cost": info.counts.cost, "seconds": info.seconds}
        if self.kept and (len(self) + 1) * self.size > MOST:
            for name in self.thetas:
                del self.columns[name]
        if self.kept:  # copies: what NumPy only looks into would hold a device's memory
            new |= zip(self.thetas, map(np.array, jax.device_get(jax.tree.leaves(info.theta))), strict=True)
        for name, entry in new.items():
            self.columns[name].append(entry)

    @property
    def kept(self) -> bool:
        return all(name in self.columns for name in self.thetas)

    def upto(self, entries: int) -> dict[str, list]:
        return {name: column[:entries] for name, column in self.columns.items()}

    def history(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(column) for name, column in self.columns.items() if name not in self.thetas}

    def stacked(self) -> PyTree | None:
        """Every theta_k, with a leading axis."""
        if not self.kept:
            return None
        return jax.tree.unflatten(self.structure, [np.stack(self.columns[name]) for name in self.thetas])


class Saver:
    """Writes the checkpoint, where there is to be one."""

    def __init__(self, path: str | os.PathLike | None, record: Record, prints: dict[str, str]):
        self.path, self.record, self.prints = path, record, prints

    def __call__(self, state: State, entries: int) -> bool:
        """Whether it is on disk, or none was asked for."""
        if self.path is None:
            return True
        try:
            checkpoints.save(self.path, state, self.record.upto(entries), self.prints)
        except OSError:
            return False
        return True


def follow(
    steps: Iterator[tuple[State, Info | None]],
    record: Record,
    save: Saver,
    every: int,
    callback: Callable[[State, Info], Any] | None,
    bar: Any,
    interrupt: Interrupt,
) -> tuple[State, Info, RESULTS]:
    """The state and info at which the run ends, and why. `steps` begin with the state to start from. Whatever ends the
    run, what was reached is on disk; but where processes share the run, an error in one of them cannot be waited for.
    These end together: where one of them is interrupted, or its callback says so."""
    bar.set_postfix_str("compiling")
    state, info = next(steps)
    bar.update(state.counts.cost)
    good, failed, end, together = (state, len(record)), False, None, shared(state)
    try:
        while end is None:
            if anywhere(interrupt.asked, together):
                end = RESULTS.interrupted
                break
            state, info = next(steps)
            record.add(info)
            show(bar, state, info)
            stop = anywhere(callback is not None and yes(callback(state, info)), together)
            if info.result is not None:
                end = info.result
                break
            good = state, len(record)
            if state.steps % every == 0 and (failed := not save(*good)):
                end = RESULTS.checkpoint_failed
            elif stop:
                end = RESULTS.stopped
    finally:
        bar.close()
        saved = failed or (together and end is None) or save(*good)
    if info is None or info.result is None:  # between two steps, at a point whose gradient is not known yet
        info = between(state)
        record.add(info)
    return state, info, end if saved and not failed else RESULTS.checkpoint_failed


def between(state: State) -> Info:
    """What is known of a theta that was accepted, and from which no step was made."""
    point, (counts, seconds) = state.point, state.known
    return Info(
        theta=state.theta, steps=state.steps,
        value=float(point.value), value_error=float(point.value_error), gradient_norm=math.nan,
        gradient_error=math.inf, eps=float(point.lower.error), delta=math.inf, step=math.nan, counts=counts,
        seconds=seconds, certificate="none", result=None,
    )  # fmt: skip


def solution(
    state: State, info: Info, result: RESULTS, record: Record, method: AbstractMethod, by_default: bool, keep: bool
) -> Solution:
    """`by_default`: no tolerance was given; `keep`: with the state."""
    return Solution(
        theta=state.theta, x=state.point.x, value=info.value, value_error=info.value_error,
        gradient_norm=info.gradient_norm, gradient_error=info.gradient_error,
        certified=state.point.certified if info.certificate == "none" else info.certificate != "estimated",
        result=result, tol=state.tol, history=record.history(), thetas=record.stacked(), counts=state.counts,
        steps=state.steps, seconds=state.seconds, compile_seconds=state.compile_seconds, method=method,
        state=state if keep else None, detail=detail(result, info, state.tol, by_default),
    )  # fmt: skip


def detail(result: RESULTS, info: Info, tol: float, by_default: bool) -> str:
    """What was shown of the last theta, beside the name of the result."""
    most = info.gradient_norm + info.gradient_error
    if told(result, RESULTS.converged) and most == 0:
        return "The gradient is zero, and nothing is uncertain about it."
    if told(result, RESULTS.converged):
        source = ", a thousandth of its norm at theta0" if by_default else ""
        promised = "" if math.isnan(info.decrease) else (
            f", and the decrease that its curvatures leave, {info.decrease:.1e}, within a thousandth of the value"
        )  # fmt: skip
        return f"The gradient's norm is at most {most:.1e}, within {tol:.1e}{source}{promised}."
    if told(result, RESULTS.settled):
        flat = info.gradient_norm == 0  # z is no more than an estimate: at a kink of f it may be zero on one side alone
        plateau = " z is zero here, so theta seems to move nothing that is active: start elsewhere." if flat else ""
        return f"The value is known to within {info.value_error:.1e}, and the tolerance is {tol:.1e}.{plateau}"
    if told(result, RESULTS.accuracy_floor) and math.isfinite(most):
        return f"theta is stationary to within {most:.1e}."
    return ""


def show(bar: Any, state: State, info: Info) -> None:
    bar.set_postfix_str(
        f"step {info.steps}, value {info.value:.6g} +- {info.value_error:.1e}, |z| {info.gradient_norm:.1e} +- "
        f"{info.gradient_error:.1e}, eps {info.eps:.0e}",
        refresh=False,
    )
    bar.update(state.counts.cost - bar.n)
