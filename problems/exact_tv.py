"""Denoising by exact total variation, with a learned weight.

    h(x, theta) = sum over images of 1/2 ||x - y||^2 + e^theta sum_pixels |Dx|
    g(x) = 1/n sum over images of 1/2 ||x - x_clean||^2

D x = (dx, dy): forward differences, zero at the last column and row; |Dx| = |dx| + |dy|, isotropic sqrt(dx^2 + dy^2).
`rof` solves an image and certifies it by a duality gap; eps^2 = sum over images of eps_i^2.

z. With psi(d) = sqrt(|d|^2 + nu^2) in place of |d|, x + e^theta D^T psi'(Dx) = y has the derivative
dx/dtheta = -H^{-1} D^T p, and D^T p = y - x in the limit:

    H q = grad g,   H = 1 + e^theta D^T psi''(Dx) D,      z = - <q, y - x>
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bilevel import AbstractNonsmoothProblem, Constants, Solved, solve_lower
from bilevel._linalg.cg import cg_iterations
from bilevel._lower.descend import LowerSolution
from bilevel._nonsmooth import verdict

from . import rof
from ._regularisers.tv_kernels import differences, flow
from .inputs import pairs

Images = Float[Array, "n height width"]
Flows = Float[Array, "2 n height width"]
Theta = Float[Array, "..."]
Scalar = Float[Array, ""]
NU = 1e-3  # of intensities in [0, 1]: where z takes pixels for flat; it proves nothing
ENOUGH = 1e-2  # of the adjoint's right-hand side


class ExactTotalVariation(AbstractNonsmoothProblem):
    """`ExactTotalVariation(clean, noisy)`; theta () = the log of the weight of sum |Dx|.

    - `clean`: (n, height, width), float32 or float64, in [0, 1]; None to denoise only (`upper` then raises).
    - `noisy`: the same shape and dtype, finite, within [-9, 10] (intensities in [0, 1] plus noise).
    - `isotropic`: |Dx| of a pixel is the length of both differences, not the sum of their sizes.

    x has the shape of `noisy`. `TotalVariation` smooths |Dx|, weighs it by half of e^theta_0, and has certified
    gradients; here values are certified, and the run ends as settled (see `AbstractNonsmoothProblem`). A gradient of
    one image counts 1/n. Raises TypeError for dtypes and ValueError for shapes and values.
    """

    clean: Images | None
    noisy: Images
    isotropic: bool = eqx.field(static=True)

    def __init__(self, clean: ArrayLike | None, noisy: ArrayLike, *, isotropic: bool = False):
        self.clean, self.noisy = pairs(clean, noisy)
        self.isotropic = isotropic

    def lower(self, x: Images, theta: Theta) -> Scalar:
        """h(x, theta). Raises ValueError if theta is not one number."""
        dx, dy = differences(x)
        size = jnp.sqrt(dx**2 + dy**2) if self.isotropic else jnp.abs(dx) + jnp.abs(dy)
        return jnp.sum((x - self.noisy) ** 2) / 2 + self.weight(theta) * jnp.sum(size)

    def upper(self, x: Images, theta: Theta) -> Scalar:
        """g(x). Raises ValueError if there are no clean images."""
        if self.clean is None:
            raise ValueError("the upper level compares with clean images: pass them, ExactTotalVariation(clean, ...)")
        return jnp.sum((x - self.clean) ** 2) / (2 * len(x))

    def guess(self, theta: Theta) -> Images:
        """The data."""
        return self.noisy

    def constants(self, theta: Theta) -> Constants:
        """mu = 1, L_g = 1/n."""
        one = jnp.ones((), self.noisy.dtype)
        return Constants(mu=one, L_upper=one / len(self.noisy), L_upper_theta=0 * one, convex_upper=True)

    def weight(self, theta: Theta) -> Scalar:
        """e^theta."""
        if jnp.shape(theta) != ():
            raise ValueError(f"theta must be one number, the log of the weight; it has shape {jnp.shape(theta)}")
        return jnp.exp(theta)

    def memory(self, x: Images) -> Flows:
        """p over the weight, zero at first."""
        return jnp.zeros((2, *x.shape), x.dtype)

    def solve_cost(self, x: Images) -> int:
        return rof.LOOK

    def minimise(self, theta, x0, memory, eps, max_cost):
        """See `rof`. x0 is not used: what a solve starts from is p."""
        a, goal = self.weight(theta), eps**2 / len(x0)

        def solve(image):
            y, px, py = image
            it = rof.solve(y, a, (a * px, a * py), goal, max_cost, self.isotropic)
            return it.x, jnp.stack(it.p) / a, it.gap, it.noise, it.cost

        x, p, gaps, noises, costs = lax.map(solve, (self.noisy, *memory))
        error, floor = jnp.sqrt(jnp.sum(gaps)), jnp.sqrt(jnp.sum(noises))
        cost = jnp.ceil(jnp.mean(costs)).astype(int)
        more = rof.LOOK + jnp.maximum(rof.FIRST, jnp.max(costs) // rof.GROWTH)
        result = verdict(error, floor, eps, float(jnp.finfo(x.dtype).eps) / 2, jnp.max(costs) + more > max_cost)
        return Solved(x, error, floor, jnp.moveaxis(p, 1, 0), result, cost, jnp.zeros_like(cost))

    def slope_cost(self, x: Images) -> int:
        return 2

    def slope(self, theta, x, memory, max_cost):
        a, b = self.weight(theta), jax.grad(self.upper)(x, theta)
        zero, nu = jnp.zeros_like(a), jnp.full_like(a, NU)

        def product(v):
            return v + a * jax.jvp(lambda x: flow(x, nu, self.isotropic), (x,), (v,))[1]

        goal = ENOUGH * jnp.linalg.norm(b)
        q, products, *_ = cg_iterations(
            product, jnp.zeros_like(b), b, lambda _: goal, mu=zero, L=zero, u=0.0, max_products=max_cost
        )  # fmt: skip
        return -jnp.sum(q * (self.noisy - x)), products

    def denoise(self, theta: ArrayLike, noisy: ArrayLike, eps: float | None = None) -> LowerSolution:
        """Other images (n, height, width), denoised with the same options: `.x`, within `.error` of the minimiser.

        `eps`: the distance asked for; default 1e-3 root mean square, 1e-3 sqrt(noisy.size). Raises as the constructor.
        """
        problem = ExactTotalVariation(None, noisy, isotropic=self.isotropic)
        return solve_lower(problem, theta, eps=1e-3 * problem.noisy.size**0.5 if eps is None else eps)
