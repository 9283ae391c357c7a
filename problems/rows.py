"""Rows of data and what they cost: what `linear_model` asks of them, and one split's mean cross-entropy.

    loss(x) = sum over folds k and rows i of  w_ki l(s_ki, y_i)

`fold_rows` has the scores s_ki, and all families. x is (folds, features, columns), or (features, columns) where there
is one fold and the data were split by the caller.

The Hessian is one block a fold, each with  sum_i w_ki D_ki (x) (a_i - m_ki) (a_i - m_ki)^T,  D as in `families`, so its
norm and its changes are the largest of the folds', and at most what `families` bounds times the norm of
G_k = sum_i w_ki (a_i - m_ki) (a_i - m_ki)^T; m_ki = 0 but for what is eliminated.
"""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .cross_entropy import block_rows, cross_entropy
from .families import AbstractFamily, Multinomial
from .gram import gram, ridge_inverse, weighted_norm
from .sparse import Features

Weights = Float[Array, "*folds features columns"]
Columns = Float[Array, "..."]
Scalar = Float[Array, ""]


class AbstractRows(eqx.Module):
    """`norm`: max_k ||G_k||; `longest`: the largest ||a_i - m_ki|| used; `terms`: what gradients add up beside H x."""

    A: eqx.AbstractVar[Features]
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
        """max_ki ||q_k^T (a_i - m_ki)||."""

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

    A: Features
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


def _matmul(a, b):
    """The precision forbids GPUs to round float32 to 10 bits."""
    return jnp.matmul(a, b, precision="highest")
