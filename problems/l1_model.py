"""Lasso and elastic net with learned penalties, on one split of the data or on folds.

    h(x, theta) = sum_k [ 1/2 sum_i w_ki (x_k^T a_i + b_k - y_i)^2 + sum_j (l_j |x_kj| + rho/2 x_kj^2) ],   l = e^theta
    g(x)        = 1/K sum_k 1/2 sum_i v_ki (x_k^T a_i + b_k - y_i)^2

w_k weighs the rows that fold k learns from, v_k those it leaves out; both sum to 1 (`linear_model` has more of folds,
and of the intercept). `l1_fold` solves a fold and certifies it; eps^2 = sum_k eps_k^2.

z. Where no sign changes, (B_S^T B_S + rho) x_S = B_S^T c - l_S sign(x_S) on the support S. With the adjoint
(B_S^T B_S + rho) q_S = grad_S g that gives z = - grad_theta sum_k <q_k, l sign(x_k) + rho x_k>.
"""

import abc
import dataclasses
import math
from typing import Any

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
    """What `Lasso` and `ElasticNet` have in common."""

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
    def penalty(self, theta: Theta) -> tuple[Float[Array, " features"], Scalar]:
        """l and rho. Raises ValueError if theta has a wrong shape."""

    def lower(self, x: Weights, theta: Theta) -> Scalar:
        """h(x, theta)."""
        lam, rho = self.penalty(theta)
        return self.train.loss(x) + jnp.sum(jnp.abs(x[..., 0]) @ lam) + rho / 2 * jnp.sum(x**2)

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
        rows, none = (self.train.weights, self.train.means, self.train.base), jnp.zeros(self.shape[-2:-1])

        def top(row):
            fold = self._fold(*row, none, jnp.zeros_like(self.train.norm))
            return jnp.max(jnp.abs(fold.B.T @ fold.c))

        return jnp.max(lax.map(top, rows))

    def solve_cost(self, x: Weights) -> int:
        return self.slope_cost(x) + 1

    def slope_cost(self, x: Weights) -> int:
        shape = self.train.A.shape
        return math.ceil(l1_fold.first_cost(*shape) + l1_fold.look_cost(*shape))

    def minimise(self, theta: Theta, x0: Weights, memory: None, eps: Scalar, max_cost: Any) -> Solved:
        """See `l1_fold`; what a fold spends is counted in the multiplications of its gradient, rounded up."""
        lam, rho = self.penalty(theta)
        x, K = x0.reshape(len(self.train.weights), -1), len(self.train.weights)
        most = jnp.asarray(max_cost, x.dtype) - 1

        def solve(fold):
            (w, m, b), x = fold
            it = l1_fold.solve(self._fold(w, m, b, lam, rho), x, eps / K**0.5, most)
            return it.x, it.error, it.floor, it.cost

        x, errors, floors, costs = lax.map(solve, ((self.train.weights, self.train.means, self.train.base), x))
        error, floor, cost = (jnp.linalg.norm(errors), jnp.linalg.norm(floors), jnp.ceil(jnp.mean(costs)).astype(int))
        dearest = l1_fold.dearest(*self.train.A.shape)
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
            index, gram = self._fold(w, m, b, lam, rho).working(jnp.abs(x))
            active = x[index] != 0
            q = l1_fold.inverse(gram, rho, active)(jnp.where(active, g[index], 0))
            return jnp.zeros_like(x).at[index].set(q)

        rows = self.train.weights, self.train.means, self.train.base
        q = lax.map(adjoint, (rows, x.reshape(K, p), g_x.reshape(K, p))).reshape(self.shape)

        def pull(theta):
            lam, rho = self.penalty(theta)
            return -jnp.sum((q * jnp.sign(x))[..., 0] @ lam) - rho * jnp.sum(q * x)

        return jax.grad(pull)(theta), jnp.asarray(self.slope_cost(x))

    def _fold(self, w, m, b, lam, rho) -> l1_fold.Fold:
        root, given = jnp.sqrt(w), self.train.fixed
        B, c = root[:, None] * (self.train.A - given @ m), root * (self.train.y[0] - given @ b[:, 0])
        return l1_fold.Fold.of(B, c, self.train.norm, lam, rho)
