"""One unit of a `Chunked` problem: its lower level solved, its hypergradient made, each with the bounds that hold for
it alone, in one program. `means` puts them together.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._counts import Count
from .._linalg.vectors import Scalar, Vector
from .._lower.descend import descend
from .._lower.solver import AbstractLowerSolver
from .._problem import AbstractProblem
from .._results import RESULTS
from . import gradient as gradients
from . import value
from .gradient import certificate_cost, weakest
from .local_curvature import local_cost
from .value import Point, correction_cost

POINT = ("value", "value_error", "below", "norm_g_x", "eps", "floor", "mu", "L")
GRADIENT = ("omega", "norm", "delta", "per_eps", "per_delta", "per_eps2", "per_both", "least")
COUNTS = ("lower_gradients", "hessian_products", "cross_products", "solved", "differentiated")


class Told(eqx.Module):
    """What a unit tells in numbers, in the order of `POINT`, and of `GRADIENT` where it has one; and of `COUNTS`, the
    last two of which are the numbers of results."""

    numbers: Float[Array | np.ndarray, " k"]
    counts: Int[Array | np.ndarray, "5"]
    certificate: str = eqx.field(static=True)

    @property
    def cost(self) -> int:
        return int(sum(self.counts[:3]))

    @property
    def eps(self) -> float:
        return float(self.numbers[POINT.index("eps")])

    @property
    def cut(self) -> bool:
        """Whether its allowance ended the solve."""
        return int(self.counts[COUNTS.index("solved")]) == int(jax.tree.leaves(RESULTS.max_cost_reached)[0])

    def at(self, eps: float) -> "Told":
        """The same interval of the value, beside another x, that has this eps."""
        numbers = np.array(self.numbers)
        numbers[POINT.index("eps")] = eps
        return dataclasses.replace(self, numbers=numbers)

    def then(self, later: "Told") -> "Told":
        """What a second solve tells, with the cost of both."""
        counts = np.array(later.counts)
        counts[:3] += self.counts[:3]
        return dataclasses.replace(later, counts=counts)


def solve(
    problem: AbstractProblem,
    solver: AbstractLowerSolver,
    theta: Vector,
    x0: Vector,
    q: Vector | None,
    eps: Scalar,
    max_cost: Count,
    seed: Count,
) -> tuple[Vector, Told]:
    """x to eps, the value corrected by q if there is one. Traceable."""
    corrects = 0 if q is None else correction_cost(problem, x0, theta)
    point = value.evaluate(problem, solver, theta, x0, eps, max_cost - corrects, None, seed)
    if corrects:
        point = value.correct(problem, theta, point, like(q, x0))
    return point.lower.x, told(point, corrects)


def differentiate(
    problem: AbstractProblem,
    solver: AbstractLowerSolver,
    theta: Vector,
    x0: Vector,
    q0: Vector,
    eps: Scalar,
    delta: Scalar,
    max_cost: Count,
    seed: Count,
    sharp: bool,
    corrects: bool,
) -> tuple[Vector, Vector, Told]:
    """q to delta at x to eps, which takes one gradient where x0 is such an x; z; the value corrected by q. `sharp`:
    with the bounds of H(x) itself. Traceable."""
    local = local_cost(problem, x0, theta) if sharp else (0, 0)
    correction = correction_cost(problem, x0, theta) if corrects else 0
    rest = sum(local) + correction
    lower = descend(
        problem, solver, theta, x0, eps, max_cost - rest - certificate_cost(problem, x0, theta) - 1, None, seed
    )  # fmt: skip
    point = (value.sharpen if sharp else value.enclose)(problem, theta, lower)
    left = max_cost - rest - lower.lower_gradients - lower.hessian_products
    out = gradients.differentiate(problem, theta, point.lower, like(q0, x0), delta, left, seed)
    if correction:
        point = value.correct(problem, theta, point, out.q)
    products = correction + local[0] + out.hessian_products
    return out.q, out.gradient, told(point, products, local[1] + out.cross_products, out)


def like(q: Vector, x: Vector) -> Vector:
    return jax.tree.map(lambda q, x: q.astype(x.dtype), q, x)


def told(point: Point, hessian_products: Any, cross_products: Any = 0, out: Any = None) -> Told:
    lower = point.lower
    numbers = [point.value, point.value_error, point.below, point.norm_g_x, lower.error, lower.floor, lower.mu, lower.L]
    if out is not None:
        numbers += [out.error, out.norm, out.delta, out.per_eps, out.per_delta, out.per_eps2, out.per_both, out.mu]
    (solved,), differentiated = jax.tree.leaves(lower.result), 0 if out is None else jax.tree.leaves(out.result)[0]
    counts = lower.lower_gradients, lower.hessian_products + hessian_products, cross_products, solved, differentiated
    kind = point.certificate if out is None else weakest(point.certificate, out.certificate)
    columns = ((numbers, point.value.dtype), (counts, jnp.int32))
    return Told(*(jnp.stack([jnp.asarray(v, dtype) for v in values]) for values, dtype in columns), kind)
