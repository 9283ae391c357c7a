"""Group lasso: which penalty a group of features has, all of whose weights are zero or none; see `l1_model`."""

import math
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import group_fold
from .group_fold import positive
from .l1_model import L1Model
from .lasso import Lasso


class GroupLasso(L1Model):
    """`GroupLasso(A, y, A_valid, y_valid, groups=groups)`, or `GroupLasso(A, y, folds=5, groups=groups)`.

        h(x, theta) = sum_k [ 1/2 sum_i w_ki (x_k^T a_i + b_k - y_i)^2 + sum_g l_g ||x_kg|| + rho/2 ||x_k||^2 ],
        l_g = e^{theta_g} sqrt(features of group g)

    theta () is one log penalty for all groups, (groups,) one each. `groups`, integers (features,), numbers them from 0.
    `ridge`: rho, at least 0, not learnt. Without it there is a certificate only where the groups that are left have no
    more features than there are rows; unlike Lasso's more may be active. `group_fold` solves a fold.

    Other arguments and errors as in `Lasso`; ValueError for groups that do not fit.
    """

    parts: ClassVar[ModuleType] = group_fold
    groups: Int[Array, " features"]
    sizes: Float[Array, " groups"]  # their square roots
    ridge: float

    def __init__(
        self,
        A: Any,
        y: Any,
        A_valid: Any = None,
        y_valid: Any = None,
        *,
        groups: Any,
        folds: Any = None,
        weights: Any = None,
        weights_valid: Any = None,
        intercept: bool = False,
        ridge: float = 0.0,
    ):
        self.take(A, y, A_valid, y_valid, folds, weights, weights_valid, intercept)
        if not 0 <= ridge < math.inf:
            raise ValueError(f"ridge must be a number that is not negative, not {ridge!r}")
        groups, features = np.asarray(groups), self.shape[-2]
        if groups.shape != (features,) or not np.issubdtype(groups.dtype, np.integer):
            raise ValueError(
                f"groups must be integers ({features},), one a feature; they have shape {groups.shape} and dtype "
                f"{groups.dtype}"
            )
        names, counts = np.unique(groups, return_counts=True)
        if not np.array_equal(names, np.arange(len(names))):
            raise ValueError(
                "groups must be numbered 0, 1, ... without a gap: np.unique(groups, return_inverse=True)[1]"
            )
        self.groups, self.ridge = jnp.asarray(groups, jnp.int32), float(ridge)
        self.sizes = jnp.asarray(np.sqrt(counts), self.train.A.dtype)

    start = Lasso.start

    def penalty(self, theta):
        count = len(self.sizes)
        if jnp.shape(theta) not in ((), (count,)):
            raise ValueError(
                f"theta must be (), one log penalty for all, or ({count},), one a group; not {jnp.shape(theta)}"
            )
        return jnp.exp(theta) * self.sizes, jnp.asarray(self.ridge, self.sizes.dtype)

    def kink(self, x, lam):
        squares = jnp.sum(jax.ops.segment_sum(jnp.moveaxis(x, -2, 0) ** 2, self.groups, len(lam)), axis=-1)
        lengths = jnp.where(squares > 0, jnp.sqrt(positive(squares)), 0)
        return jnp.sum(jnp.moveaxis(lengths, 0, -1) @ lam)

    def top(self, B, c):
        return jnp.max(jnp.sqrt(jax.ops.segment_sum((B.T @ c) ** 2, self.groups, len(self.sizes))) / self.sizes)

    def _fold(self, w, m, b, lam, rho):
        return group_fold.Fold(*self._rows(w, m, b), self.train.norm, lam, rho, self.groups)
