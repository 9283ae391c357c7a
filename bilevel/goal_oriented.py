"""How wrong a hypergradient is, to first order: not a bound, but about right where the bound is hundreds of times that.

    Lambda(x, q, theta) = g(x, theta) - <q, grad_x h(x, theta)>,      z = grad_theta Lambda,   zero in x and q if solved
    H e = rho,    H p = r + Lambda_xx e,      rho = grad_x h,  r = H q - grad_x g
    z - grad f  =  Lambda_theta,x e + Lambda_theta,q p  +  second order in (e, p)

(e, p) is the Newton correction of the optimality system, so e ~ x - xhat and p ~ q - qhat: the dual-weighted residual
of goal-oriented error estimation (Becker, Rannacher 2001), for all components of z at once.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .bounds import unit_roundoff
from .inputs import prepare, same_shapes
from .krylov import cg_iterations
from .lower import preconditioner
from .meter import Counts
from .pointwise import HypergradientSolution
from .problem import AbstractProblem, Scalar, Vector, hessian_product, lower_gradient

SOLVED = 1e-3  # of the right-hand sides, in the preconditioned norm: an estimate needs no more
MAX_PRODUCTS = 10_000


class ErrorEstimate(eqx.Module):
    """`error` ~ z - grad f, shaped like theta; `norm` of it; `x_error` ~ ||x - xhat||; `counts`, what it cost.

    An estimate: it proves nothing, and nothing in this package is accepted by it.
    """

    error: Vector
    norm: Scalar
    x_error: Scalar
    counts: Counts


def estimate_error(problem: AbstractProblem, theta: PyTree, solution: HypergradientSolution) -> ErrorEstimate:
    """The first-order error of `solution = bilevel.hypergradient(problem, theta, ...)`, from its residuals.

    `solution.gradient - .error` is a hypergradient of second-order accuracy, without a certificate. Costs two systems
    with H, to three digits. Raises ValueError or TypeError as `hypergradient` does, and for shapes that do not fit.
    """
    problem, theta, x = prepare(problem, theta, solution.x)
    same_shapes(solution.q, x, "solution.q", "x")
    same_shapes(solution.gradient, theta, "solution.gradient", "theta")
    error, e, products = _estimate(problem, theta, x, solution.q)
    counts = Counts(lower_gradients=1, hessian_products=int(products), cross_products=3)
    return ErrorEstimate(error, optax.tree.norm(error), optax.tree.norm(e), counts)


@eqx.filter_jit
def _estimate(problem, theta, x, q):
    def gradients(x, q):
        """(grad_x, grad_theta) of Lambda."""

        def value(x, theta):
            return problem.upper(x, theta) - optax.tree.vdot(q, lower_gradient(problem, x, theta))

        return jax.grad(value, argnums=(0, 1))(x, theta)

    def solve(b):
        zero, metric = jnp.zeros_like(optax.tree.norm(b)), problem.constants(theta).metric
        P = preconditioner(problem, x, theta)
        size = optax.tree.norm(b) if P is None else jnp.sqrt(optax.tree.vdot(b, P(b)))
        return cg_iterations(
            lambda v: hessian_product(problem, x, theta, v), optax.tree.zeros_like(b), b, lambda _: SOLVED * size,
            mu=zero, L=zero, u=unit_roundoff(zero.dtype), max_products=jnp.asarray(MAX_PRODUCTS, jnp.int32),
            metric=metric, precondition=P,
        )  # fmt: skip

    e, first, _ = solve(lower_gradient(problem, x, theta))
    (minus_r, _), (along, _) = jax.jvp(lambda x: gradients(x, q), (x,), (e,))
    p, second, _ = solve(optax.tree.sub(along, minus_r))
    _, (_, error) = jax.jvp(gradients, (x, q), (e, p))
    return error, e, first + second + 3  # H q and its derivative along e
