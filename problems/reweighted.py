"""A weight for every example, source or label, learnt from clean validation data: data hyper-cleaning.

    h(x, theta) = 1/n sum_i s(theta_{k(i)}) l_i(x) + penalty/2 ||x||^2,      s(t) = 1 / (1 + e^{-t})
    g(x)        = the loss on clean data

k(i) is the group of example i, or i itself. The Hessian is at least `penalty`, and J's column of a group is
s'(theta_k)/n times the sum of its examples' gradients. For a linear model, l_i = l(x^T a_i, y_i), with r_i = dl/ds, D
and its bounds as in `families`, G = 1/n sum a_i a_i^T and c_i = s'(theta_{k(i)}) sqrt(size of k(i)):

    ||J||                   <=  max_i c_i ||r_i||     sqrt(||G||/n)
    ||J(x) - J(x')||        <=  D max_i c_i max ||a|| sqrt(||G||/n) ||x - x'||
    ||(J(x) - J(x'))^T q||  <=  D max_i c_i ||q^T a_i|| sqrt(||G||/n) ||x - x'||

as J = A^T R Q diag(.), Q orthonormal, and, for the second and third, a row's scores move by (x - x')^T a_i, whose
squares add up to n ||G|| ||x - x'||^2 at most. H and its changes are as without weights, s being at most 1.

After Franceschi et al. 2017 (arXiv 1703.01785, section 5.1).
"""

import abc
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bilevel import AbstractProblem, Bounds, Constants

from . import tables
from .assemble import assemble, read
from .families import Binomial, Gaussian, Multinomial, Poisson
from .inputs import classes
from .rows import AbstractRows

Scalar = Float[Array, ""]
Theta = Float[Array, " groups"]
Model = Float[Array, "features columns"]
FAMILIES = {"multinomial": Multinomial(), "binomial": Binomial(), "gaussian": Gaussian(), "poisson": Poisson()}


class AbstractReweighted(AbstractProblem):
    """For losses of your own: a subclass has `losses`, `upper` and `guess`, and fields for its data. Every l_i is
    convex in x, or `constants` is overridden; for weights that are shared `weights` is. `penalty`: positive."""

    penalty: Scalar | float

    @abc.abstractmethod
    def losses(self, x: PyTree[Array]) -> Float[Array, " n"]:
        """l_i(x), one number an example."""

    def weights(self, theta: Theta) -> Float[Array, " n"]:
        """s(theta) of every example, in (0, 1)."""
        return jax.nn.sigmoid(theta)

    def lower(self, x: PyTree[Array], theta: Theta) -> Scalar:
        """h(x, theta). Raises ValueError if theta has a wrong shape."""
        losses, weights = self.losses(x), self.weights(theta)
        if losses.shape != weights.shape:
            raise ValueError(f"theta gives weights {weights.shape} to losses {losses.shape}: pass one entry an example")
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))
        return jnp.mean(weights * losses) + self.penalty / 2 * squares

    def constants(self, theta: Theta) -> Constants:
        return Constants(mu=self.penalty)


class Reweighted(AbstractReweighted):
    """`Reweighted(A, y, A_valid, y_valid, penalty=0.4)`: theta (n,), or (groups,); zeros weigh all examples by 1/2.

    Features (n, features), float32 or float64 of one dtype, dense, without an intercept: append a column of ones. x is
    (features, columns), one column for each class or target.

    - `family`: "multinomial" (labels 0 ... classes - 1), "binomial" (targets in [0, 1]), "gaussian" (targets (n,) or
      (n, targets)), "poisson" (counts; its certificates are infinite until ||x - xhat|| is known to be small).
    - `penalty`: of every weight of the model, positive; a ridge that is written without the half is half of it.
    - `groups` (n,): integers from 0, examples that share a weight: their source, or their label.

    Raises ValueError for shapes, labels, groups and values that do not fit, TypeError for dtypes.
    """

    train: AbstractRows
    valid: AbstractRows
    groups: Int[Array, " n"] | None
    sizes: Float[Array, " groups"] | None

    def __init__(
        self, A: Any, y: Any, A_valid: Any, y_valid: Any, *, penalty: float, family: str = "multinomial",
        groups: Any = None,
    ):  # fmt: skip
        if family not in FAMILIES:
            raise ValueError(f"there is no family {family!r}; there are {', '.join(FAMILIES)}")
        if not 0 < float(penalty) < np.inf:
            raise ValueError(
                f"penalty must be positive and finite, not {penalty!r}: without it h is not strongly convex"
            )
        several = family == "gaussian"
        look = tables.labelled if family == "multinomial" else partial(tables.measured, several=several)
        train, valid = read(look, A, y, A_valid, y_valid, None, None, None)
        columns, n = _columns(family, train.y, valid.y), train.A.shape[0]
        parts = assemble(FAMILIES[family], columns, train._replace(weights=np.ones(n)), valid, None, False, None)
        self.train, self.valid = parts.train, parts.valid
        self.penalty = jax.device_put(np.asarray(penalty, train.A.dtype))
        self.groups, self.sizes = _groups(groups, n, train.A.dtype)

    def weights(self, theta: Theta) -> Float[Array, " n"]:
        """s(theta) of every example, in (0, 1). Raises ValueError if theta has a wrong shape."""
        count = self.train.A.shape[0] if self.sizes is None else len(self.sizes)
        if jnp.shape(theta) != (count,):
            raise ValueError(f"theta must have shape ({count},), not {jnp.shape(theta)}")
        return self._spread(jax.nn.sigmoid(theta))

    def losses(self, x: Model) -> Float[Array, " n"]:
        return self.train.family.losses(self.train.scores(x), self.train.y)[0]

    def upper(self, x: Model, theta: Theta) -> Scalar:
        """The mean loss on the clean rows."""
        return self.valid.loss(x)

    def guess(self, theta: Theta) -> Model:
        """Zeros."""
        return jnp.zeros((self.train.A.shape[1], self.train.base.shape[-1]), self.train.A.dtype)

    def constants(self, theta: Theta) -> Constants:
        """As the equations of this module, and those of `linear_model.LinearModel` with one fold and no metric."""
        rows, family, n, lengths = self.train, self.train.family, self.train.A.shape[0], self.train.lengths[0]
        slopes, spread = self._slopes(theta), jnp.sqrt(rows.norm / n)
        smooth, bend = family.smooth, family.bend
        # mean of s_i l_i at xhat <= at 0, and s' <= s
        left = jnp.sqrt(jnp.mean(family.residuals(rows.y, rows.scores(self.guess(theta)))[0] ** 2) / n)
        return Constants(
            mu=self.penalty,
            L=rows.steepness() + self.penalty,
            L_upper=None if smooth is None else smooth * self.valid.norm,
            L_upper_theta=0.0,
            L_hessian=None if bend is None else bend * jnp.max(self.weights(theta) * lengths) * rows.norm,
            L_cross=None if smooth is None else smooth * jnp.max(slopes) * rows.longest * spread,
            rounding=rows.terms(),
            rounding_cross=3 * jnp.max(slopes * lengths) * left,
            concordance=family.factor * rows.longest,
            convex_upper=True,
        )

    def bounds(self, x: Model, theta: Theta, q: Model, radius: Scalar) -> Bounds:
        """See above; Poisson's D is the largest on the ball."""
        rows, spread = self.train, jnp.sqrt(self.train.norm / self.train.A.shape[0])
        slopes, smooth, bend = self._slopes(theta), rows.smooth(x, radius), rows.bend(x, radius)
        residuals = jax.grad(lambda s: jnp.sum(rows.family.losses(s, rows.y)))(rows.scores(x))[0]
        along = jnp.sqrt(jnp.sum(rows.scores(q)[0] ** 2, axis=0))
        L_upper = self.valid.smooth(x, radius) * self.valid.norm if rows.family.smooth is None else None
        return Bounds(
            J=jnp.max(slopes * jnp.sqrt(jnp.sum(residuals**2, axis=0))) * spread,
            M_H=_times(jnp.max(self.weights(theta) * along) * rows.norm, bend),
            M_J=_times(jnp.max(slopes * along) * spread, smooth),
            L_J=_times(jnp.max(slopes) * rows.longest * spread, smooth),
            L_upper=L_upper,
        )

    def preconditioner(self, x: Model, theta: Theta):
        """P^{-1} for P = t mean(s) G + penalty, t the family's typical curvature; where all classes shift alike,
        which H sees through the penalty alone, P = penalty."""
        mean = jnp.mean(self.weights(theta))
        columns = self.train.base.shape[-1]
        inverse = self.train.inverse(self.penalty / mean, columns)
        if not isinstance(self.train.family, Multinomial):
            return lambda r: inverse(r) / mean
        return lambda r: inverse(r) / mean + jnp.sum(r, axis=-1, keepdims=True) / (columns * self.penalty)

    def _spread(self, values):
        return values if self.groups is None else values[self.groups]

    def _slopes(self, theta):
        """c_i of every example."""
        s = jax.nn.sigmoid(theta)
        return self._spread(s * (1 - s) * (1.0 if self.sizes is None else jnp.sqrt(self.sizes)))


def _columns(family, y, y_valid):
    """How many columns x has; ValueError for targets out of the family's range."""
    if family == "multinomial":
        return classes(y, y_valid)
    low, high = {"binomial": (0, 1), "poisson": (0, math.inf), "gaussian": (-math.inf, math.inf)}[family]
    for name, targets in (("train", y), ("valid", y_valid)):
        if not ((targets >= low) & (targets <= high)).all():
            raise ValueError(f"{name} targets of the {family} family must lie in [{low}, {high}]")
    if len(y) != len(y_valid):
        raise ValueError(f"train has {len(y)} targets a row, valid {len(y_valid)}: they must be the same")
    return len(y)


def _groups(groups, n, dtype):
    if groups is None:
        return None, None
    groups = np.asarray(groups)
    if groups.shape != (n,) or not np.issubdtype(groups.dtype, np.integer) or groups.min() < 0:
        raise ValueError(f"groups must be {n} integers from 0, one an example, not {groups.dtype} {groups.shape}")
    sizes = np.bincount(groups)
    if not sizes.all():
        raise ValueError("groups must be numbered 0, 1, ... without a gap: np.unique(groups, return_inverse=True)[1]")
    return jnp.asarray(groups, jnp.int32), jnp.asarray(sizes, dtype)


def _times(a, b):
    """a b, zero where a is, whatever b is."""
    return jnp.where(a > 0, a * b, 0)
