"""Random draws of the package's problems, and the reference of each, read off the numbers that the problem holds."""

from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np

from bilevel import AbstractProblem
from bilevel.problems import FieldsOfExperts, LogisticRegression, TotalVariation
from experiments.attack.references import Lower, Reference
from experiments.attack.terms import Real, Terms, real

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
        r = terms.residual(x)
        R = np.sqrt(np.sum(r**2, axis=-1, keepdims=True) + nu[..., None] ** 2)
        columns = [terms.pull(r / R), terms.pull(-r / R**3) * nu**2, e * x]
        return np.stack(columns[: theta.shape[1]], axis=-1)

    lower = Lower(terms, 1 + e * np.ones_like(y), y)
    return Reference(lower, cross, squares_to(clean, n), 1 + e[:, 0], np.ones_like(y))


def rows(phi: str, A: np.ndarray, y: np.ndarray, weight: Any = 1.0) -> Terms:
    """weight sum_i phi(a_i^T x - y_i)."""
    return Terms(phi, A[:, :, None], y[..., None], weight * np.ones(y.shape, Real))


def squares_to(clean: np.ndarray, n: int) -> Terms:
    """1/(2 n) ||x - clean||^2."""
    B, size = clean.shape
    return rows("squares", each(np.eye(size), B), clean, Real(1) / n)


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
    terms, cross = experts(leaves, problem.noisy.shape, problem.boundary)
    y, clean = (collect(draws, name).reshape(B, -1) for name in ("noisy", "clean"))
    learned = [name for name in LEAVES if name in draws[0][1]]

    def columns(x):
        kinds = cross(x)
        return np.concatenate([kinds[name].reshape(B, x.shape[1], -1) for name in learned], axis=2)

    one = np.ones_like(y)
    return Reference(Lower(terms, one, y), columns, squares_to(clean, len(problem.noisy)), one[:, 0], one)


def experts(leaves: dict[str, np.ndarray], shape: tuple[int, ...], boundary: str) -> tuple[Terms, Any]:
    """The regulariser, and x -> the columns of J by leaf."""
    n, height, width = shape
    B, F, size = leaves["filters"].shape[:3]
    number = np.arange(n * height * width).reshape(n, height, width)
    if boundary == "reflect":
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

    def cross(x):
        r = terms.residual(x)[..., 0]
        R = np.sqrt(r**2 + nu**2)

        def by_filter(v):  # w K^T v of each filter apart
            return np.einsum("bfp,bfpn->bnf", (w * v).reshape(B, F, P), K.reshape(B, F, P, -1))

        slope, bend = w * r / R, (w * nu**2 / R**3).reshape(B, F, P)
        patches = np.einsum("tpn,bn->btp", S, x)
        return {
            "filters": np.einsum("bfp,tpn->bnft", slope.reshape(B, F, P), S)
            + np.einsum("bfp,btp,bfpn->bnft", bend, patches, K.reshape(B, F, P, -1)),
            "scale": terms.pull((r / R)[..., None])[..., None],
            "smoothings": by_filter(-r * nu**2 / R**3),
            "weights": by_filter(r / R),
        }

    return terms, cross


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

    def labels(m):
        if balanced:
            return rng.permutation(m) % classes
        return np.append(rng.integers(0, classes, m - classes), np.arange(classes))

    balanced = rng.random() < 0.5
    problem = LogisticRegression(features(m), labels(m), features(9), labels(9))
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
    lower = Lower(scores("A", "y"), penalty, np.zeros_like(penalty))
    return Reference(
        lower, lambda x: (penalty * x)[..., None] * member, scores("A_valid", "y_valid"), mu, penalty / mu[:, None]
    )
