"""F(theta) = g(xhat(theta)) and its gradient, written a second time:

    grad F = -J^T H^{-1} grad g(xhat)       (none of these g reads theta)

in float64, by dense or sparse linear algebra from the formulas alone. Nothing that `bilevel` computes is in it, but for
the quadratic, which has a closed form.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
import scipy.linalg as dense
import scipy.optimize
import scipy.sparse as sparse
from scipy.sparse.linalg import splu
from scipy.special import logsumexp

# Log penalties of SciPy's search: beyond, a weight is free or its feature out, and the factors of H lose their digits.
FAR = 20.0


class Objective:
    """F and grad F; theta of any shape. A subclass has, for x flat,

    `start()`, `energy(x, theta)` = h, `newton(x, theta)` = (grad_x h, r -> H^{-1} r), `upper(x)` = (g, grad g) and
    `pull(x, q, theta)` = J^T q; where SciPy looks, `box`. Newton's method starts where it ended the last time.
    """

    x: np.ndarray | None = None
    box: tuple[float, float] | None = None

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        theta = np.asarray(theta, np.float64)
        x, solve = self.minimise(theta)
        value, slope = self.upper(x)
        return float(value), -self.pull(x, solve(slope), theta)

    def minimise(self, theta: np.ndarray) -> tuple[np.ndarray, Callable]:
        """xhat and r -> H^{-1} r: Newton steps halved until h falls, at the end for as long as the gradient does."""
        x = self.start() if self.x is None else self.x
        r, solve = self.newton(x, theta)
        for _ in range(200):
            d, t, h = solve(r), 1.0, self.energy(x, theta)
            near = r @ d <= 1e-9 * max(abs(h), 1e-3)  # here the rounding in h would decide
            while not near and self.energy(x - t * d, theta) > h - 0.1 * t * (r @ d):
                t /= 2
            r_next, solve_next = self.newton(x - t * d, theta)
            if near and not np.linalg.norm(r_next) < np.linalg.norm(r):
                self.x = x
                return x, solve
            x, r, solve = x - t * d, r_next, solve_next
        raise ArithmeticError(f"Newton's method does not end at theta = {theta}")

    def best(self, theta0: np.ndarray, bounds: tuple[float, float] | None = None) -> float:
        """The least F that L-BFGS-B finds from theta0, started again from its end until that gains nothing."""

        def flat(theta):
            value, gradient = self(theta.reshape(np.shape(theta0)))
            return value, np.ravel(gradient)

        box, options = bounds or self.box, {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000, "maxfun": 4000}
        theta, best = np.ravel(theta0).astype(float), self(theta0)[0]
        while True:
            run = scipy.optimize.minimize(
                flat, theta, jac=True, method="L-BFGS-B", bounds=box and [box] * theta.size, options=options
            )
            if not run.fun < best - 1e-9 * abs(best):
                return min(best, float(run.fun))
            best, theta = float(run.fun), run.x


class RidgeObjective(Objective):
    """The normal equations, (A^T A + diag e^theta) x = A^T b."""

    def __init__(self, problem):
        self.A, self.b, self.V, self.v = map(np.asarray, (problem.A, problem.b, problem.A_valid, problem.b_valid))

    def minimise(self, theta):
        factor = dense.cho_factor(self.A.T @ self.A + np.diag(np.exp(theta)))
        return dense.cho_solve(factor, self.A.T @ self.b), partial(dense.cho_solve, factor)

    def upper(self, x):
        r = self.V @ x - self.v
        return r @ r / 2, self.V.T @ r

    def pull(self, x, q, theta):
        return np.exp(theta) * x * q


class SoftmaxObjective(Objective):
    """1/n sum_i CE(W^T a_i, y_i) + 1/2 sum_j e^{theta_j} ||W_j||^2, one penalty in all or one per feature j.

    Such penalties see the classes alike, so each row W_j of the minimiser adds up to zero: W = X B^T, the columns of B
    (classes, classes - 1) orthonormal and orthogonal to ones. H in X is well determined; in W it is, along ones, by the
    penalty alone.
    """

    box = (-FAR, FAR)

    def __init__(self, problem):
        self.A, self.V = (np.asarray(v, np.float64) for v in (problem.A, problem.A_valid))
        self.y, self.y_valid = np.asarray(problem.y), np.asarray(problem.y_valid)
        self.B = dense.null_space(np.ones((1, 1 + max(self.y.max(), self.y_valid.max()))))
        self.shape = self.A.shape[1], self.B.shape[1]

    def start(self):
        return np.zeros(np.prod(self.shape))

    def penalties(self, theta):
        return np.broadcast_to(np.exp(theta), self.shape).ravel()

    def entropy(self, x, A, y):
        """The mean cross-entropy, its gradient in X, and the probabilities."""
        scores, rows = A @ x.reshape(self.shape) @ self.B.T, np.arange(len(y))
        logs = scores - logsumexp(scores, axis=1, keepdims=True)
        wrong = np.exp(logs)
        wrong[rows, y] -= 1
        return -logs[rows, y].mean(), (A.T @ wrong @ self.B / len(y)).ravel(), np.exp(logs)

    def energy(self, x, theta):
        return self.entropy(x, self.A, self.y)[0] + self.penalties(theta) @ x**2 / 2

    def newton(self, x, theta):
        (_, r, p), penalties, B = self.entropy(x, self.A, self.y), self.penalties(theta), self.B
        H = np.zeros(2 * self.shape)
        for a in range(B.shape[1]):
            for b in range(a + 1):
                weights = (p @ (B[:, a] * B[:, b]) - (p @ B[:, a]) * (p @ B[:, b])) / len(p)
                H[:, a, :, b] = H[:, b, :, a] = self.A.T @ (weights[:, None] * self.A)
        H = H.reshape(x.size, x.size) + np.diag(penalties)
        unit = 1 / np.sqrt(np.diag(H))  # features and penalties may be of any size
        factor = dense.cho_factor(unit[:, None] * H * unit)
        return r + penalties * x, lambda r: unit * dense.cho_solve(factor, unit * r)

    def upper(self, x):
        return self.entropy(x, self.V, self.y_valid)[:2]

    def pull(self, x, q, theta):
        each = (self.penalties(theta) * x * q).reshape(self.shape)
        return each.sum(axis=1, keepdims=True) if np.ndim(theta) else each.sum()


class TVObjective(Objective):
    """Total variation by matrices of differences, 1/2 ||x - y||^2 + w sum sqrt((D x)^2 + nu^2); sparse Newton."""

    def __init__(self, problem):
        self.count, height, width = problem.noisy.shape
        self.y, self.clean = np.ravel(problem.noisy), np.ravel(problem.clean)

        def steps(size):
            return sparse.diags([-np.ones(size - 1), np.ones(size - 1)], [0, 1], (size - 1, size))

        across, down = sparse.kron(sparse.eye(height), steps(width)), sparse.kron(steps(height), sparse.eye(width))
        self.D = sparse.kron(sparse.eye(self.count), sparse.vstack([across, down])).tocsc()

    def start(self):
        return self.y

    def parts(self, x, theta):
        """w, nu, D x and the roots."""
        (w, nu), d = np.exp(theta) * (0.5, 1.0), self.D @ x
        return w, nu, d, np.hypot(d, nu)

    def energy(self, x, theta):
        w, _, _, root = self.parts(x, theta)
        return np.sum((x - self.y) ** 2) / 2 + w * np.sum(root)

    def newton(self, x, theta):
        w, nu, d, root = self.parts(x, theta)
        H = sparse.eye(x.size) + w * self.D.T @ sparse.diags(nu**2 / root**3) @ self.D
        return x - self.y + w * self.D.T @ (d / root), splu(H.tocsc()).solve

    def upper(self, x):
        r = x - self.clean
        return r @ r / 2 / self.count, r / self.count

    def pull(self, x, q, theta):
        w, nu, d, root = self.parts(x, theta)
        return w * np.array([d / root @ (self.D @ q), -(nu**2) * d / root**3 @ (self.D @ q)])


class QuadraticObjective(Objective):
    """The closed form by least squares; xhat reaches every x, so the best is the least of g."""

    def __init__(self, problem):
        self.closed_form, self.A1, self.b1 = problem.closed_form, np.asarray(problem.A1), np.asarray(problem.b1)

    def __call__(self, theta):
        return self.closed_form(jnp.asarray(theta))[1:]

    def best(self, theta0, bounds=None):
        return np.linalg.norm(self.A1 @ np.linalg.lstsq(self.A1, self.b1)[0] - self.b1) ** 2 / 2
