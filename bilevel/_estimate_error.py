"""How wrong a hypergradient is, to first order: an estimate of about the right size, where the bound may be a thousand
times too large.

    Lambda(x, q, theta) = g(x, theta) - <q, grad_x h(x, theta)>,     z = grad_theta Lambda
    H e = rho,    H p = r + Lambda_xx e,      rho = grad_x h,  r = H q - grad_x g
    z - grad f  =  Lambda_theta,x e + Lambda_theta,q p  +  second order in (e, p)

At the solution grad_x Lambda = -r and grad_q Lambda = -rho are zero, and (e, p) is Newton's correction towards it, so
e ~ x - xhat and p ~ q - qhat: the dual-weighted residual of goal-oriented error estimation (Becker, Rannacher 2001),
for all components of z at once.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ._at_one_theta import HypergradientSolution
from ._chunked import refuse_chunks
from ._counts import Counts
from ._inputs import prepare, same_shapes
from ._linalg.cg import cg_iterations
from ._linalg.norms import dual_norm, norm
from ._linalg.rounding import unit_roundoff
from ._linalg.vectors import Scalar, Vector
from ._lower.solver import preconditioner
from ._nonsmooth import refuse_kinks
from ._problem import AbstractProblem, hessian_product, lower_gradient
from ._program import program
from ._results import RESULTS

SOLVED = 1e-3  # of the right-hand sides, in the norm that residuals are measured in
MAX_PRODUCTS = 10_000  # of each system


class ErrorEstimate(eqx.Module):
    """An estimate: it proves nothing, and nothing in this package is accepted by it.

    - `error` ~ z - grad f, shaped like theta; `norm`, its Euclidean norm.
    - `x_error` ~ ||x - xhat||, Euclidean.
    - `result`: converged, or why a system with H was not solved, and then the estimate is of little worth.
    - `counts`: what it cost; the derivative of H q, or of J^T q, along e counts 1.
    """

    error: Vector
    norm: Scalar
    x_error: Scalar
    result: RESULTS
    counts: Counts


def estimate_error(problem: AbstractProblem, theta: PyTree, solution: HypergradientSolution) -> ErrorEstimate:
    """The first-order error of `solution = bilevel.hypergradient(problem, theta, ...)`, from its residuals.

    Costs two systems with H, solved until their residuals are a thousandth of what they were: on an ill-conditioned H
    that may leave out what lies along its smallest eigenvalues, and the estimate is then too small. With well solved
    systems `solution.gradient - .error` is a hypergradient of second-order accuracy, uncertified.

    Raises TypeError if `solution` is something else, ValueError if it is of another problem or theta.
    """
    if not isinstance(solution, HypergradientSolution):
        raise TypeError(f"pass what bilevel.hypergradient(problem, theta, ...) returned, not {type(solution).__name__}")
    refuse_kinks(problem, "bilevel.estimate_error differentiates twice")
    refuse_chunks(problem, "bilevel.estimate_error is for one lower level")
    guesses = type(problem).guess is not AbstractProblem.guess  # then it knows the shape of x, else the solution does
    problem, theta, x = prepare(problem, theta, None if guesses else solution.x)
    same_shapes(solution.x, x, "solution.x", "the problem's x")
    same_shapes(solution.gradient, theta, "solution.gradient", "theta")
    z, error, e, products, result = _estimate(problem, theta, solution.x, solution.q)
    gap = norm(optax.tree.sub(z, solution.gradient))
    if gap > jnp.finfo(gap.dtype).eps ** 0.5 * (norm(z) + norm(solution.gradient)):
        raise ValueError("the solution is of another theta, or of a problem with other data: its gradient differs")
    counts = Counts(lower_gradients=1, hessian_products=int(products) + 3, cross_products=3)
    return ErrorEstimate(error, norm(error), norm(e), result, counts)


@program
def _estimate(problem, theta, x, q):
    """z, its error, e, and of both systems the products and the result."""

    def gradients(x, q):
        """(grad_x, grad_theta) of Lambda."""

        def value(x, theta):
            return problem.upper(x, theta) - optax.tree.vdot(q, lower_gradient(problem, x, theta))

        return jax.grad(value, argnums=(0, 1))(x, theta)

    def solve(b):
        zero, metric = jnp.zeros_like(norm(b)), problem.constants(theta).metric
        goal = SOLVED * dual_norm(b, metric)
        return cg_iterations(
            lambda v: hessian_product(problem, x, theta, v), optax.tree.zeros_like(b), b, lambda _: goal,
            mu=zero, L=zero, u=unit_roundoff(zero.dtype), max_products=jnp.asarray(MAX_PRODUCTS, jnp.int32),
            metric=metric, precondition=preconditioner(problem, x, theta),
        )  # fmt: skip

    e, first, bad, _ = solve(lower_gradient(problem, x, theta))
    (minus_r, _), (along, _) = jax.jvp(lambda x: gradients(x, q), (x,), (e,))
    p, second, worse, _ = solve(optax.tree.sub(along, minus_r))
    (_, z), (_, error) = jax.jvp(gradients, (x, q), (e, p))
    capped = (first >= MAX_PRODUCTS) | (second >= MAX_PRODUCTS)
    result = RESULTS.where(capped, RESULTS.max_cost_reached, RESULTS.converged)
    bent = RESULTS.not_convex if problem.constants(theta).mu is None else RESULTS.not_strongly_convex
    result = RESULTS.where(bad | worse, bent, result)
    result = RESULTS.where(jnp.isfinite(norm(error)), result, RESULTS.non_finite)
    return z, error, e, first + second, result
