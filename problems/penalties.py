"""Which weights share a penalty: from theta to the log penalties of all weights, (features, columns).

J = d2h/dxdtheta then follows: e^{theta_j} x_j for the weights x_j that share theta_j, in every fold, and zero
elsewhere. In the metric W = e^theta / mu of `linear_model.LinearModel`, where its columns are divided by sqrt(W),

    ||J||  =  max_j sqrt(mu e^{theta_j}) ||x_j||,         ||J(x) - J(x')||  <=  mu ||x - x'||_W

as the columns are orthogonal; where theta = B gamma, ||J B|| is what is wanted.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Theta = Float[Array, "..."]
Weights = Float[Array, "*folds features columns"]
Scalar = Float[Array, ""]


class AbstractPenalties(eqx.Module):
    @abc.abstractmethod
    def log_penalties(self, theta: Theta) -> Theta:
        """Of the shape (), (1, columns), (features, 1) or (features, columns). ValueError for a theta that is wrong."""

    @abc.abstractmethod
    def cross_norm(self, theta: Theta, x: Weights, mu: Scalar) -> Scalar:
        """||J|| in the metric, for x of which J is made; or ||J^T q|| / ||q|| for such a q."""

    @property
    def stretch(self) -> Scalar | float:
        """||J(x) - J(x')|| <= mu stretch ||x - x'||_W."""
        return 1.0


class ByShape(AbstractPenalties):
    """theta's shape says what is shared: () all, (1, columns) a column, (features, 1) a feature, or nothing."""

    features: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)

    def log_penalties(self, theta):
        p, c = self.features, self.columns
        allowed = ((), (1, c), (p, 1), (p, c))
        if jnp.shape(theta) not in allowed:
            raise ValueError(
                f"theta must have one of the shapes {allowed}: one log penalty in all, per class, per feature or per "
                f"weight; it has shape {jnp.shape(theta)}"
            )
        return theta

    def cross_norm(self, theta, x, mu):
        return jnp.max(jnp.sqrt(mu * jnp.exp(theta)) * _shared_norm(x, theta))


class Grouped(AbstractPenalties):
    """theta (groups,): one log penalty for the features of a group; `groups` (features,) numbers them from 0."""

    groups: Int[Array, " features"]
    count: int = eqx.field(static=True)

    def log_penalties(self, theta):
        _asked(theta, self.count, "group")
        return theta[self.groups][:, None]

    def cross_norm(self, theta, x, mu):
        squares = jnp.sum(x**2, axis=tuple(k for k in range(x.ndim) if k != x.ndim - 2))
        norms = jnp.sqrt(jax.ops.segment_sum(squares, self.groups, self.count))
        return jnp.max(jnp.sqrt(mu * jnp.exp(theta)) * norms)


class Combined(AbstractPenalties):
    """theta (d,): the features' log penalties are B theta, B (features, d) given. ||J B||^2 is the largest eigenvalue
    of B^T diag(mu e^{B theta} ||x_j||^2) B."""

    B: Float[Array, "features d"]

    def log_penalties(self, theta):
        _asked(theta, self.B.shape[1], "column of B")
        return (self.B @ theta)[:, None]

    def cross_norm(self, theta, x, mu):
        each = jnp.sqrt(mu * jnp.exp(self.log_penalties(theta)))
        return jnp.sqrt(_top((each * _shared_norm(x, each)) * self.B))

    @property
    def stretch(self):
        return jnp.sqrt(_top(self.B))


def _top(B):
    """The largest eigenvalue of B^T B, moved up by its rounding."""
    slack = 1 + 4 * sum(B.shape) * float(jnp.finfo(B.dtype).eps)
    return slack * jnp.maximum(jnp.linalg.eigvalsh(jnp.matmul(B.T, B, precision="highest"))[-1], 0)


def _asked(theta, count, what):
    if jnp.shape(theta) != (count,):
        raise ValueError(f"theta must have shape ({count},), one log penalty a {what}, not {jnp.shape(theta)}")


def _shared_norm(x, theta):
    """Norms of the blocks of x that share a penalty, over all folds, shaped like theta."""
    features = x.ndim - 2
    axes = tuple(k for k in range(2) if theta.ndim == 0 or theta.shape[k] == 1 < x.shape[features + k])
    axes = (*range(features), *(features + k for k in axes))
    norms = jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=theta.ndim > 0))
    return norms if theta.ndim == 0 or features == 0 else norms[0]
