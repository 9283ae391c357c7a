"""Operators, regularisers and random restoration problems that the tests share: few shapes, so few programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import problems

SHAPE = (2, 6, 4)
COLOUR = (1, 6, 4, 2)
rng = np.random.default_rng(0)
EVEN = np.outer([0.25, 0.5, 0.25], [0.2, 0.6, 0.2])
NARROW = np.array([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]])
ODD = rng.normal(size=(3, 2))
SEEN = rng.uniform(size=SHAPE[1:]) < 0.6
FREQUENCIES = SEEN | (np.arange(6)[:, None] + np.arange(4) < 2)


def cumulated(x):
    """Linear, and of no class here: sums along the rows, from the left."""
    return jnp.cumsum(x, axis=2) / 4


OPERATORS = {
    "identity": lambda: problems.Identity(),
    "mask": lambda: problems.Mask(SEEN),
    "blur": lambda: problems.Blur(ODD),
    "blur, narrow": lambda: problems.Blur(NARROW),
    "blur, reflected": lambda: problems.Blur(EVEN, "reflect"),
    "blur, odd, reflected": lambda: problems.Blur(ODD, "reflect"),
    "super": lambda: problems.SuperResolution(ODD, 2),
    "super, reflected": lambda: problems.SuperResolution(EVEN, 2, "reflect"),
    "Fourier": lambda: problems.MaskedFourier(FREQUENCIES),
    "matrix": lambda: problems.Matrix(np.random.default_rng(1).normal(size=(9, 24)), SHAPE[1:]),
    "function": lambda: problems.Linear(cumulated, SHAPE[1:]),
}
REGULARISERS = {
    "TV": problems.TV,
    "isotropic": lambda: problems.TV(isotropic=True),
    "experts": lambda: problems.Experts(fixed={"filters": np.random.default_rng(2).normal(size=(2, 2, 2))}),
    "ridge": problems.Ridge,
    "weak ridge": lambda: problems.Ridge(weak=True),
}


def thetas(regulariser, rng, elastic=True):
    """A random theta of a regulariser: weights e^-6..e, smoothings e^-4..1, elastic e^-4..1."""
    if regulariser.endswith("ridge"):  # 3 x 3: two generators of each kind, of four coefficients
        theta = {"weights": rng.uniform(-6, 0, (2, 2)), "smoothings": rng.uniform(-4, 0, (2, 2))}
        theta |= {"filters": rng.normal(size=(2, 2, 4))}
        if regulariser == "weak ridge":
            theta |= {"gaps": rng.uniform(-3, 1, (2, 2)), "concavities": rng.uniform(-2, 3, (2, 2))}
    elif regulariser == "experts":
        theta = {"scale": rng.uniform(-5, 1), "weights": rng.uniform(-1, 1, 2), "smoothings": rng.uniform(-4, 0, 2)}
    else:
        theta = {"weight": rng.uniform(-6, 1), "smoothing": rng.uniform(-4, 0)}
    return theta | ({"elastic": rng.uniform(-4, 0)} if elastic else {})


@functools.cache
def made(operator, dtype):
    """The operator, its floats in a dtype."""
    A = OPERATORS[operator]()
    return jax.tree.map(lambda v: jnp.asarray(v, dtype) if jnp.issubdtype(jnp.result_type(v), jnp.floating) else v, A)


def draw(operator, regulariser, rng, dtype=np.float64, shape=SHAPE):
    """A problem of images of two flat pieces, with noise of 0.1 in the data; and a theta."""
    A, clean = made(operator, dtype), np.zeros(shape, dtype) + dtype(rng.uniform())
    clean[:, : rng.integers(1, 6), : rng.integers(1, 4)] = rng.uniform()
    if operator == "Fourier":
        z = np.fft.fft2(clean, axes=(1, 2), norm="ortho")
        data = (z + 0.1 * (rng.normal(size=z.shape) + 1j * rng.normal(size=z.shape))).astype(z.dtype)
        data = data.astype(np.complex64 if dtype == np.float32 else np.complex128)
    else:
        data = np.asarray(A.apply(jnp.asarray(clean)))
        data = (data + 0.1 * rng.normal(size=data.shape)).astype(dtype)
    problem = problems.Restoration(clean, data, REGULARISERS[regulariser](), A, elastic=True)
    return problem, jax.tree.map(lambda v: jnp.asarray(v, dtype), thetas(regulariser, rng))
