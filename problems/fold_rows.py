"""Rows of data for all folds at once, any family, any weights.

    loss(x) = sum_k sum_i w_ki l(s_ki, y_i),         s_ki = x_k^T (a_i - M_k^T u_i) + b_k^T u_i + o_i

w_k is zero on the rows that fold k does not use, and A is shared: the scores of all folds are one product with A, and
so are their gradients. u_i are the columns that are not penalised, a one for an intercept; M (folds, fixed, features)
and b (folds, fixed, columns) stand for their weights: `linear_model` has the proof. o are offsets, given.
"""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from .families import AbstractFamily, Losses, Scores
from .fold_inverse import fold_inverse
from .gram import fold_grams, ridge_inverse, slack, weighted_norm
from .rows import AbstractRows, Scalar, Weights
from .sparse import Features, times

EXACT = 2**24  # numbers in the folds' n x n systems: up to so many each fold is inverted by itself


class FoldData(NamedTuple):
    """A, y, w, u, M, b, o as above; y (columns, n), or labels (n,)."""

    A: Features
    y: Num[Array, "..."]
    weights: Float[Array, "folds n"]
    fixed: Float[Array, "n fixed"]
    means: Float[Array, "folds fixed features"]
    base: Float[Array, "folds fixed columns"]
    offset: Float[Array, "columns n"] | None


class AbstractFoldRows(AbstractRows):
    """All but the norms of G_k, which its subclasses have their own ways to."""

    A: Features
    y: Num[Array, "..."]
    weights: Float[Array, "folds n"]
    fixed: Float[Array, "n fixed"]
    means: Float[Array, "folds fixed features"]
    base: Float[Array, "folds fixed columns"]
    offset: Float[Array, "columns n"] | None
    family: AbstractFamily
    norm: Scalar
    lengths: Losses  # ||a_i - m_ki||
    longest: Scalar
    rounded: Scalar
    steepest: Scalar
    curvature: Scalar
    unspent: Scalar

    def _fill(self, data: FoldData, family: AbstractFamily, norm: Scalar, lengths: Losses, targets: Array) -> None:
        """In a constructor. `targets` (folds, columns): the mean target of each fold, for the typical curvature."""
        for name, value in data._asdict().items():
            setattr(self, name, value)
        self.family, self.norm, self.lengths = family, norm, lengths
        weights, columns = data.weights, data.base.shape[2]
        self.longest = jnp.max(jnp.where(weights > 0, lengths, 0))
        at_zero = self.scores(jnp.zeros((len(weights), data.A.shape[1], columns), data.A.dtype))
        residuals = family.residuals(data.y, at_zero)
        self.rounded = jnp.sqrt(jnp.sum(jnp.sum(weights * lengths * residuals, axis=1) ** 2))
        # sum w e^s a a^T is at most max ||a||^2 sum w e^s
        sizes = jnp.max(jnp.sum(weights * residuals, axis=1)) * self.longest**2
        self.steepest = sizes if family.smooth is None else family.smooth * norm
        self.curvature = family.typical(targets)
        self.unspent = jnp.sum(weights * family.losses(at_zero, data.y))

    def scores(self, x: Weights) -> Scores:
        """s, (folds, columns, n)."""
        s = self._linear(x, self.base)
        return s if self.offset is None else s + self.offset[None]

    def loss(self, x):
        return jnp.sum(self.weights * self.family.losses(self.scores(x), self.y))

    def terms(self):
        return self.rounded

    def steepness(self):
        return self.steepest

    def at_zero(self, columns):
        return self.unspent

    def reach(self, q):
        squares = jnp.sum(self._linear(q, 0.0) ** 2, axis=1)
        return jnp.sqrt(jnp.max(jnp.where(self.weights > 0, squares, 0)))

    def smooth(self, x, radius):
        return self._top(x, radius) if self.family.smooth is None else self.family.smooth

    def bend(self, x, radius):
        return self._top(x, radius) if self.family.bend is None else self.family.bend

    @abc.abstractmethod
    def mean_squares(self) -> Float[Array, " features"]:
        """sum_i w_i a_ij^2, w the folds' mean: about the features' curvature."""

    def _linear(self, x, base):
        x = x if x.ndim == 3 else x[None]
        rest = base - jnp.einsum("kup,kpc->kuc", self.means, x, precision="highest")
        return times(self.A, x) + jnp.einsum("nu,kuc->kcn", self.fixed, rest, precision="highest")

    def _top(self, x, radius):
        """Poisson: e^s, its own derivative; no score moves by more than ||a_i - m_ki|| times the radius."""
        s = self.scores(x)[:, 0] + jnp.where(self.lengths > 0, self.lengths * radius, 0)
        return jnp.exp(jnp.max(jnp.where(self.weights > 0, s, -jnp.inf)))


class FoldRows(AbstractFoldRows):
    """Dense features."""

    largest: Float[Array, "features features"] | None  # entry by entry, of |G_k| over the folds; None: more than n
    gram: Float[Array, "small small"]  # of all folds' mean weights

    def __init__(self, data: FoldData, family: AbstractFamily, targets: Float[Array, "folds columns"]):
        self.largest, self.gram, norm, lengths = fold_grams(data.A, data.weights, data.fixed, data.means)
        self._fill(data, family, norm, lengths, targets)

    def weighted(self, W, columns):
        return self.norm if self.largest is None else weighted_norm(self.A, self.largest, self.norm, W, columns)

    def mean_squares(self):
        return jnp.einsum("n,np->p", jnp.mean(self.weights, axis=0), self.A**2, precision="highest")

    def inverse(self, penalty, columns):
        shared = penalty.ndim == 0 or penalty.shape[1] == 1
        if self.largest is None and shared and self.weights.size * len(self.A) <= EXACT:
            return self._of_each_fold(jnp.broadcast_to(jnp.ravel(penalty), self.A.shape[1]))
        mean = jnp.sqrt(len(self.A) * jnp.mean(self.weights, axis=0))[:, None] * self.A
        P = ridge_inverse(mean, self.gram, jnp.trace(self.gram), self.curvature, penalty, 1 if shared else columns)
        if shared:  # one factor for all columns
            P = jax.vmap(lambda r, P=P: P(r[:, None])[:, 0], 1, 1)
        return lambda r: jax.vmap(P)(r) if r.ndim == 3 else P(r)

    def _of_each_fold(self, D):
        """The inverses of t G_k + diag(D); D is lifted to where this dtype takes them for positive definite."""
        D = jnp.maximum(D, self.curvature * self.norm * slack(self.A))
        P = fold_inverse(
            self.A, self.weights, self.fixed, self.means, self.curvature, D, lambda x: self._linear(x, 0.0)
        )
        return lambda r: P(r) if r.ndim == 3 else P(r[None])[0]


def unpenalised(
    rows: AbstractFoldRows,
    shift: Float[Array, "fixed features"],
    mix: Float[Array, "fixed fixed"],
    x: Weights,
    held: Float[Array, "*folds fixed columns"] | float = 0.0,
) -> Float[Array, "*folds fixed columns"]:
    """The weights of the columns given that are not penalised; they are u times the inverse of `mix`, and A is what is
    left of the features given when u times `shift` has been taken off them."""
    means, base = (v if x.ndim == 3 else v[0] for v in (rows.means[..., : shift.shape[1]], rows.base))
    moved = jnp.einsum("...up,...pc->...uc", jnp.broadcast_to(shift, means.shape) + means, x, precision="highest")
    return jnp.einsum("uv,...vc->...uc", mix, base + held - moved, precision="highest")
