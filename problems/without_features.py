"""What fits best without the features that are penalised: an intercept, and other columns that are not, alone.

    b_k = argmin over b of  sum_i w_ki l(b^T u_i + o_i, y_i)                 (fixed, columns)

The scores of classes may all move alike without a change of l: b_k is the one whose rows sum to zero. Where U tells the
targets of some rows from those of all others, l falls for ever along a direction, and there is no b_k.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num
from scipy.optimize import minimize

from .families import AbstractFamily, Multinomial

Base = Float[np.ndarray, "folds fixed columns"]
GRADIENT, FLAT, MOST = 16, 1024, 100  # units of rounding: where the search ends, and curvature that is none; steps
POLISH = 2  # plain steps, to the last digit


def without_features(
    family: AbstractFamily,
    U: Float[np.ndarray, "n fixed"],
    y: Num[np.ndarray, "..."],
    weights: Float[np.ndarray, "folds n"],
    means: Float[np.ndarray, "folds columns"],
    offset: Float[np.ndarray, "columns n"] | None,
) -> Base:
    """b_k of every fold, to rounding in JAX's floats; `means`: the folds' mean targets; U of mean square about 1.

    ValueError where there is none.
    """
    if offset is None and U.shape[1] == 1 and (U == 1).all():
        base = np.asarray(family.base(jnp.asarray(means)))[:, None]
    else:
        offset = np.zeros((means.shape[1], len(U))) if offset is None else offset
        base = np.stack([_search(family, U, y, w, mean, offset) for w, mean in zip(weights, means, strict=True)])
    if not np.isfinite(base).all():
        raise ValueError(
            "a fold learns from targets that are all 0, or all 1 (one class), or that the columns which are not "
            "penalised tell from all others: nothing holds these columns' weights. Penalise some of them, or take "
            "fewer folds"
        )
    return base


def _search(family, U, y, w, mean, offset):
    """b_k by Newton's method in a trust region; not finite if there is none."""
    basis = _basis(len(mean)) if isinstance(family, Multinomial) else np.eye(len(mean))
    data = (family, basis, U, y, w, offset)
    rounded = (1 + float(np.max(mean))) * float(jnp.finfo(float).eps)
    found = minimize(
        lambda z: tuple(np.asarray(v) for v in _loss(z, *data)), np.zeros(U.shape[1] * basis.shape[1]), jac=True,
        hess=lambda z: np.asarray(_hessian(z, *data)), method="trust-exact",
        options={"gtol": GRADIENT * rounded, "maxiter": MOST},
    )  # fmt: skip
    z = found.x
    if np.linalg.eigvalsh(found.hess)[0] <= FLAT * rounded:
        return np.full((U.shape[1], len(mean)), np.inf)
    for _ in range(POLISH):
        z = z - np.linalg.solve(_hessian(z, *data), _loss(z, *data)[1])
    return z.reshape(U.shape[1], -1) @ basis.T


def _value(z, family, basis, U, y, w, offset):
    b = z.reshape(U.shape[1], -1) @ basis.T
    return jnp.vdot(w, family.losses((b.T @ U.T + offset)[None], y)[0])


_loss = eqx.filter_jit(jax.value_and_grad(_value))
_hessian = eqx.filter_jit(jax.hessian(_value))


def _basis(columns: int) -> Float[np.ndarray, "columns fewer"]:
    """Orthonormal, of what sums to zero."""
    return np.linalg.svd(np.eye(columns) - 1 / columns)[0][:, : columns - 1]
