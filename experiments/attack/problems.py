"""Problems as a user of the package writes them, with constants vouched for: what the attack attacks beside `problems`.

Scaled          a h and b g of any problem: units in which squares of small numbers vanish
LeastSquares    quadratic, with offsets that cancel and cross derivatives that cancel
Quartic         no global constant of the Hessian: `bounds` gives those of the ball
Cubic           one variable, in which the bound is attained

and in regression.py, log-cosh, softplus or pseudo-Huber, with or without a metric.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel import AbstractProblem, Bounds, Constants

UP = 1 + 1e-5  # norms are moved up by more than float32's rounding of them


class Scaled(AbstractProblem):
    """a h and b g: mu, L, L_H, L_J and the roundings of h grow by a, L_g and the rounding of g by b."""

    problem: AbstractProblem
    a: Float[Array, ""]
    b: Float[Array, ""]

    def lower(self, x, theta):
        return self.a * self.problem.lower(x, theta)

    def upper(self, x, theta):
        return self.b * self.problem.upper(x, theta)

    def guess(self, theta):
        return self.problem.guess(theta)

    def constants(self, theta):
        known = self.problem.constants(theta)
        by = dict.fromkeys(("mu", "L", "L_hessian", "L_cross", "rounding", "rounding_cross"), self.a)
        by |= dict.fromkeys(("L_upper", "L_upper_theta", "rounding_upper"), self.b)
        fields = {name: getattr(known, name) for name in Constants.__dataclass_fields__}
        return Constants(**{name: v * by[name] if name in by and v is not None else v for name, v in fields.items()})

    def bounds(self, x, theta, q, radius):
        return jax.tree.map(lambda v: self.a * v, self.problem.bounds(x, theta, q, radius))

    def preconditioner(self, x, theta):
        P = self.problem.preconditioner(x, theta)
        return None if P is None else lambda v: jax.tree.map(lambda w: w / self.a, P(v))


class LeastSquares(AbstractProblem):
    """h = 1/2 ||A2 x + A3 theta - b2||^2,  g = 1/2 ||A1 x - b1||^2, as written: nothing is factored beforehand.

    H = A2^T A2 and J = A2^T A3 are constant. grad_x h adds up A2^T (A2 x), A2^T A3 theta and A2^T b2, and J^T q is
    A3^T (A2 q): ||A3|| ||A2|| ||q||, however small J itself. `silent`: names of constants that are left out. Without
    "J" among them ||J|| is the largest singular value of A2^T A3 in float64, moved up by its own rounding.
    """

    A1: Float[Array, "k n"]
    A2: Float[Array, "m n"]
    A3: Float[Array, "m d"]
    b1: Float[Array, " k"]
    b2: Float[Array, " m"]
    norms: Float[Array, " 3"]
    mu: Float[Array, ""]
    norm_J: Float[Array, ""]
    silent: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, A1, A2, A3, b1, b2, dtype, silent=()):
        self.A1, self.A2, self.A3, self.b1, self.b2 = (jnp.asarray(v, dtype) for v in (A1, A2, A3, b1, b2))
        A1, A2, A3 = (np.asarray(v, np.float64) for v in (self.A1, self.A2, self.A3))
        norms = np.array([np.linalg.norm(A, 2) for A in (A1, A2, A3)])
        slack = 1e-15 * len(A2)
        smallest = np.linalg.svd(A2, compute_uv=False)[-1] - slack * norms[1]
        self.mu = jnp.asarray(smallest**2 / UP, dtype)
        self.norm_J = jnp.asarray(UP * (np.linalg.norm(A2.T @ A3, 2) + slack * norms[1] * norms[2]), dtype)
        self.norms, self.silent = jnp.asarray(UP * norms, dtype), silent

    def lower(self, x, theta):
        r = self.A2 @ x + self.A3 @ theta - self.b2
        return r @ r / 2

    def upper(self, x, theta):
        r = self.A1 @ x - self.b1
        return r @ r / 2

    def guess(self, theta):
        return jnp.zeros_like(self.A2[0])

    def constants(self, theta):
        A1, A2, A3 = self.norms
        known = dict(
            mu=self.mu, L=A2**2, L_upper=A1**2, L_upper_theta=0.0, L_hessian=0.0, L_cross=0.0, convex_upper=True,
            rounding=A2 * (A3 * jnp.linalg.norm(theta) + jnp.linalg.norm(self.b2)), rounding_cross=A2 * A3,
        )  # fmt: skip
        return Constants(**{name: value for name, value in known.items() if name not in self.silent})

    def bounds(self, x, theta, q, radius):
        return Bounds(J=None if "J" in self.silent else self.norm_J, M_H=0.0, M_J=0.0, L_J=0.0)


class Quartic(AbstractProblem):
    """h = e^s/4 sum_j (x_j - y_j)^4 + 1/2 sum_j e^{t_j} x_j^2,  theta = (s, t);  g = 1/2 ||B x - c||^2.

    H = diag(3 e^s r^2 + e^t), r = x - y, has no Lipschitz constant. On the ball R_j = |r_j| + radius bounds |r_j|, and
        M_H = 6 e^s max R_j |q_j|,    M_J = sqrt((3 e^s ||R^2 q||)^2 + max (e^{t_j} q_j)^2),
        L_J = sqrt((3 e^s max R_j^2)^2 + max e^{2 t_j}),    ||J|| <= sqrt(e^{2 s} ||r^3||^2 + max (e^{t_j} x_j)^2),
    from J = [e^s r^3, diag(e^{t_j} x_j)]. There is no L either: it is left out.
    """

    y: Float[Array, " n"]
    B: Float[Array, "k n"]
    c: Float[Array, " k"]
    norm_B: Float[Array, ""]

    def lower(self, x, theta):
        return jnp.exp(theta[0]) / 4 * jnp.sum((x - self.y) ** 4) + jnp.sum(jnp.exp(theta[1:]) * x**2) / 2

    def upper(self, x, theta):
        r = self.B @ x - self.c
        return r @ r / 2

    def guess(self, theta):
        return self.y

    def constants(self, theta):
        mu = jnp.min(jnp.exp(theta[1:]))
        return Constants(mu=mu, L_upper=self.norm_B**2, L_upper_theta=0.0, convex_upper=True)

    def bounds(self, x, theta, q, radius):
        weight, penalty, r = jnp.exp(theta[0]), jnp.exp(theta[1:]), x - self.y
        R = jnp.abs(r) + radius
        column, most = 3 * weight * R**2, jnp.max(penalty)
        return Bounds(
            J=UP * jnp.sqrt(weight**2 * jnp.sum(r**6) + jnp.max((penalty * x) ** 2)),
            M_H=UP * 6 * weight * jnp.max(R * jnp.abs(q)),
            M_J=UP * jnp.sqrt(jnp.sum((column * q) ** 2) + jnp.max((penalty * q) ** 2)),
            L_J=UP * jnp.sqrt(jnp.max(column) ** 2 + most**2),
        )


class Cubic(AbstractProblem):
    """h = mu/2 x^2 + a/6 x_+^3 + theta p x,  g = slope x, near theta = 0: with x > 0 small and q = slope / (mu + a x)
    the whole error of z is M_H's part of the bound. `told` is the share of a that is declared as L_hessian: 1 is right.
    """

    mu: Float[Array, ""]
    a: Float[Array, ""]
    p: Float[Array, ""]
    slope: Float[Array, ""]
    told: Float[Array, ""]

    def lower(self, x, theta):
        return self.mu / 2 * x[0] ** 2 + self.a / 6 * jnp.maximum(x[0], 0) ** 3 + theta[0] * self.p * x[0]

    def upper(self, x, theta):
        return self.slope * x[0]

    def guess(self, theta):
        return jnp.zeros_like(theta)

    def constants(self, theta):
        return Constants(
            mu=self.mu, L=2 * self.mu, L_upper=0.0, L_upper_theta=0.0, L_hessian=self.told * self.a, L_cross=0.0,
            convex_upper=True,
        )  # fmt: skip
