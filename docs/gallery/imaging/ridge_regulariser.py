"""Ridge regulariser: convex, with learnt filters.

    h(x, theta) = 1/2 ||x - y||^2 + sum_i a_i sum over pixels of sqrt((c_i * x)^2 + nu_i^2),    ||c_i|| = 1
    f(theta)    = 1/2 ||xhat(theta) - clean||^2,  the mean over eight photographs

8 filters of 3 x 3 pixels and mean zero, in pairs that mirror each other, are learnt on small photographs. `pretrained`
has 48 of 7 x 7 that were learnt from 400 photographs, once convex and once weakly convex, with h strongly convex all
the same, and proven so.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from skimage.restoration import denoise_tv_chambolle

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

train = data.denoising_set("photographs", sigma=25 / 255, held_out=["chelsea"], size=40).train
ridge = problems.Ridge()
problem = problems.Restoration(train.clean, train.noisy, ridge)
solution = bilevel.solve(problem, ridge.start(size=3), max_cost=1000)
values = solution.history["value"]
print(f"f: {values[0]:.3f} -> {solution.value:.3f} +- {solution.value_error:.0e}, certified: {solution.certified}")

larger = data.denoising_set("photographs", sigma=25 / 255, held_out=["chelsea"], size=96).held_out
noisy, clean = larger.noisy[0], larger.clean[0]
weights = np.geomspace(0.02, 0.5, 30)
exact = [denoise_tv_chambolle(noisy, weight) for weight in weights]
pictures = {
    "noisy": noisy,
    "total variation, its best weight": max(exact, key=lambda x: data.psnr(x, clean)),
    "learnt here": problems.Denoiser(ridge, solution.theta).denoise(noisy),
    "convex, pretrained": problems.pretrained("ridge-25").denoise(noisy),
    "weakly convex, pretrained": problems.pretrained("weak-25").denoise(noisy),
    "clean": clean,
}

figure, axes = plt.subplots(2, 3, figsize=(9, 6.6), layout="constrained")
for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=True):
    decibels = "" if name == "clean" else f", {data.psnr(picture, clean):.2f} dB"
    print(f"{name}{decibels}")
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(name + decibels, fontsize=10)
    axis.axis("off")
plt.show()
