"""Your own problem: the trend of a line of pixels.

    h(x, theta) = 1/2 ||m (x - y)||^2 + e^theta_0 sum sqrt((D^2 x)^2 + e^(2 theta_1)) + 1/2 0.01 ||x||^2
    f(theta)    = 1/2 ||(1 - m) (xhat(theta) - y)||^2

One row of a photograph, with noise. m leaves out every third pixel, by which both hyperparameters are judged: nothing
but the noisy row is used. Two functions, a start and five constants are all that the class has; with a bound mu of h's
curvature alone it would run too, and nothing be called certified. Beside it: the best of ten moving averages.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)


class Trend(bilevel.AbstractProblem):
    y: jax.Array
    m: jax.Array

    def lower(self, x, theta):
        weight, width = jnp.exp(theta)
        bends = jnp.sqrt(jnp.diff(x, 2) ** 2 + width**2)
        return jnp.sum(self.m * (x - self.y) ** 2) / 2 + weight * jnp.sum(bends) + 0.01 / 2 * jnp.sum(x**2)

    def upper(self, x, theta):
        return jnp.sum((1 - self.m) * (x - self.y) ** 2) / 2

    def guess(self, theta):
        return self.y

    def constants(self, theta):  # ||D^2||^2 <= 16, |D^2 x| <= sqrt(6) ||x||; 1/width and 0.86/width^2 bound the roots
        (weight, width), mu = jnp.exp(theta), 0.01
        L, L_hessian, L_cross = 16 * weight / width, 34 * weight / width**2, 23 * weight / width
        return bilevel.Constants(mu, 1 + mu + L, 1.0, L_hessian, L_cross)


images = data.photographs(128)
clean = images.pixels[images.names.index("coffee"), 64]
y, m = data.add_noise(clean, 0.1, seed=0), np.where(np.arange(128) % 3 == 1, 0.0, 1.0)
problem = Trend(y, m)
run = bilevel.solve(problem, np.array([-2.0, -3.0]), bounds=(-6.0, 3.0), max_cost=5000)
print(f"f: {run.history['value'][0]:.4f} -> {run.value:.4f}, certified: {run.certified}. {run.message}")

averages = [np.convolve(m * y, one, "same") / np.convolve(m, one, "same") for one in map(np.ones, range(3, 23, 2))]
average = min(averages, key=lambda x: problem.upper(x, None))
figure, axis = plt.subplots(figsize=(10, 3.4), layout="constrained")
axis.plot(clean, color="0.85", linewidth=5, label="without noise")
for name, x, style in (("noisy", y, "k."), ("moving average", average, "C0-"), ("learnt trend", run.x, "C3-")):
    error = np.sqrt(np.mean((x - clean) ** 2))
    print(f"{name}: error {error:.4f} of the row without noise")
    axis.plot(x, style, markersize=3, label=f"{name}, error {error:.4f}")
axis.set(xlabel="pixels", ylabel="intensity")
axis.legend()
plt.show()
