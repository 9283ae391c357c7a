"""Where z comes from: by default from the adjoint system, certified.

    H q = grad_x g   to   delta,        z = grad_theta g - J^T q,        omega >= ||z - grad f||

Another source of z is a file of its own: `best_response`.
"""

import abc
import math
from typing import Any, ClassVar

import equinox as eqx

from .._certificate.value import Point
from .._chunked import refuse_chunks
from .._linalg.vectors import Vector
from .._nonsmooth import AbstractNonsmoothProblem
from .._problem import AbstractProblem
from .._results import RESULTS
from .base import Base
from .programs import Stop
from .refine import DEFAULT_TOLERANCE, first_tolerance


class AbstractGradient(eqx.Module):
    """`method`, where it is passed, is the `Method` that this is a part of. `adjoint`: it leaves an adjoint q in
    `base.memory`, by which values can be corrected. `adds`: a mean of it over units is that of their
    mean, see `Chunked`."""

    adjoint: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    def init(self, theta: Vector, x: Vector) -> Any:
        """The memory before the first step."""
        return None

    def suits(self, problem: AbstractProblem, theta: Vector, x: Vector) -> None:
        """Raises TypeError or ValueError, with what to write instead, for a problem that has no such z."""
        if isinstance(problem, AbstractNonsmoothProblem):
            raise TypeError(
                f"the lower level of {type(problem).__name__} has a kink, and no gradient is certified there: pass "
                "bilevel.value_descent(), or no method"
            )
        if not self.adds:
            refuse_chunks(problem, f"{type(self).__name__}() is for one lower level")

    @abc.abstractmethod
    def certify(self, base: Base, method: Any) -> None:
        """base.z, base.norm and base.omega, as accurate as the accuracy rule wants them; or Stop."""

    def solve(self, base: Base, trial: Vector, x: Vector, eps: float, cap: float, q: Vector | None) -> Point:
        """The lower level at a trial point, from the guess x."""
        return base.meter.solve(trial, x, eps, cap, q)


class Adjoint(AbstractGradient):
    """z by conjugate gradients on the adjoint system, its error bounded (arXiv 2308.10098, section 3)."""

    adjoint: ClassVar[bool] = True
    adds: ClassVar[bool] = True

    def certify(self, base, method):
        if not math.isfinite(base.eps):
            raise Stop(base.point.lower.result)
        accuracy, asked, begun, tries = method.accuracy, base.memory.asked, base.meter.counts.cost, 0
        while True:
            base.certify(asked.eps, asked.delta)
            if base.within() and enough(base, method):
                raise Stop(RESULTS.converged)
            reached = base.reached
            wanted = accuracy.wanted(asked, reached)
            if base.omega <= wanted:
                break
            floor, vain = base.at_floor, base.meter.counts.cost - begun
            if base.sharpen(math.inf if floor else accuracy.sharpening * vain):
                continue
            if floor and math.isnan(base.tol) and base.omega <= accuracy.wanted(asked, reached._replace(tol=0.0)):
                break
            if floor:
                raise Stop(RESULTS.accuracy_floor)
            asked = accuracy.tighten(asked, reached, wanted, tries)
            tries += 1
        if math.isnan(base.tol):
            base.tol = first_tolerance(base.meter, base.theta, base.point, base.gradient, base.box)
        base.remember(asked=accuracy.settle(asked, reached))


def enough(base: Base, method: Any) -> bool:
    """Whether a gradient within the tolerance ends the run: it does where the tolerance was asked for, or the direction
    has no model of f. Else the decrease that may be left has to be within a thousandth of the value, too, at two points
    running: on an ill-conditioned f the gradient falls by a thousand long before f does."""
    if not base.by_default or base.norm + base.omega == 0:
        return True
    _, heading, _ = base.turn(method.direction, method.search)
    if math.isnan(heading.left):
        return True
    most = DEFAULT_TOLERANCE * abs(float(base.point.value))
    base.modelled = heading.left <= most
    base.kept = min(base.kept, heading.promised if heading.promised <= most else math.inf)
    return base.modelled and base.memory.within
