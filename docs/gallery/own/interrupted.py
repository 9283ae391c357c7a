"""A run that is interrupted, and goes on.

    theta_0 -> ... -> theta_k | Ctrl-C | theta_k -> ... -> theta_K,    bit for bit as without the interruption

`checkpoint=` names a file that is written every few steps and at the end. Ctrl-C ends a run after the step that is
being made; a run that is killed loses what came after its last file. With `resume="auto"` the same line goes on where
there is a file, and starts where there is none: a script is simply started again.
"""

import signal

import jax
import matplotlib.pyplot as plt
import numpy as np

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

images, _ = data.denoising_set("photographs", sigma=0.1, size=64)
problem, theta0 = problems.TotalVariation(images.clean, images.noisy), np.array([-5.0, -5.0])


def somebody_presses_ctrl_c(state, info):
    if state.steps == 4:
        signal.raise_signal(signal.SIGINT)


options = dict(checkpoint="run.npz", every=1, resume="auto")
first = bilevel.solve(problem, theta0, callback=somebody_presses_ctrl_c, **options)
print(f"after {first.steps} steps, f = {first.value:.6f}: {first.message}")
second = bilevel.solve(problem, theta0, **options)
print(f"after {second.steps} steps, f = {second.value:.6f}: {second.message}")

whole = bilevel.solve(problem, theta0)
same = np.array_equal(second.theta, whole.theta) and second.cost == whole.cost and second.value == whole.value
print(f"theta, f and cost are those of a run without interruption: {same}")

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for run, label, style in ((whole, "never interrupted", "-"), (second, "resumed", "o"), (first, "interrupted", "o")):
    colour = {"never interrupted": "0.6", "resumed": "C0", "interrupted": "C3"}[label]
    cost, known = run.history["cost"], np.isfinite(run.history["gradient_norm"])
    axes[0].plot(cost, run.history["value"], style, color=colour, label=label)
    axes[1].semilogy(cost[known], run.history["gradient_norm"][known], style, color=colour, label=label)
axes[0].set(xlabel="cost: gradients and products", ylabel="f", xscale="log")
axes[1].set(xlabel="cost: gradients and products", ylabel="norm of the gradient", xscale="log")
axes[0].legend()
plt.show()
