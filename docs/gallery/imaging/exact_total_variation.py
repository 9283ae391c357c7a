"""Exact total variation: values certified where there is no gradient.

    h(x, theta) = 1/2 ||x - y||^2 + e^theta sum over pixels of |Dx|
    f(theta)    = 1/2 ||xhat(theta) - clean||^2,  the mean over nine photographs

|Dx| has a kink, so h has no Hessian and no hypergradient is certified. A duality gap bounds ||x - xhat||, hence f's
value, and each accepted step certainly lowers f. The grey line is a search over 40 weights, for comparison.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

images, _ = data.denoising_set("photographs", sigma=0.1, size=64)
problem = problems.ExactTotalVariation(images.clean, images.noisy, isotropic=True)
solution = bilevel.solve(problem, np.array(-5.0))
print(solution)
print(solution.message)

grid = np.linspace(-5.5, -1, 40)
curve = [float(problem.upper(problem.denoise(theta, images.noisy).x, theta)) for theta in grid]
print(f"\nbest of 40 weights: f = {min(curve):.4f}; descent: f = {solution.value:.4f}, cost {solution.cost}")

value, error = solution.history["value"], solution.history["value_error"]
clean, k = images.clean, images.names.index("coffee")
shown = {"noisy": images.noisy, "learnt": np.asarray(solution.x), "clean": clean}
figure = plt.figure(figsize=(10, 3.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[2, 3])
axis = left.subplots()
axis.plot(grid, curve, color="0.7", label="40 weights")
axis.errorbar(solution.thetas, value, error, fmt="o-", color="C3", label="descent, with its intervals")
axis.set(xlabel=r"$\theta$, the logarithm of the weight", ylabel=r"$f(\theta)$")
axis.legend()
for axis, (name, stack) in zip(right.subplots(1, 3), shown.items(), strict=True):
    decibels = "" if name == "clean" else f", {data.psnr(stack[k], clean[k]):.2f} dB"
    axis.imshow(stack[k], cmap="gray", vmin=0, vmax=1)
    axis.set_title(name + decibels)
    axis.axis("off")
plt.show()
