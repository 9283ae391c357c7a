"""Whether a mean over many units has decreased, told from a few of them: in probability, with a sample that grows.

    D_i = f_i(theta+) - f_i(theta),   |D_i| <= R,   with n units drawn:     mean of D  <=  B with probability 1 - d,
    B = mean of U + sqrt(2 V log(2/d) / n) + 14/3 R log(2/d) / (n - 1)

for any D_i <= U_i <= R, V the variance of the n that were drawn (Maurer and Pontil 2009, arXiv 0907.3740, theorem 4).
U_i is the upper end of an interval that is certain, so what is random is the draw alone.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ._arguments import positive
from ._certificate.gradient import weakest
from ._chunked import Chunked
from ._inputs import check_declared, prepare, same_shapes, uniform
from ._lower.choose import choose
from ._outer.programs import Meter

FIRST = 16  # units of the first look; each one after it has twice as many
Ends = tuple[np.ndarray, np.ndarray]  # low <= D <= high, one of each for every unit that was asked for


class Decision(NamedTuple):
    """`accepted`: bound <= -decrease, so that the mean has decreased; False says nothing.

    - `bound`: at least the mean of D.
    - `units`: how many different ones were looked at.
    - `certificate`: "probable"; "proven" where all units were looked at; "estimated" where the intervals were.
    - `cost`: in gradients and products of all units, rounded up.
    """

    accepted: bool
    bound: float
    units: int
    certificate: str
    cost: int = 0


class SampledTest:
    """`SampledTest(delta=0.01)`: with probability `delta` at most anything is wrong that it accepts in its life.

    Decision k may spend delta/(k (k + 1)), and its look j of that 1/(j (j + 1)): 16 units, 32, ..., drawn with
    replacement when theta+ is given and no longer moves; in the end all units, and then nothing is left to chance. So
    theta+ must not have been chosen by what the same `seed` will draw. One test is for one run; another one has its
    own delta.
    Raises ValueError for a delta outside (0, 1).
    """

    def __init__(self, delta: float = 0.01, *, seed: int = 0):
        if not 0 < delta < 1:
            raise ValueError(f"delta is a probability, between 0 and 1, not {delta!r}")
        self.delta, self.seed, self.decisions = float(delta), seed, 0

    def judge(self, ends: Callable[[np.ndarray], Ends], count: int, *, reach: float, decrease: float = 0.0) -> Decision:
        """Whether the mean of D over `count` units is at most -decrease.

        `ends(units)`: for an array of different indices the arrays (low, high), low <= D <= high; no unit is asked for
        twice. `reach`: R, a bound on |D_i| of every unit, drawn or not, such as G ||theta+ - theta|| where
        all f_i have the Lipschitz constant G on the way. Whoever passes it vouches for it: measured on some units it
        is no proof.
        Raises ValueError where an interval contradicts `reach`, for NaN in one, and for numbers that cannot be.
        """
        positive(reach=reach)
        if not decrease >= 0 or count < 1:
            raise ValueError(f"decrease must be at least 0 and count at least 1, not {decrease!r} and {count!r}")
        self.decisions += 1
        share = self.delta / (self.decisions * (self.decisions + 1))
        rng, drawn = np.random.default_rng((self.seed, self.decisions)), np.empty(0, int)
        known = np.full((2, count), math.nan)
        for j in itertools.count(1):
            n = FIRST * 2 ** (j - 1)
            drawn = np.concatenate([drawn, rng.integers(0, count, n - len(drawn))]) if n < count else np.arange(count)
            new = np.unique(drawn[np.isnan(known[0, drawn])])
            known[:, new] = _told(ends, new, reach)
            low, high = known[:, drawn]
            if n >= count:
                bound = float(np.mean(high))
                return Decision(bound <= -decrease, bound, count, "proven")
            spent = share / (j * (j + 1))
            bound = float(np.mean(high)) + radius(high, reach, spent)
            if bound <= -decrease or np.mean(low) - radius(low, reach, spent) > -decrease:
                units = int(np.sum(~np.isnan(known[0])))
                return Decision(bound <= -decrease, bound, units, "probable")

    def decreases(
        self, problem: Chunked, theta: PyTree, trial: PyTree, *, reach: float, eps: float, decrease: float = 0.0
    ) -> Decision:
        """Whether f(trial) <= f(theta) - decrease, f the mean of a `Chunked` problem's units, solved to `eps` each.

        `reach` as in `judge`: |f_i(trial) - f_i(theta)| <= reach for every i.
        Raises TypeError for another problem, ValueError as `judge` and `solve` do.
        """
        if not isinstance(problem, Chunked):
            raise TypeError(f"units are drawn of a bilevel.Chunked, and {type(problem).__name__} is none: make one")
        positive(eps=eps)
        problem, theta, _ = prepare(problem, theta, None)
        same_shapes(trial, theta, "trial", "theta")
        trial = jax.tree.map(lambda v, like: jax.numpy.asarray(v, like.dtype), trial, theta)
        solver = choose(problem, theta, ())
        kinds, spent = [], 0

        def ends(units):
            nonlocal spent
            rows = []
            for i in units:
                *row, kind, cost = _difference(problem.unit(int(i)), solver, theta, trial, eps)
                rows.append(row)
                kinds.append(kind)
                spent += cost
            return np.array(rows).T

        found = self.judge(ends, len(problem), reach=reach, decrease=decrease)
        certificate = weakest(found.certificate, *kinds)
        return found._replace(certificate=certificate, cost=-(-spent // len(problem)))


def radius(sample: np.ndarray, reach: float, delta: float) -> float:
    """Of the mean of all |v| <= reach about that of a sample, drawn independently; one-sided."""
    n, log = len(sample), math.log(2 / delta)
    return math.sqrt(2 * float(np.var(sample, ddof=1)) * log / n) + 14 / 3 * reach * log / (n - 1)


def _told(ends: Callable[[np.ndarray], Ends], units: np.ndarray, reach: float) -> np.ndarray:
    """What is told of these units, cut to what `reach` allows."""
    if not len(units):
        return np.empty((2, 0))
    low, high = (np.asarray(v, float) for v in ends(units))
    if not (low.shape == high.shape == units.shape and np.all(low <= high)):
        raise ValueError("ends must return two arrays with a number for every unit, low <= high, and no NaN")
    if (wrong := (low > reach) | (high < -reach)).any():
        k = int(np.argmax(wrong))
        raise ValueError(
            f"unit {units[k]} changes by {low[k]:.3g} to {high[k]:.3g}, and reach={reach:.3g} says less: raise it"
        )
    return np.clip((low, high), -reach, reach)


def _difference(unit: Any, solver: Any, theta: PyTree, trial: PyTree, eps: float) -> tuple[float, float, str, int]:
    """An interval around f_i(trial) - f_i(theta), its kind, and what it cost."""
    unit = uniform(unit, jax.tree.leaves(theta)[0].dtype)
    check_declared(unit, theta)
    meter = Meter(unit, solver, math.inf)
    old = meter.solve(theta, unit.guess(theta), eps)
    new = meter.solve(trial, old.lower.x, eps)
    value, above, below = float(new.value) - float(old.value), float(new.value_error), float(new.below)
    low, high = value - below - float(old.value_error), value + above + float(old.below)
    if not low <= high:  # NaN: nothing is known
        low, high = -math.inf, math.inf
    return low, high, weakest(old.certificate, new.certificate), meter.counts.cost
