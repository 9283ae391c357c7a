"""f as a function that JAX transforms, for loops that are not ours.

    f(theta) = g(x, theta),        df = <z, dtheta>

by a rule, and not through the iterations that found x and q.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from . import _inputs as inputs
from . import _leaves as leaves
from ._arguments import part, positive
from ._certificate.gradient import differentiate
from ._chunked import refuse_chunks
from ._linalg.vectors import Scalar, Vector
from ._lower.descend import descend
from ._lower.nesterov import Nesterov
from ._lower.settle import ROUNDS
from ._lower.solver import AbstractLowerSolver
from ._nonsmooth import refuse_kinks
from ._outer.method import ROUNDED
from ._outer.programs import UNLIMITED
from ._problem import AbstractProblem
from ._program import program
from ._results import RESULTS


def objective(
    problem: AbstractProblem, *, eps: float, delta: float | None = None, solver: AbstractLowerSolver = Nesterov()
) -> Callable[[PyTree], Scalar]:
    """f with f(theta) = g(x, theta), x near xhat(theta), and the hypergradient z as its derivative.

        ||x - xhat(theta)|| <= eps:            |f(theta) - g(xhat, theta)| <= ||grad_x g|| eps + L_g eps^2 / 2
        ||H q - grad_x g(x, theta)|| <= delta: z = grad_theta g - J^T q

    z by implicit differentiation, arXiv 2308.10098, section 3. `jit`, `vmap`, `grad`, `value_and_grad`, `vjp` and `jvp`
    work, and together, so that optax, optimistix and SciPy can minimise f. There is no second derivative.

    `eps` is in the units of x, `delta` in those of grad_x g; it defaults to eps. theta is a pytree of floats as the
    problem takes it, cast to the dtype of the problem's data, which f(theta) has too; a gradient has theta's shapes and
    dtypes. `value_and_grad` gives the numbers that `bilevel.hypergradient` gives, without the bounds of their errors.

    f(theta) is NaN where eps was not met: more is asked for than the dtype has, the lower level is not strongly convex
    there, theta is not finite. Differentiated, its value and all of its gradient are NaN where eps or delta was not
    met. No value of theta is an error, since none can be under `jit`; `bilevel.hypergradient` tells the reason.

    f remembers nothing. Every call solves the lower level from `problem.guess(theta)` and the adjoint system from 0,
    without a budget, until they are met or cannot be; under `vmap` all wait for the slowest. `bilevel.solve` goes on
    from the last solution and chooses its accuracies: it is cheaper. The data are constants of what is jitted; large
    ones compile faster as arguments: `jax.jit(lambda problem, theta: bilevel.objective(problem, eps=1e-6)(theta))`.

    Raises ValueError for an eps or delta that is not positive, and data that are not finite; TypeError for dtypes, a
    theta of integers or complex numbers, a problem without `guess`, levels that give no scalar of the data's dtype, a
    derivative in the problem's data, and a second derivative.
    """
    positive(eps=eps, delta=delta)
    part("solver", solver, AbstractLowerSolver, "Nesterov()")
    delta = eps if delta is None else delta
    if not isinstance(problem, AbstractProblem):
        raise TypeError(f"problem must be a bilevel.AbstractProblem, not {type(problem).__name__}; subclass it")
    refuse_kinks(problem, "bilevel.objective has a derivative")
    refuse_chunks(problem, "bilevel.objective is traced with all of its data")
    name, dtype = type(problem).__name__, leaves.data_dtype(problem, None)

    def field(leaf):  # what is traced has no values to check
        return leaf if isinstance(leaf, jax.core.Tracer) else leaves.field(leaf, dtype, name)

    problem = jax.tree.map(field, problem)

    def f(theta: PyTree) -> Scalar:
        return _value(problem, solver, _cast(theta, dtype), jnp.asarray(eps, dtype), jnp.asarray(delta, dtype))

    return f


def _cast(theta, dtype):
    def cast(leaf):
        kind = jnp.result_type(leaf)
        if jnp.issubdtype(kind, jnp.complexfloating):
            raise TypeError(f"theta is complex, and derivatives are of real numbers: {leaves.REAL}")
        if not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(f"theta holds {kind}, but must hold floats: write -5.0 for -5, or theta.astype(float)")
        return jnp.asarray(leaf, dtype)

    if not jax.tree.leaves(theta):
        raise ValueError("theta holds no arrays")
    return jax.tree.map(cast, theta)


@eqx.filter_custom_jvp
def _value(problem, solver, theta, eps, delta):
    return _solved(problem, solver, theta, eps)


@_value.def_jvp
def _value_jvp(primals, tangents):
    d_problem, d_solver, d_theta, *_ = tangents
    if jax.tree.leaves((d_problem, d_solver)):
        raise TypeError(DATA)
    value, z = _value_and_gradient(*primals)
    # by elements: a product of matrices would be rounded as the caller's precision has it
    terms = jax.tree.map(lambda z, d: None if d is None else jnp.sum(z * d), z, d_theta)
    return value, sum(jax.tree.leaves(terms))


@eqx.filter_custom_jvp
def _value_and_gradient(problem, solver, theta, eps, delta):
    return _differentiated(problem, solver, theta, eps, delta)


@_value_and_gradient.def_jvp
def _second(primals, tangents):
    raise TypeError(SECOND if jax.tree.leaves(tangents[2]) else DATA)


SECOND = (
    "bilevel.objective has no second derivative: its gradient comes from a rule, and not from a function that could be "
    "differentiated again. Use a method of gradients alone, such as L-BFGS; differences of the gradient, with eps and "
    "delta far below the step squared; or jax.lax.stop_gradient(theta), where the gradient is to count as constant"
)
DATA = (
    "bilevel.objective is differentiated in the data of its problem, or in what they were computed from, but has a "
    "derivative in theta alone: make it a part of theta, or hold it constant by jax.lax.stop_gradient"
)


@program
def _solved(problem, solver, theta, eps):
    """g(x, theta), or NaN."""
    lower = descend(problem, solver, theta, _start(problem, theta), eps, jnp.asarray(UNLIMITED, jnp.int32))
    good = (lower.result == RESULTS.converged) & _sound(problem, theta)
    return jnp.where(good, problem.upper(lower.x, theta), jnp.nan)


@program
def _differentiated(problem, solver, theta, eps, delta):
    """g(x, theta) and z, or NaN in all of it.

    Once, where mu is declared. Where it is an estimate that conjugate gradients contradict, x has to be solved for to
    as much less: see `bilevel.hypergradient`.
    """
    x, unlimited = _start(problem, theta), jnp.asarray(UNLIMITED, jnp.int32)

    def once(carry):
        ask, x, q, *_, rounds, _ = carry
        lower = descend(problem, solver, theta, x, ask, unlimited, None, rounds)
        out = differentiate(problem, theta, lower, q, delta, unlimited, rounds)
        fine = (lower.result == RESULTS.converged) & (out.result == RESULTS.converged)
        met = out.eps <= eps * ROUNDED
        less = ask * out.mu / jnp.where(lower.mu > 0, lower.mu, 1)
        value = jnp.where(fine & met, problem.upper(lower.x, theta), jnp.nan)
        again = fine & ~met & (out.mu > 0) & (rounds < ROUNDS)
        return less, lower.x, out.q, value, out.gradient, rounds + 1, again

    zeros = optax.tree.zeros_like
    carry = eps, x, zeros(x), jnp.zeros_like(eps), zeros(theta), jnp.asarray(0, jnp.int32), jnp.asarray(True)
    *_, value, z, _, _ = jax.lax.while_loop(lambda carry: carry[-1], once, carry)
    good = ~jnp.isnan(value) & _sound(problem, theta)
    return jax.tree.map(lambda v: jnp.where(good, v, jnp.nan), (value, z))


def _start(problem: AbstractProblem, theta: Vector) -> Vector:
    """x0, once the levels are known to give scalars of the right dtype."""
    dtype = jax.tree.leaves(theta)[0].dtype
    x0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), problem.guess(theta))
    for level in ("lower", "upper"):
        shape = jax.eval_shape(getattr(problem, level), x0, theta)
        if getattr(shape, "shape", None) != () or shape.dtype != dtype:
            raise TypeError(f"{type(problem).__name__}.{level} must return a scalar of the data's {dtype}, not {shape}")
    return x0


def _sound(problem: AbstractProblem, theta: Vector) -> Bool[Array, ""]:
    """Whether the metric, if there is one, is one that certificates hold in."""
    mu, thinnest = inputs._declared(problem, theta)
    return jnp.asarray(thinnest is None or (mu is not None and thinnest >= 1))
