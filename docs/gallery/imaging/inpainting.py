"""Inpainting: most of the pixels are missing.

    h(x, theta) = 1/2 ||m x - y||^2 + 1/2 e^theta_0 sum of sqrt(dx^2 + dy^2 + nu^2) + 1/2 e^theta_2 ||x||^2
    f(theta)    = 1/2 ||xhat(theta) - clean||^2,  the mean over eight photographs,    nu = e^theta_1

m is 1 at the 30 % of the pixels that were measured, with noise of 0.05, and 0 elsewhere. Judged by a ninth photograph,
beside scikit-image's biharmonic inpainting, which has no parameter and takes the pixels that it has for exact.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from skimage.restoration import inpaint_biharmonic

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

train, held_out = data.denoising_set("photographs", sigma=0.05, held_out=["coffee"], size=64)
measured = np.random.default_rng(0).uniform(size=(64, 64)) < 0.3
mask, tv = problems.Mask(measured), problems.TV(isotropic=True)
problem = problems.Restoration(train.clean, train.noisy, tv, mask, elastic=True)
theta0 = {"weight": np.array(-3.0), "smoothing": np.array(-4.0), "elastic": np.array(-6.0)}
solution = bilevel.solve(problem, theta0, bounds=(-9.0, 2.0), max_cost=4000)
values = solution.history["value"]
print(f"f: {values[0]:.3f} -> {solution.value:.3f} +- {solution.value_error:.0e}, certified: {solution.certified}")
restored = bilevel.solve_lower(
    problems.Restoration(None, held_out.noisy, tv, mask, elastic=True), solution.theta, eps=0.05
)

noisy, clean = held_out.noisy[0], held_out.clean[0]
pictures = {
    "measured": np.where(measured, noisy, 0),
    "biharmonic": inpaint_biharmonic(noisy.clip(0, 1), ~measured),
    "learnt": restored.x[0],
    "clean": clean,
}

figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    decibels = "" if name == "clean" else f", {data.psnr(picture, clean):.2f} dB"
    print(f"{name}{decibels}")
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(name + decibels)
    axis.axis("off")
plt.show()
