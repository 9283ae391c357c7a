"""Total-variation denoising of a stack of images with a learned weight and smoothing.

    h(x, theta) = sum over images of 1/2 ||x - y||^2 + w sum_pixels [sqrt(dx^2 + nu^2) + sqrt(dy^2 + nu^2)]
    g(x) = 1/n sum over images of 1/2 ||x - x_clean||^2,        w = 1/2 e^{theta_0},  nu = e^{theta_1}

D x = (dx, dy): forward differences, zero at the last column and row. Isotropic: sqrt(dx^2 + dy^2 + nu^2) in place of
the sum of two roots. Elastic: 1/2 e^{theta_2} ||x||^2 more. Section 4.2 of arXiv 2308.10098.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bilevel import AbstractProblem, Bounds, Constants, solve_lower
from bilevel._lower.descend import LowerSolution

from .inputs import images

Images = Float[Array, "n height width"]
Scalar = Float[Array, ""]
Theta = Float[Array, "..."]

C3 = 48 / (25 * 5**0.5)  # max |psi'''| nu^2 of psi(d) = sqrt(d^2 + nu^2), at d = nu/2


class TotalVariation(AbstractProblem):
    """`TotalVariation(clean, noisy)`; theta = (log weight, log smoothing), with `elastic` also log elastic weight.

    - `clean`: (n, height, width), float32 or float64, in [0, 1]; None to denoise only (`upper` then raises).
    - `noisy`: the same shape and dtype, finite, within [-9, 10] (intensities in [0, 1] plus noise).
    - `isotropic`: one root per pixel for both differences. `elastic`: adds 1/2 e^{theta_2} ||x||^2.

    theta is (2,), with `elastic` (3,); x has the shape of `noisy`. JAX arrays keep their sharding: a stack split over
    its first axis stays split. Raises TypeError for dtypes and ValueError for shapes and values.
    """

    clean: Images | None
    noisy: Images
    isotropic: bool = eqx.field(static=True)
    elastic: bool = eqx.field(static=True)

    # All checks are here, where JAX never comes when it rebuilds a problem from its leaves.
    def __init__(self, clean: ArrayLike | None, noisy: ArrayLike, *, isotropic: bool = False, elastic: bool = False):
        self.noisy = images("noisy", noisy, -9, 10)
        self.clean = None if clean is None else images("clean", clean, 0, 1)
        self.isotropic, self.elastic = isotropic, elastic
        if self.clean is not None and self.clean.shape != self.noisy.shape:
            raise ValueError(f"clean is {self.clean.shape}, noisy {self.noisy.shape}: pass stacks of the same shape")
        if self.clean is not None and self.clean.dtype != self.noisy.dtype:
            raise TypeError(f"clean is {self.clean.dtype}, noisy {self.noisy.dtype}: pass noisy.astype(clean.dtype)")

    def lower(self, x: Images, theta: Theta) -> Scalar:
        """h(x, theta). Raises ValueError if theta has the wrong shape."""
        w, nu, e = self.weights(theta)
        h = jnp.sum((x - self.noisy) ** 2) / 2 + w * variation(x, nu, self.isotropic)
        return h + e / 2 * jnp.sum(x**2) if self.elastic else h

    def upper(self, x: Images, theta: Theta) -> Scalar:
        """g(x). Raises ValueError if there are no clean images."""
        if self.clean is None:
            raise ValueError("the upper level compares with clean images: pass them, TotalVariation(clean, noisy)")
        return jnp.sum((x - self.clean) ** 2) / (2 * len(self.clean))

    def guess(self, theta: Theta) -> Images:
        """The noisy images."""
        return self.noisy

    def constants(self, theta: Theta) -> Constants:
        """All proven, with e = e^{theta_2} or 0:

            mu = 1 + e,    L = 1 + e + 8 w/nu,    L_H = 16/sqrt(5) c3 w/nu^2 (isotropic: sqrt(2) times that),
            L_J = sqrt(2 (8 w/nu)^2 + e^2),

        from ||D||^2 <= 8, psi'' <= 1/nu, |psi'''| <= c3/nu^2. The last two hold for the isotropic psi on R^2 as well:
        a symmetric form attains its norm on its diagonal, and on any line psi is the scalar one with nu or more.
        """
        # L_H: |D^3 h(x)[z, z, z]| <= c3 w/nu^2 F(z), F(z) = sum of |Dz|^3. Where F is largest on ||z|| = 1,
        # D^T(|Dz| Dz) = F z. Read that at the largest |z| = a, b^2 the mean square of its (up to) four neighbours:
        # F a <= 4 (a + b)^2, b <= a, a^2 + 4 b^2 <= 1, so F <= 4 (a + b)^2/a <= 16/sqrt(5), attained at b = a.
        # Isotropic: (s^2 + t^2)^{3/2} <= sqrt(2) (|s|^3 + |t|^3).
        w, nu, e = self.weights(theta)
        # rounding_cross: D^T psi' adds up what cancels, w sqrt(8) ||psi'||, with |psi'| <= min(1, |Dx|/nu) and
        # |nu dpsi'/dnu| <= 0.385; ||xhat|| <= ||y||; 16 for the order in which a few hundred terms are added
        one, norm_y = jnp.ones_like(w), jnp.linalg.norm(self.noisy)
        count = self.noisy.size * (1 if self.isotropic else 2)
        flows = 10 * w**2 * jnp.minimum(count, 8 * (norm_y / nu) ** 2)
        return Constants(
            rounding_cross=16 * jnp.sqrt(flows + (e * norm_y) ** 2),
            mu=one + e,
            L=one + e + 8 * w / nu,
            L_upper=one / len(self.noisy),
            L_upper_theta=0 * one,
            L_hessian=(2**0.5 if self.isotropic else 1.0) * 16 / 5**0.5 * C3 * w / nu**2,
            L_cross=jnp.sqrt(2 * (8 * w / nu) ** 2 + e**2),
            convex_upper=True,
        )

    def bounds(self, x: Images, theta: Theta, q: Images, radius: Scalar) -> Bounds:
        """||J(x)|| exactly, from the Gram matrix of its columns w D^T psi'(Dx), w nu D^T dpsi'/dnu(Dx), e x, and

            M_H = min(L_H max_i ||q_i||, 8 c3 w/nu^2 max |Dq|),     M_J = sqrt((4 w/nu ||Dq||)^2 + (e ||q||)^2)

        on every ball around x; |Dq| of a pixel is max(|dx|, |dy|), isotropic sqrt(dx^2 + dy^2).
        """
        # M_H: H is block diagonal over the images i, and the symmetric D^3 h takes x - x' and q in either order.
        # M_J: the derivative of J^T q along z is w (<A Dz, Dq>, <B Dz, Dq>), A the Jacobian of psi' and B of
        # nu dpsi'/dnu, both symmetric with common eigenvectors (isotropic: Dx and its normal) and eigenvalues of at
        # most 1/nu in size: at most sqrt(2) w/nu ||Dq|| ||Dz||, and ||Dz|| <= sqrt(8) ||z||. Never above L_J ||q||.
        w, nu, e = self.weights(theta)
        known = self.constants(theta)
        gradient, nu_derivative = jax.jvp(lambda nu: flow(x, nu, self.isotropic), (nu,), (nu,))
        columns = [w * gradient, w * nu_derivative, e * x][: 3 if self.elastic else 2]
        gram = jnp.stack([jnp.stack([jnp.sum(a * b) for b in columns]) for a in columns])
        dx, dy = differences(q)
        norms = dx**2 + dy**2
        largest = jnp.sqrt(jnp.max(norms if self.isotropic else jnp.maximum(dx**2, dy**2)))
        largest_q = jnp.sqrt(jnp.max(jnp.sum(q**2, axis=(1, 2))))
        return Bounds(
            J=jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0)),
            M_H=jnp.minimum(known.L_hessian * largest_q, 8 * C3 * w / nu**2 * largest),
            M_J=jnp.sqrt((4 * w / nu) ** 2 * jnp.sum(norms) + e**2 * jnp.sum(q**2)),
            L_J=known.L_cross,
        )

    def denoise(self, theta: Theta, noisy: ArrayLike, eps: float | None = None) -> LowerSolution:
        """Other images (n, height, width), denoised with the same options: `.x`, within `.error` of the minimiser.

        `eps`: the distance asked for; default 1e-3 root mean square, 1e-3 sqrt(noisy.size). Raises as the constructor.
        """
        problem = TotalVariation(None, noisy, isotropic=self.isotropic, elastic=self.elastic)
        return solve_lower(problem, theta, eps=1e-3 * problem.noisy.size**0.5 if eps is None else eps)

    def weights(self, theta: Theta) -> tuple[Scalar, Scalar, Scalar]:
        """w, nu and e (0 without the elastic term). Raises ValueError if theta has the wrong shape."""
        names = ("log weight", "log smoothing", "log elastic weight")[: 3 if self.elastic else 2]
        if jnp.shape(theta) != (len(names),):
            raise ValueError(f"theta must have shape ({len(names)},): {', '.join(names)}; not {jnp.shape(theta)}")
        w, nu = jnp.exp(theta[0]) / 2, jnp.exp(theta[1])
        return w, nu, jnp.exp(theta[2]) if self.elastic else jnp.zeros_like(w)


# The derivatives of sum psi(Dx) by hand (the gain over JAX's own: experiments/benchmarks/bench_kernels.py). With
# t = Dx/nu and r = 1/sqrt(1 + t^2):  psi = nu/r, psi' = t r, psi'' = r^3/nu, dpsi/dnu = r, dpsi'/dnu = -t r^3/nu.
# A root of 1 + t^2 compiles to fewer instructions than one of d^2 + nu^2: no zero, no infinity to look out for.
# Symbolic zeros: a derivative in theta alone must not pay for x, nor one in x alone for theta.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def variation(x: Images, nu: Scalar, isotropic: bool) -> Scalar:
    """sum_pixels psi(Dx)."""
    _, _, rx, ry = ratios(x, nu, isotropic)
    return nu * jnp.sum(1 / rx if isotropic else 1 / rx + 1 / ry)


@functools.partial(variation.defjvp, symbolic_zeros=True)
def variation_jvp(isotropic, primals, tangents):
    (x, nu), (v, dnu) = primals, tangents
    value = variation(x, nu, isotropic)
    change = jnp.zeros_like(value)
    if not isinstance(v, SymbolicZero):
        change += jnp.sum(flow(x, nu, isotropic) * v)
    if not isinstance(dnu, SymbolicZero):
        _, _, rx, ry = ratios(x, nu, isotropic)
        change += dnu * jnp.sum(rx if isotropic else rx + ry)
    return value, change


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def flow(x: Images, nu: Scalar, isotropic: bool) -> Images:
    """D^T psi'(Dx), the gradient of `variation` in x."""
    tx, ty, rx, ry = ratios(x, nu, isotropic)
    return adjoint_differences(tx * rx, ty * ry)


@functools.partial(flow.defjvp, symbolic_zeros=True)
def flow_jvp(isotropic, primals, tangents):
    (x, nu), (v, dnu) = primals, tangents
    value = flow(x, nu, isotropic)
    change = jnp.zeros_like(value)
    tx, ty, rx, ry = ratios(x, nu, isotropic)
    if not isinstance(v, SymbolicZero):
        vx, vy = differences(v)
        if isotropic:  # (1 + |t|^2) Dv - t <t, Dv>, without its cancellation
            turn = ty * vx - tx * vy
            vx, vy = vx + ty * turn, vy - tx * turn
        change += adjoint_differences(vx * rx**3, vy * ry**3) / nu
    if not isinstance(dnu, SymbolicZero):
        change -= dnu / nu * adjoint_differences(tx * rx**3, ty * ry**3)
    return value, change


def ratios(x: Images, nu: Scalar, isotropic: bool) -> tuple[Images, Images, Images, Images]:
    """t and r for dx and dy; isotropic: the r of their common root, twice."""
    tx, ty = (d * (1 / nu) for d in differences(x))
    if isotropic:
        return tx, ty, *(lax.rsqrt(1 + tx**2 + ty**2),) * 2
    return tx, ty, lax.rsqrt(1 + tx**2), lax.rsqrt(1 + ty**2)


def differences(x: Images) -> tuple[Images, Images]:
    """D x = (dx, dy): forward differences, zero at the last column of dx and the last row of dy."""
    dx, dy = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
    return jnp.pad(dx, ((0, 0), (0, 0), (0, 1))), jnp.pad(dy, ((0, 0), (0, 1), (0, 0)))


def adjoint_differences(px: Images, py: Images) -> Images:
    """D^T p; reads neither the last column of px nor the last row of py."""
    px, py = px[:, :, :-1], py[:, :-1]
    px, py = jnp.pad(px, ((0, 0), (0, 0), (0, 1))), jnp.pad(py, ((0, 0), (0, 1), (0, 0)))
    # Stored once by the barrier; fused into its shifted uses XLA would compute p twice, on a CPU in scalar code. As one
    # array, by one kernel: at 20 x 512 x 512 in float64 a step is 10 % faster than with two, a gradient 21 %.
    px, py = lax.optimization_barrier(jnp.stack([px, py]))
    left, above = jnp.pad(px[:, :, :-1], ((0, 0), (0, 0), (1, 0))), jnp.pad(py[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return left - px + above - py
