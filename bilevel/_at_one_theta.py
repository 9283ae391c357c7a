"""One theta, no descent: the lower-level solution, or f and grad f, each with its certificate.

solve_lower(problem, theta, eps=1e-3)                  ||x - xhat(theta)|| <= error
hypergradient(problem, theta, eps=1e-3, delta=1e-3)    |g(x) - f| <= value_error, ||z - grad f|| <= gradient_error
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ._arguments import number, part, positive
from ._certificate.gradient import weakest
from ._chunked import refuse_chunks
from ._counts import Counts
from ._inputs import prepare, same_shapes
from ._lower.descend import LowerSolution, descend, overhead
from ._lower.nesterov import Nesterov
from ._lower.solver import AbstractLowerSolver
from ._nonsmooth import AbstractNonsmoothProblem
from ._outer.chunks import meter as metered
from ._outer.method import ROUNDED
from ._outer.overheads import overheads
from ._outer.programs import UNLIMITED, Meter
from ._problem import AbstractProblem
from ._program import program
from ._results import RESULTS

SMALL = 128  # numbers in x: H is then formed whatever the solve has cost

minimise = program(descend)


class HypergradientSolution(eqx.Module):
    """f and grad f at one theta, each with its bound.

    - `value`, `value_error`: |g(x) - f(theta)| <= value_error, in the units of g.
    - `gradient`, `gradient_error`: z shaped like theta, and omega >= ||z - grad f||.
    - `x`, `error`: the lower-level solution and eps >= ||x - xhat||.
    - `q`, `residual`: the adjoint and delta.
    - `result`: converged, or why an accuracy asked for was not reached (the bounds hold for what was reached).
    - `certificate`: "proven", "probable" (||J|| by Lanczos, fails with probability at most 1e-10), "estimated";
      `certified` is false for the last.
    - `counts`: what it cost.
    """

    value: Array
    value_error: Array
    gradient: PyTree[Array]
    gradient_error: Array
    x: PyTree[Array | np.ndarray]
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
    max_cost: float = math.inf,
    x0: PyTree | None = None,
    q0: PyTree | None = None,
    solver: AbstractLowerSolver = Nesterov(),
) -> HypergradientSolution:
    """f and grad f at theta with bounds on their errors: the lower level to eps, the adjoint to delta.

    `eps` is in the units of x, ||x - xhat|| <= eps; `delta` in those of grad_x g, ||H q - grad_x g|| <= delta. What is
    reported is often far smaller: bounds are sharpened by H(x) itself where x has at most 128 numbers, or 2000 if that
    costs no more than the solve did. `max_cost`: in gradients and products, never exceeded. `x0`, `q0`: warm starts,
    such as `.x` and `.q` of a nearby one. Where the lower level has a kink, values are certified as ever, and z is the
    derivative on the active set: estimated, its error unknown and given as infinite. Raises ValueError or
    TypeError for inputs as `solve` does.
    """
    positive(eps=eps, delta=delta)
    part("solver", solver, AbstractLowerSolver, "Nesterov()")
    problem, theta, x0 = prepare(problem, theta, x0)
    if q0 is not None:
        same_shapes(q0, x0, "q0", "x")
    if isinstance(problem, AbstractNonsmoothProblem):
        return _on_active_set(problem, theta, x0, eps, max_cost)
    q0 = optax.tree.zeros_like(x0) if q0 is None else jax.tree.map(lambda q, x: jnp.asarray(q, x.dtype), q0, x0)
    known = overheads(problem, x0, theta)
    pays(max_cost, known.solve + known.certificate + 1)
    meter = metered(problem, solver, max_cost)
    ask, x, rest = eps, x0, known.certificate + 1
    while True:
        point = meter.solve(theta, x, ask, meter.left - rest)
        small = 0 < optax.tree.size(x0) <= SMALL
        point = meter.sharpen(theta, point, min(meter.left - rest, math.inf if small else meter.counts.cost)) or point
        lowered, out = meter.attempt(theta, point, q0, delta)
        result = out.result if point.lower.result == RESULTS.converged else point.lower.result
        enough = float(lowered.lower.error) <= eps or not float(out.mu) > 0 or result != RESULTS.converged
        if enough or meter.left < known.solve + rest:
            break
        # conjugate gradients have seen less curvature than the estimate of mu says: the solve goes on
        ask, x, q0 = ask * float(out.mu / point.lower.mu), point.lower.x, out.q
    point = lowered
    if result == RESULTS.converged and not float(point.lower.error) <= eps * ROUNDED:
        result = RESULTS.max_cost_reached
    # beyond what the dtype can hold, nothing was met
    broken = ~(jnp.isfinite(point.value_error) & jnp.isfinite(out.error)) & (result == RESULTS.converged)
    broken |= jnp.isnan(point.value_error) | jnp.isnan(out.error)
    return HypergradientSolution(
        point.value, point.value_error, out.gradient, out.error, point.x, point.lower.error, out.q, out.delta,
        RESULTS.where(broken, RESULTS.non_finite, result), meter.counts, weakest(out.certificate, point.certificate),
    )  # fmt: skip


def _on_active_set(problem, theta, x0, eps, max_cost):
    """A certified value and a z of unknown error; there is no q."""
    known = overheads(problem, x0, theta)
    pays(max_cost, known.solve + known.certificate)
    meter = Meter(problem, None, max_cost)
    point = meter.solve(theta, x0, eps, meter.left - known.certificate)
    z, inf = meter.slope(theta, point), jnp.full_like(point.value, jnp.inf)
    return HypergradientSolution(
        point.value, point.value_error, z, inf, point.lower.x, point.lower.error, optax.tree.zeros_like(x0), inf,
        point.lower.result, meter.counts, "estimated",
    )  # fmt: skip


def solve_lower(
    problem: AbstractProblem,
    theta: PyTree,
    *,
    eps: float = 1e-3,
    max_cost: float = math.inf,
    x0: PyTree | None = None,
    solver: AbstractLowerSolver = Nesterov(),
) -> LowerSolution:
    """xhat(theta) to ||x - xhat|| <= eps: the trained model, the denoised image. `.x`, `.error`, `.result`.

    `max_cost`: in gradients and products, never exceeded. Does not need `upper`. Raises ValueError or TypeError for
    inputs as `solve` does.
    """
    positive(eps=eps)
    part("solver", solver, AbstractLowerSolver, "Nesterov()")
    refuse_chunks(problem, "bilevel.solve_lower is for one lower level")
    problem, theta, x0 = prepare(problem, theta, x0, levels=("lower",))
    pays(max_cost, overhead(problem, theta, optax.tree.size(x0)))
    dtype = jax.tree.leaves(x0)[0].dtype
    allowed = jnp.asarray(int(min(max_cost, UNLIMITED)), jnp.int32)
    return minimise(problem, solver, theta, x0, jnp.asarray(eps, dtype), allowed)


def pays(max_cost: float, needed: int) -> None:
    """Raises ValueError where a budget does not pay for what comes before the first step."""
    if not number("max_cost", max_cost) >= needed:
        raise ValueError(f"max_cost={max_cost} does not pay for what comes first, which takes {needed}: raise it")
