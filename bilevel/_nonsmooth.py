"""A lower level with a kink, an absolute value, total variation, bounds on x: solved and certified by its own proof.

    ||x - xhat(theta)|| <= error      from a duality gap, or a subgradient
    |g(x) - f(theta)| <= ||grad_x g|| error + L_g error^2 / 2      as ever

f has kinks itself where the active set changes; elsewhere the derivative of xhat on the active set makes z ~ grad f. Of
z's error nothing is known: it says where to look, and values decide.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from ._counts import Count
from ._linalg.vectors import Scalar, Vector
from ._problem import AbstractProblem
from ._results import RESULTS


class Solved(eqx.Module):
    """What `minimise` returns: `x` with ||x - xhat|| <= `error`, `floor` of which is rounding; `memory` for a solve
    nearby; `result`, converged where error <= eps; the cost by kind; `certificate`: "proven", or "estimated" where the
    proof rests on an estimate."""

    x: Vector
    error: Scalar
    floor: Scalar
    memory: Any
    result: RESULTS
    lower_gradients: Count
    hessian_products: Count
    certificate: str = eqx.field(static=True, default="proven")


class AbstractNonsmoothProblem(AbstractProblem):
    """A problem whose lower level is not differentiable in x, with a certified solver of its own.

    `lower` and `upper` are functions as ever; of `constants`, `L_upper`, `convex_upper` and `rounding_upper` are read,
    which the value's interval needs. `bilevel.solve` descends along z and accepts what certified values show to be
    lower; no gradient is certified, and nothing is called converged. All methods are traceable.
    """

    def memory(self, x: Vector) -> Any:
        """What a solve starts from beside x, before the first; such as a dual variable. It keeps its shapes."""
        return None

    @abc.abstractmethod
    def solve_cost(self, x: Vector) -> int:
        """What a solve costs that takes no step, from the shapes alone."""

    @abc.abstractmethod
    def minimise(self, theta: Vector, x0: Vector, memory: Any, eps: Scalar, max_cost: Count) -> Solved:
        """x with ||x - xhat(theta)|| <= eps if max_cost allows, which is at least `solve_cost`; else how far it came.
        eps may be infinite, and 0; an error may be infinite."""

    @abc.abstractmethod
    def slope_cost(self, x: Vector) -> int:
        """What `slope` costs at least, from the shapes alone."""

    @abc.abstractmethod
    def slope(self, theta: Vector, x: Vector, memory: Any, max_cost: Count) -> tuple[Vector, Count]:
        """(z, what it cost), z ~ grad f(theta) shaped like theta; `memory` is that of the solve that found x."""


def refuse_kinks(problem: AbstractProblem, what: str) -> None:
    """Raises TypeError for a problem whose h has kinks; `what` is done and cannot be."""
    if isinstance(problem, AbstractNonsmoothProblem):
        raise TypeError(
            f"{what}, and the lower level of {type(problem).__name__} has a kink: use bilevel.solve, "
            "bilevel.solve_lower, or bilevel.hypergradient, whose gradient is then an estimate"
        )


def verdict(error: Scalar, floor: Scalar, eps: Scalar, u: float, capped: Any) -> RESULTS:
    """Why a solve ended: eps was met; rounding is half of the error; `capped`: what it may cost was spent."""
    result = RESULTS.where(capped, RESULTS.max_cost_reached, RESULTS.lower_stalled)
    result = RESULTS.where(jnp.isfinite(error) & (error <= 2 * floor), RESULTS.accuracy_floor, result)
    result = RESULTS.where(error <= eps * (1 + 8 * u), RESULTS.converged, result)
    return RESULTS.where(jnp.isnan(error), RESULTS.non_finite, result)
