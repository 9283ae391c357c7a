"""The true xhat, f and grad f, in NumPy's 80-bit floats, by nothing of the package's.

    h(x) = sum_i w_i phi(K_i x - k_i) + 1/2 sum_j p_j x_j^2 - b^T x,        K_i of shape (s, n)
    rho = K^T w phi' + p x - b,     H = K^T w phi'' K + diag p,     H qhat = grad_x g,     grad f = grad_theta g - J^T qhat

Every lower level of the attack has this form, and every upper level that of its first sum: s is 2 where a root or the
number of classes where a softmax couples entries, else 1. Derivatives are by hand. xhat by Newton's method, damped until
||rho|| falls, with directions from float64 and rho in 80 bits, so that what is reached is the floor of the 80 bits.

Own error: ||x - xhat||_W <= (||rho||_{W^-1} + rounding) / mu as for any strongly convex h. For f and grad f, the largest
change over displacements of x by that much, times 4 sqrt(n), since a random displacement shows 1/sqrt(n) of the worst.
All arrays have the draws as their first axis.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Real = np.longdouble
U = float(np.finfo(Real).eps) / 2
if U > 1e-19:
    raise ImportError("the references need 80-bit floats, NumPy's long double on x86: this machine's have fewer")


def real(v) -> np.ndarray:
    """Exactly the float32 or float64 numbers of `v`."""
    return np.asarray(v).astype(Real)


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
        """8 u (|K|^T w (|phi'| + |phi''| (|K| |x| + |k|))), entry by entry: what the gradient adds up."""
        sizes = self._replace(K=np.abs(self.K), k=-np.abs(self.k))
        inner = np.einsum("bmst,bmt->bms", np.abs(self.curvature(x)), sizes.residual(np.abs(x)))
        return 8 * U * sizes.pull(np.abs(SLOPES[self.phi](self.residual(x), self.shape)) + inner)

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


class Reference(NamedTuple):
    """The lower level (`terms`, p, b); J by `cross(x)` (B, n, d); the upper level, `extra(x)` its value, grad_x and
    grad_theta beside `upper`; mu (B,) and W (B, n) with H >= mu diag W."""

    terms: Terms
    p: np.ndarray
    b: np.ndarray
    cross: Callable
    upper: Terms
    mu: np.ndarray
    W: np.ndarray
    extra: Callable | None = None


class Truth(NamedTuple):
    """xhat, f, grad f, and bounds of their own errors; qhat; a unit vector along which H is nearly smallest; W, mu."""

    x: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    x_error: np.ndarray
    value_error: np.ndarray
    gradient_error: np.ndarray
    q: np.ndarray
    flat: np.ndarray
    W: np.ndarray
    mu: np.ndarray


def norm(v, W=1.0):
    """sqrt(sum W v^2) over the last axis."""
    return np.sqrt(np.sum(W * v**2, axis=-1))


def minimise(terms: Terms, p, b, x, steps: int = 300):
    """Newton's method from x, each draw until its ||rho|| stops falling."""
    left = np.arange(len(x))
    x = x.copy()
    for _ in range(steps):
        now, here, pp, bb = terms.take(left), x[left], p[left], b[left]
        rho = now.gradient(here) + pp * here - bb
        hessian = now.hessian(here) + pp[..., None] * np.eye(x.shape[1])
        d = direction(hessian, rho)
        size, t = norm(rho), np.ones((len(left), 1), Real)
        for _ in range(14):
            trial = here - t * d
            worse = ~(norm(now.gradient(trial) + pp * trial - bb) < size)
            if not worse.any():
                break
            # at the rounding of rho there is nothing to gain
            worse &= size > norm(now.rounding(here) + 8 * U * (np.abs(pp * here) + np.abs(bb)))
            if not worse.any():
                break
            t = np.where(worse[:, None], t / 2, t)
        better = norm(now.gradient(trial) + pp * trial - bb) < size
        x[left[better]] = trial[better]
        left = left[better]
        if not len(left):
            break
    return x


def direction(hessian, v):
    """H^{-1} v by float64, scaled so that neither can overflow there."""
    size = np.max(np.abs(hessian), axis=(1, 2), keepdims=True)
    top = np.maximum(np.max(np.abs(v), axis=1, keepdims=True), np.finfo(Real).tiny)
    d = np.linalg.solve((hessian / size).astype(np.float64), (v / top).astype(np.float64)[..., None])[..., 0]
    return d.astype(Real) * (top / size[..., 0])


def refine(hessian, v):
    """H^{-1} v with residuals in 80 bits: each round gains what float64 resolves of H."""
    q = direction(hessian, v)
    for _ in range(6):
        q = q + direction(hessian, v - np.matmul(hessian, q[..., None])[..., 0])
    return q


def truth(reference: Reference, start) -> Truth:
    """All of it, of every draw; `start` (B, n)."""
    terms, p, b, cross, upper, mu, W, extra = reference
    x = minimise(terms, p, b, real(start))
    rho = terms.gradient(x) + p * x - b
    noise = terms.rounding(x) + 8 * U * (np.abs(p * x) + np.abs(b))
    x_error = (norm(rho, 1 / W) + norm(noise, 1 / W)) / mu

    def at(x):
        hessian = terms.hessian(x) + p[..., None] * np.eye(x.shape[1])
        more, more_x, more_theta = (0.0, 0.0, 0.0) if extra is None else extra(x)
        q = refine(hessian, upper.gradient(x) + more_x)
        return q, upper.value(x) + more, more_theta - np.matmul(q[:, None], cross(x))[:, 0]

    q, value, gradient = at(x)
    rng, changes = np.random.default_rng(0), []
    for _ in range(2):
        v = rng.standard_normal(x.shape)
        _, other, z = at(x + x_error[:, None] * v / norm(v, W)[:, None])
        changes.append((np.abs(other - value), norm(z - gradient)))
    value_error, gradient_error = 4 * x.shape[1] ** 0.5 * np.max(changes, axis=0)
    hessian = terms.hessian(x) + p[..., None] * np.eye(x.shape[1])
    flat = direction(hessian, direction(hessian, q + rng.standard_normal(q.shape) * norm(q)[:, None]))
    flat /= norm(flat)[:, None]
    return Truth(x, value, gradient, x_error, value_error, gradient_error, q, flat, W, mu)
