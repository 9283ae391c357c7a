"""Random draws of `Restoration`, every operator with every regulariser, and the reference of each.

    h(x) = 1/2 ||A x - y||^2 + sum over the potentials' rows + e/2 ||x||^2

A stands in maps.py; rows and their derivatives in theta by hand, but for the ridge's, whose filters and weights are
functions of theta (ridges.py).
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import problems
from experiments.attack.draws import Draw, collect, each, experts, rows, squares_to
from experiments.attack.maps import SHAPE, cumulated, matrix
from experiments.attack.references import Lower, Reference
from experiments.attack.ridges import ridge
from experiments.attack.terms import Real, Terms, real

rng = np.random.default_rng(0)
EVEN, SEEN = np.outer([0.25, 0.5, 0.25], [0.2, 0.6, 0.2]), rng.uniform(size=SHAPE) < 0.6
ODD = rng.normal(size=(3, 2))
FREQUENCIES = SEEN | (np.arange(6)[:, None] + np.arange(4) < 2)
OPERATORS = {
    "identity": problems.Identity,
    "mask": lambda: problems.Mask(SEEN),
    "blur": lambda: problems.Blur(ODD),
    "blur, reflected": lambda: problems.Blur(EVEN, "reflect"),
    "blur, odd, reflected": lambda: problems.Blur(ODD, "reflect"),
    "super": lambda: problems.SuperResolution(ODD, 2),
    "super, reflected": lambda: problems.SuperResolution(EVEN, 2, "reflect"),
    "Fourier": lambda: problems.MaskedFourier(FREQUENCIES),
    "matrix": lambda: problems.Matrix(np.random.default_rng(1).normal(size=(9, 24)), SHAPE),
    "tomography": lambda: problems.Matrix(np.random.default_rng(2).uniform(size=(40, 24)) ** 8, SHAPE),
    "function": lambda: problems.Linear(cumulated, SHAPE),
}
REGULARISERS = {
    "TV": problems.TV(),
    "isotropic TV": problems.TV(isotropic=True),
    "experts": problems.Experts(),
    "ridge": problems.Ridge(),
    "weak ridge": problems.Ridge(weak=True),
}


@cache
def made(operator: str, dtype) -> tuple[problems.AbstractOperator, np.ndarray]:
    """The operator in a dtype, and its matrix."""

    def held(v):
        return jnp.asarray(v, dtype) if isinstance(v, jax.Array) and jnp.issubdtype(v.dtype, np.floating) else v

    A = jax.tree.map(held, OPERATORS[operator]())
    return A, matrix(A)


def draw_restoration(rng, dtype, operator, kind, channels) -> Draw:
    """Pieces, noise from none to 1; weights e^-10 ... e^2, smoothings e^-7 ... e, elastic weights e^-10 ... e^2."""
    (A, dense), shape = made(operator, dtype), (1, *SHAPE, channels)
    clean = np.full(shape, rng.uniform())
    clean[:, : rng.integers(1, 6), : rng.integers(1, 4)] = rng.uniform(size=channels)
    data = dense.astype(float) @ clean.reshape(-1, channels)
    data = data + rng.choice([0, 0.01, 0.1, 1]) * rng.standard_normal(data.shape)
    if operator == "Fourier":
        data = (data[::2] + 1j * data[1::2]).astype(np.complex64 if dtype == np.float32 else np.complex128)
        data = data.reshape(1, *SHAPE)
    else:
        measured = jax.eval_shape(A.apply, jax.ShapeDtypeStruct(shape[:3], dtype)).shape
        data = data.astype(dtype).reshape(*measured, *shape[3:] * (channels > 1))
    clean = clean.astype(dtype).reshape(*shape[:3], *shape[3:] * (channels > 1))
    problem = problems.Restoration(clean, data, REGULARISERS[kind], A, elastic=True)
    theta = {name: jnp.asarray(v, dtype) for name, v in thetas(rng, kind).items()}
    return problem, theta | {"elastic": jnp.asarray(rng.uniform(-10, 2), dtype)}


def thetas(rng, kind) -> dict[str, np.ndarray]:
    if "TV" in kind:
        return {"weight": rng.uniform(-10, 2), "smoothing": rng.uniform(-7, 1)}
    if kind == "experts":
        leaves = {"scale": rng.uniform(-5, 1), "weights": rng.uniform(-5, 1, 2), "smoothings": rng.uniform(-5, 0.5, 2)}
        return leaves | {"filters": 10 ** rng.uniform(-1, 0.5) * rng.normal(size=(2, 2, 2))}
    leaves = {"weights": rng.uniform(-8, 1, (2, 2)), "smoothings": rng.uniform(-7, 0.5, (2, 2))}
    leaves["filters"] = 10 ** rng.uniform(-1, 1, (2, 2, 1)) * rng.normal(size=(2, 2, 4))
    if kind == "ridge":
        return leaves
    return leaves | {"gaps": rng.uniform(-5, 1, (2, 2)), "concavities": rng.uniform(-3, 4, (2, 2))}


class Sum(NamedTuple):
    """Of several `Terms`."""

    parts: tuple[Terms, ...]

    def gradient(self, x):
        return sum(part.gradient(x) for part in self.parts)

    def hessian(self, x):
        return sum(part.hessian(x) for part in self.parts)

    def rounding(self, x):
        return sum(part.rounding(x) for part in self.parts)

    def take(self, which):
        return Sum(tuple(part.take(which) for part in self.parts))


def refer_restoration(draws: list[Draw]) -> Reference:
    problem, B = draws[0][0], len(draws)
    shape = problem.clean.shape
    A = matrix(problem.operator, shape[3] if len(shape) > 3 else 1)
    leaves = {name: real(np.stack([theta[name] for _, theta in draws])) for name in draws[0][1]}
    clean, data = (collect(draws, name).reshape(B, -1) for name in ("clean", "data"))
    slope = np.exp(leaves["elastic"])[:, None] * np.ones_like(clean)
    e = slope + real(problem.data.dtype.type(problem.floor))
    make = {problems.TV: variation, problems.Experts: of_experts, problems.Ridge: ridge}[type(problem.regulariser)]
    terms, cross, bent = make(problem.regulariser, leaves, shape, problem.data.dtype.type)

    def columns(x):
        """The leaves in the order of their names."""
        kinds = cross(x) | {"elastic": (slope * x)[..., None]}
        return np.concatenate([kinds[name].reshape(B, x.shape[1], -1) for name in sorted(leaves)], axis=2)

    # convex: A^T A has no eigenvalue below 0, whatever eigvalsh makes of it
    least = np.linalg.eigvalsh((A.T @ A - bent).astype(float))[..., 0]
    mu = e[:, 0] + (least if np.ndim(bent) else np.maximum(least, 0))
    lower = Lower(Sum((rows("squares", each(A, B), data), *terms)), e, np.zeros_like(clean))
    return Reference(lower, columns, squares_to(clean, 1), mu, np.ones_like(clean))


def variation(R, leaves, shape, dtype):
    """One root a pixel and difference, or a pixel; over all channels."""
    B, number = len(leaves["weight"]), np.arange(np.prod(shape)).reshape(*SHAPE, -1)
    D = np.zeros((2, *number.shape, number.size))  # along rows, along columns
    for d, here, there in ((D[0], np.s_[:, :-1], np.s_[:, 1:]), (D[1], np.s_[:-1], np.s_[1:])):
        for i, j in zip(number[here].ravel(), number[there].ravel(), strict=True):
            d.reshape(-1, number.size)[i, [i, j]] = -1, 1
    D = np.moveaxis(D, 0, 2) if R.isotropic else D
    K = each(D.reshape(-1, number.shape[2] * (2 if R.isotropic else 1), number.size), B)
    w, nu = np.exp(leaves["weight"])[:, None] / 2, np.exp(leaves["smoothing"])[:, None]
    ones = np.ones(K.shape[:2], Real)
    terms = Terms("root", K, np.zeros(K.shape[:3], Real), w * ones, nu * ones)

    def cross(x):
        r = terms.residual(x)
        size = np.sqrt(np.sum(r**2, axis=-1, keepdims=True) + nu[..., None] ** 2)
        return {"weight": terms.pull(r / size), "smoothing": terms.pull(-r / size**3) * nu**2}

    return (terms,), cross, Real(0)


def of_experts(R, leaves, shape, dtype):
    terms, cross = experts(leaves, shape[:3], R.boundary)
    return (terms,), cross, Real(0)
