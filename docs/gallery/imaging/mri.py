"""Magnetic resonance imaging: a part of the Fourier coefficients.

    h(x, theta) = 1/2 ||M F x - y||^2 + 1/2 e^theta_0 sum of sqrt(dx^2 + dy^2 + nu^2) + 1/2 e^theta_2 ||x||^2
    f(theta)    = 1/2 ||xhat(theta) - clean||^2,  the mean over the slices,    nu = e^theta_1

F is the Fourier transform, M keeps some of its rows: all low frequencies, a fifth of the rest. Learnt from photographs
in place of slices, judged by the phantom of Shepp and Logan, beside zeros for what was not measured.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

size, rng = 64, np.random.default_rng(0)
rows = (np.abs(np.fft.fftfreq(size, 1 / size)) < 6) | (rng.uniform(size=size) < 0.2)
mask = np.broadcast_to(rows[:, None], (size, size))
phantom = resize(shepp_logan_phantom(), (size, size), anti_aliasing=True)[None]


def scan(images):
    noise = rng.normal(scale=0.01, size=(2, *images.shape))
    return mask * (np.fft.fft2(images, norm="ortho") + noise[0] + 1j * noise[1])


clean, y_phantom = data.photographs(size).pixels[:5], scan(phantom)
operator, tv = problems.MaskedFourier(mask), problems.TV(isotropic=True)
problem = problems.Restoration(clean, scan(clean), tv, operator, elastic=True)
theta0 = {"weight": np.array(-5.0), "smoothing": np.array(-4.0), "elastic": np.array(-6.0)}
solution = bilevel.solve(problem, theta0, bounds=(-9.0, 2.0), max_cost=1500)
values = solution.history["value"]
print(f"{np.mean(rows):.0%} of the rows measured")
print(f"f: {values[0]:.3f} -> {solution.value:.3f} +- {solution.value_error:.0e}, certified: {solution.certified}")
new = problems.Restoration(None, y_phantom, tv, operator, elastic=True)
pictures = {
    "measured, low in the middle": np.fft.fftshift(np.log10(np.abs(y_phantom[0]) + 1e-3)) / 4 + 0.75,
    "zeros elsewhere": np.fft.ifft2(y_phantom[0], norm="ortho").real,
    "learnt": bilevel.solve_lower(new, solution.theta, eps=0.05).x[0],
    "phantom": phantom[0],
}

figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    decibels = f", {data.psnr(picture, phantom[0]):.2f} dB" if name in ("zeros elsewhere", "learnt") else ""
    print(f"{name}{decibels}")
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(name + decibels)
    axis.axis("off")
plt.show()
