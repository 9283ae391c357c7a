"""Bounds from the curvature that is there, where mu bounds it from far below: from all of H(x), for x of few numbers.

    t = min(L_H eps / m, e^{S eps} - 1),     m <= lambda_min(H(x)):      (1 - t) H(x) <= H(y) <= (1 + t) H(x)
                                                                         for every y with ||y - x|| <= eps
    ||x - xhat||                 <=  ||H(x)^{-1} rho|| + t/(1 - t) ||rho||_{H(x)^{-1}} / sqrt(m)
    ||H(xhat)^{-1} J(xhat)||     <=  ||K|| + t/(1 - t) sqrt(||J^T K|| / m) + L_J eps / (m (1 - t)),   K = H(x)^{-1} J

With Hbar = int H(xhat + s (x - xhat)) ds, rho = Hbar (x - xhat), and H(x)^{1/2} (Hbar^{-1} - H(x)^{-1}) H(x)^{1/2} has
a norm of at most t/(1 - t). The eps on the right is any bound that is known, at first ||rho||/mu; the left side is a
new one. So mu and L_H enter at second order: to first order these are the error and the response d xhat/d theta
themselves, where ||rho||/mu and ||J||/mu may be a thousand times larger. S is `Constants.concordance`. In a problem's
metric all of it holds with its norms. Where neither L_H nor S is declared, L_H is estimated from difference quotients,
as M_H is.
"""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float

from .._linalg.norms import norm
from .._linalg.rounding import unit_roundoff
from .._linalg.vectors import Scalar, Vector
from .._lower.local import Local
from .._problem import AbstractProblem, bounds_along, cross_product, cross_transpose_product, hessian_product
from .estimates import DIRECTIONS, ball_directions, lipschitz

LARGEST = 2000  # numbers in x: H then takes 32 MB, and its factors about a second


def affordable(x: Vector, theta: Vector) -> bool:
    """Whether H(x), and K, are small enough to be formed."""
    n, d = optax.tree.size(x), optax.tree.size(theta)
    return n <= LARGEST and n * d <= LARGEST**2


def local_cost(problem: AbstractProblem, x: Vector, theta: Vector) -> tuple[int, int]:
    """(Hessian products, products with J): H counts its columns, its factor as many again, J its smaller side."""
    n, d = optax.tree.size(x), optax.tree.size(theta)
    return 2 * n + DIRECTIONS * _guesses(problem, x, theta), min(n, d)


def _guesses(problem, x, theta) -> bool:
    """Whether L_H has to be estimated: then M_H is, too, and the certificate is labelled so."""
    constants = problem.constants(theta)
    unknown = constants.L_hessian is None and constants.concordance is None
    return unknown and problem.bounds(x, theta, x, jnp.zeros((), jax.tree.leaves(x)[0].dtype)).M_H is None


def local_curvature(
    problem: AbstractProblem, theta: Vector, x: Vector, rho: Vector, error: Scalar, mu: Scalar, noise: Scalar
) -> tuple[Scalar, Local]:
    """(a bound of ||x - xhat|| no larger than `error`, what H(x) tells). `noise` is the rounding in rho. Traceable."""
    constants, u = problem.constants(theta), unit_roundoff(error.dtype)
    root, unravel = ravel_pytree(optax.tree.ones_like(x) if constants.metric is None else constants.metric)
    root = 1 / jnp.sqrt(root)  # W^{-1/2}: below, Euclidean norms are the metric's
    n = root.size

    def column(e):
        return root * ravel_pytree(hessian_product(problem, x, theta, unravel(root * e)))[0]

    H = jax.lax.map(column, jnp.eye(n, dtype=root.dtype), batch_size=32)
    H = (H + H.T) / 2
    values = jnp.linalg.eigvalsh(H)
    slack = 8 * n * u * values[-1]
    m = jnp.maximum(values[0] - slack, mu)
    usable = jnp.isfinite(values[-1]) & (values[0] > slack)
    factor = cho_factor(jnp.where(usable, H, jnp.eye(n, dtype=H.dtype)))

    def solve(b):
        """H^{-1} b and what its norm may lack, from the residual."""
        y = cho_solve(factor, b)
        return y, (norm(b - H @ y) + slack * norm(y)) / m

    r = root * ravel_pytree(rho)[0]
    d, miss = solve(r)
    newton = norm(d) + miss + noise / m
    energy = jnp.sqrt((norm(r) + noise) * newton)  # ||rho||_{H^-1}

    d_x = unravel(root * d)
    L_H, bend = constants.L_hessian, bounds_along(problem, x, theta, d_x, error).M_H
    if _guesses(problem, x, theta):
        rates = lipschitz(
            lambda x: hessian_product(problem, x, theta, d_x), rho, x, error, ball_directions(x, rho, d_x)
        )
        L_H = rates / jnp.where(norm(d) > 0, norm(d), 1)

    def variation(eps):
        t = jnp.full_like(eps, jnp.inf) if L_H is None else L_H * eps / m
        return t if constants.concordance is None else jnp.minimum(t, jnp.expm1(constants.concordance * eps))

    def smaller(_, eps):
        t = variation(eps)
        t_ = jnp.where(t < 1, t, 0)
        new = jnp.where(t < 1, newton + t_ / (1 - t_) * energy / jnp.sqrt(m), jnp.inf)
        if bend is not None:  # ||(Hbar - H(x)) d|| <= M_H eps along d alone
            new = jnp.minimum(new, newton + bend * eps / mu)
        return jnp.where(usable, jnp.minimum(eps, new), eps)

    eps = jax.lax.fori_loop(0, 5, smaller, error)
    J = _cross_matrix(problem, x, theta, n, root)
    K, K_miss = solve(J)
    response = _spectral(K) + K_miss
    stored = _spectral(J) * K_miss + _spectral(J.T @ K if J.shape[1] <= n else J @ K.T)
    t = variation(eps)
    usable &= t < 1  # so is a t that is not a number
    inf = jnp.full_like(t, jnp.inf)
    known = Local(m, t, response, jnp.sqrt(stored))
    return eps, jax.tree.map(lambda v, without: jnp.where(usable, v, without), known, Local(mu, inf, inf, inf))


def _cross_matrix(problem, x, theta, n, root) -> Float[Array, "n d"]:
    """W^{-1/2} J, from the products on its smaller side."""
    flat, unravel_theta = ravel_pytree(theta)
    _, unravel = ravel_pytree(x)
    if flat.size <= n:
        columns = jax.lax.map(
            lambda e: ravel_pytree(cross_product(problem, x, theta, unravel_theta(e)))[0],
            jnp.eye(flat.size, dtype=flat.dtype),
        )
        return root[:, None] * columns.T
    rows = jax.lax.map(
        lambda e: ravel_pytree(cross_transpose_product(problem, x, theta, unravel(e)))[0], jnp.eye(n, dtype=root.dtype)
    )
    return root[:, None] * rows


def _spectral(A: Float[Array, "a b"]) -> Scalar:
    """||A||, moved up by its rounding; by the Gram matrix of the smaller side."""
    largest = jnp.max(jnp.abs(A))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    A = A / scale
    gram = A @ A.T if A.shape[0] <= A.shape[1] else A.T @ A
    slack = 1 + 4 * len(gram) * float(jnp.finfo(A.dtype).eps)
    return scale * slack * jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0))
