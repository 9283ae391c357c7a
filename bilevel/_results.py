"""What came of it: the outcomes a run can have, and the solution it hands back."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree


class RESULTS(eqx.Enumeration):
    """Why a computation stopped. `str(RESULTS[result])` is the message; compare with `==`."""

    converged = "The accuracy or tolerance asked for was met."
    max_steps_reached = (
        "The step budget was used up before the tolerance was met. Raise `max_steps`, or resume from the checkpoint."
    )
    max_cost_reached = (
        "The cost budget was used up before the tolerance was met; the last accepted point is returned. "
        "Raise `max_cost`, or resume from the checkpoint."
    )
    accuracy_floor = (
        "More accuracy is needed than the dtype of the data can deliver (float64 has more than float32): what is "
        "reported, with its error, is what can be known here."
    )
    no_decrease = (
        "No step with certified decrease was found and the accuracy rule offers no more accuracy. "
        "Use an adaptive rule such as `bilevel.maid()`, or a smaller fixed accuracy."
    )
    non_finite = "A value, gradient or Hessian product was not finite. Check the data, theta0 and the problem's range."
    lower_stalled = (
        "The lower-level solver made no progress any more, far above the rounding floor: does `lower` have a kink (an "
        "absolute value has to be smoothed), no minimiser, a wrong derivative rule or a declared L that is too small? "
        "`bilevel.check_problem` looks for these."
    )
    not_strongly_convex = (
        "The lower level curves less than the declared mu in some direction, so no certificate holds. "
        "Correct `Constants(mu=...)`, or add a strongly convex term to `lower`; "
        "`bilevel.check_problem` measures the curvature."
    )
    not_convex = (
        "The lower level was measured not to curve upwards in some direction, so it singles out no x, and nothing can "
        "be certified. Add a strongly convex term to `lower`; if it has one, give its curvature as `Constants(mu=...)`."
    )
    checkpoint_failed = (
        "The checkpoint could not be written (is the disk full?). The last good checkpoint is untouched and the "
        "solution so far is returned; free some space and resume."
    )


class Solution(eqx.Module):
    """What `solve` found.

    **Attributes**

    - `theta`, `x`: the last accepted hyperparameters and their lower-level solution (pytrees).
    - `value`, `value_error`: f(theta) but for at most `value_error`: the upper level at `x`, which the default method
      corrects by the adjoint.
    - `gradient_norm`, `gradient_error`: ||z|| (with a box on theta: ||P(theta - z) - theta||) and omega, the bound on
      ||z - grad f||. `nan` and `inf` where the budget ended before the gradient at the last accepted point was known.
    - `certified`: every bound rests on constants that are proven or vouched for, none on an estimate.
    - `result`, `converged`: a member of `RESULTS`, and whether the tolerance was met.
    - `history`: 1-D NumPy arrays by name; entry k describes theta_k at the cost at which it became known.
    - `cost`, `seconds`: all that was spent, compilation left out; `compile_seconds`: tracing and compiling.
    - `message`: the result in words, with what was shown. - `state`: where the next step would start;
      `state.counts` has the cost by kind.
    """

    theta: PyTree[Array]
    x: PyTree[Array]
    value: float
    value_error: float
    gradient_norm: float
    gradient_error: float
    certified: bool
    result: RESULTS
    history: dict[str, np.ndarray]
    compile_seconds: float
    state: Any
    detail: str = ""

    @property
    def converged(self) -> bool:
        return bool(self.result == RESULTS.converged)

    @property
    def message(self) -> str:
        return f"{RESULTS[self.result]} {self.detail}".strip()

    @property
    def cost(self) -> int:
        return self.state.counts.cost

    @property
    def seconds(self) -> float:
        return self.state.seconds
