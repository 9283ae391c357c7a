"""Rows of data and what they cost, for all folds at once.

    loss(x) = sum over folds k and rows i of  w_ki l(s_ki, y_i),         s_ki = x_k^T (a_i - m_k) + b_k

w_k is zero on the rows that fold k does not use, and A is shared: the scores of all folds are one product with A, and
so are their gradients. m (folds, features) and b (folds, columns) stand for an intercept: `linear_model` has the proof.
x is (folds, features, columns), or (features, columns) where there is one fold and the data were split by the caller.

The Hessian is one block a fold, each with  sum_i w_ki D_ki (x) (a_i - m_k) (a_i - m_k)^T,  D as in `families`, so its
norm and its changes are the largest of the folds', and at most what `families` bounds times the norm of
G_k = sum_i w_ki (a_i - m_k) (a_i - m_k)^T.
"""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from .cross_entropy import block_rows, cross_entropy
from .families import AbstractFamily, Multinomial, Scores
from .gram import fold_grams, gram, ridge_inverse, weighted_norm

Weights = Float[Array, "*folds features columns"]
Columns = Float[Array, "..."]
Scalar = Float[Array, ""]


class AbstractRows(eqx.Module):
    """`norm`: max_k ||G_k||; `longest`: the largest ||a_i - m_k|| used; `terms`: what gradients add up beside H x."""

    A: eqx.AbstractVar[Float[Array, "n features"]]
    family: eqx.AbstractVar[AbstractFamily]
    norm: eqx.AbstractVar[Scalar]
    longest: eqx.AbstractVar[Scalar]

    @abc.abstractmethod
    def loss(self, x: Weights) -> Scalar: ...

    @abc.abstractmethod
    def terms(self) -> Scalar: ...

    @abc.abstractmethod
    def steepness(self) -> Scalar:
        """The norm of the loss's Hessian, wherever the lower level's h is at most h(0)."""

    @abc.abstractmethod
    def at_zero(self, columns: int) -> Scalar | float:
        """loss(0)."""

    @abc.abstractmethod
    def weighted(self, W: Columns, columns: int) -> Scalar:
        """At least the norm of W_c^{-1/2} G_k W_c^{-1/2} over the folds k and columns c, for W >= 1."""

    @abc.abstractmethod
    def reach(self, q: Weights) -> Scalar:
        """max_ki ||q_k^T (a_i - m_k)||."""

    @abc.abstractmethod
    def inverse(self, penalty: Columns, columns: int) -> Callable[[Weights], Weights]:
        """r -> v with (t G + diag(penalty_c)) v_kc = r_kc for one G near all G_k, t the family's typical curvature."""

    def smooth(self, x: Weights, radius: Scalar) -> Scalar | float:
        """||D|| on the ball around x."""
        return self.family.smooth

    def bend(self, x: Weights, radius: Scalar) -> Scalar | float:
        """||D(s) - D(t)|| <= bend ||s - t|| for the scores s, t of points of the ball around x."""
        return self.family.bend


class MeanRows(AbstractRows):
    """The mean cross-entropy of one split: its kernel reads blocks of rows once. x is (features, classes)."""

    A: Float[Array, "n features"]
    y: Int[Array, " n"]
    gram: Float[Array, "small small"]  # A^T A / n, or A A^T / n where that is smaller
    norm: Scalar
    longest: Scalar
    mean_length: Scalar
    block: int = eqx.field(static=True)
    family: AbstractFamily

    def __init__(self, A: Float[Array, "n features"], y: Int[Array, " n"]):
        self.A, self.y, self.family, self.block = A, y, Multinomial(), block_rows(A)
        self.gram, self.norm = gram(A)
        lengths = jnp.sum(A**2, axis=1)
        self.longest, self.mean_length = jnp.sqrt(jnp.max(lengths)), jnp.mean(jnp.sqrt(lengths))

    def loss(self, x):
        return cross_entropy(x, self.A, self.y, self.block)

    def terms(self):
        return 2**0.5 * self.mean_length

    def steepness(self):
        return self.family.smooth * self.norm

    def at_zero(self, columns):
        return math.log(columns)

    def weighted(self, W, columns):
        return weighted_norm(self.A, self.gram, self.norm, W, columns)

    def reach(self, q):
        return jnp.sqrt(jnp.max(jnp.sum(_matmul(self.A, q) ** 2, axis=1)))

    def inverse(self, penalty, columns):
        w = (1 - 1 / columns) / columns / 3
        return ridge_inverse(self.A, self.gram, self.norm, w, penalty, columns)


class FoldRows(AbstractRows):
    """Any family, any weights; x is (folds, features, columns), or (features, columns) with one fold."""

    A: Float[Array, "n features"]
    y: Num[Array, "..."]
    weights: Float[Array, "folds n"]
    means: Float[Array, "folds features"]
    base: Float[Array, "folds columns"]
    family: AbstractFamily
    largest: Float[Array, "features features"] | None  # entry by entry, of |G_k| over the folds; None: more than n
    gram: Float[Array, "small small"]  # of all folds' mean weights
    norm: Scalar
    longest: Scalar
    rounded: Scalar
    steepest: Scalar
    curvature: Scalar
    unspent: Scalar

    def __init__(self, A, y, weights, means, base, family, targets):
        """`targets` (folds, columns): the mean target of each fold, for the typical curvature."""
        self.A, self.y, self.weights, self.means, self.base, self.family = A, y, weights, means, base, family
        self.largest, self.gram, self.norm, lengths = fold_grams(A, weights, means)
        self.longest = jnp.max(jnp.where(weights > 0, lengths, 0))
        residuals = family.residuals(y, base)
        self.rounded = jnp.sqrt(jnp.sum(jnp.sum(weights * lengths * residuals, axis=1) ** 2))
        # sum w e^s a a^T is at most max ||a||^2 sum w e^s
        sizes = jnp.max(jnp.sum(weights * residuals, axis=1)) * self.longest**2
        self.steepest = sizes if family.smooth is None else family.smooth * self.norm
        self.curvature = family.typical(targets)
        self.unspent = self.loss(jnp.zeros((len(weights), A.shape[1], base.shape[1]), A.dtype))

    def scores(self, x: Weights, base: Float[Array, "folds columns"] | float) -> Scores:
        x = x if x.ndim == 3 else x[None]
        K, p, c = x.shape
        s = _matmul(x.transpose(0, 2, 1).reshape(K * c, p), self.A.T).reshape(K, c, -1)
        return s + (base - jnp.einsum("kp,kpc->kc", self.means, x, precision="highest"))[:, :, None]

    def loss(self, x):
        return jnp.sum(self.weights * self.family.losses(self.scores(x, self.base), self.y))

    def terms(self):
        return self.rounded

    def steepness(self):
        return self.steepest

    def at_zero(self, columns):
        return self.unspent

    def weighted(self, W, columns):
        return self.norm if self.largest is None else weighted_norm(self.A, self.largest, self.norm, W, columns)

    def reach(self, q):
        squares = jnp.sum(self.scores(q, 0.0) ** 2, axis=1)
        return jnp.sqrt(jnp.max(jnp.where(self.weights > 0, squares, 0)))

    def inverse(self, penalty, columns):
        mean = jnp.sqrt(len(self.A) * jnp.mean(self.weights, axis=0))[:, None] * self.A
        shared = penalty.ndim == 0 or penalty.shape[1] == 1
        P = ridge_inverse(mean, self.gram, jnp.trace(self.gram), self.curvature, penalty, 1 if shared else columns)
        if shared:  # one factor for all columns
            P = jax.vmap(lambda r, P=P: P(r[:, None])[:, 0], 1, 1)
        return lambda r: jax.vmap(P)(r) if r.ndim == 3 else P(r)

    def smooth(self, x, radius):
        return self._top(x, radius) if self.family.smooth is None else self.family.smooth

    def bend(self, x, radius):
        return self._top(x, radius) if self.family.bend is None else self.family.bend

    def _top(self, x, radius):
        """Poisson: e^s, its own derivative; no score moves by more than ||a_i - m_k|| times the radius."""
        lengths = jnp.sqrt(jnp.sum((self.A[None] - self.means[:, None]) ** 2, axis=2))
        moved = jnp.where(lengths > 0, lengths * radius, 0)
        s = self.scores(x, self.base)[:, 0] + moved
        return jnp.exp(jnp.max(jnp.where(self.weights > 0, s, -jnp.inf)))


def _matmul(a, b):
    """The precision forbids GPUs to round float32 to 10 bits."""
    return jnp.matmul(a, b, precision="highest")
