"""Your own photographs, denoised.

    h(x, theta) = 1/2 ||x - y||^2 + R(x, theta),    f(theta) = 1/2 ||xhat(theta) - clean||^2,  the mean over photographs

Put sharp photographs into a folder `mine`, beside the `noisy.png` that you want denoised; both are made here first,
of scikit-image's. A denoiser is learnt for noise as strong as that in your picture, kept in a file, and applied.
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import skimage
from skimage.restoration import denoise_tv_chambolle

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

# Yours are there already: leave this part out.
Path("mine").mkdir()
for name in ("camera", "coins", "coffee", "rocket"):
    plt.imsave(f"mine/{name}.png", getattr(skimage.data, name)(), cmap="gray")
cat = skimage.color.rgb2gray(skimage.data.chelsea())[:256, 100:356]
plt.imsave("noisy.png", data.add_noise(cat, 0.1, seed=0).clip(0, 1), cmap="gray")

noisy = plt.imread("noisy.png")[..., 0].astype(float)
sigma = float(np.median(np.abs(np.diff(np.diff(noisy, axis=0)))) / 1.349)  # 2 sigma 0.6745, were there noise alone
print(f"noise in noisy.png: about {sigma:.3f}")
train = data.denoising_set("mine", sigma=sigma, size=128).train
problem = problems.Restoration(train.clean, train.noisy, problems.TV(isotropic=True))
solution = bilevel.solve(problem, problems.TV().start())
print(f"{solution.message}\nf = {solution.value:.4f} +- {solution.value_error:.0e}, certified: {solution.certified}")

denoiser = problems.Denoiser(problems.TV(isotropic=True), solution.theta, sigma)
denoiser.save("denoiser.npz")
denoised = problems.Denoiser.load("denoiser.npz").denoise(noisy)
plt.imsave("denoised.png", denoised.clip(0, 1), cmap="gray")

pictures = {"noisy.png": noisy, "scikit-image, as it comes": denoise_tv_chambolle(noisy), "denoised.png": denoised}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained")
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    print(f"{name}: {data.psnr(picture, cat):.2f} dB")
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(f"{name}, {data.psnr(picture, cat):.2f} dB")
    axis.axis("off")
plt.show()
