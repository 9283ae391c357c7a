"""The methods, composed: who decides the accuracy and the step, and who solves the lower level."""

from .._inputs import positive
from .._lower.lbfgs import LBFGS
from .._lower.nesterov import Nesterov
from .._lower.solver import AbstractLowerSolver
from .accuracy import Adaptive, Fixed, Geometric, Polynomial, Scheduled
from .descent import Method
from .predict import AbstractPredictor, Previous
from .quasi_newton import QuasiNewton
from .search import CertifiedBacktracking, HOAGHeuristic


def quasi_newton(
    eps: float | None = None,
    delta: float | None = None,
    step: float | None = None,
    *,
    solver: AbstractLowerSolver = LBFGS(),
) -> QuasiNewton:
    """Certified quasi-Newton descent, the default: MAID's certificates and acceptance with L-BFGS directions, corrected
    values and predicted solutions; see the equations beside `QuasiNewton`. Arguments as in `maid`."""
    positive(eps=eps, delta=delta, step=step)
    return QuasiNewton(eps, delta, step, solver=solver)


def maid(
    eps: float | None = None,
    delta: float | None = None,
    step: float | None = None,
    *,
    solver: AbstractLowerSolver = Nesterov(),
    predictor: AbstractPredictor = Previous(),
) -> Method:
    """MAID as published (arXiv 2308.10098), with actual residuals in its certificates, a cap on what a trial may cost,
    and a failed certificate followed by as many shrinkings at once as are sure to be needed (see `Adaptive`).

    `eps`, `delta`, `step`: initial accuracies and step, positive; chosen from the problem where left out. The method's
    other constants have the paper's values; they are fields of `Adaptive` and `CertifiedBacktracking`. `predictor`:
    of a trial's x; the published one is `Previous()`, others may save some of the trial's cost, and decide nothing.
    Raises ValueError for values that are not positive and finite.
    """
    positive(eps=eps, delta=delta, step=step)
    return Method(Adaptive(eps, delta), CertifiedBacktracking(step), solver, predictor)


def hoag(
    schedule: Geometric | Polynomial = Geometric(0.9),
    tolerance: float = 0.1,
    step: float | None = None,
    *,
    solver: AbstractLowerSolver = Nesterov(),
) -> Method:
    """HOAG (Pedregosa 2016, arXiv 1602.02355): accuracies by schedule from `tolerance`, a heuristic step. Its numbers
    come with certificates all the same; they decide nothing."""
    positive(tolerance=tolerance, step=step)
    return Method(Scheduled(schedule, tolerance), HOAGHeuristic(step), solver=solver)


def fixed_accuracy(
    eps: float, delta: float | None = None, step: float | None = None, *, solver: AbstractLowerSolver = Nesterov()
) -> Method:
    """MAID's line search at accuracies that never change; `delta` defaults to `eps`."""
    positive(eps=eps, delta=delta, step=step)
    return Method(Fixed(eps, eps if delta is None else delta), CertifiedBacktracking(step), solver=solver)
