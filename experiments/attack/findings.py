"""true <= bound (1 + 16 u) + the reference's own error: what was compared, what did not hold, how far bounds lay above.

A bound that is NaN does not hold, unless the result says that there is none; an infinite one does, unless the result is
`converged`. What is labelled "estimated" is counted apart.
"""

import math
from collections import Counter
from typing import Any

import numpy as np

from bilevel import RESULTS

QUANTITIES = ("x", "value", "gradient", "corrected", "rise", "converged")
EDGES = np.arange(-4, 12.01, 0.5)  # of the histograms of log10(bound / true); what lies beyond is in the last bins


class Findings:
    """What was compared, and what did not hold. `blunt`: how often the reference's error was above half the bound."""

    def __init__(self, dtype):
        self.u = float(np.finfo(dtype).eps) / 2
        self.compared: dict[str, list] = {name: [] for name in QUANTITIES}
        self.results, self.violations, self.worst = Counter(), Counter(), []
        self.estimated, self.blunt = [], 0

    def compare(self, quantity: str, true, bound, own, *, result, certificate: str, where: Any) -> None:
        true, bound, own = float(true), float(bound), float(own)
        held = true <= bound * (1 + 16 * self.u) + own
        if math.isnan(bound):
            held = not (result is None or result == RESULTS.converged or result == RESULTS.accuracy_floor)
        elif math.isinf(bound):
            held = result is None or bool(result != RESULTS.converged)
        if certificate == "estimated":
            self.estimated.append(held)
            return
        self.compared[quantity].append((true, bound, own))
        self.blunt += own > bound / 2 and quantity != "rise"
        if not held:
            self.violations[quantity] += 1
            self.worst.append((ratio(true, bound, own), quantity, where))

    def summary(self) -> dict[str, Any]:
        """Of each quantity: how many, violations, bounds that are no numbers, the largest true/bound, the histogram."""
        quantities = {}
        for name, compared in self.compared.items():
            if not compared:
                continue
            true, bound, _ = np.array(compared).T
            usable = np.isfinite(bound) & (bound > 0) & np.isfinite(true)
            worst = max((ratio(*row) for row in compared if math.isfinite(row[1])), default=0.0)
            with np.errstate(divide="ignore"):
                gaps = np.clip(np.log10(bound[usable]) - np.log10(true[usable]), EDGES[0], EDGES[-1])
            quantities[name] = {
                "count": len(compared), "violations": self.violations[name], "nan": int(np.isnan(bound).sum()),
                "infinite": int(np.isinf(bound).sum()), "worst": float(f"{worst:.4g}"),
                "histogram": np.histogram(gaps, EDGES)[0].tolist(),
            }  # fmt: skip
        worst = sorted(self.worst, key=lambda found: -found[0])[:3]
        return {
            "quantities": quantities, "results": dict(self.results), "blunt": self.blunt,
            "estimated": len(self.estimated), "estimated_held": sum(self.estimated),
            "examples": [[float(f"{r:.4g}"), quantity, where] for r, quantity, where in worst],
        }  # fmt: skip


def ratio(true: float, bound: float, own: float) -> float:
    """(true - own) / bound, at least 0; infinite where the bound is zero and not met, or no number."""
    beyond = max(true - own, 0.0)
    if math.isnan(bound) or math.isnan(true):
        return math.inf
    return beyond / bound if bound > 0 else math.inf if beyond > 0 else 0.0


def message(result: RESULTS) -> str:
    return str(RESULTS[result]).split(".")[0].split(":")[0]
