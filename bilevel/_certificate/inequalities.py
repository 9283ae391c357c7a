"""The inequalities that make the certificates: pure functions of norms and constants, one equation each.

Notation: rho = grad_x h(x, theta), H = d2h/dx2, J = d2h/dxdtheta, q the computed adjoint, delta >= ||H q - grad_x g||,
eps >= ||x - xhat||, u the unit roundoff of the dtype. Source: Salehi, Mukherjee, Roberts, Ehrhardt, arXiv 2308.10098,
with residuals in place of tolerances, and the roundings added.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""] | float


def value_rounding(value: Scalar, size: int, terms: Scalar, u: float) -> Scalar:
    """u (sqrt(size) |g| + terms): the rounding in g(x), `terms` the size of what it adds up and cancels. A model."""
    return u * (math.sqrt(size) * jnp.abs(value) + terms)


def value_error(norm_g_x: Scalar, eps: Scalar, L_upper: Scalar, rounding: Scalar) -> Scalar:
    """||grad_x g(x)|| eps + L_g eps^2 / 2 + rounding  >=  |g(x) - f(theta)|."""
    return norm_g_x * eps + L_upper * eps**2 / 2 + rounding


def corrected_error(delta: Scalar, eps: Scalar, curvature: Scalar) -> Scalar:
    """delta eps + (L_g + M_H) eps^2 / 2  >=  |g(x) - <q, rho> - f(theta)|, rounding left out: second order in eps."""
    return delta * eps + curvature * eps**2 / 2


def adjoint_defect(eps: Scalar, delta: Scalar, M_H: Scalar, L_upper: Scalar) -> Scalar:
    """beta = M_H eps + delta + L_g eps  >=  ||H(xhat)(q - qhat)||,  so that  eta_q = beta / mu  >=  ||q - qhat||.

    From H(xhat)(q - qhat) = (H(xhat) - H(x)) q + (H(x) q - grad_x g(x)) + (grad_x g(x) - grad_x g(xhat)).
    """
    return M_H * eps + delta + L_upper * eps


def amplification(eps: Scalar, J: Scalar, L_J: Scalar, mu: Scalar) -> Scalar:
    """(||J|| + L_J eps) / mu  >=  ||H(xhat)^{-1} J(xhat)||, since ||J(xhat)|| <= ||J(x)|| + L_J eps."""
    return (J + L_J * eps) / mu


def hypergradient_error(eps: Scalar, beta: Scalar, amplified: Scalar, M_J: Scalar, L_upper_theta: Scalar) -> Scalar:
    """omega = A beta + M_J eps + L_gtheta eps  >=  ||z - grad f||,  A >= ||H(xhat)^{-1} J(xhat)||.

    From J(x)^T q - J(xhat)^T qhat = (J(x) - J(xhat))^T q + J(xhat)^T (q - qhat). With A as above this is
    ||J|| eta_q + M_J eps + L_J eps eta_q.
    """
    return amplified * beta + M_J * eps + L_upper_theta * eps
