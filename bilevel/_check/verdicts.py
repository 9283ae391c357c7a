"""What `check_problem` makes of its measurements: one comparison a function, in the words that the user reads.

Every comparison leaves room for rounding, of what is measured and of the points where it is.
"""

import numpy as np

from .._lower.descend import LowerSolution
from .._problem import AbstractProblem
from .._results import RESULTS
from .curvature import Curvature
from .lines import SLACK, Lines
from .probe import Probe, norms
from .search import Change, Mismatch, confirmed


class Findings:
    """Messages by what is wrong; of the same, the worst is told."""

    def __init__(self, probe: Probe):
        self.probe, self.known = probe, probe.constants
        self._worst: dict[str, tuple[float, str]] = {}

    def add(self, what: str, excess: float, message: str) -> None:
        if excess > self.worst(what):
            self._worst[what] = excess, message

    def worst(self, what: str) -> float:
        return self._worst.get(what, (-np.inf, ""))[0]

    def report(self) -> list[str]:
        """Printed and returned."""
        messages = [message for _, message in self._worst.values()]
        for message in messages or ["nothing contradicts what is declared."]:
            print(f"{type(self.probe.problem).__name__}: {message}")
        return messages

    def at(self, y: np.ndarray) -> str:
        far = self.probe.distance(y)
        return f"at a distance of {far:.1g} from the solution" if far > 1e-6 * self.probe.scale else "at the solution"

    def near(self, y: np.ndarray) -> bool:
        """Farther away, overflow contradicts nothing."""
        return self.probe.distance(y) <= SLACK * self.probe.scale

    def start(self) -> bool:
        """Whether h, g and their gradients are finite at the starting point."""
        seen = self.probe(self.probe.y)
        for name, value, gradients in (("lower", seen.h, [seen.rho]), ("upper", seen.g, [seen.g_y, seen.g_theta])):
            for what, arrays in ((name, [value]), (f"the gradient of {name}", gradients)):
                if not all(np.isfinite(array).all() for array in arrays):
                    self.add(what, 1.0, f"{what} is not finite at the starting point.")
        return not self._worst

    def not_finite(self, y: np.ndarray) -> None:
        if self.near(y):
            self.add("finite", 1.0, f"lower or upper, or a derivative of theirs, is not finite {self.at(y)}.")

    def too_small(self, name: str, declared: float, measured: float, at: str, where: str, advice: str = "") -> None:
        advice = advice or "Declare a larger value, or None to have it estimated."
        self.add(name, measured - declared, (
            f"{name} is declared as {declared:.4g} by {where}, but {measured:.4g} was measured {at}: no certificate "
            f"holds. {advice}"
        ))  # fmt: skip

    def solved(self, lower: LowerSolution, tight: float) -> bool:
        """Whether the solver says so."""
        good = bool(lower.result == RESULTS.converged) or bool(lower.result == RESULTS.accuracy_floor)
        if not good:
            message = f"the lower level could not be solved to {tight:.1e}: {RESULTS[lower.result]}"
            self.add("solve", 2.0, message)
        return good

    def accuracy(self, lower: LowerSolution, tight: float, center: Curvature) -> None:
        """eps is near u (L ||x|| + terms) / mu, or near what was asked for."""
        mu = center.smallest if self.known.mu is None else self.known.mu
        terms = self.probe.scale * center.largest + (self.known.rounding or 0.0)
        if mu > 0 and lower.error > 10 * (tight + self.probe.eps * terms / mu):
            self.add("solve", 1.0, (
                f"the lower level could not be solved to {tight:.1e}, only to {float(lower.error):.1e}, although its "
                "curvature there allows more: does it have a kink, or curve far less elsewhere?"
            ))  # fmt: skip

    def lines(self, lines: Lines, center: Curvature) -> None:
        """No kinks, |bend(b) - bend(a)| <= L_H |b - a|, and |log bend(b) - log bend(a)| <= S |b - a|."""
        nodes = lines.cells.reshape(-1, 4)
        bad = nodes[~np.isfinite(nodes).all(axis=1)]
        if len(bad):
            self.not_finite(lines.at(bad[[np.argmin(np.abs(bad[:, 1]))]])[0])
        if (kink := lines.kink(self.known.L or 0.0)) is not None:
            self.add("kink", kink.amount, (
                f"the gradient of lower jumps by {kink.amount:.3g} {self.at(kink.y)}: it has a kink there, where no "
                "certificate holds. Smooth it, as sqrt(t^2 + nu^2) does |t|."
            ))  # fmt: skip
        L = self.known.L_hessian
        if L is not None and (jump := lines.jump(L)) is not None:
            advice = "Its second derivative jumps there, and no value is large enough: smooth it, or declare None."
            at, measured = self.at(jump.y), jump.amount / jump.length
            self.too_small("L_hessian", L, measured, at, "constants", advice if jump.sharp else "")
        S = self.known.concordance
        if S is not None and (factor := lines.factor(S, center.largest)) is not None:
            self.too_small("concordance", S, factor.amount / factor.length, self.at(factor.y), "constants")

    def curvature(self, c: Curvature, center: Curvature) -> None:
        """mu <= H <= L, ||G|| <= L_upper, ||K|| <= L_upper_theta, and G >= 0 if it is declared convex."""
        if not c.finite:
            return self.not_finite(c.y)
        # what is added up may be as large as at the solution and cancel, as p - p^2 does in a softmax far away
        noise, g_noise = c.noise + center.noise, c.g_noise + center.g_noise
        known, at = self.known, self.at(c.y)
        if known.mu is not None and c.smallest < known.mu / SLACK - noise:
            self.add("mu", known.mu - c.smallest, (
                f"lower is declared {known.mu:.4g}-strongly convex, but curves only {c.smallest:.4g} in some direction "
                f"{at}: no certificate holds. Correct Constants(mu=...) or add a strongly convex term."
            ))  # fmt: skip
        elif known.mu is None and c.smallest < (0.0 if self.near(c.y) else -noise):
            message = f"lower is not strongly convex {at}: it curves {c.smallest:.4g} in some direction."
            self.add("mu", -c.smallest, message)
        for name, measured, slack in (
            ("L", c.largest, noise), ("L_upper", max(c.g_high, -c.g_low), g_noise),
            ("L_upper_theta", c.K, 8 * self.probe.eps * c.K),
        ):  # fmt: skip
            declared = getattr(known, name)
            if declared is not None and not measured <= SLACK * declared + slack:
                self.too_small(name, declared, measured, at, "constants")
        if known.convex_upper and c.g_low < -g_noise:
            message = f"upper is declared convex in x, but curves {c.g_low:.4g} in some direction {at}."
            self.add("convex", -c.g_low, message)

    def changes(self, changes: list[Change]) -> None:
        """||(H(a) - H(b)) v|| <= L_H ||a - b||, and so on for L_J, M_H, M_J; ||J||."""
        own = type(self.probe.problem).bounds is not AbstractProblem.bounds  # else they repeat the constants
        contradictions = []
        for change in changes:
            where = "constants" if change.name in ("L_hessian", "L_cross") else "bounds"
            if not np.isfinite(change.amount) or (where == "bounds" and not own):
                continue
            y = change.ends[1]
            bounds = self.known if where == "constants" else self.probe.declared(y, change.v, change.length)[1]
            if (declared := getattr(bounds, change.name)) is None:
                continue
            rounded = 4 * self.probe.eps * float(norms(y.astype(float)))
            allowed = SLACK * declared * (change.length + rounded) + 16 * self.probe.eps * change.size
            if not change.amount <= allowed:
                contradictions.append((change.amount / change.length, change, declared, allowed, where))
        for measured, change, declared, allowed, where in sorted(contradictions, key=lambda one: one[2] - one[0]):
            known_worse = measured - declared <= self.worst(change.name)
            if not known_worse and (change.name == "J" or confirmed(self.probe, change, allowed)):
                self.too_small(change.name, declared, measured, self.at(change.ends[1]), where)

    def derivatives(self, misses: list[Mismatch]) -> None:
        for miss in misses:
            self.add(miss.name, miss.miss, (
                f"the {miss.name} of lower does not match finite differences {self.at(miss.y)} (off by "
                f"{miss.miss:.3g} of {miss.size:.3g}): is lower smooth there, is a custom derivative rule right?"
            ))  # fmt: skip
