"""A^T A / n in whichever of n and p is smaller: its largest eigenvalue, plain and weighted, and ridge systems.

    G = A^T A / n, (p, p),  and  K = A A^T / n, (n, n), have the same eigenvalues but for zeros, and so have
    W^{-1/2} G W^{-1/2}  and  A W^{-1} A^T / n  for a diagonal W > 0;
    (w G + D)^{-1} = D^{-1} - D^{-1} A^T (1 + w A D^{-1} A^T / n)^{-1} A D^{-1} w / n          (Woodbury 1950).

With more columns than rows nothing of size (p, p) is made. Weights, W or D, stand in columns, one for each class, of
the shape (), (1, classes), (p, 1) or (p, classes): what does not depend on the feature, or on the class, is done once.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Features = Float[Array, "n features"]
Small = Float[Array, "small small"]
Scalar = Float[Array, ""]
Columns = Float[Array, "..."]


def gram(A: Features) -> tuple[Small, Scalar]:
    """G, or K where it is smaller, and the largest eigenvalue, moved up by what its rounding can hide."""
    product = _matmul(A, A.T) if _wide(A) else _matmul(A.T, A)
    product = product / A.shape[0]
    largest = jnp.maximum(jnp.linalg.eigvalsh(product)[-1], 0)
    return product, largest * (1 + slack(A))


def fold_grams(
    A: Features, weights: Float[Array, "folds n"], fixed: Float[Array, "n u"], means: Float[Array, "folds u features"]
) -> tuple[Small | None, Small, Scalar, Float[Array, "folds n"]]:
    """Of G_k = sum_i w_ki (a_i - m_ki) (a_i - m_ki)^T, m_ki = M_k^T u_i, u_i in `fixed`, over the folds k: the largest
    |G_k|, entry by entry, which bounds the spectral radius of each (None with more columns than rows); G for the folds'
    mean weights, or K where that is smaller; the largest eigenvalue of all G_k, moved up by its rounding; and
    ||a_i - m_ki||."""
    return _fold_grams(A, weights, fixed, means, _wide(A))


@partial(jax.jit, static_argnums=4)
def _fold_grams(A, weights, fixed, means, wide):
    def fold(carry, k):
        w, m = k
        centred = A - _matmul(fixed, m)
        rows = jnp.sqrt(w)[:, None] * centred
        G = _matmul(rows, rows.T) if wide else _matmul(rows.T, rows)
        size, total, norm = carry
        size = size if wide else jnp.maximum(size, jnp.abs(G))
        norm = jnp.maximum(norm, jnp.linalg.eigvalsh(G)[-1])
        return (size, total if wide else total + G / len(weights), norm), jnp.sqrt(jnp.sum(centred**2, axis=1))

    p = A.shape[1]
    none = jnp.zeros((0, 0) if wide else (p, p), A.dtype)
    (size, total, norm), lengths = lax.scan(fold, (none, none, jnp.zeros((), A.dtype)), (weights, means))
    if wide:
        rows = jnp.sqrt(jnp.mean(weights, axis=0))[:, None] * A
        total = _matmul(rows, rows.T)
    return None if wide else size, total, norm * (1 + slack(A)), lengths


def weighted_norm(A: Features, small: Small, norm: Scalar, W: Columns, classes: int, iterations: int = 20) -> Scalar:
    """At least the largest eigenvalue of W_c^{-1/2} G W_c^{-1/2} over the classes c, for W >= 1; `small`, `norm` as
    `gram` returns them.

    For any s > 0 the spectral radius of M is at most max_j (|M| s)_j / s_j (Collatz 1942); s nears the eigenvector of
    |M|, which is M where the features are not negative. Elsewhere ||G|| may be the smaller bound: W >= 1.
    """
    if _wide(A) and (W.ndim == 0 or W.shape[0] == 1):
        return norm  # one weight for all features of a class, 1 in the class whose weight is least
    if _wide(A):
        kernels = jnp.abs(_kernels(A, W))
        start = jnp.ones(kernels.shape[:2], A.dtype).T

        def product(s):
            return jax.vmap(_matmul)(kernels, s.T).T

    else:
        size, root = jnp.abs(small), 1 / jnp.sqrt(jnp.broadcast_to(W, (A.shape[1], classes)))
        start = jnp.ones_like(root)

        def product(s):
            return root * _matmul(size, root * s)

    def step(_, s):
        s = product(s) + 1e-2 * norm * s
        top = jnp.max(s, axis=0, keepdims=True)
        # a zero column of A leaves nothing but the shift, which 20 steps take below what float32 holds
        return jnp.maximum(s / jnp.where(top > 0, top, 1), lowest)

    lowest = float(jnp.finfo(A.dtype).tiny) ** 0.5
    s = lax.fori_loop(0, iterations, step, start)
    ratio = jnp.max(product(s) / s, axis=0)
    return jnp.minimum(norm, (1 + 2 * slack(A)) * jnp.max(ratio))


def ridge_inverse(
    A: Features, small: Small, norm: Scalar, w: Scalar | float, D: Columns, classes: int
) -> Callable[[Features], Features]:
    """r -> v, (p, classes), with (w G + diag(D_c)) v_c = r_c for every class c.

    D is lifted to w ||G|| times p roundings, below which the system would not be positive definite in this dtype.
    """
    D = jnp.maximum(D, w * norm * slack(A))
    if not _wide(A):
        columns = jnp.broadcast_to(D, (A.shape[1], classes)).T
        factors = jnp.linalg.cholesky((w * small)[None] + jax.vmap(jnp.diag)(columns))
        return lambda r: jax.vmap(_solve)(factors, r.T).T

    alike = D.ndim == 0 or D.shape[0] == 1
    kernels = small[None] / D.reshape(-1, 1, 1) if alike else _kernels(A, D)
    factors = jnp.linalg.cholesky(jnp.eye(len(A), dtype=A.dtype)[None] + w * kernels)

    def apply(r):
        s = r / D
        y = _matmul(A, s)
        y = _solve(factors[0], y) if len(factors) == 1 else jax.vmap(_solve, (0, 1), 1)(factors, y)
        return s - w / len(A) * _matmul(A.T, y) / D

    return apply


def _wide(A):
    return A.shape[1] > A.shape[0]


def slack(A: Features) -> float:
    """What rounding can hide of an eigenvalue of G, relative to the largest."""
    return 4 * A.shape[1] * float(jnp.finfo(A.dtype).eps)


def _kernels(A, W):
    """A diag(1/W_c) A^T / n of every column W_c, (columns, n, n), with one scaled copy of A at a time."""
    return lax.map(lambda row: _matmul(A / row, A.T) / len(A), W.T[:, None])


def _solve(factor, r):
    return jax.scipy.linalg.cho_solve((factor, True), r)


def _matmul(a, b):
    """The precision forbids GPUs to round float32 to 10 bits."""
    return jnp.matmul(a, b, precision="highest")
