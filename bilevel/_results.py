"""What came of it: the outcomes a run can have, and the solution it hands back."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from ._counts import Counts
from ._plot import plot

SHORT = 8  # a theta of more numbers is not printed


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
        "Use an adaptive rule such as `bilevel.maid()`, a smaller fixed accuracy, or, where the lower level has a "
        "kink, a smaller first `step`: trials that cost too much are not judged."
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
    settled = (
        "No step that was tried and could be judged lowers the value by more than the tolerance on values, as their "
        "certificates show. The lower level has a kink: no gradient is certified, and nothing is called converged."
    )
    checkpoint_failed = (
        "The checkpoint could not be written (is the disk full?). The last good checkpoint is untouched and the "
        "solution so far is returned; free some space and resume."
    )
    stopped = (
        "The callback returned True, so the run ended after that step. Its last point is returned, whose gradient is "
        "not known yet; with a checkpoint the run can go on."
    )
    interrupted = (
        "Ctrl-C was pressed, so the run ended after the step that was being made. Its last point is returned, whose "
        "gradient is not known yet; with a checkpoint the run can go on."
    )


def told(result: RESULTS, member: RESULTS) -> bool:
    """Whether that is what a program returned. Compared on the host: `==` would be a program, and a read of its own."""
    (code,), (wanted,) = jax.tree.leaves(result), jax.tree.leaves(member)
    return int(code) == int(wanted)


class Solution(eqx.Module):
    """What `solve` found.

    **Attributes**

    - `theta`, `x`: the last accepted hyperparameters and their lower-level solution (pytrees).
    - `value`, `value_error`: f(theta) but for at most `value_error`: the upper level at `x`, which the default method
      corrects by the adjoint.
    - `gradient_norm`, `gradient_error`: ||z|| (with a box on theta: ||P(theta - z) - theta||) and omega, the bound on
      ||z - grad f||. `nan` and `inf` where the run ended before the gradient at the last accepted point was known.
    - `certified`: every bound rests on constants that are proven or vouched for, none on an estimate.
    - `result`, `converged`: a member of `RESULTS`, and whether the tolerance was met; `tol`: which (nan: none yet), on
      the gradient, or on values where the lower level has a kink.
    - `history`: 1-D NumPy arrays by name; entry k describes theta_k at the cost at which it became known.
    - `thetas`: every theta_k, NumPy arrays of theta's structure with a leading axis, entry k beside history's entry k;
      None where that would be more than 1e7 numbers.
    - `cost`, `counts`, `seconds`: all that was spent, by kind in `counts`, compilation left out; `steps`: accepted
      ones; `compile_seconds`: tracing and compiling.
    - `message`: the result in words, with what was shown.
    - `method`: what ran, with the solver that was chosen.
    - `state`: where the next step would start, for `iterate(state=)`; None unless `solve(keep_state=True)`, since it is
      many times as large as `x`.
    """

    theta: PyTree[Array]
    x: PyTree[Array | np.ndarray]
    value: float
    value_error: float
    gradient_norm: float
    gradient_error: float
    certified: bool
    result: RESULTS
    tol: float
    history: dict[str, np.ndarray]
    thetas: PyTree[np.ndarray] | None
    counts: Counts
    steps: int
    seconds: float
    compile_seconds: float
    method: Any
    state: Any = None
    detail: str = ""

    @property
    def converged(self) -> bool:
        return bool(self.result == RESULTS.converged)

    @property
    def message(self) -> str:
        return f"{RESULTS[self.result]} {self.detail}".strip()

    @property
    def cost(self) -> int:
        return self.counts.cost

    def plot(self, axes: Any = None) -> Any:
        """The value with its interval, and below it ||z|| with the bound on ||grad f|| and `tol`, against cost.

        Draws with matplotlib, into two `axes` of it where they are given, and returns them. Raises ImportError without
        it: `pip install 'bilevel[plots]'`."""
        return plot(self.history, self.tol, axes)

    def __repr__(self):
        try:
            return self._lines()
        except (TypeError, ValueError, AttributeError):  # something else stands in its leaves, as `jax.tree.map` may do
            return super().__repr__()

    def _lines(self) -> str:
        (name,) = (name for name, item in RESULTS._name_to_item.items() if bool(item == self.result))
        lines = {
            "theta": _short(self.theta),
            "value": f"{self.value:.8g} +- {self.value_error:.1e}",
            "gradient": f"{self.gradient_norm:.2e} +- {self.gradient_error:.1e}",
            "certified": f"{self.certified}",
            "cost": f"{self.cost} in {self.steps} step{'s' if self.steps != 1 else ''}",
            "seconds": f"{self.seconds:.3g}, and {self.compile_seconds:.3g} compiling",
        }
        return "\n".join([f"Solution: {name}", *(f"  {word:<9}  {text}" for word, text in lines.items())])


def _short(theta: PyTree) -> str:
    """Few numbers as they are; of many, the shapes."""
    if sum(np.size(leaf) for leaf in jax.tree.leaves(theta)) > SHORT:
        return eqx.tree_pformat(theta, width=10**6)
    shown = jax.tree.map(lambda leaf: np.array2string(np.asarray(leaf), precision=5, separator=", "), theta)
    return str(shown).replace("'", "")
