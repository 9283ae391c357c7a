"""Penalised regression as a user of the package writes it, with constants vouched for, in a metric or without."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import AbstractProblem, Bounds, Constants
from experiments.attack.problems import UP


def _log_cosh(t):
    return jnp.logaddexp(t, -t) - math.log(2)


def _pseudo_huber(t):
    return jnp.sqrt(1 + t**2) - 1


# phi, and bounds of |phi'|, phi'', |phi'''| and |phi'''| / phi'':
#   log cosh   tanh, 1 - tanh^2, largest 2 (1 - v) sqrt(v) at v = 1/3: 4 / 3^1.5, and 2 |tanh|
#   softplus   s in (0, 1), s (1 - s), s (1 - s) (1 - 2 s): 1 / (6 sqrt(3)), and |1 - 2 s|
#   pseudo-Huber with R = sqrt(1 + t^2): t/R, R^-3, 3 t R^-5: 48 / (25 sqrt(5)), and 3 t / R^2
LOSSES = {
    "logcosh": (_log_cosh, 1.0, 1.0, 0.76981, 2.0),
    "softplus": (lambda t: jnp.logaddexp(jnp.zeros_like(t), t), 1.0, 0.25, 0.096226, 1.0),
    "huber": (_pseudo_huber, 1.0, 1.0, 0.85866, 1.5),
}


class Regression(AbstractProblem):
    """h = e^s sum_i phi(a_i^T x - y_i) + 1/2 sum_j e^{t_j} x_j^2,  theta = (s, t);  g = sum_i phi(b_i^T x - c_i) or, if
    `fit` is "squares", 1/2 ||B x - c||^2. With `reads`, g has sin(s)/8 sum_j x_j + ||t||^2/16 more.

    With |phi''| <= c2, |phi'''| <= c3 and Z = A W^{-1/2}, W = e^t / min e^t or 1,
        mu = min e^t,   L = e^s c2 ||A||^2 + max e^t,   L_H = e^s c3 ||Z||^2 max ||z_i||,
        L_J = sqrt((e^s c2 ||Z||^2)^2 + max (e^t / W)^2),   L_g = c2 ||B||^2 (c2 = 1 for squares),
    all in the norms of W, since J = [e^s A^T phi'(r), diag(e^t x)]. grad_x h adds up terms of size
    e^s ||A|| (sqrt(m) c1 + c2 ||y||) beside H x, J^T q those of e^s ||A|| sqrt(m) c1 times ||q||.
    From |phi'''| <= c phi'': e^{-S r} H(x) <= H(y) <= e^{S r} H(x) with S = c max ||a_i||, r = ||x - y||.

    `metric`: None, "Euclid" (W declared, L_H and L_J given with Z = A, also valid), "own" (given in W, and so is ||J||,
    the norm of W^{-1/2} J; elsewhere the package computes it).
    `silent`: names of constants that are left out, which the package then estimates or measures.
    """

    A: Float[Array, "m n"]
    y: Float[Array, " m"]
    B: Float[Array, "k n"]
    c: Float[Array, " k"]
    loss: str = eqx.field(static=True)
    fit: str = eqx.field(static=True)
    metric: str | None = eqx.field(static=True)
    reads: bool = eqx.field(static=True)
    silent: tuple[str, ...] = eqx.field(static=True)

    def lower(self, x, theta):
        phi = LOSSES[self.loss][0]
        penalty = jnp.sum(jnp.exp(theta[1:]) * x**2) / 2
        return jnp.exp(theta[0]) * jnp.sum(phi(self.A @ x - self.y)) + penalty

    def upper(self, x, theta):
        r = self.B @ x - self.c
        g = r @ r / 2 if self.fit == "squares" else jnp.sum(LOSSES[self.loss][0](r))
        return g + jnp.sin(theta[0]) / 8 * jnp.sum(x) + jnp.sum(theta[1:] ** 2) / 16 if self.reads else g

    def guess(self, theta):
        return jnp.zeros_like(self.A[0])

    def constants(self, theta):
        _, c1, c2, c3, c = LOSSES[self.loss]
        weight, penalty = jnp.exp(theta[0]), jnp.exp(theta[1:])
        mu, norm_A, norm_B = jnp.min(penalty), UP * jnp.linalg.norm(self.A, 2), UP * jnp.linalg.norm(self.B, 2)
        W = penalty / mu
        Z, own = (self.A / jnp.sqrt(W)[None], W) if self.metric == "own" else (self.A, jnp.ones_like(W))
        norm_Z, row = UP * jnp.linalg.norm(Z, 2), UP * jnp.max(jnp.linalg.norm(Z, axis=1))
        terms = weight * norm_A * c1 * len(self.y) ** 0.5
        known = dict(
            mu=mu,
            L=UP * (weight * c2 * norm_A**2 + jnp.max(penalty)),
            L_upper=norm_B**2 * (1.0 if self.fit == "squares" else c2),
            L_upper_theta=len(W) ** 0.5 / 8 if self.reads else 0.0,
            L_hessian=UP * weight * c3 * norm_Z**2 * row,
            L_cross=UP * jnp.sqrt((weight * c2 * norm_Z**2) ** 2 + jnp.max(penalty / own) ** 2),
            rounding=terms + weight * norm_A * c2 * jnp.linalg.norm(self.y),
            rounding_cross=terms,
            concordance=c * UP * jnp.max(jnp.linalg.norm(self.A, axis=1)),
            metric=None if self.metric is None else W,
            convex_upper=True,
        )
        return Constants(**{name: value for name, value in known.items() if name not in self.silent})

    def bounds(self, x, theta, q, radius):
        usual = super().bounds(x, theta, q, radius)
        if self.metric != "own":
            return usual
        penalty = jnp.exp(theta[1:])
        column = jnp.exp(theta[0]) * (
            self.A.T @ jax.grad(lambda r: jnp.sum(LOSSES[self.loss][0](r)))(self.A @ x - self.y)
        )
        J = jnp.column_stack([column, jnp.diag(penalty * x)]) / jnp.sqrt(penalty / jnp.min(penalty))[:, None]
        return Bounds(J=UP * jnp.linalg.norm(J, 2), M_H=usual.M_H, M_J=usual.M_J, L_J=usual.L_J)
