"""Problems that the tests share, random draws of them, and the truth by dense linear algebra in float64."""

from collections import Counter
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel import AbstractProblem, Constants
from bilevel.problems.quadratic import Quadratic
from bilevel.problems.tv import TotalVariation


def phi(t):
    return jnp.sqrt(1 + t**2)


class Robust(AbstractProblem):
    """Not quadratic: robust regression with a learned weight and one log penalty per entry of x, theta = (s, t).

        h(x, theta) = e^s sum_i phi(a_i^T x - y_i) + 1/2 sum_j e^{t_j} x_j^2,       g(x) = sum_i phi(b_i^T x - c_i)

    with phi(t) = sqrt(1 + t^2):  0 < phi'' = (1 + t^2)^{-3/2} <= 1,  phi''' = -3 t (1 + t^2)^{-5/2}, largest in size
    where its derivative (12 t^2 - 3)(1 + t^2)^{-7/2} vanishes, at t = 1/2: |phi'''| <= c3 = 1.5 / 1.25^{5/2} < 0.8587.

    H = e^s A^T diag(phi''(r)) A + diag(e^t) with r = A x - y. So  min e^t <= H <= e^s ||A||^2 + max e^t,  and
    ||H(x) - H(x')|| <= e^s ||A||^2 max_i |phi''(r_i) - phi''(r_i')| <= e^s ||A||^2 c3 max_i ||a_i|| ||x - x'||.

    J = [e^s A^T phi'(r), diag(e^{t_j} x_j)]. From x to x' the column moves by at most e^s ||A||^2 ||x - x'|| (phi' is
    1-Lipschitz), the diagonal by at most max e^t ||x - x'||, and ||[c, D]||^2 <= ||c||^2 + ||D||^2.
    grad g = B^T phi'(B x - c) is ||B||^2-Lipschitz, and g is convex.
    """

    A: Float[Array, "m n"]
    y: Float[Array, " m"]
    B: Float[Array, "k n"]
    c: Float[Array, " k"]
    norm_A: Float[Array, ""]
    norm_B: Float[Array, ""]
    row: Float[Array, ""]

    def __init__(self, A, y, B, c):
        self.A, self.y, self.B, self.c = (jnp.asarray(v) for v in (A, y, B, c))
        up = 1 + 1e-5  # norms rounded up, whatever the dtype
        norms = np.linalg.norm(A, 2), np.linalg.norm(B, 2), np.max(np.linalg.norm(A, axis=1))
        self.norm_A, self.norm_B, self.row = (jnp.asarray(up * v, A.dtype) for v in norms)

    def lower(self, x, theta):
        return jnp.exp(theta[0]) * jnp.sum(phi(self.A @ x - self.y)) + jnp.sum(jnp.exp(theta[1:]) * x**2) / 2

    def upper(self, x, theta):
        return jnp.sum(phi(self.B @ x - self.c))

    def guess(self, theta):
        return jnp.zeros_like(self.A[0])

    def constants(self, theta):
        weight, penalties = jnp.exp(theta[0]), jnp.exp(theta[1:])
        curvature = weight * self.norm_A**2
        return Constants(
            mu=jnp.min(penalties),
            L=curvature + jnp.max(penalties),
            L_upper=self.norm_B**2,
            L_upper_theta=0.0,
            L_hessian=0.8588 * curvature * self.row,
            L_cross=jnp.sqrt(curvature**2 + jnp.max(penalties) ** 2),
            convex_upper=True,
        )


class Nested(AbstractProblem):
    """`Robust` with nested pytrees for x and theta and an upper level that reads theta:

        g(x, theta) = g_robust(x) + 0.1 sin(s) sum_j x_j + 0.05 ||t||^2

    grad_x g gains a constant in x, so L_g stays; grad_theta g moves with x by 0.1 |cos s| |sum (x - x')_j|, at most
    0.1 sqrt(n) ||x - x'||. With sin(s) < 0 or > 0 it stays convex: the term is linear in x.
    """

    robust: Robust

    def flat(self, x, theta):
        x = jnp.concatenate([x["head"], x["tail"][0]])
        penalties = theta["penalties"]
        return x, jnp.concatenate([theta["weight"][None], penalties[0], penalties[1][None]])

    def lower(self, x, theta):
        return self.robust.lower(*self.flat(x, theta))

    def upper(self, x, theta):
        x, theta = self.flat(x, theta)
        own = 0.1 * jnp.sin(theta[0]) * jnp.sum(x) + 0.05 * jnp.sum(theta[1:] ** 2)
        return self.robust.upper(x, theta) + own

    def guess(self, theta):
        return self.shape_x(jnp.zeros_like(self.robust.A[0]))

    def shape_x(self, x):
        return {"head": x[:2], "tail": (x[2:],)}

    def shape_theta(self, theta):
        return {"weight": theta[0], "penalties": (theta[1:-1], theta[-1])}

    def constants(self, theta):
        x = self.guess(theta)
        constants = self.robust.constants(self.flat(x, theta)[1])
        n = self.robust.A.shape[1]
        return eqx.tree_at(lambda c: c.L_upper_theta, constants, 0.1 * n**0.5)


class Undeclared(AbstractProblem):
    """The same problem by an author who declares only the names in `declared`."""

    problem: AbstractProblem
    declared: tuple[str, ...] = eqx.field(static=True, default=())

    def lower(self, x, theta):
        return self.problem.lower(x, theta)

    def upper(self, x, theta):
        return self.problem.upper(x, theta)

    def guess(self, theta):
        return self.problem.guess(theta)

    def constants(self, theta):
        known = self.problem.constants(theta)
        return Constants(**{name: getattr(known, name) for name in self.declared})


class Bilinear(AbstractProblem):
    """h = 1/2 ||x||^2 + x^T K theta, g = 1/2 ||x - 1||^2: J = K, and its norm is not declared."""

    K: Float[Array, "n d"]

    def lower(self, x, theta):
        return x @ x / 2 + x @ (self.K @ theta)

    def upper(self, x, theta):
        return jnp.sum((x - 1) ** 2) / 2

    def guess(self, theta):
        return jnp.zeros_like(self.K[:, 0])

    def constants(self, theta):
        return Constants(mu=1.0, L=1.0, L_upper=1.0, L_hessian=0.0, L_cross=0.0, convex_upper=True)


class Scalar(AbstractProblem):
    """x and theta are numbers; every constant is attained, so each term of a bound can be the whole error.

        h = mu/2 x^2 + a/6 x_+^3 + theta (p x + b/2 x^2),       g = curve/2 (x - c)^2 + s x + theta m x

    At theta = 0: xhat = 0, H = mu + a x_+, J = p + b x, L_H = a, L_J = |b|, L_g = curve, grad_theta g moves by m x.
    """

    mu: Float[Array, ""]
    a: Float[Array, ""]
    p: Float[Array, ""]
    b: Float[Array, ""]
    c: Float[Array, ""]
    curve: Float[Array, ""]
    s: Float[Array, ""]
    m: Float[Array, ""]

    def lower(self, x, theta):
        bent = self.a / 6 * jnp.maximum(x, 0) ** 3
        return self.mu / 2 * x**2 + bent + theta * (self.p * x + self.b / 2 * x**2)

    def upper(self, x, theta):
        return self.curve / 2 * (x - self.c) ** 2 + self.s * x + theta * self.m * x

    def guess(self, theta):
        return jnp.zeros_like(self.mu)

    def constants(self, theta):
        return Constants(
            mu=self.mu,
            L=2 * self.mu,
            L_upper=self.curve,
            L_upper_theta=self.m,
            L_hessian=self.a,
            L_cross=jnp.abs(self.b),
            convex_upper=True,
        )


# Random draws.


def quadratic(rng, kappa: float, n: int = 6, d: int = 3, dtype: Any = np.float64) -> Quadratic:
    """A2^T A2 with condition number kappa and a random scale; the other data Gaussian."""
    rows = n + d + 3
    U, V = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (rows, n))
    sigma = np.sqrt(np.geomspace(1, 1 / kappa, n)) * 10 ** rng.uniform(-1, 1)
    data = (rng.standard_normal((rows, n)), (U * sigma) @ V.T, rng.standard_normal((rows, d)) * sigma[0])
    data += (rng.standard_normal(rows), rng.standard_normal(rows) * sigma[0])
    return Quadratic(*(v.astype(dtype) for v in data))


def random_quadratic(rng, dtype, kappas=(2, 1e6)) -> tuple[Quadratic, Array]:
    kappa = np.exp(rng.uniform(*np.log(kappas)))
    return quadratic(rng, kappa, dtype=dtype), jnp.asarray(rng.standard_normal(3), dtype)


def random_robust(rng, dtype) -> tuple[Robust, Array]:
    scale = 10 ** rng.uniform(-0.5, 0.5)
    data = (scale * rng.standard_normal((9, 5)), rng.standard_normal(9) * 3)
    data += (rng.standard_normal((7, 5)), rng.standard_normal(7) * 3)
    return Robust(*(v.astype(dtype) for v in data)), jnp.asarray(rng.uniform(-4, 2, 6), dtype)


def random_nested(rng, dtype) -> tuple[Nested, Any]:
    robust, theta = random_robust(rng, dtype)
    problem = Nested(robust)
    return problem, problem.shape_theta(theta)


def random_tv(rng, dtype, isotropic: bool = False, elastic: bool = False) -> tuple[TotalVariation, Array]:
    """A 6 x 6 image of two flat pieces and its noisy copy; weights e^-8..e^1, smoothings e^-6..1."""
    clean = np.full((1, 6, 6), rng.uniform())
    clean[0, : rng.integers(1, 6), : rng.integers(1, 6)] = rng.uniform()
    noisy = clean + 0.1 * rng.standard_normal(clean.shape)
    theta = np.array([rng.uniform(-8, 1), rng.uniform(-6, 0), rng.uniform(-6, 1)])[: 2 + elastic]
    problem = TotalVariation(clean.astype(dtype), noisy.astype(dtype), isotropic=isotropic, elastic=elastic)
    return problem, jnp.asarray(theta, dtype)


def stack(draws: list[Any]) -> Any:
    """Many pytrees of the same shapes as one whose arrays have a leading axis."""
    arrays = [eqx.filter(draw, eqx.is_array) for draw in draws]
    static = eqx.filter(draws[0], eqx.is_array, inverse=True)
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *arrays), static)


def batched(function):
    """jit(vmap(function)) over every array's first axis."""
    return eqx.filter_jit(eqx.filter_vmap(function, in_axes=eqx.if_array(0)))


def in_float64(tree):
    return jax.tree.map(lambda v: jnp.asarray(v, jnp.float64) if eqx.is_inexact_array(v) else v, tree)


# The truth.


class Truth(NamedTuple):
    """xhat, f(theta), grad f(theta) and the norm of the cross derivative J; `error` bounds ||x - xhat|| but for
    rounding."""

    x: Any
    value: Array
    gradient: Any
    norm_J: Array
    error: Array


def truth(problem: AbstractProblem, theta: Any, x0: Any, steps: int = 200) -> Truth:
    """Damped Newton with dense Hessians from x0 to the floor of float64, then dense linear algebra. Traceable.

    The damping takes, of t = 1, 1/2, ..., 2^-9, the one with the smallest gradient; a Newton direction shrinks the
    gradient for small t.
    """
    flat, shape_x = ravel_pytree(x0)
    flat_theta, shape_theta = ravel_pytree(theta)

    def lower(x, t):
        return problem.lower(shape_x(x), shape_theta(t))

    def upper(x, t):
        return problem.upper(shape_x(x), shape_theta(t))

    rho = jax.grad(lower)
    hessian = jax.jacfwd(rho)
    damping = 2.0 ** -jnp.arange(10)

    def newton(carry):
        x, norm, _, k = carry
        d = jnp.linalg.solve(hessian(x, flat_theta), rho(x, flat_theta))
        norms = jax.vmap(lambda t: jnp.linalg.norm(rho(x - t * d, flat_theta)))(damping)
        best = jnp.argmin(norms)
        better = norms[best] < norm
        return jnp.where(better, x - damping[best] * d, x), jnp.where(better, norms[best], norm), better, k + 1

    start = flat, jnp.linalg.norm(rho(flat, flat_theta)), True, 0
    x, norm, _, _ = jax.lax.while_loop(lambda carry: carry[2] & (carry[3] < steps), newton, start)
    H = hessian(x, flat_theta)
    J = jax.jacfwd(rho, argnums=1)(x, flat_theta)
    g_x, g_theta = jax.grad(upper, argnums=(0, 1))(x, flat_theta)
    gradient = g_theta - J.T @ jnp.linalg.solve(H, g_x)
    return Truth(
        shape_x(x),
        upper(x, flat_theta),
        shape_theta(gradient),
        jnp.linalg.norm(J, 2),
        norm / problem.constants(theta).mu,
    )


def distance(a: Any, b: Any) -> float:
    """||a - b|| in float64."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(np.sum((np.asarray(u, np.float64) - np.asarray(v, np.float64)) ** 2) for u, v in leaves)))


# Real calls, counted on the host.

calls: Counter[str] = Counter()


def called(kind: str, *operands: Array) -> Array:
    """A zero whose computation counts one call of `kind`; nothing is counted where the result is not used."""

    def count(*_):
        calls[kind] += 1
        return np.zeros((), operands[0].dtype)

    return jax.pure_callback(count, jax.ShapeDtypeStruct((), operands[0].dtype), *operands, vmap_method="sequential")


def _symbolic(tangent):
    return isinstance(tangent, SymbolicZero)


def _core(problem, x, theta):
    return problem.lower(x, theta)


@jax.custom_jvp
def _gradient(problem, x, theta):
    return jax.grad(_core, 1)(problem, x, theta) + called("lower_gradients", x)


def _gradient_rule(primals, tangents):
    problem, x, theta = primals
    _, dx, dtheta = tangents
    out = jnp.zeros_like(x)
    if not _symbolic(dx):
        out += jax.jvp(lambda x: jax.grad(_core, 1)(problem, x, theta), (x,), (dx,))[1]
        out += called("hessian_products", x, dx)
    if not _symbolic(dtheta):
        out += jax.jvp(lambda theta: jax.grad(_core, 1)(problem, x, theta), (theta,), (dtheta,))[1]
        out += called("cross_products", x, dtheta)
    return _gradient(problem, x, theta), out


_gradient.defjvp(_gradient_rule, symbolic_zeros=True)


@jax.custom_jvp
def _theta_gradient(problem, x, theta):
    return jax.grad(_core, 2)(problem, x, theta) + called("theta_gradients", x)


def _theta_gradient_rule(primals, tangents):
    problem, x, theta = primals
    _, dx, dtheta = tangents
    assert not _symbolic(dx) and _symbolic(dtheta), "only J^T q is ever needed"
    out = jax.jvp(lambda x: jax.grad(_core, 2)(problem, x, theta), (x,), (dx,))[1]
    return _theta_gradient(problem, x, theta), out + called("cross_products", x, dx)


_theta_gradient.defjvp(_theta_gradient_rule, symbolic_zeros=True)


@jax.custom_jvp
def _counted_lower(problem, x, theta):
    return _core(problem, x, theta) + called("lower_values", x)


def _counted_lower_rule(primals, tangents):
    problem, x, theta = primals
    _, dx, dtheta = tangents
    out = jnp.zeros((), x.dtype)
    if not _symbolic(dx):
        out += jnp.vdot(_gradient(problem, x, theta), dx)
    if not _symbolic(dtheta):
        out += jnp.vdot(_theta_gradient(problem, x, theta), dtheta)
    return _counted_lower(problem, x, theta), out


_counted_lower.defjvp(_counted_lower_rule, symbolic_zeros=True)


class Counted(Undeclared):
    """`Undeclared`, for arrays x and theta, whose every evaluated value, gradient and product shows in `calls`."""

    def lower(self, x, theta):
        return _counted_lower(self.problem, x, theta)
