"""Total variation on photographs.

    h(x, theta) = 1/2 ||x - y||^2 + 1/2 e^theta_0 sum over pixels of sqrt(dx^2 + dy^2 + nu^2),    nu = e^theta_1
    f(theta)    = 1/2 ||xhat(theta) - clean||^2,  the mean over eight photographs

How strongly to smooth, and how sharp an edge may be, is learnt from eight photographs and judged by a ninth, beside
scikit-image's exact total variation with the best of thirty weights for the same eight.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from skimage.restoration import denoise_tv_chambolle

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

train, held_out = data.denoising_set("photographs", sigma=0.1, held_out=["chelsea"], size=128)
problem = problems.TotalVariation(train.clean, train.noisy, isotropic=True)
solution = bilevel.solve(problem, np.array([-5.0, -5.0]))
print(solution)


def exact(noisy, weight):
    return np.stack([denoise_tv_chambolle(y, weight) for y in noisy])


weights = np.geomspace(0.02, 0.5, 30)
errors = [np.sum((exact(train.noisy, weight) - train.clean) ** 2) for weight in weights]
noisy, clean = held_out.noisy[0], held_out.clean[0]
pictures = {
    "noisy": noisy,
    "best of 30 weights": exact(held_out.noisy, weights[np.argmin(errors)])[0],
    "learnt": problem.denoise(solution.theta, held_out.noisy).x[0],
    "clean": clean,
}

figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    decibels = "" if name == "clean" else f", {data.psnr(picture, clean):.2f} dB"
    print(f"{name}{decibels}")
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(name + decibels)
    axis.axis("off")
plt.show()
