"""What a row costs: l(s, y) for scores s, and how its curvature is bounded.

    gaussian     l = 1/2 ||s - y||^2                                     D = d2l/ds2 = 1
    multinomial  l = log sum_c e^{s_c} - s_y                             D = diag(p) - p p^T,  p = softmax(s)
    binomial     l = log(1 + e^s) - y s,         y in [0, 1]             D = p (1 - p)
    poisson      l = e^s - y s + y log y - y,    y >= 0                  D = e^s

Every l is at least 0. Scores are (folds, columns, n), one column for each target or class. A family knows
- `smooth`: ||D(s)|| <= smooth; None where nothing holds for every s,
- `bend`: ||D(s) - D(t)|| <= bend ||s - t||; None likewise,
- `factor`: e^{-factor ||s - t||} D(s) <= D(t) <= e^{factor ||s - t||} D(s) (Bach 2010, arXiv 0910.4627),
- `typical`: the size of D where nothing has been learnt yet, for preconditioners; it enters no bound.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, Num

Scores = Float[Array, "folds columns n"]
Targets = Num[Array, "..."]  # (columns, n), or labels (n,)
Losses = Float[Array, "folds n"]


class AbstractFamily(eqx.Module):
    smooth: eqx.AbstractVar[float | None]
    bend: eqx.AbstractVar[float | None]
    factor: eqx.AbstractVar[float]

    @abc.abstractmethod
    def losses(self, s: Scores, y: Targets) -> Losses:
        """l(s, y) of every fold and row."""

    @abc.abstractmethod
    def residuals(self, y: Targets, at_zero: Scores) -> Losses:
        """At least ||dl/ds|| at xhat, row by row or on average over a fold's rows, for the rounding of gradients; s at
        x = 0 is `at_zero`."""

    @abc.abstractmethod
    def base(self, means: Float[Array, "folds columns"]) -> Float[Array, "folds columns"]:
        """The scores, alike for all rows, that fit best where the rows' mean targets are these."""

    @abc.abstractmethod
    def mean(self, s: Scores) -> Scores:
        """The mean target where the scores are s."""

    @abc.abstractmethod
    def typical(self, means: Float[Array, "folds columns"]) -> Float[Array, ""]:
        """See above."""


class Gaussian(AbstractFamily):
    smooth = 1.0
    bend = 0.0
    factor = 0.0

    def losses(self, s, y):
        return jnp.sum((s - y[None]) ** 2, axis=1) / 2

    def residuals(self, y, at_zero):
        # h(xhat) <= h(0): the residuals' mean square is largest at x = 0
        return jnp.sqrt(jnp.sum((y[None] - at_zero) ** 2, axis=1))

    def base(self, means):
        return means

    def mean(self, s):
        return s

    def typical(self, means):
        return jnp.ones((), means.dtype)


class Multinomial(AbstractFamily):
    """Targets are labels (n,). D has norm at most 1/2, and ||D(s) - D(t)|| <= sqrt(6)/9 ||s - t||, attained with two
    classes: |d/ds p (1 - p)| <= sqrt(3)/18 along (1, -1), whose norm sqrt(2) enters three times."""

    smooth = 0.5
    bend = 6**0.5 / 9
    factor = 2**0.5

    def losses(self, s, y):
        return _cross_entropies(s, one_hot(y, s.shape[1], s.dtype))

    def residuals(self, y, at_zero):
        return jnp.full((len(at_zero), len(y)), 2**0.5, at_zero.dtype)  # p - e_y

    def base(self, means):
        scores = jnp.log(means)
        return scores - jnp.mean(scores, axis=1, keepdims=True)

    def mean(self, s):
        return jax.nn.softmax(s, axis=1)

    def typical(self, means):
        classes = means.shape[1]
        return jnp.full((), (1 - 1 / classes) / classes / 3, means.dtype)  # a third of p (1 - p) where nothing is known


class Binomial(AbstractFamily):
    """|D'| = p (1 - p) |1 - 2p| <= sqrt(3)/18, and at most D."""

    smooth = 0.25
    bend = 3**0.5 / 18
    factor = 1.0

    def losses(self, s, y):
        return (jnp.logaddexp(s, 0) - y[None] * s)[:, 0]

    def residuals(self, y, at_zero):
        return jnp.ones((len(at_zero), y.shape[1]), at_zero.dtype)

    def base(self, means):
        return jnp.log(means) - jnp.log1p(-means)

    def mean(self, s):
        return jax.nn.sigmoid(s)

    def typical(self, means):
        return jnp.mean(means * (1 - means)) / 2


class Poisson(AbstractFamily):
    """Half its deviance. D = e^s is bounded on a ball alone, where scores are: see `fold_rows`."""

    smooth = None
    bend = None
    factor = 1.0

    def losses(self, s, y):
        fixed = lax.stop_gradient(y)  # whose logarithm has no derivative at 0
        return (jnp.exp(s) - y[None] * s + (xlogy(fixed, fixed) - y)[None])[:, 0]

    def residuals(self, y, at_zero):
        # e^s / 2 <= l(s, y) + y log 2, the least of e^s / 2 - y s being y - y log(2y); and the mean of l at xhat is at
        # most that at x = 0
        return y + 2 * self.losses(at_zero, y) + 2 * jnp.log(2.0).astype(y.dtype) * y

    def base(self, means):
        return jnp.log(means)

    def mean(self, s):
        return jnp.exp(s)

    def typical(self, means):
        return jnp.mean(means)


def one_hot(y: Array, columns: int, dtype: jnp.dtype) -> Array:
    """Labels (n,) as (columns, n)."""
    return (jnp.arange(columns, dtype=y.dtype)[:, None] == y[None]).astype(dtype)


@jax.custom_jvp
def _cross_entropies(s, chosen):
    """m + log(e^{-m} + sum of the other e^{s_c - top}), m = top - s_y: to its last digits also where it is tiny."""
    top = jnp.max(s, axis=1, keepdims=True)
    m = top - jnp.sum(chosen[None] * s, axis=1, keepdims=True)
    others = jnp.sum((1 - chosen)[None] * jnp.exp(s - top), axis=1, keepdims=True)
    return (m + jnp.log1p(jnp.expm1(-m) + others))[:, 0]


@_cross_entropies.defjvp
def _cross_entropies_jvp(primals, tangents):
    s, chosen = primals
    residual = jax.nn.softmax(s, axis=1) - chosen[None]
    return _cross_entropies(s, chosen), jnp.sum(residual * tangents[0], axis=1)
