"""A regulariser of your own: second differences, which leave ramps in peace where total variation makes stairs of them.

    R(x, theta) = w sum_pixels sqrt(|D x|^2 + nu^2),     D x = (dxx, sqrt(2) dxy, dyy),  w = e^weight, nu = e^smoothing

||D||^2 <= 16 + 2 16 + 16 = 64, and a pixel's part of D is at most sqrt(6 + 8 + 6) long. psi = sqrt(|.|^2 + nu^2) has
psi'' <= 1/nu and |psi'''| <= c/nu^2, so R has constants that are proven, and every certificate of the package holds.
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


class Bending(problems.AbstractRegulariser):
    def check(self, theta, shape):
        if {name: jnp.shape(leaf) for name, leaf in theta.items()} != {"weight": (), "smoothing": ()}:
            raise ValueError("theta must be a dict of two numbers, weight and smoothing")

    def value(self, x, theta):
        w, nu = jnp.exp(theta["weight"]), jnp.exp(theta["smoothing"])
        dxx, dyy = jnp.diff(x, 2, axis=1), jnp.diff(x, 2, axis=2)
        dxy = jnp.diff(jnp.diff(x, axis=1), axis=2)
        parts = (jnp.pad(d**2, [(0, 0), *((0, a - b) for a, b in zip(x.shape[1:], d.shape[1:], strict=True))])
                 for d in (dxx, dyy, 2**0.5 * dxy))  # fmt: skip
        return w * jnp.sum(jnp.sqrt(sum(parts) + nu**2))

    def constants(self, theta, shape, reach):
        w, nu = jnp.exp(theta["weight"]), jnp.exp(theta["smoothing"])
        L = 64 * w / nu
        return bilevel.Constants(
            mu=jnp.zeros_like(w), L=L, L_hessian=20**0.5 * 0.8587 * L / nu, L_cross=2**0.5 * L,
            rounding_cross=16 * w * jnp.sqrt(2.0 * 64 * np.prod(shape[:3])),
        )  # fmt: skip


train, held_out = data.denoising_set("photographs", size=24 if FEW else 96, sigma=0.1, held_out=["chelsea"])
theta0, shown = dict(weight=np.array(-3.0), smoothing=np.array(-4.0)), [held_out.clean[0], held_out.noisy[0]]
print(f"{'':17}{'cost':>6}{'f at start':>12}{'f':>8}{'+-':>9}{'dB held out':>13}")
for name, R in {"isotropic TV": problems.TV(isotropic=True), "second differences": Bending()}.items():
    problem = problems.Restoration(train.clean, train.noisy, R)
    assert FEW or not bilevel.check_problem(problem, theta0)  # nothing contradicts what is declared
    run = bilevel.solve(problem, theta0, max_steps=1 if FEW else 40, progress=False)
    x = bilevel.solve_lower(problems.Restoration(None, held_out.noisy, R), run.theta).x
    db, first = data.psnr(x, held_out.clean)[0], run.history["value"][0]
    print(f"{name:18}{run.cost:5}{first:12.3f}{run.value:8.3f}{run.value_error:9.0e}{db:13.2f}")
    shown.append(x[0])
FEW or plt.imsave(f"{here}/figures/extend_regulariser.png", np.hstack(shown).clip(0, 1), cmap="gray")
