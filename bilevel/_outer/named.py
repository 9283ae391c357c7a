"""The methods, composed: who decides the accuracy, the direction and the step, and who solves the lower level."""

import math
from typing import Any

import optax

from .._arguments import positive
from .._lower.nesterov import Nesterov
from .._lower.solver import AbstractLowerSolver
from .._nonsmooth import AbstractNonsmoothProblem
from .._problem import AbstractProblem
from .accuracy import Adaptive, Fixed
from .balanced import Balanced
from .best_response import BestResponse
from .bfgs import QuasiNewton
from .estimated import Estimated
from .optimiser import Optax
from .predict import AbstractPredictor, Previous, Secants
from .response import FittedResponse, Responding
from .scheduled import Geometric, Polynomial, Scheduled
from .search import Always, CertifiedBacktracking, HOAGHeuristic
from .slope_test import SlopeTest
from .step import Method
from .value_test import ValueTest
from .valued import Valued


def quasi_newton(
    eps: float | None = None,
    delta: float | None = None,
    step: float | None = None,
    *,
    solver: AbstractLowerSolver | None = None,
) -> Method:
    """Certified quasi-Newton descent, the default: MAID's certificates and acceptance, with L-BFGS directions, accuracy
    where a decision needs it, values corrected by the adjoint, and predicted solutions. Arguments as in `maid`.

    `solver`: of the lower level; left out, L-BFGS, or Nesterov's method where x is large and h cheap (see `choose`).
    What the solver has learnt of H, L-BFGS's pairs, starts every next solve and preconditions the adjoint."""
    return Method(Balanced(eps, delta), SlopeTest(step), QuasiNewton(), solver, Secants())


def value_descent(value_tol: float | None = None, step: float | None = None) -> Method:
    """Descent on certified values, the default where the lower level has a kink: quasi-Newton directions from a z of
    unknown error, and steps that the ends of two value intervals show to lower f.

    Every step lowers f by at least `value_tol` / 2, and the run ends as `RESULTS.settled` where no step that was tried
    lowers it by more than `value_tol`; left out, that is a ten-thousandth of the value itself. `step`: the
    length of the first one, about one for each hyperparameter where left out. Raises ValueError for values that are not
    positive and finite.
    """
    return Method(Valued(), ValueTest(step), QuasiNewton(), gradient=Estimated(value_tol))


def default(problem: AbstractProblem) -> Method:
    """What a problem is solved with where no method is named."""
    return value_descent() if isinstance(problem, AbstractNonsmoothProblem) else quasi_newton()


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
    return Method(Adaptive(eps, delta), CertifiedBacktracking(step), solver=solver, predictor=predictor)


def hoag(
    schedule: Geometric | Polynomial = Geometric(0.9),
    tolerance: float = 0.1,
    step: float | None = None,
    *,
    solver: AbstractLowerSolver = Nesterov(),
) -> Method:
    """HOAG (Pedregosa 2016, arXiv 1602.02355): accuracies by schedule from `tolerance`, a heuristic step. Its numbers
    come with certificates all the same; they decide nothing."""
    return Method(Scheduled(schedule, tolerance), HOAGHeuristic(step), solver=solver)


def fixed_accuracy(
    eps: float, delta: float | None = None, step: float | None = None, *, solver: AbstractLowerSolver = Nesterov()
) -> Method:
    """MAID's line search at accuracies that never change; `delta` defaults to `eps`."""
    positive(eps=eps, delta=delta, step=step)
    return Method(Fixed(eps, eps if delta is None else delta), CertifiedBacktracking(step), solver=solver)


def self_tuning(
    optimiser: Any = optax.adam(0.1),
    *,
    rank: int | None = None,
    steps: int = 4,
    sigma: float = 0.1,
    solver: AbstractLowerSolver = Nesterov(),
) -> Method:
    """Self-tuning with an affine best response; see `BestResponse` for its equations and what they lack.

    - `optimiser`: of theta, an optax gradient transformation; no step is tested for decrease, so its learning rate has
      to suit the problem.
    - `steps`: T.
    - `solver`: of x.
    - `rank`: of K, at least 1. Left out, K is full for up to 8 hyperparameters, and of rank 1 for more.
    - `sigma`: the size of the perturbations of theta.

    An outer step costs about (2 rank + 1) T. Where ||z|| falls below tol / 2, the hypergradient there is certified, and
    only that ends a run as converged; else `gradient_error` is infinite. `tol` left out is a thousandth of a norm at
    theta0 that is certified once for it.

    Raises ValueError for a rank below 1, steps below 2, a sigma that is not positive; TypeError for no optimiser.
    """
    response = FittedResponse(rank, steps, sigma)
    return Method(
        Fixed(math.inf, math.inf), Always(), Optax(optimiser), solver, Responding(response), BestResponse(response)
    )  # fmt: skip
