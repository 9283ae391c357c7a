"""Fields of Experts: learnt filters.

    h(x, theta) = 1/2 ||x - y||^2 + 1/2 e^t_0 sum_i e^t_i sum over pixels of sqrt((c_i * x)^2 + e^(2 s_i))
    f(theta)    = 1/2 ||xhat(theta) - clean||^2,  the mean over eight photographs

All of theta is learnt: 8 filters c_i of 3 x 3 pixels, their weights and smoothings, 89 numbers. They start as
products of cosines, and are judged by a ninth photograph, beside total variation learnt from the same eight.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

import bilevel
from bilevel import problems
from bilevel.problems import data, foe

jax.config.update("jax_enable_x64", True)

train, held_out = data.denoising_set("photographs", sigma=0.1, held_out=["chelsea"], size=64)
variation = problems.TotalVariation(train.clean, train.noisy)
best = bilevel.solve(variation, np.array([-2.0, -4.0])).theta

filters = foe.dct_filters(3)
theta0 = {"scale": np.array(0.0), "weights": np.full(8, -2.0), "smoothings": np.full(8, -3.5), "filters": filters}
experts = problems.FieldsOfExperts(train.clean, train.noisy)
solution = bilevel.solve(experts, theta0, max_cost=2000)
values = solution.history["value"]
print(f"f: {values[0]:.3f} -> {solution.value:.3f} +- {solution.value_error:.0e}, certified: {solution.certified}")

noisy, clean = held_out.noisy, held_out.clean[0]
pictures = {
    "noisy": noisy[0],
    "total variation": variation.denoise(best, noisy).x[0],
    "learnt filters": experts.denoise(solution.theta, noisy).x[0],
    "clean": clean,
}

figure = plt.figure(figsize=(10, 4.4), layout="constrained")
above, below = figure.subfigures(2, height_ratios=[2, 1])
for axis, (name, picture) in zip(above.subplots(1, 4), pictures.items(), strict=True):
    decibels = "" if name == "clean" else f", {data.psnr(picture, clean):.2f} dB"
    print(f"{name}{decibels}")
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(name + decibels)
    axis.axis("off")
strength = np.linalg.norm(solution.theta["filters"], axis=(1, 2)) * np.exp(solution.theta["weights"])
for axis, k in zip(below.subplots(1, 8), np.argsort(-strength), strict=True):
    axis.imshow(solution.theta["filters"][k], cmap="gray")
    axis.axis("off")
below.suptitle("the filters, strongest first")
plt.show()
