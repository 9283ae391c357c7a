"""An operator of your own: the single-pixel camera, some Walsh-Hadamard coefficients of an image.

    h(x, theta) = 1/2 ||M W x - y||^2 + R(x, theta) + e/2 ||x||^2,      W x = S x S^T, S orthonormal with entries +-

S is Sylvester's matrix, M keeps a part of the coefficients. W is an isometry, so the eigenvalues of A^T A are 0 and 1;
with them said, everything that `Restoration` certifies holds. The adjoint is JAX's.
"""

import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel
from bilevel import problems
from bilevel.problems import data

jax.config.update("jax_enable_x64", True)
FEW, here = bool(os.environ.get("SMOKE")), os.path.dirname(__file__)  # FEW: few steps, no figure, does it run?
SIZE = 8 if FEW else 64  # a power of 2


class SinglePixel(problems.AbstractOperator):
    kept: jax.Array  # booleans, (size, size)

    def apply(self, x):
        S = jnp.ones((1, 1), x.dtype)
        while len(S) < x.shape[1]:
            S = jnp.block([[S, S], [S, -S]]) / 2**0.5
        return jnp.where(self.kept[None], S @ x @ S.T, 0)

    def extremes(self, shape):
        return 0.0, 1.0


clean = data.photographs(SIZE).pixels[:3]
S = np.ones((1, 1))
while len(S) < SIZE:
    S = np.block([[S, S], [S, -S]])
order = np.argsort(np.argsort(np.sum(np.diff(S, axis=1) != 0, axis=1)))  # changes of sign: the rows' frequencies
chance = np.random.default_rng(0).uniform(size=(SIZE, SIZE))
A = SinglePixel(jnp.asarray(chance < 4 / (1 + 16 * np.add.outer(order, order) / SIZE)))  # low ones, and some others
y = A.apply(jnp.asarray(data.add_noise(clean, 0.05, seed=1)))
print(f"{float(A.kept.mean()):.0%} of all      {'cost':>6}{'f at start':>12}{'f':>8}{'+-':>9}{'dB':>7}")
shown, theta0 = [clean, A.adjoint(y)], dict(weight=np.array(-5.0), smoothing=np.array(-4.0), elastic=np.array(-6.0))
for name, R in {"TV": problems.TV(), "isotropic TV": problems.TV(isotropic=True)}.items():
    problem = problems.Restoration(clean, y, R, A, elastic=True)
    run = bilevel.solve(problem, theta0, bounds=(-9.0, 2.0), max_steps=1 if FEW else 40, tol=1e-2)
    first, db = run.history["value"][0], np.mean(data.psnr(run.x, clean))
    print(f"{name:15}{run.cost:8}{first:12.3f}{run.value:8.3f}{run.value_error:9.0e}{db:7.2f}")
    shown.append(run.x)
FEW or plt.imsave(f"{here}/figures/extend_operator.png", np.block([[*v] for v in shown]).clip(0, 1), cmap="gray")
