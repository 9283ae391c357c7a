"""Deblurring.

    h(x, theta) = 1/2 ||k * x - y||^2 + 1/2 e^theta_0 sum of sqrt(dx^2 + dy^2 + nu^2) + 1/2 e^theta_2 ||x||^2
    f(theta)    = 1/2 ||xhat(theta) - clean||^2,  the mean over four photographs,    nu = e^theta_1

A blur k and noise of 0.01. k's Fourier transform is nearly 0 at high frequencies, so the last term is what makes h
strongly convex; its weight is learnt too. Beside it: Wiener's filter at the best of thirty strengths, which
takes the border for periodic.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from skimage.restoration import wiener

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

line = np.exp(-(np.arange(-4, 5) ** 2) / 5.0)
kernel = np.outer(line, line) / line.sum() ** 2
blur = problems.Blur(kernel, boundary="reflect")
images = data.photographs(64).pixels[:5]
blurred = data.add_noise(np.asarray(blur.apply(images)), 0.01, seed=0)
(clean, test), (y, y_test) = np.split(images, [4]), np.split(blurred, [4])  # the last one is held out

tv = problems.TV(isotropic=True)
problem = problems.Restoration(clean, y, tv, blur, elastic=True)
theta0 = {"weight": np.array(-6.0), "smoothing": np.array(-4.0), "elastic": np.array(-5.0)}
solution = bilevel.solve(problem, theta0, bounds=(-9.0, 2.0), max_cost=1500)
values = solution.history["value"]
print(f"f: {values[0]:.3f} -> {solution.value:.3f} +- {solution.value_error:.0e}, certified: {solution.certified}")
restored = bilevel.solve_lower(problems.Restoration(None, y_test, tv, blur, elastic=True), solution.theta, eps=0.05)

balances = np.geomspace(1e-5, 1e-1, 30)
errors = [sum(np.sum((wiener(v, kernel, b) - x) ** 2) for v, x in zip(y, clean, strict=True)) for b in balances]
pictures = {
    "blurred": y_test[0],
    "Wiener's filter": wiener(y_test[0], kernel, balances[np.argmin(errors)]),
    "learnt": restored.x[0],
    "clean": test[0],
}

figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    decibels = "" if name == "clean" else f", {data.psnr(picture, test[0]):.2f} dB"
    print(f"{name}{decibels}")
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(name + decibels)
    axis.axis("off")
plt.show()
