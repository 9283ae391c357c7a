"""Lasso and elastic net with learned penalties, on one split of the data or on folds.

    h(x, theta) = sum_k [ 1/2 sum_i w_ki (x_k^T a_i + b_k - y_i)^2 + sum_j (l_j |x_kj| + rho/2 x_kj^2) ],   l = e^theta
    g(x)        = 1/K sum_k 1/2 sum_i v_ki (x_k^T a_i + b_k - y_i)^2

w_k weighs the rows that fold k learns from, v_k those it leaves out; both sum to 1 (`linear_model` has more of folds,
and of the intercept). `l1_fold` solves a fold and certifies it; eps^2 = sum_k eps_k^2.

z. Where no sign changes, (B_S^T B_S + rho) x_S = B_S^T c - l_S sign(x_S) on the support S. With the adjoint
(B_S^T B_S + rho) q_S = grad_S g that gives z = - grad_theta sum_k <q_k, l sign(x_k) + rho x_k>. `group_lasso` has
lengths of groups in place of absolute values, and a fold of its own.
"""

import abc
import dataclasses
import math
from types import ModuleType
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bilevel import RESULTS, AbstractNonsmoothProblem, Constants, Solved
from bilevel._nonsmooth import verdict

from . import l1_fold, tables
from .assemble import assemble, read
from .families import Gaussian
from .fold_rows import FoldRows, unpenalised
from .sparse import is_sparse

Weights = Float[Array, "*folds features columns"]
Theta = Float[Array, "..."]
Scalar = Float[Array, ""]


class L1Model(AbstractNonsmoothProblem):
    """What `Lasso`, `ElasticNet` and `GroupLasso` have in common; `parts` solves and certifies a fold."""

    parts: ClassVar[ModuleType] = l1_fold
    train: FoldRows
    valid: FoldRows
    held: None
    shift: Float[Array, "1 features"] | None  # what was taken off the features
    mix: Float[Array, "1 1"] | None
    shape: tuple[int, ...] = eqx.field(static=True)

    def take(self, A, y, A_valid, y_valid, folds, weights, weights_valid, intercept):
        """In a constructor: all of these fields."""
        train, valid = read(tables.measured, A, y, A_valid, y_valid, folds, weights, weights_valid)
        if is_sparse(train.A):
            raise TypeError("sparse features are not supported here: pass A.toarray(), if that fits into memory")
        parts = assemble(Gaussian(), 1, train, valid, folds, intercept, None)
        for field in dataclasses.fields(parts):
            setattr(self, field.name, getattr(parts, field.name))
        shape = (train.A.shape[1], 1)
        self.shape = shape if valid else (len(self.train.weights), *shape)

    @abc.abstractmethod
    def penalty(self, theta: Theta) -> tuple[Float[Array, " penalties"], Scalar]:
        """l and rho. Raises ValueError if theta has a wrong shape."""

    def lower(self, x: Weights, theta: Theta) -> Scalar:
        """h(x, theta)."""
        lam, rho = self.penalty(theta)
        return self.train.loss(x) + self.kink(x, lam) + rho / 2 * jnp.sum(x**2)

    def kink(self, x: Weights, lam: Float[Array, " penalties"]) -> Scalar:
        """What of h has no derivative."""
        return jnp.sum(jnp.abs(x[..., 0]) @ lam)

    def upper(self, x: Weights, theta: Theta) -> Scalar:
        """g(x): half the mean squared error of the rows left out, of the folds' mean."""
        return self.valid.loss(x)

    def guess(self, theta: Theta) -> Weights:
        """Zeros."""
        return jnp.zeros(self.shape, self.train.A.dtype)

    def constants(self, theta: Theta) -> Constants:
        """L_g = max_k of the norm of sum_i v_ki (a_i - m_k) (a_i - m_k)^T / K."""
        return Constants(L_upper=self.valid.norm, L_upper_theta=0.0, convex_upper=True)

    def coefficients(
        self, x: Weights
    ) -> tuple[Float[Array, "*folds features columns"], Float[Array, "*folds columns"]]:
        """(weights, intercepts): scores of a row a of features are a @ weights + intercepts, for each fold."""
        none = self.mix is None
        return x, jnp.zeros_like(x[..., 0, :]) if none else unpenalised(self.train, self.shift, self.mix, x)[..., 0, :]

    @property
    def largest(self) -> Scalar:
        """The least number that as l_j for all j leaves no fold any feature: scikit-learn's alpha_max of that fold."""
        rows = self.train.weights, self.train.means, self.train.base
        return jnp.max(lax.map(lambda row: self.top(*self._rows(*row)), rows))

    def top(self, B: Float[Array, "n features"], c: Float[Array, " n"]) -> Scalar:
        """Of one fold."""
        return jnp.max(jnp.abs(B.T @ c))

    def solve_cost(self, x: Weights) -> int:
        return self.slope_cost(x) + 1

    def slope_cost(self, x: Weights) -> int:
        shape = self.train.A.shape
        return math.ceil(self.parts.first_cost(*shape) + self.parts.look_cost(*shape))

    def minimise(self, theta: Theta, x0: Weights, memory: None, eps: Scalar, max_cost: Any) -> Solved:
        """See `l1_fold`; what a fold spends is counted in the multiplications of its gradient, rounded up."""
        lam, rho = self.penalty(theta)
        x, K = x0.reshape(len(self.train.weights), -1), len(self.train.weights)
        most = jnp.asarray(max_cost, x.dtype) - 1

        def solve(fold):
            (w, m, b), x = fold
            it = self.parts.solve(self._fold(w, m, b, lam, rho), x, eps / K**0.5, most)
            return it.x, it.error, it.floor, it.cost

        x, errors, floors, costs = lax.map(solve, ((self.train.weights, self.train.means, self.train.base), x))
        error, floor, cost = (jnp.linalg.norm(errors), jnp.linalg.norm(floors), jnp.ceil(jnp.mean(costs)).astype(int))
        dearest = self.parts.dearest(*self.train.A.shape)
        result = verdict(error, floor, eps, float(jnp.finfo(x.dtype).eps) / 2, jnp.max(costs) + dearest > most)
        flat = jnp.isinf(error) & (result == RESULTS.lower_stalled)
        result = RESULTS.where(flat, RESULTS.not_strongly_convex, result)
        return Solved(x.reshape(self.shape), error, floor, None, result, cost, jnp.zeros_like(cost))

    def slope(self, theta, x, memory, max_cost):
        lam, rho = self.penalty(theta)
        g_x = jax.grad(self.upper)(x, theta)
        K, _, p = self.train.means.shape

        def adjoint(fold):
            (w, m, b), x, g = fold
            return self.parts.adjoint(self._fold(w, m, b, lam, rho), x, g)

        rows = self.train.weights, self.train.means, self.train.base
        q = lax.map(adjoint, (rows, x.reshape(K, p), g_x.reshape(K, p))).reshape(self.shape)

        def pull(theta):
            lam, rho = self.penalty(theta)
            return -jax.jvp(lambda x: self.kink(x, lam), (x,), (q,))[1] - rho * jnp.sum(q * x)

        return jax.grad(pull)(theta), jnp.asarray(self.slope_cost(x))

    def _fold(self, w, m, b, lam, rho) -> Any:  # of `parts`
        return l1_fold.Fold.of(*self._rows(w, m, b), self.train.norm, lam, rho)

    def _rows(self, w, m, b):
        root, given = jnp.sqrt(w), self.train.fixed
        return root[:, None] * (self.train.A - given @ m), root * (self.train.y[0] - given @ b[:, 0])
