"""A lower-level solver of your own: Polyak's heavy ball.

    x+ = x - a grad h(x) + b (x - x_before),    a = 4 / (sqrt L + sqrt mu)^2,    b = ((sqrt L - sqrt mu) / (...))^2

A solver is what it remembers and one step, which ends with `it.move`: one gradient, at the x that it returns. Of that
gradient the certificate is made, so a solver that does badly costs time, never correctness. A quadratic h takes the
heavy ball half of Nesterov's steps, as do the two here; on others it may circle, and the run says that it stalled.
"""

import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import bilevel
from bilevel import problems
from bilevel.problems import data, labelled

jax.config.update("jax_enable_x64", True)
FEW = bool(os.environ.get("SMOKE"))  # few steps on small data, no figure: does it run?


class HeavyBall(bilevel.AbstractLowerSolver):
    def init(self, x, rho, curvature):
        return optax.tree.zeros_like(x)  # x - x_before

    def step(self, level, it):
        sum_, difference = jnp.sqrt(it.L) + jnp.sqrt(level.mu), jnp.sqrt(it.L) - jnp.sqrt(level.mu)
        a, b = 4 / sum_**2, (difference / sum_) ** 2
        move = jax.tree.map(lambda rho, u: b * u - a * rho, it.rho, it.memory)
        return it.move(level, optax.tree.add(it.x, move), move)


photographs, _ = data.denoising_set("photographs", sigma=0.1, size=8 if FEW else 64)
digits = labelled.split(labelled.digits(), (100, 100) if FEW else (600, 600), seed=0)
CASES = {
    "photographs": (problems.TotalVariation(photographs.clean, photographs.noisy), np.full(2, -4.0)),
    "digits": (problems.LogisticRegression(*digits[0], *digits[1]), np.asarray(-6.0)),
}
solvers = {"gradient descent": bilevel.GradientDescent(), "Nesterov": bilevel.Nesterov(), "heavy ball": HeavyBall()}
solvers["L-BFGS"] = bilevel.LBFGS()
accuracies = np.logspace(0, -1 if FEW else -8, 2 if FEW else 9)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
print(f"gradients until certainly ||x - xhat|| <= {accuracies[-1]:.0e}")
for (case, (problem, theta)), ax in zip(CASES.items(), axes, strict=True):
    for name, solver in list(solvers.items())[2 if FEW else 0 :]:
        runs = [bilevel.solve_lower(problem, theta, eps=eps, solver=solver) for eps in accuracies]
        assert all(run.certified and run.error <= eps for run, eps in zip(runs, accuracies, strict=True))
        print(f"{case:14}{name:18}{runs[-1].lower_gradients:6}")
        ax.loglog([run.lower_gradients for run in runs], accuracies, ".-", label=name)
    ax.set(title=case, xlabel="gradients of h", ylabel="certified error of x")
    ax.minorticks_off()
axes[0].legend()
FEW or plt.savefig(f"{os.path.dirname(__file__)}/figures/extend_solver.png", dpi=90)
