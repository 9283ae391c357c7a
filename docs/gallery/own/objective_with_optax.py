"""An objective for optax: mini-batches.

    f_k(theta) = 1/2 ||xhat(theta) - clean||^2 on batch k,    ||x - xhat|| <= eps;    theta <- Adam(theta, z_k)

`bilevel.objective` is f as a function that `jit` and `value_and_grad` take; its derivative is the hypergradient z. Adam
learns total variation from 81 patches, four at a time; the default method from all of them, to a certificate. What Adam
ends with is judged on all patches, too.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)

images, _ = data.denoising_set("photographs", sigma=0.1, size=96)
clean, noisy = (v.reshape(9, 3, 32, 3, 32).swapaxes(2, 3).reshape(81, 32, 32) for v in (images.clean, images.noisy))
theta0, adam, rng = np.array([-4.0, -3.0]), optax.adam(0.1), np.random.default_rng(0)


@jax.jit
def step(theta, state, clean, noisy):
    f = bilevel.objective(problems.TotalVariation(clean, noisy), eps=1e-2)
    value, z = jax.value_and_grad(f)(theta)
    change, state = adam.update(z, state)
    return optax.apply_updates(theta, change), state, value


theta, state, path, values = jax.numpy.asarray(theta0), adam.init(theta0), [theta0], []
for _ in range(80):
    batch = rng.choice(81, 4, replace=False)
    theta, state, value = step(theta, state, clean[batch], noisy[batch])
    path.append(theta)
    values.append(value)

problem = problems.TotalVariation(clean, noisy)
solution = bilevel.solve(problem, theta0)
judged = bilevel.hypergradient(problem, theta, eps=1e-2, delta=1e-2)
print(f"Adam, 80 batches of 4: theta = {np.round(theta, 3)}, f = {judged.value:.4f} +- {judged.value_error:.0e}")
print(f"the default on all 81: theta = {np.round(solution.theta, 3)}, f = {solution.value:.4f}, cost {solution.cost}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.plot(values, ".", color="C0", label="f on each batch")
left.axhline(solution.value, color="C3", label="f on all, least")
left.set(xlabel="batches", ylabel="f")
left.legend()
right.plot(*np.transpose(path), ".-", color="C0", label="Adam")
right.plot(*solution.thetas.T, "o-", color="C3", label="default")
right.set(xlabel="log weight", ylabel="log smoothing")
right.legend()
plt.show()
