"""The problem with everything in closed form: the yardstick of the tests.

    h(x, theta) = 1/2 ||A2 x + A3 theta - b2||^2,        g(x) = 1/2 ||A1 x - b1||^2

    xhat(theta) = H^{-1} A2^T (b2 - A3 theta),   H = A2^T A2,   J = A2^T A3,   grad f = -J^T H^{-1} A1^T (A1 xhat - b1)

Section 4.1 of arXiv 2308.10098.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel import AbstractProblem, Bounds, Constants

from .inputs import dense, real


class ClosedForm(NamedTuple):
    """The exact lower-level solution (n,), upper-level value and hypergradient (d,), NumPy float64."""

    x: np.ndarray
    value: float
    gradient: np.ndarray


class Quadratic(AbstractProblem):
    """`Quadratic(A1, A2, A3, b1, b2)`: A1 (m1, n), A2 (m2, n), A3 (m2, d), b1 (m1,), b2 (m2,); x is (n,), theta (d,).

    Only the triangular factors of [A2 A3 b2] and [A1 b1] are kept: the norms, and so h and g, are the same, a step
    costs O((n + d)^2) however many rows there are, and nothing is squared (Gram matrices would lose half the digits).

    All are dense, and float32 or float64 of one dtype. Raises ValueError for shapes that do not fit, values that are
    not finite, or an A2 without full column rank; TypeError for dtypes and sparse data.
    """

    A1: Float[Array, "k1 n"]
    A2: Float[Array, "k2 n"]
    A3: Float[Array, "k2 d"]
    b1: Float[Array, " k1"]
    b2: Float[Array, " k2"]
    mu: Float[Array, ""]
    L: Float[Array, ""]
    L_upper: Float[Array, ""]
    norm_J: Float[Array, ""]
    norms: Float[Array, " 3"]

    def __init__(self, A1, A2, A3, b1, b2):
        data = {"A1": A1, "A2": A2, "A3": A3, "b1": b1, "b2": b2}
        data = {name: np.asarray(dense(f"Quadratic: {name}", v)) for name, v in data.items()}
        for name, v in data.items():
            real(f"Quadratic: {name}", v)
        if len(dtypes := {str(v.dtype) for v in data.values()}) > 1:
            raise TypeError(f"Quadratic: the data mix {' and '.join(sorted(dtypes))}: convert them to one dtype")
        A1, A2, A3, b1, b2 = data.values()
        if not (
            A1.ndim == A2.ndim == A3.ndim == 2
            and b1.shape == A1.shape[:1]
            and b2.shape == A2.shape[:1] == A3.shape[:1]
            and A1.shape[1] == A2.shape[1]
        ):
            shapes = {name: v.shape for name, v in data.items()}
            raise ValueError(f"Quadratic needs A1 (m1, n), A2 (m2, n), A3 (m2, d), b1 (m1,), b2 (m2,); got {shapes}")
        if not all(np.isfinite(v).all() for v in data.values()):
            raise ValueError("Quadratic: the data hold NaN or infinite values; remove them first")
        dtype = A2.dtype
        # factors and spectra in float64 whatever the dtype: they are constants, computed once
        n, d = A2.shape[1], A3.shape[1]
        upper = np.linalg.qr(np.column_stack([A1, b1]).astype(np.float64), mode="r")
        lower = np.linalg.qr(np.column_stack([A2, A3, b2]).astype(np.float64), mode="r")
        A1, b1 = upper[:, :n], upper[:, n]
        A2, A3, b2 = lower[:, :n], lower[:, n : n + d], lower[:, n + d]
        sigma = np.linalg.svd(A2, compute_uv=False)
        # what the dtype of the data can resolve; the constants are moved by as much, to stay bounds
        slack = 4 * len(sigma) * np.finfo(dtype).eps
        if len(sigma) < n or not sigma[-1] > slack * sigma[0]:
            raise ValueError("Quadratic: A2 must have full column rank, or the lower level is not strongly convex")

        def number(v):  # put, not converted on the device: that would be a program
            return jax.device_put(np.asarray(v, dtype))

        self.A1, self.A2, self.A3, self.b1, self.b2 = map(number, (A1, A2, A3, b1, b2))
        self.mu = number((sigma[-1] - slack * sigma[0]) ** 2)
        self.L = number(((1 + slack) * sigma[0]) ** 2)
        self.L_upper = number(((1 + slack) * np.linalg.norm(A1, 2)) ** 2)
        self.norms = number([sigma[0], np.linalg.norm(A3, 2), np.linalg.norm(b2)])
        self.norm_J = number(np.linalg.norm(A2.T @ A3, 2) + slack * sigma[0] * np.linalg.norm(A3, 2))

    def lower(self, x, theta):
        r = self.A2 @ x + (self.A3 @ theta - self.b2)
        return 0.5 * r @ r

    def upper(self, x, theta):
        r = self.A1 @ x - self.b1
        return 0.5 * r @ r

    def guess(self, theta):
        return jax.device_put(np.zeros(self.A2.shape[1], self.A2.dtype))

    def constants(self, theta):
        # A2^T (A2 x + (A3 theta - b2)): where A3 theta and b2 cancel, their rounding is larger than that of H x
        norm_A2, norm_A3, norm_b2 = self.norms
        return Constants(
            mu=self.mu,
            L=self.L,
            L_upper=self.L_upper,
            L_hessian=0.0,
            L_cross=0.0,
            rounding=norm_A2 * (norm_A3 * jnp.linalg.norm(theta) + norm_b2),
            rounding_cross=norm_A2 * norm_A3,
            convex_upper=True,
        )

    def bounds(self, x, theta, q, radius):
        return Bounds(J=self.norm_J, M_H=0.0, M_J=0.0, L_J=0.0)

    def closed_form(self, theta: Float[Array, " d"]) -> ClosedForm:
        """xhat, f and grad f at theta by least squares in float64: relative error about sqrt(kappa) 1e-16 in x."""
        A1, A2, A3, b1, b2 = (np.asarray(v, np.float64) for v in (self.A1, self.A2, self.A3, self.b1, self.b2))
        Q, R = np.linalg.qr(A2)
        x = np.linalg.solve(R, Q.T @ (b2 - A3 @ np.asarray(theta, np.float64)))
        r = A1 @ x - b1
        # J^T H^{-1} = A3^T A2 (A2^T A2)^{-1} = A3^T Q R^{-T}
        return ClosedForm(x, 0.5 * r @ r, -A3.T @ (Q @ np.linalg.solve(R.T, A1.T @ r)))


def uniform_data(seed: int, rows: int = 1000, columns: int = 10) -> Quadratic:
    """The quadratic of arXiv 2308.10098, section 4.1: entries uniform on [0, 1], b with noise 0.01, in float64."""
    rng = np.random.default_rng(seed)
    A1, A2, A3 = rng.uniform(size=(3, rows, columns))
    x1, x2, theta = rng.uniform(size=(3, columns))
    b1 = A1 @ x1 + 0.01 * rng.standard_normal(rows)
    b2 = A2 @ x2 + A3 @ theta + 0.01 * rng.standard_normal(rows)
    return Quadratic(A1, A2, A3, b1, b2)
