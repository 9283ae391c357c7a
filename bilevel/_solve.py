"""The front door: run a method until the gradient is certified small or a budget ends, and say which.

for state, info in iterate(problem, theta0, method): ...          one outer step at a time
solution = solve(problem, theta0, method, tol=..., max_cost=...)  all of them
"""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import PyTree

from . import _checkpoint as checkpoints
from ._arguments import number, part
from ._bar import bar, shown
from ._inputs import make_box, prepare
from ._interrupt import Interrupt
from ._outer.method import AbstractMethod, Info, State
from ._outer.named import default
from ._outer.programs import overheads
from ._problem import AbstractProblem
from ._processes import shared
from ._results import Solution
from ._run import Record, Saver, follow, solution


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
    _check_limits(tol, max_steps, max_cost)
    problem, theta0, x0, method = _ready(problem, theta0, x0, method)
    state = _start(method, problem, theta0, x0, max_cost) if state is None else state
    steps = _iterate(problem, method, tol, max_steps, max_cost, make_box(bounds, theta0), state)
    next(steps)
    del state  # x many times over: it is not kept for the whole run
    yield from steps


def _iterate(problem, method, tol, max_steps, max_cost, box, state):
    """Where it starts, without an info, and then step after step."""
    info = None
    yield state, info
    while info is None or info.result is None:
        last = state.steps >= max_steps
        state, info = method.step(problem, state, tol=tol, box=box, max_cost=max_cost, last=last)
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
    resume: bool | str = False,
    overwrite: bool = False,
    keep_state: bool = False,
) -> Solution:
    """Learn theta: min over theta of g(xhat(theta), theta), xhat(theta) = argmin over x of h(x, theta).

    **Arguments**

    - `problem`: an `AbstractProblem`; `theta0`: a pytree of floats, cast to the dtype of the problem's data.
    - `method`: `quasi_newton()` (the default; where the lower level has a kink, `value_descent()`), `maid()`,
      `hoag(...)`, `fixed_accuracy(...)`, `self_tuning()`, or one of your own, an `AbstractMethod`.
    - `tol`: stop when ||z|| + omega <= tol, a bound on ||grad f|| (with bounds: on ||P(theta - grad f) - theta||, with
      the same P). Left out, it is a thousandth of the norm that is certified at theta0, and the default method, which
      learns of f's curvature, must also leave no more decrease to be had than a thousandth of the value (see README).
    - `max_steps`, `max_cost`: budgets in outer steps and in gradients and products; max_cost is never exceeded.
    - `bounds`: (lo, hi), each a number or a pytree like theta0; `x0`: where the first lower-level solve starts.
    - `progress`: a bar on a terminal or in a notebook; `keep_state`: whether `Solution.state` is kept.
    - `callback(state, info)`: called after every step, with theta_k and its numbers in `info` and what comes next in
      `state`. Where it returns True, a boolean and not just something that counts as true, the run ends.
    - `checkpoint`: a file, written every `every` accepted steps and at the end. `resume=True` goes on from it, and the
      result equals that of a run never interrupted, bit for bit (seconds excepted); `resume="auto"` does if it is
      there, and starts if not; `overwrite=True` starts afresh.

    Ctrl-C in the main thread ends the run after the step that is being made, a second one at once.

    **Returns** a `Solution`; whatever went wrong in the numbers is in `solution.result`.

    **Raises** ValueError or TypeError for inputs that cannot be run: NaN, shapes, dtypes, a missing checkpoint, or one
    that is there and would be overwritten unasked.
    """
    _check_limits(tol, max_steps, max_cost, every, callback)
    resumed = checkpoints.goes_on(checkpoint, resume, overwrite, shared(problem))
    problem, theta0, x0, method = _ready(problem, theta0, x0, method)
    box, record, prints = make_box(bounds, theta0), Record(theta0), {}
    if checkpoint is not None:
        prints = checkpoints.fingerprint(problem, method, {"theta0": theta0, "x0": x0, "box": box})
    with Interrupt(shown(progress)) as interrupt:
        # no name for the state, which would keep it for the whole run
        steps = _iterate(
            problem, method, tol, max_steps, max_cost, box,
            _begin(method, problem, theta0, x0, max_cost, checkpoint if resumed else None, prints, record),
        )  # fmt: skip
        line = bar(progress, total=max_cost, unit=" products", desc="bilevel")
        save = Saver(checkpoint, record, prints)
        ended = follow(steps, record, save, every, callback, line, interrupt)
    return solution(*ended, record, method, tol is None, keep_state)


def _ready(problem, theta0, x0, method):
    if method is not None:
        part("method", method, AbstractMethod, "maid()")
    problem, theta0, x0 = prepare(problem, theta0, x0)
    method = default(problem) if method is None else method
    return problem, theta0, x0, method.settle(problem, theta0, x0)


def _start(method, problem, theta0, x0, max_cost):
    needed = overheads(problem, x0, theta0).solve
    if max_cost < needed:
        raise ValueError(f"max_cost={max_cost} does not pay for the first gradient, which takes {needed}: raise it")
    return method.init(problem, theta0, x0, max_cost)


def _begin(method, problem, theta0, x0, max_cost, saved, prints, record):
    """The state to start from: a saved one where there is one, and then its record too."""
    start = _start(method, problem, theta0, x0, max_cost)
    if saved is not None:
        start, record.columns = checkpoints.load(saved, start, prints)
    return start


def _check_limits(tol, max_steps, max_cost, every=1, callback=None):
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function callback(state, info), not {callback!r}")
    if tol is not None and not number("tol", tol) >= 0:
        raise ValueError(f"tol must be at least 0, not {tol!r}")
    if not number("max_steps", max_steps) >= 0:
        raise ValueError(f"max_steps must be at least 0, not {max_steps!r}")
    if not number("every", every) >= 1:
        raise ValueError(f"every must be at least 1, not {every!r}")
    if not number("max_cost", max_cost) > 0:
        raise ValueError(f"max_cost must be positive, not {max_cost!r}")
