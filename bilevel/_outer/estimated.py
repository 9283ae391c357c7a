"""z where h has a kink: the derivative of xhat on its active set, and no bound of what it is off.

    z ~ grad f,        omega = inf

It is a direction's to use and proves nothing; steps are accepted by their values, whose intervals are certified.
"""

import math

from .._arguments import positive
from .._nonsmooth import AbstractNonsmoothProblem
from .gradient import AbstractGradient
from .method import ROUNDED
from .programs import Stop

RELATIVE = 1e-4  # of the value: the default tolerance


class Estimated(AbstractGradient):
    """`value_tol`: no step is worth it that lowers the value by less; in the units of g. See `value_descent`."""

    value_tol: float | None = None

    def __check_init__(self):
        positive(value_tol=self.value_tol)

    def suits(self, problem, theta, x):
        if not isinstance(problem, AbstractNonsmoothProblem):
            raise TypeError(
                f"the lower level of {type(problem).__name__} is smooth, and its gradients can be certified: pass "
                "bilevel.quasi_newton(), or no method"
            )

    def certify(self, base, method):
        if not base.by_default:
            raise ValueError(
                "tol bounds a gradient, and none is certified here: pass bilevel.value_descent(value_tol=)"
            )
        asked = base.memory.asked
        if base.eps > ROUNDED * asked.eps and not base.x_floor:
            base.solve(asked.eps)
        if not math.isfinite(base.eps):
            raise Stop(base.point.lower.result)
        tolerance = RELATIVE * abs(float(base.point.value)) if self.value_tol is None else self.value_tol
        base.remember(asked=asked._replace(tolerance=tolerance))
        base.estimate()

    def solve(self, base, trial, x, eps, cap, q):
        """The lower level at a trial point, from the base's solution or on from what was reached there."""
        again = base.trial is not None and base.trial.lower.x is x
        base.meter.recall(base.trial if again else base.point)
        base.trial = base.meter.solve(trial, x, eps, cap)
        return base.trial
