"""f(theta) and grad f(theta) for an optimiser from elsewhere: SciPy's, DFO-LS, Optuna's.

    f(theta) = g(xhat(theta), theta),      grad f = grad_theta g - J^T H^{-1} grad_x g

Such an optimiser takes a function and knows no log, no budget and no accuracy. `run` gives it one that writes each
call, with its cost and seconds, and stops at the budget; `Value`, `Residuals`, `Gradient` and `Implicit` answer it.
"""

import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

import bilevel
from bilevel._inputs import prepare
from bilevel._outer.programs import Meter
from experiments._harness import record

CLOCK, DEFAULT = record.CompileClock(), bilevel.Nesterov()


class Answer(NamedTuple):
    """f at a theta, what the optimiser is told, the cost (nan where nobody counts) and the lower-level solution."""

    value: float
    told: Any
    cost: float
    x: PyTree


class Value:
    """f alone, the lower level solved to `eps` from where it ended last. `eps` may be changed between calls."""

    def __init__(self, problem: bilevel.AbstractProblem, eps: float, solver: Any = DEFAULT):
        self.problem, self.eps, self.solver, self.x = problem, eps, solver, None
        self._upper = jax.jit(lambda problem, x, theta: problem.upper(x, theta))

    def __call__(self, theta: np.ndarray) -> Answer:
        lower = bilevel.solve_lower(self.problem, theta, eps=self.eps, x0=self.x, solver=self.solver)
        self.x = lower.x
        value = float(self._upper(self.problem, lower.x, theta))
        return Answer(value, value, int(lower.lower_gradients + lower.hessian_products), lower.x)


class Residuals(Value):
    """f = sum r_i^2 with one residual r_i = sqrt(1/2n) ||xhat_i - clean_i|| for each of n images, for DFO-LS."""

    def __call__(self, theta: np.ndarray) -> Answer:
        answer = super().__call__(theta)
        distances = np.sum((np.asarray(answer.x) - np.asarray(self.problem.clean)) ** 2, axis=(1, 2))
        return answer._replace(told=np.sqrt(distances / (2 * len(distances))))


class Gradient:
    """f and grad f as `bilevel.hypergradient` has them, at one fixed accuracy and warm-started. An optimiser from
    elsewhere looks at no bound, so none is paid for beyond the first."""

    def __init__(self, problem: bilevel.AbstractProblem, eps: float, solver: Any = DEFAULT):
        self.problem, self.eps, self.solver, self.warm = problem, eps, solver, {}

    def __call__(self, theta: np.ndarray) -> Answer:
        problem, theta, x = prepare(self.problem, theta, self.warm.get("x0"))
        meter = Meter(problem, self.solver, math.inf)
        point = meter.solve(theta, x, self.eps)
        point, z = meter.differentiate(theta, point, self.warm.get("q0", optax.tree.zeros_like(x)), self.eps)
        x, value = point.lower.x, float(point.value)
        self.warm = {"x0": x, "q0": z.q}
        return Answer(value, (value, jax.tree.map(np.asarray, z.gradient)), meter.counts.cost, x)


class Implicit:
    """f and grad f by jaxopt: its L-BFGS until ||grad_x h|| <= tol, then implicit differentiation with conjugate
    gradients to the same relative tolerance. It counts nothing."""

    def __init__(self, problem: bilevel.AbstractProblem, theta0: np.ndarray, tol: float):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
            import jaxopt
        solve = partial(jaxopt.linear_solve.solve_cg, tol=tol)
        solver = jaxopt.LBFGS(problem.lower, tol=tol, maxiter=100_000, implicit_diff_solve=solve)

        def f(theta, x):
            x = solver.run(x, theta).params
            return problem.upper(x, theta), x

        self._f = jax.jit(jax.value_and_grad(f, has_aux=True))
        self.x = problem.guess(theta0)

    def __call__(self, theta: np.ndarray) -> Answer:
        (value, self.x), gradient = self._f(theta, self.x)
        return Answer(float(value), (float(value), np.asarray(gradient)), math.nan, self.x)


class Spent(Exception):
    """The budget has ended."""


def run(
    log: record.Log,
    name: str,
    config: dict[str, Any],
    answer: Callable[[np.ndarray], Answer],
    optimise: Callable[[Callable[[np.ndarray], Any]], Any],
    *,
    judge: Callable[[np.ndarray, PyTree], dict[str, Any]],
    max_cost: float = math.inf,
    max_seconds: float = math.inf,
) -> None:
    """`optimise(f)` until it returns or a budget is spent. A line "step" per call; a line "judged" for each theta with
    a better value than all before, `judge(theta, x)` being neither counted nor timed. `seconds` leave compiling out.
    """
    log.write("config", name, max_cost=max_cost, max_seconds=max_seconds, **config, **record.environment())
    start, compiled, aside, calls, cost = time.perf_counter(), CLOCK.seconds, 0.0, 0, 0.0
    best: dict[str, Any] = {"value": math.inf}

    def spent():
        compiling = CLOCK.seconds - compiled
        return {"cost": cost, "seconds": time.perf_counter() - start - aside - compiling, "compile_seconds": compiling}

    def f(theta):
        nonlocal aside, compiled, calls, cost, best
        if cost >= max_cost or spent()["seconds"] >= max_seconds:
            raise Spent
        new = answer(theta)
        if cost + new.cost > max_cost:  # not paid for, so not seen
            raise Spent
        cost += new.cost
        point = {"value": new.value} | ({"theta": np.array(theta)} if np.size(theta) <= record.SHORT else {})
        log.write("step", name, k=calls, **point, **spent())
        if new.value < best["value"]:
            best, before, clock = point, time.perf_counter(), CLOCK.seconds
            log.write("judged", name, k=calls, **spent(), **judge(theta, new.x))
            aside += time.perf_counter() - before
            compiled += CLOCK.seconds - clock
        calls += 1
        return new.told

    try:
        optimise(f)
        result = "The optimiser stopped by itself."
    except Spent:
        result = "The budget was used up."
    log.write("end", name, **best, calls=calls, result=result, **spent())


def seconds(run: record.Run) -> np.ndarray:
    """When each judged theta was known, compilation included; a run of this package's compiles before its first."""
    if "seconds" in run.judged:
        return run.judged["seconds"] + run.judged["compile_seconds"]
    return run.steps["seconds"][np.searchsorted(run.steps["k"], run.judged["k"])] + run.end["compile_seconds"]
