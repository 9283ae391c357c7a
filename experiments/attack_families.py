"""Random draws of each problem, and for the same draws the reference, read off the numbers that the problem holds."""

from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from attack_problems import Cubic, LeastSquares, Quartic, Regression, Scaled
from attack_references import SLOPES, CURVATURES, Real, Reference, Terms, real

from bilevel import AbstractProblem
from problems import FieldsOfExperts, LogisticRegression, TotalVariation

Draw = tuple[AbstractProblem, Any]


def collect(draws: list[Draw], name: str) -> np.ndarray:
    """A field of all the problems, in 80 bits."""
    return real(np.stack([getattr(problem, name) for problem, _ in draws]))


def each(matrix: np.ndarray, count: int) -> np.ndarray:
    """The same matrix for every draw."""
    return np.broadcast_to(real(matrix), (count, *matrix.shape))


def power(rng, low: float, high: float) -> float:
    return 10 ** rng.uniform(low, high)


# Total variation.


def draw_tv(rng, dtype, shape=(1, 5, 6), isotropic=False, elastic=False) -> Draw:
    """Pieces, noise from none to 1; weights e^-10 ... e^2, smoothings e^-7 ... e."""
    clean = np.full(shape, rng.uniform())
    clean[:, : rng.integers(1, shape[1]), : rng.integers(1, shape[2])] = rng.uniform()
    noisy = clean + rng.choice([0, 0.01, 0.1, 1]) * rng.standard_normal(shape)
    theta = np.array([rng.uniform(-10, 2), rng.uniform(-7, 1), rng.uniform(-10, 2)])[: 2 + elastic]
    problem = TotalVariation(clean.astype(dtype), noisy.astype(dtype), isotropic=isotropic, elastic=elastic)
    return problem, jnp.asarray(theta, dtype)


def refer_tv(draws: list[Draw]) -> Reference:
    problem, B = draws[0][0], len(draws)
    theta = real(np.stack([theta for _, theta in draws]))
    n, height, width = problem.noisy.shape
    number = np.arange(n * height * width).reshape(n, height, width)
    D = np.zeros((2, number.size, number.size))
    for rows, here, there in ((D[0], number[:, :, :-1], number[:, :, 1:]), (D[1], number[:, :-1], number[:, 1:])):
        rows[here.ravel(), there.ravel()], rows[here.ravel(), here.ravel()] = 1, -1
    D = D.swapaxes(0, 1) if problem.isotropic else D[np.abs(D).sum(axis=2) > 0][:, None]
    K = each(D, B)
    w, nu = np.exp(theta[:, :1]) / 2, np.exp(theta[:, 1:2])
    e = np.exp(theta[:, 2:]) if problem.elastic else np.zeros_like(w)
    ones = np.ones((B, K.shape[1]), Real)
    terms = Terms("root", K, np.zeros(K.shape[:3], Real), w * ones, nu * ones)
    y, clean = (collect(draws, name).reshape(B, -1) for name in ("noisy", "clean"))

    def cross(x):
        r, R = terms.residual(x), None
        R = np.sqrt(np.sum(r**2, axis=-1, keepdims=True) + nu[..., None] ** 2)
        columns = [terms.pull(r / R), terms.pull(-r / R**3) * nu**2, e * x]
        return np.stack(columns[: theta.shape[1]], axis=-1)

    return Reference(terms, 1 + e * np.ones_like(y), y, cross, squares_to(clean, n), 1 + e[:, 0], np.ones_like(y))


def squares_to(clean: np.ndarray, n: int) -> Terms:
    """1/(2 n) ||x - clean||^2."""
    B, size = clean.shape
    return Terms("squares", each(np.eye(size)[:, None], B), clean[..., None], np.full((B, size), Real(1) / n))


# Fields of Experts.

LEAVES = ("filters", "scale", "smoothings", "weights")
SUBSETS = [leaves for k in range(1, 5) for leaves in combinations(LEAVES, k)]


def draw_foe(rng, dtype, learned=LEAVES, boundary="valid", shape=(1, 5, 5), filters=3, size=2) -> Draw:
    clean = np.full(shape, rng.uniform())
    clean[:, : rng.integers(1, shape[1]), : rng.integers(1, shape[2])] = rng.uniform()
    noisy = clean + rng.choice([0.01, 0.1, 1]) * rng.standard_normal(shape)
    leaves = {
        "filters": power(rng, -1, 0.5) * rng.standard_normal((filters, size, size)),
        "scale": rng.uniform(-5, 1, ()),
        "smoothings": rng.uniform(-5, 0.5, filters),
        "weights": rng.uniform(-5, 1, filters),
    }
    leaves = {name: jnp.asarray(v, dtype) for name, v in leaves.items()}
    fixed = {name: v for name, v in leaves.items() if name not in learned}
    problem = FieldsOfExperts(clean.astype(dtype), noisy.astype(dtype), fixed=fixed, boundary=boundary)
    return problem, {name: leaves[name] for name in learned}


def refer_foe(draws: list[Draw]) -> Reference:
    problem, B = draws[0][0], len(draws)
    leaves = {name: real(np.stack([{**p.fixed, **t}[name] for p, t in draws])) for name in LEAVES}
    n, height, width = problem.noisy.shape
    F, size = leaves["filters"].shape[1:3]
    number = np.arange(n * height * width).reshape(n, height, width)
    if problem.boundary == "reflect":
        margin = ((size - 1) // 2, size // 2)
        number = np.pad(number, ((0, 0), margin, margin), mode="reflect")
    rows, columns = number.shape[1] - size + 1, number.shape[2] - size + 1
    S = np.zeros((size**2, n * rows * columns, n * height * width))  # tap by tap: which pixel each response reads
    for tap, (i, j) in enumerate(np.ndindex(size, size)):
        pixels = number[:, i : i + rows, j : j + columns].ravel()
        S[tap, np.arange(len(pixels)), pixels] = 1
    S = real(S)
    P = S.shape[1]
    taps = leaves["filters"].reshape(B, F, size**2)
    K = np.einsum("bft,tpn->bfpn", taps, S).reshape(B, F * P, 1, -1)
    w = np.repeat(np.exp(leaves["scale"][:, None] + leaves["weights"]) / 2, P, axis=1)
    nu = np.repeat(np.exp(leaves["smoothings"]), P, axis=1)
    terms = Terms("root", K, np.zeros((B, F * P, 1), Real), w, nu)
    y, clean = (collect(draws, name).reshape(B, -1) for name in ("noisy", "clean"))

    def cross(x):
        r = terms.residual(x)[..., 0]
        R = np.sqrt(r**2 + nu**2)

        def by_filter(v):  # w K^T v of each filter apart
            return np.einsum("bfp,bfpn->bnf", (w * v).reshape(B, F, P), K.reshape(B, F, P, -1))

        slope, bend = w * r / R, (w * nu**2 / R**3).reshape(B, F, P)
        patches = np.einsum("tpn,bn->btp", S, x)
        kinds = {
            "filters": np.einsum("bfp,tpn->bnft", slope.reshape(B, F, P), S)
            + np.einsum("bfp,btp,bfpn->bnft", bend, patches, K.reshape(B, F, P, -1)),
            "scale": terms.pull((r / R)[..., None])[..., None],
            "smoothings": by_filter(-r * nu**2 / R**3),
            "weights": by_filter(r / R),
        }
        learned = draws[0][1]
        return np.concatenate([kinds[name].reshape(B, x.shape[1], -1) for name in LEAVES if name in learned], axis=2)

    one = np.ones_like(y)
    return Reference(terms, one, y, cross, squares_to(clean, n), one[:, 0], one)


# Multinomial logistic regression.

SHAPES = {"one": (), "class": (1, 3), "feature": (4, 1), "weight": (4, 3)}


def draw_logistic(rng, dtype, shape=(4, 3), mean=0.0, p=4, classes=3, m=12) -> Draw:
    """Features of any scale, around `mean`; now and then one is zero throughout, or is 0 or 1. Labels are balanced in
    every other draw: then features of a large mean cancel in the gradient, and strong penalties leave nothing else."""

    def features(m):
        A = mean + spread * rng.standard_normal((m, p))
        A[:, -1] = [A[:, -1], 0 * A[:, -1], A[:, -1] > mean][odd]
        return A.astype(dtype)

    spread, odd = power(rng, -1, 1), rng.choice(3, p=[0.7, 0.15, 0.15])
    balanced = rng.random() < 0.5
    labels = [rng.permutation(m) % classes if balanced else np.append(rng.integers(0, classes, m - 1), classes - 1) for m in (m, 9)]
    problem = LogisticRegression(features(m), labels[0], features(9), labels[1])
    theta = rng.uniform(-8, 8, shape) if rng.random() < 0.5 else rng.uniform(-8, 10) + rng.uniform(-1, 1, shape)
    return problem, jnp.asarray(theta, dtype)


def refer_logistic(draws: list[Draw]) -> Reference:
    B, (p, c) = len(draws), (draws[0][0].A.shape[1], draws[0][0].classes)
    theta = real(np.stack([theta for _, theta in draws]))
    shape = theta.shape[1:]
    groups = np.broadcast_to(np.arange(np.prod(shape, dtype=int)).reshape(shape), (p, c)).ravel()
    penalty = np.exp(theta.reshape(B, -1))[:, groups]
    member = real(np.eye(groups.max() + 1)[groups])

    def scores(A, y):
        A, labels = collect(draws, A), np.eye(c)[np.stack([getattr(problem, y) for problem, _ in draws])]
        K = (A[:, :, None, :, None] * np.eye(c)[:, None, :]).reshape(B, A.shape[1], c, p * c)
        w = np.full(A.shape[:2], Real(1) / A.shape[1])
        return Terms("softmax", K, np.zeros(K.shape[:3], Real), w, real(labels))

    mu = penalty.min(axis=1)
    return Reference(
        scores("A", "y"), penalty, np.zeros_like(penalty), lambda x: (penalty * x)[..., None] * member,
        scores("A_valid", "y_valid"), mu, penalty / mu[:, None],
    )  # fmt: skip


# Problems of a user's own.


def draw_squares(rng, dtype, offset=0.0, cancel=False, fitted=False, silent=(), spread=(0, 1.3), n=6, d=3, m=12) -> Draw:
    """Condition 2 to 1e6, x around `offset`. `cancel`: the columns of A3 are orthogonal to those of A2, nearly.
    `fitted`: condition below 2, and xhat minimises g as well, nearly: what is left of g's error is its rounding."""
    U, V = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (m, n))
    low = -0.3 if fitted else -6
    sigma = np.sqrt(np.geomspace(1, power(rng, low, -0.3 if low < -1 else 0), n)) * power(rng, -1, 1)
    A1, A2, A3 = rng.standard_normal((m, n)), (U * sigma) @ V.T, rng.standard_normal((m, d)) * sigma[0]
    if cancel:
        A3 = A3 - U @ (U.T @ A3) * (1 - power(rng, -9, 0))
    x, theta = offset * (1 + 0.1 * rng.standard_normal(n)), rng.uniform(-1, 1, d) * power(rng, *spread)
    b1, b2 = rng.standard_normal((2, m)) * power(rng, -1, 1)
    if fitted:
        Q = np.linalg.qr(A1)[0]
        b1, b2 = b1 - Q @ (Q.T @ b1), power(rng, -6, -1) * b2
    return LeastSquares(A1, A2, A3, A1 @ x + b1, A2 @ x + A3 @ theta + b2 * sigma[0], dtype, silent), (
        jnp.asarray(theta, dtype)
    )


def refer_squares(draws: list[Draw]) -> Reference:
    A1, A2, A3, b1, b2 = (collect(draws, name) for name in ("A1", "A2", "A3", "b1", "b2"))
    theta = real(np.stack([theta for _, theta in draws]))
    B, m, n = A2.shape
    k = b2 - np.matmul(A3, theta[..., None])[..., 0]
    smallest = np.linalg.svd(A2.astype(np.float64), compute_uv=False)
    zero = np.zeros((B, n), Real)
    return Reference(
        Terms("squares", A2[:, :, None], k[..., None], np.ones((B, m), Real)), zero, zero,
        lambda x: np.matmul(A2.swapaxes(1, 2), A3),
        Terms("squares", A1[:, :, None], b1[..., None], np.ones(A1.shape[:2], Real)),
        real(smallest[:, -1] - 1e-15 * m * smallest[:, 0]) ** 2, np.ones((B, n), Real),
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
    problem, (B, m, n) = draws[0][0], A.shape
    weight, penalty = np.exp(theta[:, :1]), np.exp(theta[:, 1:])
    terms = Terms(problem.loss, A[:, :, None], y[..., None], weight * np.ones((B, m), Real))
    fit = "squares" if problem.fit == "squares" else problem.loss

    def extra(x):
        s, t = theta[:, :1], theta[:, 1:]
        total = np.sum(x, axis=1, keepdims=True)
        value = (0.1 * np.sin(s) * total)[:, 0] * 1 + np.sum(t**2, axis=1) / 20
        return value, np.sin(s) / 10 * np.ones_like(x), np.concatenate([np.cos(s) * total / 10, t / 10], axis=1)

    mu = penalty.min(axis=1)
    return Reference(
        terms, penalty, np.zeros_like(penalty), partial(weight_and_penalties, terms, penalty),
        Terms(fit, C[:, :, None], c[..., None], np.ones(C.shape[:2], Real)), mu,
        np.ones_like(penalty) if problem.metric is None else penalty / mu[:, None],
        extra if problem.reads else None,
    )  # fmt: skip


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
    terms = Terms("quartic", each(np.eye(n)[:, None], B), y[..., None], np.exp(theta[:, :1]) * np.ones_like(y))
    return Reference(
        terms, penalty, np.zeros_like(y), partial(weight_and_penalties, terms, penalty),
        Terms("squares", C[:, :, None], c[..., None], np.ones(C.shape[:2], Real)), penalty.min(axis=1), np.ones_like(y),
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
        Terms("cubic", eye, zero, a), mu, -theta * p, lambda x: p[..., None], linear, mu[:, 0], one,
        lambda x: ((slope * x)[:, 0], slope, 0.0),
    )  # fmt: skip


def scaled(rng, dtype, draw, a=None, b=None) -> Draw:
    """`draw` in other units: a h and b g, a and b from 1e-22 to 1e6, in float64 from 1e-170 to 1e60, or 10^`a`, 10^`b`."""
    problem, theta = draw(rng, dtype)
    usual = (-22, 6) if dtype == np.float32 else (-170, 60)
    return Scaled(problem, *(jnp.asarray(power(rng, *(ends or usual)), dtype) for ends in (a, b))), theta


REFER = {
    TotalVariation: refer_tv,
    FieldsOfExperts: refer_foe,
    LogisticRegression: refer_logistic,
    LeastSquares: refer_squares,
    Regression: refer_regression,
    Quartic: refer_quartic,
    Cubic: refer_cubic,
}


class Units(NamedTuple):
    """a and b of `Scaled`, 1 for other problems; one a draw, in 80 bits."""

    a: np.ndarray
    b: np.ndarray


def refer(draws: list[Draw]) -> tuple[Reference, Units]:
    """The reference of the problems in their own units, and these."""
    kinds = [isinstance(problem, Scaled) for problem, _ in draws]
    units = [(real(p.a), real(p.b)) if k else (Real(1), Real(1)) for (p, _), k in zip(draws, kinds, strict=True)]
    inner = [(p.problem if k else p, theta) for (p, theta), k in zip(draws, kinds, strict=True)]
    return REFER[type(inner[0][0])](inner), Units(*np.array(units).T)
