"""Total variation with a learned weight and smoothing.

    R(x, theta) = w sum_pixels [sqrt(|dx|^2 + nu^2) + sqrt(|dy|^2 + nu^2)],     w = 1/2 e^weight,  nu = e^smoothing

D x = (dx, dy): forward differences, zero at the last column and row; |.| is over the channels of a pixel (vectorial
total variation: one root for all of them). Isotropic: sqrt(|dx|^2 + |dy|^2 + nu^2) in place of the sum of two roots.
Section 4.2 of arXiv 2308.10098.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from bilevel import Bounds, Constants

from .base import AbstractRegulariser, few_numbers
from .tv_kernels import differences, flow, shared, variation

C3 = 48 / (25 * 5**0.5)  # max |psi'''| nu^2 of psi(d) = sqrt(d^2 + nu^2), at d = nu/2


class TV(AbstractRegulariser):
    """`TV()`; theta = {"weight": (), "smoothing": ()}, both logs.

    `isotropic`: one root per pixel for both differences. Colour images have one root for all channels; to leave the
    channels to themselves pass them as grey images.
    """

    isotropic: bool = eqx.field(static=True, default=False)

    def start(self, dtype: DTypeLike = float) -> dict[str, Array]:
        """A theta for intensities in [0, 1] and noise of about 0.1."""
        return {"weight": jnp.asarray(-2.0, dtype), "smoothing": jnp.asarray(-4.5, dtype)}

    def check(self, theta, shape):
        few_numbers(theta, ("weight", "smoothing"))

    def value(self, x, theta):
        w, nu = _weights(theta)
        return w * variation(x, nu, self.isotropic)

    def constants(self, theta, shape, reach):
        """All proven:

            mu = 0,   L = 8 w/nu,   L_H = 16/sqrt(5) c3 w/nu^2 (isotropic: sqrt(2) times that),   L_J = sqrt(2) 8 w/nu,

        from ||D||^2 <= 8, psi'' <= 1/nu, |psi'''| <= c3/nu^2. The last two hold for psi on R^m as well: a symmetric
        form attains its norm on its diagonal, and on any line psi is the scalar one with nu or more.
        """
        # L_H: |D^3 R(x)[z, z, z]| <= c3 w/nu^2 F(z), F(z) = sum of |Dz|^3, |.| over the channels. Where F is largest on
        # ||z|| = 1, D^T(|Dz| Dz) = F z. Read that at the largest |z| = a, b^2 the mean square of its (up to) four
        # neighbours: F a <= sum over these of |Dz|^2 <= 4 (a + b)^2, b <= a, a^2 + 4 b^2 <= 1, so F <= 4 (a + b)^2/a
        # <= 16/sqrt(5), attained at b = a. Nothing in it depends on how many channels there are.
        # Isotropic: (s^2 + t^2)^{3/2} <= sqrt(2) (|s|^3 + |t|^3).
        # rounding_cross: D^T psi' adds up what cancels, w sqrt(8) ||psi'||, with |psi'| <= min(1, |Dx|/nu) a root and
        # |nu dpsi'/dnu| <= 0.385; 16 for the order in which a few hundred terms are added
        w, nu = _weights(theta)
        roots = shape[0] * shape[1] * shape[2] * (1 if self.isotropic else 2)
        flows = 10 * w**2 * jnp.minimum(roots, 8 * (reach / nu) ** 2)
        return Constants(
            mu=jnp.zeros_like(w),
            L=8 * w / nu,
            L_hessian=(2**0.5 if self.isotropic else 1.0) * 16 / 5**0.5 * C3 * w / nu**2,
            L_cross=2**0.5 * 8 * w / nu,
            rounding_cross=16 * jnp.sqrt(flows),
        )

    def bounds(self, x, theta, q, radius):
        """M_H = min(L_H max_i ||q_i||, 8 c3 w/nu^2 max |Dq|),     M_J = 4 w/nu ||Dq||

        on every ball around x; |Dq| of a pixel is max(|dx|, |dy|), isotropic sqrt(|dx|^2 + |dy|^2).
        """
        # M_H: H is block diagonal over the images i, and the symmetric D^3 R takes x - x' and q in either order.
        # M_J: the derivative of J^T q along z is w (<A Dz, Dq>, <B Dz, Dq>), A the Jacobian of psi' and B of
        # nu dpsi'/dnu, both symmetric with common eigenvectors (Dx and what is normal to it) and eigenvalues of at
        # most 1/nu in size: at most sqrt(2) w/nu ||Dq|| ||Dz||, and ||Dz|| <= sqrt(8) ||z||. Never above L_J ||q||.
        w, nu = _weights(theta)
        known = self.constants(theta, x.shape, jnp.zeros_like(w))
        dx, dy = (shared(d**2) for d in differences(q))
        largest = jnp.sqrt(jnp.max(dx + dy if self.isotropic else jnp.maximum(dx, dy)))
        largest_q = jnp.sqrt(jnp.max(jnp.sum(q**2, axis=tuple(range(1, q.ndim)))))
        return Bounds(
            M_H=jnp.minimum(known.L_hessian * largest_q, 8 * C3 * w / nu**2 * largest),
            M_J=4 * w / nu * jnp.sqrt(jnp.sum(dx + dy)),
            L_J=known.L_cross,
        )

    def columns(self, x, theta):
        """w D^T psi'(Dx) and w nu D^T dpsi'/dnu(Dx)."""
        w, nu = _weights(theta)
        gradient, nu_derivative = jax.jvp(lambda nu: flow(x, nu, self.isotropic), (nu,), (nu,))
        return [w * gradient, w * nu_derivative]


def _weights(theta):
    return jnp.exp(theta["weight"]) / 2, jnp.exp(theta["smoothing"])
