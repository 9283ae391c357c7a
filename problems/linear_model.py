"""Linear models with learned penalties, on one split of the data or on folds.

    h(x, theta) = sum_k [ sum_i w_ki l(x_k^T a_i + b_k, y_i) + 1/2 sum_j e^{theta_j} x_kj^2 ]     w_k sums to 1
    g(x)        = 1/K sum_k sum_i v_ki l(x_k^T a_i + b_k, y_i)                                    v_k sums to 1

w_k weighs the rows that fold k learns from, v_k those it leaves out: f is the cross-validated loss. The K lower levels
are one, in x (K, features, columns); its Hessian has a block for each. So mu, L, L_H and what bounds H's changes are
the extremes of the folds', and J's columns, of which each has a part in every fold, have the norm of all parts
together. With validation rows of their own K is 1, and x (features, columns).

What is not penalised. Gaussian: the columns u_i, an intercept's ones among them, are eliminated (`fixed`): their best
weights, put in, leave a_i - M_k^T u_i and y_i - b_k^T u_i in place of a_i and y_i. The other families have no such
formula, and along a free column no mu: the curvature there vanishes where all rows are fitted well. There the weights
are b_k + d_k - M_k x_k, M_k as before, b_k what is best where x = 0 (`without_features`), and d_k, which then is small,
has a penalty of its own, `assemble.HELD` times l's typical curvature, which is not learnt: the last rows of x. U is
orthonormal in the rows' weights, and that is next to nothing unless nearly all of a column is in rows fitted well.

Offsets o_i are added to the scores; gaussian: taken from the targets.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import AbstractProblem, Bounds, Constants

from . import tables
from .assemble import assemble, read
from .families import AbstractFamily, Multinomial
from .fold_rows import unpenalised
from .penalties import AbstractPenalties
from .rows import AbstractRows
from .sparse import Features

Weights = Float[Array, "*folds features columns"]
Theta = Float[Array, "..."]
Scalar = Float[Array, ""]


class LinearModel(AbstractProblem):
    """What `LinearRegression`, `LogisticRegression`, `BinomialRegression` and `PoissonRegression` have in common."""

    family: ClassVar[AbstractFamily]
    train: AbstractRows
    valid: AbstractRows
    penalties: AbstractPenalties
    held: Float[Array, "1 1"] | None  # the penalty of columns that are held: what is not penalised
    shift: Float[Array, "fixed features"] | None  # what was taken off the features, in columns U
    mix: Float[Array, "fixed fixed"] | None  # that are the given ones times this
    order: Int[Array, " all"] | None  # where each given feature is: first what is penalised, then what is not
    intercept: bool = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        A: Any,
        y: Any,
        A_valid: Any = None,
        y_valid: Any = None,
        *,
        folds: Any = None,
        weights: Any = None,
        weights_valid: Any = None,
        offset: Any = None,
        offset_valid: Any = None,
        intercept: bool = False,
        penalised: Any = None,
        penalties: Any = None,
    ):
        train, valid = read(
            self._table, A, y, A_valid, y_valid, folds, weights, weights_valid, offset, offset_valid
        )  # fmt: skip
        (A, y, *_), split = train, valid is not None
        columns = self._columns(y, valid.y if split else y)
        chosen = tables.chosen(penalised, A.shape[1])
        p = A.shape[1] if chosen is None else int(chosen.sum())
        self.penalties = tables.shared(penalties, p, columns, A.dtype)
        parts = assemble(self.family, columns, train, valid, folds, intercept, chosen)
        for field in dataclasses.fields(parts):
            setattr(self, field.name, getattr(parts, field.name))
        self.intercept, self.order = intercept, None if chosen is None else jnp.asarray(tables.back(chosen))
        shape = (p + self._free, columns)
        self.shape = shape if split else (len(self.train.weights), *shape)

    @staticmethod
    @abc.abstractmethod
    def _table(name: str, A: Any, y: Any) -> tuple[Features, Any]:
        """Features and targets that were looked at; see `tables`."""

    @staticmethod
    def _columns(y, y_valid):
        """How many columns of scores these targets need: one each, (targets, n)."""
        if len(y_valid) != len(y):
            raise ValueError(f"train has {len(y)} targets a row, valid {len(y_valid)}: they must be the same")
        return len(y)

    def lower(self, x: Weights, theta: Theta) -> Scalar:
        """h(x, theta). Raises ValueError if theta has a wrong shape."""
        penalty = self._spread(self._penalty(theta)) * x**2
        return self.train.loss(x) + jnp.sum(penalty) / 2

    def upper(self, x: Weights, theta: Theta) -> Scalar:
        """g(x): the mean loss of the rows left out, of the folds' mean."""
        return self.valid.loss(x)

    def guess(self, theta: Theta) -> Weights:
        """Zeros."""
        return jnp.zeros(self.shape, self.train.A.dtype)

    def constants(self, theta: Theta) -> Constants:
        """mu = min e^theta,  metric W = e^theta / mu,  L = D lambda_max(G) + max e^theta,  L_J = mu,
        L_H = C max ||a_i|| lambda_W(G),  L_g = D lambda_W(G_v);  D >= ||D(s)|| and C = `bend`, as `families` has them.

        H >= diag(e^theta), so distances are measured with these weights: a tiny penalty then costs the certificate
        what its own feature can do, not what the strongest one can. lambda_W(G): the largest eigenvalue of
        W_c^{-1/2} G_k W_c^{-1/2} over folds k and columns c. H changes by factors of e^{+-R} at most, R the largest
        change of a row's scores times the family's factor: concordance = factor max ||a_i||. J's columns are products,
        rounded some three times, and h(xhat) <= h(0), l >= 0 bound them: e^{theta/2} ||x_j|| <= sqrt(2 h(0)).

        Poisson's D has no bound but on a ball: L_g is in `bounds` then. At xhat, and wherever h <= h(0), the mean of
        e^s over a fold's rows is at most `families.Poisson.residuals`, hence L.
        """
        penalty = self._penalty(theta)
        mu = jnp.min(penalty)
        W, columns = penalty / mu, self.shape[-1]
        family, L_upper, L_hessian = self.family, None, None
        if family.smooth is not None:
            L_upper = family.smooth * self.valid.weighted(W, columns)
        if family.bend is not None:
            L_hessian = family.bend * self.train.longest * self.train.weighted(W, columns)
        return Constants(
            mu=mu,
            L=self.train.steepness() + jnp.max(penalty),
            L_upper=L_upper,
            L_upper_theta=0.0,
            L_hessian=L_hessian,
            L_cross=mu * self.penalties.stretch,
            rounding=self.train.terms(),
            rounding_cross=3 * self.penalties.stretch * jnp.sqrt(2 * self.train.at_zero(columns) * mu),
            concordance=family.factor * self.train.longest,
            metric=self._spread(W),
            convex_upper=True,
        )

    def bounds(self, x: Weights, theta: Theta, q: Weights, radius: Scalar) -> Bounds:
        """||J|| as in `penalties`, M_J the same with q, M_H = C lambda_W(G) max_ki ||q_k^T a_i||, L_J = mu; all in the
        metric of `constants`. Poisson: C, and D in L_g, are the largest e^s on the ball."""
        penalty = self._penalty(theta)
        mu = jnp.min(penalty)
        W, columns = penalty / mu, self.shape[-1]
        L_upper = None
        if self.family.smooth is None:
            L_upper = _times(self.valid.smooth(x, radius), self.valid.weighted(W, columns))
        return Bounds(
            J=self.penalties.cross_norm(theta, self._learnt(x), mu),
            M_H=_times(self.train.bend(x, radius), self.train.weighted(W, columns) * self.train.reach(q)),
            M_J=self.penalties.cross_norm(theta, self._learnt(q), mu),
            L_J=mu * self.penalties.stretch,
            L_upper=L_upper,
        )

    def preconditioner(self, x: Weights, theta: Theta) -> Callable[[Weights], Weights]:
        """P^{-1} for P of two levels: t G + diag(e^theta_c) for each column c, t the family's typical curvature, and,
        for classes, sum_c e^theta_c where all of them shift alike, which H itself sees through the penalties alone. It
        does not depend on x, nor, but where there are more features than rows, on the fold."""
        penalty = self._penalty(theta)
        inverse = self.train.inverse(penalty, self.shape[-1])
        if not isinstance(self.family, Multinomial):
            return inverse
        shared = jnp.sum(self._spread(penalty), axis=-1, keepdims=True)
        return lambda r: inverse(r) + jnp.sum(r, axis=-1, keepdims=True) / shared

    def coefficients(self, x: Weights) -> tuple[Float[Array, "*folds all columns"], Float[Array, "*folds columns"]]:
        """(weights, intercepts): scores of a row a of features, those included that are not penalised, are
        a @ weights + intercepts, for each fold; offsets come on top."""
        weights = self._learnt(x)
        if self.mix is None:
            return weights, jnp.zeros_like(weights[..., 0, :])
        held = 0.0 if self.held is None else x[..., -self._free :, :]
        given = unpenalised(self.train, self.shift, self.mix, weights, held)
        if self.order is not None:
            free = given[..., int(self.intercept) :, :]
            weights = jnp.concatenate([weights, free], axis=-2)[..., self.order, :]
        return weights, given[..., 0, :] if self.intercept else jnp.zeros_like(weights[..., 0, :])

    @property
    def _free(self):
        """How many rows of x are held."""
        return 0 if self.held is None else self.train.fixed.shape[1]

    def _learnt(self, x):
        """Without the rows that are held."""
        return x[..., : x.shape[-2] - self._free, :]

    def _penalty(self, theta):
        """e^theta of the shape (), (1, columns), (features, 1) or (features, columns), what is held included."""
        penalty = jnp.exp(self.penalties.log_penalties(theta))
        if self.held is None:
            return penalty
        columns = 1 if penalty.ndim == 0 else penalty.shape[1]
        learnt = jnp.broadcast_to(penalty, (self.shape[-2] - self._free, columns))
        return jnp.concatenate([learnt, jnp.broadcast_to(self.held, (self._free, columns))])

    def _spread(self, penalty):
        return jnp.broadcast_to(penalty, self.shape)


def _times(a, b):
    """a b, zero where b is, whatever a is."""
    return jnp.where(b > 0, a * b, 0)
