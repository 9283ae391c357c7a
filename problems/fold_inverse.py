"""Ridge systems of every fold, where there are more features than rows, in n x n.

    P_k = t B_k^T B_k + D,    B_k = diag(w_k)^{1/2} (A - U M_k),    D diagonal, of the penalties
    P_k^{-1} = D^{-1} - t D^{-1} B_k^T (1 + t S_k)^{-1} B_k D^{-1},    S_k = B_k D^{-1} B_k^T          (Woodbury 1950)

All S_k are made of one product, A D^{-1} A^T: what a fold adds is of the size of U, the columns that are not penalised.
For least squares P_k is the Hessian.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Rows = Float[Array, "n features"]
Weights = Float[Array, "..."]  # (folds, features, columns)


def fold_inverse(
    A: Rows,
    weights: Float[Array, "folds n"],
    fixed: Float[Array, "n u"],
    means: Float[Array, "folds u features"],
    t: Float[Array, ""],
    D: Float[Array, " features"],
    centred: Callable[[Weights], Float[Array, "folds columns n"]],
) -> Callable[[Weights], Weights]:
    """r -> P_k^{-1} r_k for every fold k. `centred`: x -> x_k^T (a_i - M_k^T u_i), linear."""
    root, inverse = jnp.sqrt(weights), 1 / D
    inner = _dot("np,mp->nm", A * inverse[None], A)[None]
    cross = _dot("np,kup->knu", A * inverse[None], means)
    outer = _dot("nu,kuv,mv->knm", fixed, _dot("kup,kvp->kuv", means * inverse[None, None], means), fixed)
    mixed = _dot("knu,mu->knm", cross, fixed)
    S = root[:, :, None] * (inner + outer - mixed - mixed.mT) * root[:, None, :]
    factors = jnp.linalg.cholesky(jnp.eye(len(A), dtype=A.dtype)[None] + t * S)

    def apply(r):
        s = inverse[None, :, None] * r
        y, back = jax.vjp(centred, s)
        y = jax.vmap(lambda factor, y: jax.scipy.linalg.cho_solve((factor, True), y.T).T)(factors, root[:, None] * y)
        return s - t * inverse[None, :, None] * back(root[:, None] * y)[0]

    return apply


def _dot(subscripts, *arrays):
    return jnp.einsum(subscripts, *arrays, precision="highest")
