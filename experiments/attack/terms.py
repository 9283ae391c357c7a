"""sum_i w_i phi(K_i x - k_i) and its derivatives, by hand, in NumPy's 80-bit floats: what references are made of.

Twice u times the sum of the absolute terms is taken for the rounding of each. Arrays have the draws as first axis.
"""

from typing import NamedTuple

import numpy as np

Real = np.longdouble
U = float(np.finfo(Real).eps) / 2
if U > 1e-19:
    raise ImportError("the references need 80-bit floats, NumPy's long double on x86: this machine's have fewer")


def real(v) -> np.ndarray:
    """Exactly the float32 or float64 numbers of `v`."""
    return np.asarray(v).astype(Real)


def norm(v, W=1.0):
    """sqrt(sum W v^2) over the last axis."""
    return np.sqrt(np.sum(W * v**2, axis=-1))


class Terms(NamedTuple):
    """sum_i w_i phi(r_i), r = K x - k: K (B, m, s, n), k (B, m, s), w (B, m); `shape` is what phi needs beside r."""

    phi: str
    K: np.ndarray
    k: np.ndarray
    w: np.ndarray
    shape: np.ndarray | None = None

    def residual(self, x):
        B, m, s, n = self.K.shape
        return np.matmul(self.K.reshape(B, m * s, n), x[..., None]).reshape(B, m, s) - self.k

    def pull(self, v):
        """K^T w v of v (B, m, s)."""
        B, m, s, n = self.K.shape
        weighted = (self.w[..., None] * v).reshape(B, 1, m * s)
        return np.matmul(weighted, self.K.reshape(B, m * s, n))[:, 0]

    def value(self, x):
        return np.sum(self.w * VALUES[self.phi](self.residual(x), self.shape), axis=1)

    def gradient(self, x):
        return self.pull(SLOPES[self.phi](self.residual(x), self.shape))

    def hessian(self, x):
        B, m, s, n = self.K.shape
        bent = np.einsum("bmst,bmtn->bmsn", self.curvature(x), self.K) * self.w[..., None, None]
        return np.matmul(self.K.reshape(B, m * s, n).swapaxes(1, 2), bent.reshape(B, m * s, n))

    def curvature(self, x):
        return CURVATURES[self.phi](self.residual(x), self.shape)

    def rounding(self, x):
        """2 u |K|^T w (|phi'| + |phi''| (|K| |x| + |k|)), entry by entry: twice u times what the gradient adds up."""
        sizes = self._replace(K=np.abs(self.K), k=-np.abs(self.k), w=np.abs(self.w))
        inner = np.einsum("bmst,bmt->bms", np.abs(self.curvature(x)), sizes.residual(np.abs(x)))
        return 2 * U * sizes.pull(np.abs(SLOPES[self.phi](self.residual(x), self.shape)) + inner)

    def value_rounding(self, x):
        """The same of the value: 2 u sum w (|phi| + |phi'| (|K| |x| + |k|))."""
        sizes = self._replace(K=np.abs(self.K), k=-np.abs(self.k)).residual(np.abs(x))
        inner = np.sum(np.abs(SLOPES[self.phi](self.residual(x), self.shape)) * sizes, axis=-1)
        return 2 * U * np.sum(self.w * (VALUES[self.phi](self.residual(x), self.shape) + inner), axis=1)

    def take(self, which):
        rest = (v if v is None else v[which] for v in self[1:])
        return Terms(self.phi, *rest)


def _root(r, nu):
    return np.sqrt(np.sum(r**2, axis=-1) + nu**2)


def _root_curvature(r, nu):
    R = _root(r, nu)[..., None, None]
    return (np.eye(r.shape[-1]) - r[..., :, None] * r[..., None, :] / R**2) / R


def _softmax(s):
    e = np.exp(s - np.max(s, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def _cross_entropy(s, label):
    top = np.max(s, axis=-1)
    return top + np.log(np.sum(np.exp(s - top[..., None]), axis=-1)) - np.sum(label * s, axis=-1)


def _softmax_curvature(s, _):
    p = _softmax(s)
    return p[..., :, None] * np.eye(s.shape[-1]) - p[..., :, None] * p[..., None, :]


def _diagonal(f):
    """A second derivative of one variable as a 1 x 1 matrix."""
    return lambda r, _: f(r)[..., None]


VALUES = {
    "squares": lambda r, _: np.sum(r**2, axis=-1) / 2,
    "quartic": lambda r, _: np.sum(r**4, axis=-1) / 4,
    "cubic": lambda r, _: np.sum(np.maximum(r, 0) ** 3, axis=-1) / 6,
    "logcosh": lambda r, _: np.sum(np.abs(r) + np.log1p(np.exp(-2 * np.abs(r))) - np.log(Real(2)), axis=-1),
    "softplus": lambda r, _: np.sum(np.logaddexp(Real(0), r), axis=-1),
    "huber": lambda r, _: np.sum(r**2 / (1 + np.sqrt(1 + r**2)), axis=-1),
    "root": _root,
    "softmax": _cross_entropy,
}
SLOPES = {
    "squares": lambda r, _: r,
    "quartic": lambda r, _: r**3,
    "cubic": lambda r, _: np.maximum(r, 0) ** 2 / 2,
    "logcosh": lambda r, _: np.tanh(r),
    "softplus": lambda r, _: np.exp(-np.logaddexp(Real(0), -r)),
    "huber": lambda r, _: r / np.sqrt(1 + r**2),
    "root": lambda r, nu: r / _root(r, nu)[..., None],
    "softmax": lambda s, label: _softmax(s) - label,
}
CURVATURES = {
    "squares": _diagonal(np.ones_like),
    "quartic": _diagonal(lambda r: 3 * r**2),
    "cubic": _diagonal(lambda r: np.maximum(r, 0)),
    "logcosh": _diagonal(lambda r: 4 * np.exp(-2 * np.abs(r)) / (1 + np.exp(-2 * np.abs(r))) ** 2),
    "softplus": _diagonal(lambda r: np.exp(-np.abs(r)) / (1 + np.exp(-np.abs(r))) ** 2),
    "huber": _diagonal(lambda r: (1 + r**2) ** Real(-1.5)),
    "root": _root_curvature,
    "softmax": _softmax_curvature,
}
