"""Without clean images: Stein's unbiased risk estimate.

    h(x, theta) = 1/2 ||x - y||^2 + R(x, theta),    R total variation
    f(theta)    = 1/2 ||xhat(y) - y||^2 + sigma^2 div xhat(y) - 1/2 sigma^2 N    instead of    1/2 ||xhat(y) - clean||^2

Both have the same mean over the noise, and the first needs no clean image. The divergence is estimated with one random
vector. What is learnt from noisy images alone is compared with what is learnt from the clean ones.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

images, _ = data.denoising_set("photographs", sigma=0.1, size=64)
clean, noisy, tv = images.clean, images.noisy, problems.TV(isotropic=True)
blind = problems.Sure(noisy, 0.1, tv)
told = problems.Restoration(clean, noisy, tv)
theta0 = {"weight": np.array(-4.0), "smoothing": np.array(-4.0)}
runs = {name: bilevel.solve(problem, theta0) for name, problem in (("blind", blind), ("told", told))}
found = {"blind": blind.denoised(runs["blind"].x), "told": runs["told"].x}

print(f"{'':24}{'log weight':>12}{'log smoothing':>15}{'mean PSNR':>12}")
for name, label in (("blind", "from noisy images alone"), ("told", "from clean images")):
    theta, decibels = runs[name].theta, np.mean(data.psnr(found[name], clean))
    print(f"{label:24}{theta['weight']:12.3f}{theta['smoothing']:15.3f}{decibels:9.2f} dB")

k = images.names.index("astronaut")
pictures = {"noisy": noisy[k], "from noisy images": found["blind"][k], "from clean images": found["told"][k]}
figure, axes = plt.subplots(1, 4, figsize=(11.5, 3), layout="constrained", width_ratios=[1, 1, 1, 1.3])
for axis, (name, picture) in zip(axes, pictures.items(), strict=False):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(f"{name}, {data.psnr(picture, clean[k]):.2f} dB", fontsize=10)
    axis.axis("off")
axes[3].plot(*(data.psnr(found[name], clean) for name in ("told", "blind")), "o", color="C3")
axes[3].axline((28, 28), slope=1, color="0.7")
axes[3].set(xlabel="dB, learnt from clean images", ylabel="dB, learnt from noisy images")
plt.show()
