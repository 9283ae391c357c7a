"""Random draws of a user's own problems (problems.py, regression.py), their references, and any problem in
other units."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from bilevel.problems import FieldsOfExperts, LogisticRegression, Restoration, TotalVariation
from experiments.attack.draws import Draw, collect, each, power, refer_foe, refer_logistic, refer_tv, rows
from experiments.attack.problems import Cubic, LeastSquares, Quartic, Scaled
from experiments.attack.references import Lower, Reference
from experiments.attack.regression import Regression
from experiments.attack.restorations import refer_restoration
from experiments.attack.terms import Real, Terms, real


def draw_squares(
    rng, dtype, offset=0.0, condition=(0.3, 6), cancel=False, fitted=False, silent=(), spread=(0, 1.3), m=12
) -> Draw:
    """Six unknowns around `offset`, H of condition 10^`condition`, three hyperparameters up to 10^`spread`. `cancel`:
    the columns of A3 are orthogonal to those of A2, nearly. `fitted`: xhat minimises g as well, nearly, so that what is
    left of g's error is its rounding."""
    n, d = 6, 3
    U, V = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (m, n))
    sigma = np.sqrt(np.geomspace(1, 1 / power(rng, *condition), n)) * power(rng, -1, 1)
    A1, A2, A3 = rng.standard_normal((m, n)), (U * sigma) @ V.T, rng.standard_normal((m, d)) * sigma[0]
    if cancel:
        A3 = A3 - U @ (U.T @ A3) * (1 - power(rng, -9, 0))
    x, theta = offset * (1 + 0.1 * rng.standard_normal(n)), rng.uniform(-1, 1, d) * power(rng, *spread)
    b1, b2 = rng.standard_normal((2, m)) * power(rng, -1, 1)
    if fitted:
        Q = np.linalg.qr(A1)[0]
        b1, b2 = b1 - Q @ (Q.T @ b1), power(rng, -6, -1) * b2
    problem = LeastSquares(A1, A2, A3, A1 @ x + b1, A2 @ x + A3 @ theta + b2 * sigma[0], dtype, silent)
    return problem, jnp.asarray(theta, dtype)


def refer_squares(draws: list[Draw]) -> Reference:
    A1, A2, A3, b1, b2 = (collect(draws, name) for name in ("A1", "A2", "A3", "b1", "b2"))
    theta = real(np.stack([theta for _, theta in draws]))
    B, m, n = A2.shape
    k = b2 - np.matmul(A3, theta[..., None])[..., 0]
    smallest = np.linalg.svd(A2.astype(np.float64), compute_uv=False)
    zero = np.zeros((B, n), Real)
    return Reference(
        Lower(rows("squares", A2, k), zero, zero), lambda x: np.matmul(A2.swapaxes(1, 2), A3), rows("squares", A1, b1),
        real(smallest[:, -1] - 1e-15 * m * smallest[:, 0]) ** 2, zero + 1,
    )  # fmt: skip


def draw_regression(
    rng, dtype, loss="huber", fit="loss", metric=None, reads=False, silent=(), offset=0.0, tame=False, aligned=False
) -> Draw:
    """Nine rows, five features of any scale, x around `offset`; penalties e^-6 ... e^3, with `tame` e^-1 ... 1.
    `aligned`: one row a feature, that curves h about as much as its penalty does, and a nearly linear g that grows
    along strongly held features: then they decide q's norm in the metric, and the change of H is all of z's error."""
    A, B = power(rng, -0.7, 0.7) * rng.standard_normal((9, 5)), rng.standard_normal((7, 5))
    theta = rng.uniform(-1, 0, 6) if tame else np.append(rng.uniform(-4, 2), rng.uniform(-6, 3, 5))
    if aligned:
        A = np.eye(9, 5) * np.exp((theta[1:] - theta[0]) / 2) * rng.uniform(0.5, 2, 5)
        B = 1e-3 * B * np.exp(theta[1:] - theta[1:].max())
    x = offset * (1 + 0.1 * rng.standard_normal(5))
    y, c = A @ x + 3 * rng.standard_normal(9), B @ x + rng.standard_normal(7) * (1e4 if aligned else 3)
    arrays = (jnp.asarray(v, dtype) for v in (A, y, B, c))
    return Regression(*arrays, loss, fit, metric, reads, silent), jnp.asarray(theta, dtype)


def refer_regression(draws: list[Draw]) -> Reference:
    A, y, C, c = (collect(draws, name) for name in ("A", "y", "B", "c"))
    theta = real(np.stack([theta for _, theta in draws]))
    problem = draws[0][0]
    weight, penalty = np.exp(theta[:, :1]), np.exp(theta[:, 1:])
    terms = rows(problem.loss, A, y, weight)
    fit = "squares" if problem.fit == "squares" else problem.loss

    def extra(x):
        s, t = theta[:, :1], theta[:, 1:]
        total = np.sum(x, axis=1, keepdims=True)
        value = (np.sin(s) / 8 * total)[:, 0] + np.sum(t**2, axis=1) / 16
        return value, np.sin(s) / 8 * np.ones_like(x), np.concatenate([np.cos(s) * total / 8, t / 8], axis=1)

    mu = penalty.min(axis=1)
    reference = Reference(
        Lower(terms, penalty, 0 * penalty), partial(weight_and_penalties, terms, penalty), rows(fit, C, c), mu,
        np.ones_like(penalty) if problem.metric is None else penalty / mu[:, None],
    )  # fmt: skip
    return reference._replace(extra=extra) if problem.reads else reference


def weight_and_penalties(terms: Terms, penalty, x):
    """J of e^s sum phi + 1/2 sum e^t x^2 in (s, t)."""
    return np.concatenate([terms.gradient(x)[..., None], (penalty * x)[..., None] * np.eye(x.shape[1])], axis=2)


def draw_quartic(rng, dtype) -> Draw:
    y, B, c = power(rng, -1, 1) * rng.standard_normal(4), rng.standard_normal((6, 4)), rng.standard_normal(6)
    theta = np.append(rng.uniform(-4, 1), rng.uniform(-3, 2, 4))
    y, B, c, theta = (jnp.asarray(v, dtype) for v in (y, B, c, theta))
    return Quartic(y, B, c, jnp.asarray((1 + 1e-5) * np.linalg.norm(B, 2), dtype)), theta


def refer_quartic(draws: list[Draw]) -> Reference:
    y, C, c = (collect(draws, name) for name in ("y", "B", "c"))
    theta = real(np.stack([theta for _, theta in draws]))
    B, n = y.shape
    penalty = np.exp(theta[:, 1:])
    terms = rows("quartic", each(np.eye(n), B), y, np.exp(theta[:, :1]))
    return Reference(
        Lower(terms, penalty, 0 * y), partial(weight_and_penalties, terms, penalty), rows("squares", C, c),
        penalty.min(axis=1), np.ones_like(y),
    )  # fmt: skip


def draw_cubic(rng, dtype, told=1.0) -> Draw:
    mu, a, p, slope = (power(rng, -1, 1) for _ in range(4))
    problem = Cubic(*(jnp.asarray(v, dtype) for v in (mu, a, p, slope, told)))
    return problem, jnp.zeros(1, dtype)


def refer_cubic(draws: list[Draw]) -> Reference:
    mu, a, p, slope = (collect(draws, name)[:, None] for name in ("mu", "a", "p", "slope"))
    B, one = len(draws), np.ones((len(draws), 1), Real)
    theta = real(np.stack([theta for _, theta in draws]))
    eye, zero = each(np.ones((1, 1, 1)), B), np.zeros((B, 1, 1), Real)
    linear = Terms("squares", eye * 0, zero, one)  # g is linear: all of it is `extra`
    return Reference(
        Lower(Terms("cubic", eye, zero, a), mu, -theta * p), lambda x: p[..., None], linear, mu[:, 0], one,
        lambda x: ((slope * x)[:, 0], slope, 0.0),
    )  # fmt: skip


def scaled(rng, dtype, draw, a=None, b=None) -> Draw:
    """`draw` in other units, a h and b g: a, b from 1e-22 to 1e6, in float64 from 1e-170 to 1e60, or 10^`a`, 10^`b`."""
    problem, theta = draw(rng, dtype)
    usual = (-22, 6) if dtype == np.float32 else (-170, 60)
    return Scaled(problem, *(jnp.asarray(power(rng, *(ends or usual)), dtype) for ends in (a, b))), theta


REFER = {
    TotalVariation: refer_tv,
    FieldsOfExperts: refer_foe,
    LogisticRegression: refer_logistic,
    Restoration: refer_restoration,
    LeastSquares: refer_squares,
    Regression: refer_regression,
    Quartic: refer_quartic,
    Cubic: refer_cubic,
}


def refer(draws: list[Draw]) -> tuple[Reference, np.ndarray, np.ndarray]:
    """The reference of the problems in their own units, and a and b, 1 where they are not `Scaled`."""
    units = [(p.a, p.b) if isinstance(p, Scaled) else (1, 1) for p, _ in draws]
    inner = [(p.problem if isinstance(p, Scaled) else p, theta) for p, theta in draws]
    return REFER[type(inner[0][0])](inner), *real(units).T
