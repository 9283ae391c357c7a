"""The two levels of a problem and what is known about them.

    min over theta   f(theta) = g(xhat(theta), theta),      xhat(theta) = argmin over x  h(x, theta)

h (`lower`) is mu(theta)-strongly convex and L(theta)-smooth in x; g is `upper`. theta and x are pytrees of arrays.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._linalg.norms import metric_norm
from ._linalg.vectors import Scalar, Vector

Bound = Float[Array, ""] | float | None


class Constants(eqx.Module):
    """What the author of a problem vouches for at one theta. `None` means unknown: it is estimated, and every result
    that rests on the estimate says `certified = False`.

    - `mu`: h(., theta) is mu-strongly convex (a lower bound is enough), mu > 0.
    - `L`: grad_x h is L-Lipschitz in x. Sets step sizes and the rounding floor only; an estimate costs no certificate.
    - `L_upper`: Lipschitz constant in x of grad_x g.
    - `L_hessian`, `L_cross`: Lipschitz constants in x of H = d2h/dx2 and J = d2h/dxdtheta (spectral norms).
    - `L_upper_theta`: Lipschitz constant in x of grad_theta g. Zero, without asking, where g does not read theta.
    - `rounding`: grad_x h is computed to u (L ||x|| + rounding), u the unit roundoff. The size of what it adds up
      beside H x, such as A^T b; left out unless such terms are larger than L ||x|| and cancel.
    - `rounding_upper`: g is computed to u (sqrt(size of x) |g| + rounding_upper). Left out, it is measured: twice the
      sum of |v dg/dv| over all numbers v that g reads, what an error of u in each of them would do.
    - `rounding_cross`: J^T q is computed to u (||J|| + rounding_cross) ||q||_W. The size of what J adds up and cancels.
    - `concordance`: S with e^{-S r} H(x) <= H(y) <= e^{S r} H(x) for ||y - x|| = r, in the order of symmetric matrices:
      H changes by factors, where `L_hessian` is about differences (generalised self-concordance).
    - `convex_upper`: g is convex in x, which sharpens the lower end of the value interval.
    - `metric`: weights W >= 1, a pytree like x, with H(x) >= mu diag(W) for every x. Distances in x are then measured
      as ||v||_W = sqrt(sum W v^2) and gradients as ||r||_{W^-1} = sqrt(sum r^2 / W); every certificate holds as before
      with these norms (eps >= ||x - xhat||_W >= ||x - xhat||), and gets sharper where W is large. The other constants,
      and those of `Bounds`, may stay Euclidean (they are valid in the metric too) or be given in it:
      ||W^{-1/2} (H(x) - H(x')) W^{-1/2}|| <= L_hessian ||x - x'||_W, and so on. W < 1 is refused.
    """

    mu: Bound = None
    L: Bound = None
    L_upper: Bound = None
    L_hessian: Bound = None
    L_cross: Bound = None
    L_upper_theta: Bound = None
    rounding: Bound = None
    rounding_upper: Bound = None
    rounding_cross: Bound = None
    concordance: Bound = None
    metric: Vector | None = None
    convex_upper: bool = eqx.field(static=True, default=False)


class Bounds(eqx.Module):
    """First-order constants around a computed (x, theta, q), valid for every x' with ||x - x'|| <= radius.

    - `J`: ||J(x)||, the spectral norm of d2h/dxdtheta at x.
    - `M_H`: ||(H(x) - H(x')) q|| <= M_H ||x - x'||.
    - `M_J`: ||(J(x) - J(x'))^T q|| <= M_J ||x - x'||.
    - `L_J`: ||J(x) - J(x')|| <= L_J ||x - x'||.
    - `L_upper`: ||grad_x g(x') - grad_x g(x'')|| <= L_upper ||x' - x''|| for x', x'' in that ball; where
      `Constants.L_upper` can hold for every x, declare that instead.

    `None` means unknown, as in `Constants`.
    """

    J: Bound = None
    M_H: Bound = None
    M_J: Bound = None
    L_J: Bound = None
    L_upper: Bound = None


class AbstractProblem(eqx.Module):
    """A bilevel problem: an Equinox module whose data are its fields, so that it is jitted, sharded and batched whole.

    A problem of your own needs `lower` and `upper`, a starting point (`guess`, or `solve(..., x0=)`) and, for a
    certificate, `constants`. Derivatives come from JAX; where a hand-written rule is faster, give `lower` a
    `jax.custom_jvp`.
    """

    @abc.abstractmethod
    def lower(self, x: Vector, theta: Vector) -> Scalar:
        """h(x, theta), a scalar; strongly convex and twice differentiable in x."""

    @abc.abstractmethod
    def upper(self, x: Vector, theta: Vector) -> Scalar:
        """g(x, theta), a scalar; differentiable in both."""

    def guess(self, theta: Vector) -> Vector:
        """A starting x of the right structure, shapes and dtype."""
        raise TypeError(
            f"{type(self).__name__} has no starting point: define `guess(self, theta)`, or pass `x0=` to the solver."
        )

    def constants(self, theta: Vector) -> Constants:
        """What is known at theta. The default knows nothing, so everything is estimated and nothing certified."""
        return Constants()

    def preconditioner(self, x: Vector, theta: Vector) -> Callable[[Vector], Vector] | None:
        """v -> P^{-1} v for a symmetric positive P near H, cheap beside a gradient; None, the default, is the metric's
        (see `Constants`). Newton-CG, L-BFGS and the adjoint's conjugate gradients use it. It changes what they cost,
        never what is certified."""
        return None

    def bounds(self, x: Vector, theta: Vector, q: Vector, radius: Scalar) -> Bounds:
        """The first-order constants, M_H = L_H ||q||_W and M_J = L_J ||q||_W unless a problem knows better."""
        constants = self.constants(theta)
        norm_q = metric_norm(q, constants.metric)
        return Bounds(
            M_H=None if constants.L_hessian is None else constants.L_hessian * norm_q,
            M_J=None if constants.L_cross is None else constants.L_cross * norm_q,
            L_J=constants.L_cross,
        )


def bounds_along(problem: AbstractProblem, x: Vector, theta: Vector, q: Vector, radius: Scalar) -> Bounds:
    """`problem.bounds` for q of any size: M_H and M_J are of first degree in q, so they are asked for at q / s and
    multiplied by s, a power of two near its largest entry. Squares of q itself may vanish or overflow."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(q)]))
    usual = jnp.isfinite(largest) & (largest > float(jnp.finfo(largest.dtype).tiny))
    _, exponent = jnp.frexp(jnp.where(usual, largest, 1))
    s = jnp.ldexp(jnp.ones_like(largest), exponent - 1)
    found = problem.bounds(x, theta, jax.tree.map(lambda leaf: leaf / s, q), radius)
    M_H, M_J = (None if v is None else s * v for v in (found.M_H, found.M_J))
    return Bounds(found.J, M_H, M_J, found.L_J, found.L_upper)


def upper_smoothness(constants: Constants, bounds: Bounds) -> Bound:
    """L_g as it is declared: for every x, or on the ball that `bounds` is about; None if neither."""
    return bounds.L_upper if constants.L_upper is None else constants.L_upper


def lower_gradient(problem: AbstractProblem, x: Vector, theta: Vector) -> Vector:
    """rho = grad_x h(x, theta). Counts 1."""
    return jax.grad(problem.lower)(x, theta)


def hessian_product(problem: AbstractProblem, x: Vector, theta: Vector, v: Vector) -> Vector:
    """H v = d2h/dx2 v, forward over reverse. Counts 1.

    In a loop over v, as in conjugate gradients, XLA takes what depends on x alone out of the loop. `jax.linearize` did
    not gain on that, and stores more: TV was slower by 1.4, logistic regression in blocks kept a copy of its data.
    """
    return jax.jvp(lambda x: lower_gradient(problem, x, theta), (x,), (v,))[1]


def cross_product(problem: AbstractProblem, x: Vector, theta: Vector, v: Vector) -> Vector:
    """J v = d2h/dxdtheta v for v shaped like theta. Counts 1."""
    return jax.jvp(lambda theta: lower_gradient(problem, x, theta), (theta,), (v,))[1]


def cross_transpose_product(problem: AbstractProblem, x: Vector, theta: Vector, q: Vector) -> Vector:
    """J^T q, shaped like theta: the derivative of grad_theta h along q in x (mixed partials commute). Counts 1.

    Not the gradient of <grad_x h, q> in theta, which is the same: that would transpose whatever computes grad_x h.
    """
    return jax.jvp(lambda x: jax.grad(problem.lower, argnums=1)(x, theta), (x,), (q,))[1]
