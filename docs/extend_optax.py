"""An optax step: Adam's, taken as it comes, and judged.

    theta+ = theta + alpha d,    d = Adam(z)         alpha = 1, or the first of 1, 1/2, ... that certainly decreases f

`Optax` makes any optax optimiser a direction. With `Always` its step is taken, whatever comes of it, and somebody has
to choose the learning rate and the accuracy of z. With `SlopeTest` a step is taken only if f decreases, z becomes as
accurate as that needs, and a learning rate that is too large costs trials, not the run: three of them come certainly
to ||grad f|| <= 1e-3, at four times the default's cost or more.
"""

import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)
FEW = bool(os.environ.get("SMOKE"))  # few steps on small data, no figure: does it run?

photographs, _ = data.denoising_set("photographs", sigma=0.1, size=8 if FEW else 32)
problem, theta0 = problems.TotalVariation(photographs.clean, photographs.noisy), np.full(2, -5.0)


def taken(rate):
    accuracy = bilevel.Fixed(eps=1e-3, delta=1e-3)
    return bilevel.Method(accuracy, bilevel.Always(), bilevel.Optax(optax.adam(rate)), bilevel.LBFGS())


def judged(rate):
    direction = bilevel.Optax(optax.adam(rate))
    return bilevel.Method(bilevel.Balanced(), bilevel.SlopeTest(), direction, bilevel.LBFGS(), bilevel.Secants())


steps, most = 2 if FEW else 1000, 6000
best = bilevel.solve(problem, theta0, tol=1e-6, max_steps=steps, max_cost=most).value
methods = {"default": bilevel.quasi_newton()}
for rate in (0.1,) if FEW else (0.03, 0.3, 3.0):
    methods |= {f"Adam({rate}), taken": taken(rate), f"Adam({rate}), judged": judged(rate)}

print(f"{'':20}{'cost':>6}{'steps':>7}{'cost to best + 1e-3':>21}{'went up':>9}{'||grad f|| <=':>15}")
plt.figure(figsize=(6, 3.8), layout="constrained")
for name, method in methods.items():
    run = bilevel.solve(problem, theta0, method, tol=1e-3, max_steps=steps, max_cost=most)
    f, cost = run.history["value"], run.history["cost"]
    near = next((c for c, value in zip(cost, f, strict=True) if value <= best + 1e-3), "never")
    norm = np.nanmin(run.history["gradient_norm"] + run.history["gradient_error"])
    print(f"{name:20}{run.cost:6}{run.steps:7}{near:>21}{np.sum(np.diff(f) > 0):9}{norm:15.0e}")
    plt.loglog(cost, np.maximum(f - best, 1e-6), "--" if "taken" in name else "-", label=name)
plt.gca().set(xlabel="cost: gradients and products", ylabel="f above the best (cut off at 1e-6)")
plt.legend(fontsize=8)
FEW or plt.savefig(f"{os.path.dirname(__file__)}/figures/extend_optax.png", dpi=90)
