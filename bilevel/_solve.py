"""The front door: run a method until the gradient is certified small or a budget ends, and say which.

for state, info in iterate(problem, theta0, method): ...          one outer step at a time
solution = solve(problem, theta0, method, tol=..., max_cost=...)  all of them
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from . import _checkpoint as checkpoints
from ._counts import Counts
from ._inputs import make_box, prepare
from ._outer.method import AbstractMethod, Info, State
from ._outer.named import quasi_newton
from ._outer.programs import overheads
from ._problem import AbstractProblem
from ._results import RESULTS, Solution

COLUMNS = ("value", "value_error", "gradient_norm", "gradient_error", "eps", "delta", "step")


def iterate(
    problem: AbstractProblem,
    theta0: PyTree,
    method: AbstractMethod | None = None,
    *,
    tol: float | None = None,
    max_steps: int = 1000,
    max_cost: float = math.inf,
    bounds: tuple | None = None,
    x0: PyTree | None = None,
    state: State | None = None,
) -> Iterator[tuple[State, Info]]:
    """One outer step of `method` at a time: yields (state, info) after each, and ends with the one whose `info.result`
    is set. `info` describes the point the step started from, `state` the point it reached.

    Arguments as in `solve`; `state` goes on from one that was yielded before, with the same other arguments.
    """
    method = quasi_newton() if method is None else method
    _check_limits(tol, max_steps, max_cost)
    problem, theta0, x0 = prepare(problem, theta0, x0)
    method = method.settle(problem, theta0, x0)
    yield from _iterate(problem, theta0, method, tol, max_steps, max_cost, make_box(bounds, theta0), x0, state)


def _iterate(problem, theta0, method, tol, max_steps, max_cost, box, x0, state):
    state = _start(method, problem, theta0, x0, max_cost) if state is None else state
    result = None
    while result is None:
        last = state.steps >= max_steps
        state, info = method.step(problem, state, tol=tol, box=box, max_cost=max_cost, last=last)
        result = info.result
        yield state, info


def solve(
    problem: AbstractProblem,
    theta0: PyTree,
    method: AbstractMethod | None = None,
    *,
    tol: float | None = None,
    max_steps: int = 1000,
    max_cost: float = math.inf,
    bounds: tuple | None = None,
    x0: PyTree | None = None,
    progress: bool = True,
    callback: Callable[[State, Info], Any] | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 10,
    resume: bool = False,
) -> Solution:
    """Learn theta: min over theta of g(xhat(theta), theta), xhat(theta) = argmin over x of h(x, theta).

    **Arguments**

    - `problem`: an `AbstractProblem`; `theta0`: a pytree of floats, cast to the dtype of the problem's data.
    - `method`: `quasi_newton()` (the default), `maid()`, `hoag(...)`, `fixed_accuracy(...)`, `self_tuning()`, or one of
      your own, an `AbstractMethod`.
    - `tol`: stop when ||z|| + omega <= tol, a bound on ||grad f|| (with bounds: on ||P(theta - grad f) - theta||, with
      the same P). Left out, it is a thousandth of the norm that is certified at theta0, and the default method, which
      learns of f's curvature, must also leave no more decrease to be had than a thousandth of the value: 1/2 <z, B z>,
      and 1/2 ||z||^2 over the least curvature seen, at two points running.
    - `max_steps`, `max_cost`: budgets in outer steps and in gradients and products; max_cost is never exceeded.
    - `bounds`: (lo, hi), each a number or a pytree like theta0. - `x0`: where the first lower-level solve starts.
    - `progress`: a bar on the terminal; never elsewhere. - `callback(state, info)`: called after every step, with
      theta_k and its numbers in `info` and what comes next in `state`.
    - `checkpoint`: a file, written every `every` accepted steps and at the end; `resume=True` goes on from it, and
      the result equals that of a run never interrupted, bit for bit (seconds excepted).

    **Returns** a `Solution`; whatever went wrong in the numbers is in `solution.result`.

    **Raises** ValueError or TypeError for inputs that cannot be run: NaN, shapes, dtypes, a missing checkpoint.
    """
    method = quasi_newton() if method is None else method
    _check_limits(tol, max_steps, max_cost, every)
    problem, theta0, x0 = prepare(problem, theta0, x0)
    method = method.settle(problem, theta0, x0)
    box = make_box(bounds, theta0)
    if checkpoint is not None and not Path(checkpoint).resolve().parent.is_dir():
        raise ValueError(f"checkpoint={os.fspath(checkpoint)!r} lies in a folder that does not exist: make it first")
    start = _start(method, problem, theta0, x0, max_cost)
    history: dict[str, list] = {name: [] for name in (*COLUMNS, *Counts._fields, "cost", "seconds")}
    prints = None
    if checkpoint is not None:
        prints = checkpoints.fingerprint(problem, method, {"theta0": theta0, "x0": x0, "box": box})
    if resume:
        if checkpoint is None:
            raise ValueError("resume=True needs the file to resume from: pass checkpoint=path")
        start, history = checkpoints.load(checkpoint, start, prints)

    good, failed = (start, len(history["value"])), False
    save = _saver(checkpoint, history, prints)
    bar = tqdm(
        total=None if math.isinf(max_cost) else max_cost, initial=start.counts.cost, unit=" products",
        desc="bilevel", disable=None if progress else True,
    )  # fmt: skip
    bar.set_postfix_str("compiling")
    try:
        for state, info in _iterate(problem, theta0, method, tol, max_steps, max_cost, box, x0, start):
            _record(history, info)
            _show(bar, state, info)
            if callback is not None:
                callback(state, info)
            if info.result is None:
                good = state, len(history["value"])
                if state.steps % every == 0 and (failed := not save(*good)):
                    break
    finally:
        bar.close()
        saved = failed or save(*good)
    result = info.result if saved and not failed else RESULTS.checkpoint_failed
    if info.result is None:  # stopped between two steps, at a point whose gradient is not known yet
        info = info._replace(
            theta=state.theta, steps=state.steps,
            value=float(state.point.value), value_error=float(state.point.value_error),
            eps=float(state.point.lower.error),
            gradient_norm=math.nan, gradient_error=math.inf, delta=math.inf, step=math.nan, certificate="none",
            counts=state.known[0], seconds=state.known[1],
        )  # fmt: skip
        _record(history, info)
    return Solution(
        theta=state.theta, x=state.point.lower.x, value=info.value, value_error=info.value_error,
        gradient_norm=info.gradient_norm, gradient_error=info.gradient_error,
        certified=state.point.certified if info.certificate == "none" else info.certificate != "estimated",
        result=result, history={name: np.asarray(column) for name, column in history.items()},
        compile_seconds=state.compile_seconds, state=state, detail=_detail(result, info, state.tol, tol is None),
    )  # fmt: skip


def _detail(result: RESULTS, info: Info, tol: float, by_default: bool) -> str:
    """What was shown of the last theta, beside the name of the result."""
    most = info.gradient_norm + info.gradient_error
    if result == RESULTS.converged and most == 0:
        return "The gradient is zero, and nothing is uncertain about it."
    if result == RESULTS.converged:
        source = ", a thousandth of its norm at theta0" if by_default else ""
        promised = "" if math.isnan(info.decrease) else (
            f", and the decrease that its curvatures leave, {info.decrease:.1e}, within a thousandth of the value"
        )  # fmt: skip
        return f"The gradient's norm is at most {most:.1e}, within {tol:.1e}{source}{promised}."
    if result == RESULTS.accuracy_floor and math.isfinite(most):
        return f"theta is stationary to within {most:.1e}."
    return ""


def _saver(path, history, prints):
    def save(state, entries) -> bool:
        """Whether the checkpoint is on disk, or none was asked for."""
        if path is None:
            return True
        try:
            checkpoints.save(path, state, {name: column[:entries] for name, column in history.items()}, prints)
        except OSError:
            return False
        return True

    return save


def _record(history: dict[str, list], info: Info) -> None:
    for name in COLUMNS:
        history[name].append(getattr(info, name))
    for name in Counts._fields:
        history[name].append(getattr(info.counts, name))
    history["cost"].append(info.counts.cost)
    history["seconds"].append(info.seconds)


def _show(bar, state, info):
    bar.set_postfix_str(
        f"step {info.steps}, value {info.value:.6g} +- {info.value_error:.1e}, |z| {info.gradient_norm:.1e} +- "
        f"{info.gradient_error:.1e}, eps {info.eps:.0e}",
        refresh=False,
    )
    bar.update(state.counts.cost - bar.n)


def _start(method, problem, theta0, x0, max_cost):
    needed = overheads(problem, x0, theta0).solve
    if max_cost < needed:
        raise ValueError(f"max_cost={max_cost} does not pay for the first gradient, which takes {needed}: raise it")
    return method.init(problem, theta0, x0, max_cost)


def _check_limits(tol, max_steps, max_cost, every=1):
    if tol is not None and not tol >= 0:
        raise ValueError(f"tol must be at least 0, not {tol!r}")
    if not max_steps >= 0:
        raise ValueError(f"max_steps must be at least 0, not {max_steps!r}")
    if not every >= 1:
        raise ValueError(f"every must be at least 1, not {every!r}")
    if not max_cost > 0:
        raise ValueError(f"max_cost must be positive, not {max_cost!r}")
