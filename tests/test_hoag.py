"""HOAG against an independent transcription of its published pseudo-code (Pedregosa 2016, arXiv 1602.02355)."""

import numpy as np
import pytest

import bilevel
from bilevel.problems import LogisticRegression


def data(rng, signal=10.0, rows=30, features=4, classes=3):
    A = rng.standard_normal((rows, features))
    scores = A @ (signal * np.eye(features, classes))
    return A, np.argmax(scores + rng.gumbel(size=scores.shape), axis=1)


def softmax(s):
    e = np.exp(s - s.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Exact:
    """NumPy: h's minimiser by Newton's method, g, and the hypergradient in the log penalties, one per weight."""

    def __init__(self, A, y, A_valid, y_valid):
        self.A, self.Y, self.A_valid, self.Y_valid = A, np.eye(y.max() + 1)[y], A_valid, np.eye(y.max() + 1)[y_valid]

    def solve(self, theta):
        n, p, c = len(self.A), *theta.shape
        W = np.zeros((p, c))
        for _ in range(50):
            P = softmax(self.A @ W)
            rho = self.A.T @ (P - self.Y) / n + np.exp(theta) * W
            H = np.diag(np.exp(theta).ravel())
            for a, q in zip(self.A, P, strict=True):
                H += np.kron(np.outer(a, a), np.diag(q) - np.outer(q, q)) / n
            W = W - np.linalg.solve(H, rho.ravel()).reshape(p, c)
        P = softmax(self.A_valid @ W)
        g = -np.mean(np.log(P[self.Y_valid == 1]))
        g_x = self.A_valid.T @ (P - self.Y_valid) / len(P)
        return g, -np.exp(theta) * W * np.linalg.solve(H, g_x.ravel()).reshape(p, c)


def transcription(problem, theta, steps, stretch, tolerance=1e-9, ratio=0.9, C=0.25):
    """theta_k of the accepted steps, how many trials were rejected, and the first step."""
    g, z = problem.solve(theta)
    first = stretch * np.sqrt(theta.size) / np.linalg.norm(z)
    Lam, rejected = 1 / first, 0
    thetas, tol = [theta], tolerance
    while len(thetas) <= steps:
        c = np.linalg.norm(z) / Lam
        trial = theta - z / Lam
        g_trial, z_trial = problem.solve(trial)
        next_tol = tol * ratio
        if g_trial <= g + C * next_tol + tol * (C + 1) * c - Lam * c**2:
            Lam *= 0.95
        elif g_trial >= 1.2 * g:
            Lam *= 2
            tol *= 0.5
            rejected += 1
            continue
        theta, g, z, tol = trial, g_trial, z_trial, next_tol
        thetas.append(theta)
    return np.array(thetas), rejected, first


@pytest.mark.parametrize(("start", "stretch"), [(-3.0, 1), (1.0, 1), (-4.0, 3), (-6.0, 10)])
def test_iterates_are_those_of_the_pseudo_code(start, stretch):
    """At tolerances that leave no error worth mention twelve steps agree, after rejected first steps as well."""
    rng = np.random.default_rng(0)
    A, y = data(rng)
    A_valid, y_valid = data(rng)
    theta0 = np.full((4, 3), start)
    expected, rejected, first = transcription(Exact(A, y, A_valid, y_valid), theta0, 12, stretch)
    assert (rejected > 0) == (stretch > 1)
    step = None if stretch == 1 else first  # None: sqrt(d) / ||z||, as published
    method = bilevel.hoag(bilevel.Geometric(0.9), tolerance=1e-9, step=step, solver=bilevel.NewtonCG())
    problem = LogisticRegression(A, y, A_valid, y_valid)
    steps = bilevel.iterate(problem, theta0, method, max_steps=12, tol=0.0)
    found = np.array([np.asarray(info.theta) for _, info in steps])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
