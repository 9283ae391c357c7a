"""One theta, no descent: the lower-level solution, or f and grad f, each with its certificate.

solve_lower(problem, theta, eps=1e-3)                  ||x - xhat(theta)|| <= error
hypergradient(problem, theta, eps=1e-3, delta=1e-3)    |g(x) - f| <= value_error, ||z - grad f|| <= gradient_error
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .inputs import positive, prepare, same_shapes
from .lower import AbstractLowerSolver, LowerSolution, descend
from .meter import UNLIMITED, Counts, Meter, differentiate
from .problem import AbstractProblem
from .results import RESULTS
from .solvers import Nesterov

minimise = eqx.filter_jit(descend)


class HypergradientSolution(eqx.Module):
    """f and grad f at one theta, each with its bound.

    - `value`, `value_error`: |g(x) - f(theta)| <= value_error, in the units of g.
    - `gradient`, `gradient_error`: z shaped like theta, and omega >= ||z - grad f||.
    - `x`, `error`: the lower-level solution and eps >= ||x - xhat||. - `q`, `residual`: the adjoint and delta.
    - `result`: converged, or why an accuracy asked for was not reached (the bounds hold for what was reached).
    - `certificate`: "proven", "probable" (||J|| by Lanczos, fails with probability at most 1e-10), "estimated";
      `certified` is false for the last.
    - `counts`: what it cost.
    """

    value: Array
    value_error: Array
    gradient: PyTree[Array]
    gradient_error: Array
    x: PyTree[Array]
    error: Array
    q: PyTree[Array]
    residual: Array
    result: RESULTS
    counts: Counts
    certificate: str = eqx.field(static=True)

    @property
    def certified(self) -> bool:
        return self.certificate != "estimated"


def hypergradient(
    problem: AbstractProblem,
    theta: PyTree,
    *,
    eps: float = 1e-3,
    delta: float = 1e-3,
    x0: PyTree | None = None,
    q0: PyTree | None = None,
    solver: AbstractLowerSolver = Nesterov(),
) -> HypergradientSolution:
    """f and grad f at theta with bounds on their errors: the lower level to eps, the adjoint to delta.

    `eps` is in the units of x, ||x - xhat|| <= eps; `delta` in those of grad_x g, ||H q - grad_x g|| <= delta. `x0`,
    `q0`: warm starts, such as `.x` and `.q` of a nearby one. Raises ValueError or TypeError for inputs as `solve` does.
    """
    positive(eps=eps, delta=delta)
    problem, theta, x0 = prepare(problem, theta, x0)
    if q0 is not None:
        same_shapes(q0, x0, "q0", "x")
    q0 = optax.tree.zeros_like(x0) if q0 is None else jax.tree.map(lambda q, x: jnp.asarray(q, x.dtype), q0, x0)
    meter = Meter(problem, solver, math.inf)
    point = meter.solve(theta, x0, eps)
    dtype = point.value.dtype
    out = differentiate(problem, theta, point.lower, q0, jnp.asarray(delta, dtype), jnp.asarray(UNLIMITED, jnp.int32))
    meter.add(out)
    result = out.result if point.lower.result == RESULTS.converged else point.lower.result
    return HypergradientSolution(
        point.value, point.value_error, out.gradient, out.error, point.lower.x, point.lower.error, out.q, out.delta,
        result, meter.counts, out.certificate,
    )  # fmt: skip


def solve_lower(
    problem: AbstractProblem,
    theta: PyTree,
    *,
    eps: float = 1e-3,
    x0: PyTree | None = None,
    solver: AbstractLowerSolver = Nesterov(),
) -> LowerSolution:
    """xhat(theta) to ||x - xhat|| <= eps: the trained model, the denoised image. `.x`, `.error`, `.result`.

    Does not need `upper`. Raises ValueError or TypeError for inputs as `solve` does.
    """
    positive(eps=eps)
    problem, theta, x0 = prepare(problem, theta, x0, levels=("lower",))
    dtype = jax.tree.leaves(x0)[0].dtype
    return minimise(problem, solver, theta, x0, jnp.asarray(eps, dtype), jnp.asarray(UNLIMITED, jnp.int32))
