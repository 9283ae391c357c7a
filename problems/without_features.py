"""What fits best without the features that are penalised: an intercept, and other columns that are not, alone.

    b_k = argmin over b of  sum_i w_ki l(b^T u_i + o_i, y_i)                 (fixed, columns)

The scores of classes may all move alike without a change of l: b_k is the one whose rows sum to zero. Where U tells the
targets of some rows from those of all others, l falls for ever along a direction, and there is no b_k: then a step of
Newton's still moves scores, by about one, where the gradient is as small as rounding.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from .families import AbstractFamily, Multinomial

Base = Float[np.ndarray, "folds fixed columns"]
GRADIENT = 16 * np.finfo(float).eps  # of the mean target: where the search ends
MOST, POLISH = 100, 2  # steps of the search, and plain ones after it, to the last digit
STILL = 0.1  # what the first of these may move a score by
SINGULAR = 1e-14  # of a Hessian's largest eigenvalue


def without_features(
    family: AbstractFamily,
    U: Float[np.ndarray, "n fixed"],
    targets: Float[np.ndarray, "columns n"],
    weights: Float[np.ndarray, "folds n"],
    offset: Float[np.ndarray, "columns n"] | None,
) -> Base:
    """b_k of every fold, in float64 whatever JAX's floats are. ValueError where there is none."""
    alone = offset is None and U.shape[1] == 1 and (U == 1).all()
    with jax.enable_x64(True):
        if alone:
            base = np.asarray(family.base(jnp.asarray(weights @ targets.T)))[:, None]
        else:
            offset = np.zeros_like(targets) if offset is None else offset
            base = np.stack([_search(family, U, targets.T, w, offset.T) for w in weights])
    if not np.isfinite(base).all():
        columns = (
            "" if alone else ", or that the columns which are not penalised tell from all others, or offsets are huge"
        )
        raise ValueError(
            f"a fold learns from targets that are all 0, or all 1 (one class){columns}: nothing holds what is not "
            "penalised, an intercept or columns. Penalise them, or take fewer folds"
        )
    return base


def _search(family, U, targets, w, offset):
    """b_k by Newton's method in a trust region; not finite if there is none. Rows come first."""
    used, mean = (w > 0)[:, None], w @ targets
    U, offset = np.where(used, U, 0), np.where(used, offset, 0)  # whatever the others hold
    basis = _basis(len(mean)) if isinstance(family, Multinomial) else np.eye(len(mean))

    def at(z):
        b = z.reshape(U.shape[1], -1) @ basis.T
        return (np.asarray(part) for part in _rows(family, U @ b + offset, targets))

    def value(z):
        losses, residuals, _ = at(z)
        return w @ losses, (U.T @ (w[:, None] * residuals) @ basis).ravel()

    def hessian(z):
        *_, D = at(z)
        D = np.einsum("n,ncd,ce,df->nef", w, D, basis, basis, optimize=True)
        return np.einsum("nu,nef,nv->uevf", U, D, U, optimize=True).reshape(z.size, z.size)

    # the scores that a quarter of each target, three of the mean have: a start as near as offsets are large
    scores = np.asarray(family.base(jnp.asarray((targets + 3 * mean) / 4))) - offset
    none = np.full((U.shape[1], len(mean)), np.inf)
    if not np.isfinite(scores).all():
        return none
    root = np.sqrt(w)[:, None]
    start = (np.linalg.lstsq(root * U, root * scores)[0] @ basis).ravel()
    options = {"gtol": GRADIENT * float(np.max(mean)), "maxiter": MOST, "max_trust_radius": 1e12}
    z = minimize(value, start, jac=True, hess=hessian, method="trust-exact", options=options).x
    for k in range(POLISH):
        H, g = hessian(z), value(z)[1]
        values = np.linalg.eigvalsh(H)
        if values[0] <= SINGULAR * values[-1]:
            return none
        step = np.linalg.solve(H, g)
        if k == 0 and not np.max(np.abs(U @ step.reshape(U.shape[1], -1))) <= STILL:
            return none
        z = z - step
    return z.reshape(U.shape[1], -1) @ basis.T


@eqx.filter_jit
def _rows(family, scores, targets):
    """l, dl/ds and D of every row."""

    def mean(s):
        return family.mean(s[None, :, None])[0, :, 0]

    def one(s, y):
        labels = jnp.argmax(y)[None] if isinstance(family, Multinomial) else y[:, None]
        return family.losses(s[None, :, None], labels)[0, 0], mean(s) - y, jax.jacfwd(mean)(s)

    return jax.vmap(one)(scores, targets)


def _basis(columns: int) -> Float[np.ndarray, "columns fewer"]:
    """Orthonormal, of what sums to zero."""
    return np.linalg.svd(np.eye(columns) - 1 / columns)[0][:, : columns - 1]
