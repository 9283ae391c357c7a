"""The true xhat, f and grad f, in NumPy's 80-bit floats, by nothing of the package's.

    h(x) = sum_i w_i phi(K_i x - k_i) + 1/2 sum_j p_j x_j^2 - b^T x,        K_i of shape (s, n)
    rho = K^T w phi' + p x - b,   H = K^T w phi'' K + diag p,   H qhat = grad_x g,   grad f = grad_theta g - J^T qhat

Every lower level of the attack has this form, and every upper level that of its first sum: s is 2 where a root or the
number of classes where a softmax couples entries, else 1. xhat by Newton's method, damped until ||rho|| falls, with
directions from float64 and rho in 80 bits, so that what is reached is the floor of the 80 bits.

Own errors: ||x - xhat||_W <= (||rho||_{W^-1} + rounding) / mu as for any strongly convex h, of f ||grad_x g||_{W^-1}
times that and its rounding; of grad f the largest change over displacements of x by as much, times 4 sqrt(n), since a
random displacement shows 1/sqrt(n) of the worst. The draws are the first axis of all arrays.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.attack.terms import Real, Terms, U, norm, real


class Lower(NamedTuple):
    """h of every draw: p and b (B, n)."""

    terms: Terms
    p: np.ndarray
    b: np.ndarray

    def gradient(self, x):
        return self.terms.gradient(x) + self.p * x - self.b

    def hessian(self, x):
        return self.terms.hessian(x) + self.p[..., None] * np.eye(x.shape[1])

    def rounding(self, x):
        """Of the gradient, entry by entry."""
        return self.terms.rounding(x) + 2 * U * (np.abs(self.p * x) + np.abs(self.b))

    def take(self, which):
        return Lower(self.terms.take(which), self.p[which], self.b[which])


class Reference(NamedTuple):
    """`cross(x)` is J (B, n, d); g is `upper` and, where there is one, `extra(x)`: its value, grad_x and grad_theta;
    mu (B,) and W (B, n) with H >= mu diag W."""

    lower: Lower
    cross: Callable
    upper: Terms
    mu: np.ndarray
    W: np.ndarray
    extra: Callable = lambda x: (0.0, 0.0, 0.0)


class Truth(NamedTuple):
    """xhat, f, grad f, and bounds of their own errors; qhat; a unit vector along which H is nearly smallest; W."""

    x: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    x_error: np.ndarray
    value_error: np.ndarray
    gradient_error: np.ndarray
    q: np.ndarray
    flat: np.ndarray
    W: np.ndarray


def minimise(lower: Lower, x, steps: int = 300):
    """Newton's method from x, each draw until its ||rho|| stops falling; nothing falls below its rounding."""
    x, left = x.copy(), np.arange(len(x))
    for _ in range(steps):
        here, base = lower.take(left), x[left]
        rho = here.gradient(base)
        d, size, floor = direction(here.hessian(base), rho), norm(rho), norm(here.rounding(base))
        t = np.ones((len(left), 1), Real)
        for _ in range(14):
            trial = base - t * d
            better = norm(here.gradient(trial)) < size
            shorter = ~better & (size > floor)
            if not shorter.any():
                break
            t[shorter] /= 2
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
    lower, cross, upper, mu, W, extra = reference
    x = minimise(lower, real(start))
    x_error = (norm(lower.gradient(x), 1 / W) + norm(lower.rounding(x), 1 / W)) / mu

    def adjoint(x):
        """grad_x g, qhat, grad f."""
        _, more_x, more_theta = extra(x)
        slope = upper.gradient(x) + more_x
        q = refine(lower.hessian(x), slope)
        return slope, q, more_theta - np.matmul(q[:, None], cross(x))[:, 0]

    slope, q, gradient = adjoint(x)
    value = upper.value(x) + extra(x)[0]
    value_error = norm(slope, 1 / W) * x_error + upper.value_rounding(x) + 2 * U * np.abs(value)
    rng = np.random.default_rng(0)

    def change():
        v = rng.standard_normal(x.shape)
        return norm(adjoint(x + x_error[:, None] * v / norm(v, W)[:, None])[-1] - gradient)

    gradient_error = 4 * x.shape[1] ** 0.5 * np.maximum(change(), change())
    flat = direction(lower.hessian(x), direction(lower.hessian(x), rng.standard_normal(x.shape)))
    return Truth(x, value, gradient, x_error, value_error, gradient_error, q, flat / norm(flat)[:, None], W)
