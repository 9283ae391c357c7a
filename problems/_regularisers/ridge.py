"""Ridge regularisers: the responses of learnt filters, each under a smoothed root, convex or weakly convex.

    R(x, theta) = sum_i sum_p a_i [psi(t, nu_i) - v_i psi(t, nu'_i)],   t = (c_i * x)_p,   psi(t, nu) = sqrt(t^2 + nu^2)
    a_i = e^{weight},   nu_i = 5e-4 + e^{smoothing},   nu'_i = nu_i + e^{gap},   v_i = S sigmoid(concavity),  0 < S <= 1

The filters c_i have zero mean and length 1 and come in pairs that mirror each other, x is extended by its mirror images
(see ridge_filters.py). Convex: v = 0. Weakly convex: S keeps the largest eigenvalue of sum_i k_i C_i^T C_i at most 0.9,
-k_i the least second derivative of the i-th potential (`bend`), so that R + 0.9/2 ||x||^2 is convex.
Convex ridge regularisers: arXiv 2211.12461; weakly convex ones: arXiv 2308.10542.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from bilevel import Bounds, Constants

from .by_image import ImageByImage, grey
from .ridge_filters import Parts, generators, powers, size_of
from .ridge_kernels import energy
from .ridge_measures import first_order, measures, rates_of, summands
from .tv import C3

LEAST = 5e-4  # of nu, of intensities between 0 and 1. Learning would drive it to 0, and L = peak(a/nu) to infinity
RHO = 0.9


class Ridge(ImageByImage):
    """`Ridge()`, or `Ridge(weak=True)`; theta a dict of arrays, that `start` makes:

    - "weights", "smoothings" (2, m), and weakly convex "gaps", "concavities" (2, m);
    - "filters" (2, m, n), n = (s^2 - 1)/2: m filters that are unchanged where they are turned by half, then m that
      change their sign, in the coefficients of `ridge_filters.bases`. Only their direction counts.

    With their mirror images there are 4m filters s x s, s odd. Images have at least s x s pixels and intensities in
    [0, 1]; the channels of a colour image are treated as grey images that share theta.

    Weakly convex h stays strongly convex: mu = lambda_min(A^T A) + e - 0.9. Raises ValueError for a theta that does not
    fit, where it is first used.
    """

    weak: bool = eqx.field(default=False, static=True)

    @property
    def concavity(self):
        return RHO if self.weak else 0.0

    def start(self, size: int = 7, dtype: DTypeLike = float) -> dict[str, Array]:
        """A theta for intensities in [0, 1] and noise of about 0.1: sums and differences of two DCT filters each.

        `size`: s, odd, at least 3; 4m = s^2 - 1 filters. Raises ValueError for another."""
        if size < 3 or size % 2 == 0:
            raise ValueError(f"size must be odd and at least 3, so that a filter has a middle; not {size}")
        m = (size**2 - 1) // 4
        numbers = {"weights": -6.0, "smoothings": -7.0}
        if self.weak:
            numbers = {"weights": -5.8, "smoothings": -5.0, "gaps": -2.0, "concavities": 1.5}
        theta = {name: jnp.full((2, m), value, dtype) for name, value in numbers.items()}
        return theta | {"filters": jnp.asarray(np.tile(np.kron(np.eye(m), [1, 1]), (2, 1, 1)), dtype)}

    def check(self, theta, shape):
        names = ["filters", "weights", "smoothings"] + ["gaps", "concavities"] * self.weak
        shapes = {name: jnp.shape(leaf) for name, leaf in theta.items()}
        _, m, n = (*shapes.get("filters", ()), 0, 0, 0)[:3]
        wanted = {name: (2, m, n) if name == "filters" else (2, m) for name in names}
        if shapes != wanted or m * n == 0:
            raise ValueError(f"theta must be a dict of {names}, filters (2, m, n), the others (2, m); not {shapes}")
        size = size_of(theta["filters"])
        if size % 2 == 0 or size**2 != 2 * n + 1:
            raise ValueError(f"filters of s x s have n = (s^2 - 1)/2 coefficients, s odd: 4, 12, 24, ...; not {n}")
        if size > min(shape[1:3]):
            raise ValueError(f"filters of {size} x {size} do not fit into images of {shape[1:3]}")

    def value(self, x, theta):
        parts = self.parts(theta)
        return jnp.sum(self.each(lambda x: energy(x, parts), grey(x)))

    def constants(self, theta, shape, reach):
        """All proven, peak(k) the largest eigenvalue of sum_i k_i C_i^T C_i, or more, as ridge_filters.py has it:

            mu = -peak(k),   L = peak(a/nu),   L_H = 2 c3 peak(a/nu^2 + b/nu'^2),       b = a v

        from 0 < psi'' <= 1/nu, |psi'''| <= c3/nu^2. L_J is local, see `bounds`.
        """
        # L_H: |D^3 R[z, z, z]| <= c3 sum_i (a/nu^2 + b/nu'^2) max|C_i z| ||C_i z||^2, and max|C_i z| <= 2 ||c_i|| ||z||
        # for a patch no larger than the image holds a pixel at most twice along each axis.
        # rounding_cross: filters of zero mean cancel twice, in t = C x and in C^T d, ||C|| <= s; see `summands`.
        parts = self.parts(theta)
        power, bent = powers(parts.taps), parts.b is not None
        third = parts.a / parts.nu**2 + (parts.b / parts.wide**2 if bent else 0)
        return Constants(
            mu=-jnp.max(bend(parts) @ power) if bent else jnp.zeros_like(parts.a[0]),
            L=jnp.max((parts.a / parts.nu) @ power),
            L_hessian=2 * C3 * jnp.max(third @ power),
            rounding_cross=summands(parts, lengths(theta), self.drift(theta), math.prod(shape), reach),
        )

    def bounds(self, x, theta, q, radius):
        """On the ball M_H = max over images of peak(max_p |phi''' C q|), phi = a psi(., nu) - b psi(., nu') and phi'''
        the largest within reach of t; ||J||, M_J and L_J leaf by leaf (`first_order`)."""
        x, q, parts = grey(x), grey(q), self.parts(theta)
        rates = rates_of(theta, parts)
        sums, worst, wide = self.each(lambda x, q: measures(x, q, parts, rates, 2 * radius), x, q)
        sums, power = {name: jnp.sum(v, axis=0) for name, v in sums.items()}, powers(parts.taps)
        J, M_J, L_J = first_order(sums, jnp.max(wide), parts, rates, power, lengths(theta), self.drift(theta))
        return Bounds(J=J, M_H=jnp.max(worst @ power), M_J=M_J, L_J=L_J)

    def drift(self, theta):
        """|| grad_theta log S ||."""
        if not self.weak:
            return jnp.zeros((), theta["weights"].dtype)
        gradient = jax.grad(lambda theta: jnp.log(self.parts(theta).b[0]) - own(theta)[0])(theta)
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in gradient.values()))

    def parts(self, theta) -> Parts:
        """What theta stands for."""
        leaves = {name: leaf.reshape(-1) for name, leaf in theta.items() if name != "filters"}
        taps, a = generators(theta["filters"]), jnp.exp(leaves["weights"])
        nu = LEAST + jnp.exp(leaves["smoothings"])
        if not self.weak:
            return Parts(taps, a, nu, None, None)
        wide, b = nu + jnp.exp(leaves["gaps"]), jnp.exp(own(theta))
        peak = jnp.max(bend(Parts(taps, a, nu, b, wide)) @ powers(taps))
        return Parts(taps, a, nu, b * (RHO / jnp.maximum(RHO, peak)), wide)  # k falls at least as fast as b


def bend(parts):
    """k of each filter: the largest b psi''(t, nu') - a psi''(t, nu), or 0 if that is negative for all t."""
    # psi''(t, nu) = nu^2 (t^2 + nu^2)^{-3/2}. With s = t^2 + nu^2, B = b nu'^2, A = a nu^2 and c = nu'^2 - nu^2 this is
    # B (s + c)^{-3/2} - A s^{-3/2}, largest over all s > 0 where (s + c)/s = (B/A)^{2/5}, with the value
    #     B c^{-3/2} (1 - (A/B)^{2/5})^{5/2},
    # and negative if A > B. Divided by b it grows with b: where b is multiplied by S <= 1, k is by no more than S.
    B, A, c = parts.b * parts.wide**2, parts.a * parts.nu**2, (parts.wide - parts.nu) * (parts.wide + parts.nu)
    return B * c**-1.5 * jnp.maximum(1 - (A / B) ** 0.4, 0) ** 2.5


def own(theta):
    """log (a sigmoid(concavity)) of each filter, log b but for S."""
    return (theta["weights"] + jax.nn.log_sigmoid(theta["concavities"])).reshape(-1)


def lengths(theta):
    """||u|| of each filter."""
    return jnp.linalg.norm(theta["filters"], axis=2).reshape(-1)
