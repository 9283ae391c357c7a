"""A line search of your own: nonmonotone, after Grippo, Lampariello and Lucidi.

    upper(theta+)  <=  max over the last M points of lower(theta_j)  -  lambda <z, theta - theta+>

f is then certainly below the largest of its last M values; M = 1 is Armijo's rule. A search names alpha, is shown the
intervals of f at base and trial, and answers with a verdict. With the default's directions it costs what `SlopeTest`
does; with -z the parabola by which that one shrinks alpha saves more than patience.
"""

import os
from collections import namedtuple
from dataclasses import replace

import jax
import matplotlib.pyplot as plt
import numpy as np

import bilevel
from bilevel import Judgement, Verdict
from bilevel.problems import TotalVariation, data

jax.config.update("jax_enable_x64", True)
FEW = bool(os.environ.get("SMOKE"))  # few steps on small data, no figure: does it run?
Memory = namedtuple("Memory", "alpha, length, trials, lows")  # alpha, the next one to try, is in every search's


class Nonmonotone(bilevel.AbstractSearch):
    M: int
    corrects = True  # the intervals are corrected by the adjoint

    def init(self, norm_g_x):
        return Memory(1.0, 0.0, 0, (-np.inf,) * (self.M - 1))

    def first(self, memory, heading, length, norm, size):
        move = 2 * memory.length or size**0.5
        return memory._replace(alpha=1.0 if heading.scaled else move / max(length, 1e-300), trials=0)

    def judge(self, memory, base, trial, slope, length):
        halved = memory._replace(alpha=memory.alpha / 2, trials=memory.trials + 1)
        target = max(base.low, *memory.lows, -np.inf) - 1e-4 * abs(slope)
        if trial is None or trial.low > target:  # None: too expensive, or not finite
            return Judgement(Verdict.SHRINK if halved.trials < 12 else Verdict.TIGHTEN, halved)
        if trial.high <= target:
            return Judgement(Verdict.ACCEPT, memory._replace(length=length, lows=(*memory.lows, base.low)[1:]))
        wide, verdict = (base, Verdict.REFINE_BASE) if base.error > trial.error else (trial, Verdict.REFINE_TRIAL)
        return Judgement(Verdict.TIGHTEN, memory) if wide.floor else Judgement(verdict, memory, wide.eps / 4)


images = data.denoising_set("photographs", sigma=0.1, size=8 if FEW else 32)[0]
problem, theta0 = TotalVariation(images.clean, images.noisy), np.full(2, -5.0)
print(f"{'||grad f|| <= 1e-3':34}{'cost':>6}{'steps':>7}")
for line, direction in {"-": bilevel.QuasiNewton(), "--": bilevel.Steepest()}.items():
    for search in (Nonmonotone(5),) if FEW else (bilevel.SlopeTest(), Nonmonotone(1), Nonmonotone(5)):
        method = replace(bilevel.quasi_newton(), direction=direction, search=search)
        run = bilevel.solve(problem, theta0, method, tol=1e-3, max_steps=2 if FEW else 1000, max_cost=10_000)
        label = f"{type(direction).__name__}, {type(search).__name__} {getattr(search, 'M', '')}"
        print(f"{label:34}{run.cost:6}{run.steps:7}" + " not yet" * (not run.converged))
        plt.loglog(run.history["cost"], run.history["gradient_norm"], line, label=label)
plt.legend(title="||z|| against cost", fontsize=8)
FEW or plt.savefig(f"{os.path.dirname(__file__)}/figures/extend_search.png", dpi=90)
