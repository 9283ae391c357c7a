"""A method on one problem: `one` runs it, judges f outside the clock, and writes when the target was reached."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

import bilevel
from experiments._harness import record

CLOCK = record.CompileClock()


class Case(NamedTuple):
    """A problem to be solved from `theta0` until f <= `target`, and the gradient's norm is certified to `tol` (0: need
    not be). `f(theta, x)` knows f, warm-started at x; `best` is what curves are drawn above. `euclidean`: the problem
    without its metric, for HOAG, whose tolerances are for the Euclidean norm."""

    problem: bilevel.AbstractProblem
    theta0: Any
    best: float
    target: float
    f: Callable[[Any, Any], float]
    box: tuple[float, float] | None = None
    tol: float = 0.0
    max_cost: int = 10_000
    max_seconds: float = 60.0
    euclidean: bilevel.AbstractProblem | None = None


def lbfgsb(answer, theta0, box, watch, maxfun: int = 10_000) -> float:
    """SciPy's L-BFGS-B until it stops or `watch(cost, low, theta, x)` does; the least value."""
    start, unravel = ravel_pytree(theta0)
    cost = 0.0

    def f(flat):
        nonlocal cost
        theta = unravel(flat)
        new = answer(theta)
        cost += new.cost
        watch(cost, new.value - 0.01 * abs(new.value), theta, new.x)
        value, gradient = new.told
        return value, np.asarray(ravel_pytree(gradient)[0])

    options = {"gtol": 1e-7, "ftol": 1e-15, "maxiter": maxfun, "maxfun": maxfun}
    bounds = None if box is None else [box] * start.size
    return float(
        scipy.optimize.minimize(f, np.asarray(start), jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun
    )


class Ended(Exception):
    """The target is reached, or a budget is spent."""


class Watch:
    """Sees every point of a run: judges f outside the clock where it may matter, writes the curve (with a `log`), ends
    the run."""

    def __init__(self, log: record.Log | None, run: str, case: Case):
        self.log, self.run, self.case = log, run, case
        self.start, self.compiled, self.next, self.k, self.reached = time.perf_counter(), CLOCK.seconds, 0.0, 0, None

    def spent(self) -> dict[str, float]:
        """Seconds by the clock; tracing and compiling apart."""
        compiling = CLOCK.seconds - self.compiled
        return {"seconds": time.perf_counter() - self.start - compiling, "compile_seconds": compiling}

    def __call__(self, cost, low, theta, x) -> None:
        stopped, clock, spent = time.perf_counter(), CLOCK.seconds, self.spent()
        total = sum(spent.values())
        if (
            cost > self.case.max_cost
        ):  # an optimiser from elsewhere knows no budget; what it did not pay for is not seen
            raise Ended
        self.k += 1
        if low <= self.case.target or total >= self.next:
            f = self.case.f(theta, x)
            solved = f <= self.case.target
            if solved or total >= self.next:  # eight points of the curve a decade
                self.next = total * 10 ** (1 / 8)
                if self.log is not None:
                    self.log.write("judged", self.run, k=self.k, cost=cost, f=f, **spent)
            if solved:
                self.reached = {"cost": cost, **spent}
        self.start, self.compiled = self.start + time.perf_counter() - stopped, self.compiled + CLOCK.seconds - clock
        if (self.reached and self.case.tol == 0) or total >= self.case.max_seconds:
            raise Ended


def one(log: record.Log, run: str, kind: str, name: str, method, case: Case, curve: bool) -> None:
    """One run: a line for the settings, perhaps some for its curve, one for when its target was reached, if it was."""
    settings = {"method": name, "problem": kind, "target": case.target, "best": case.best}
    settings |= {"max_cost": case.max_cost, "max_seconds": case.max_seconds}
    log.write("config", run, **settings, **record.environment())
    watch, result = Watch(log if curve else None, run, case), "The optimiser stopped by itself."
    try:
        if isinstance(method, bilevel.AbstractMethod):
            problem = case.euclidean if name.startswith("hoag") and case.euclidean is not None else case.problem
            limits = dict(tol=case.tol, bounds=case.box, max_cost=case.max_cost, max_steps=100_000)
            for state, info in bilevel.iterate(problem, case.theta0, method, **limits):  # noqa: B007
                point = state.point
                watch(state.counts.cost, float(point.value) - float(point.value_error), state.theta, point.lower.x)
            result = str(bilevel.RESULTS[info.result])
            if case.tol > 0:  # what counts is the certificate
                met = bool(info.result == bilevel.RESULTS.converged)
                watch.reached = {"cost": state.counts.cost, **watch.spent()} if met else None
        else:
            lbfgsb(method(case), case.theta0, case.box, watch)
    except Ended:
        result = "The target was reached." if watch.reached else "The budget was used up."
    log.write("end", run, reached=watch.reached, result=result, **watch.spent())
