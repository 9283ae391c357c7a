"""A of every operator as a matrix, entry by entry from its definition, in 80 bits."""

import numpy as np

from bilevel.problems import Blur, Identity, Linear, Mask, MaskedFourier, Matrix, SuperResolution
from experiments.attack.terms import Real, real

SHAPE = (6, 4)


def cumulated(x):
    """Linear, and of no class: sums along the rows, from the left."""
    return x.cumsum(axis=2) / 4


def matrix(operator, channels: int = 1) -> np.ndarray:
    """(numbers measured, pixels channels), of one image of `SHAPE`."""
    make = {Identity: lambda A: np.eye(np.prod(SHAPE)), Mask: mask, Blur: blur, SuperResolution: every_other,
            MaskedFourier: fourier, Matrix: by_pieces, Linear: lambda A: np.kron(np.eye(6), np.tri(4) / 4)}  # fmt: skip
    return np.kron(real(make[type(operator)](operator)), np.eye(channels, dtype=Real))


def mask(A) -> np.ndarray:
    return np.diag(np.asarray(A.mask, float).ravel())


def blur(A) -> np.ndarray:
    """(A x)_p = sum_s k_s x_{p - s}."""
    k, found = real(A.kernel), np.zeros(SHAPE * 2, Real)
    for p in np.ndindex(*SHAPE):
        for s in np.ndindex(*k.shape):
            q = [beyond(i - (j - n // 2), m, A.boundary) for i, j, n, m in zip(p, s, k.shape, SHAPE, strict=True)]
            found[p][tuple(q)] += k[s]
    return found.reshape(np.prod(SHAPE), -1)


def beyond(i: int, n: int, boundary: str) -> int:
    """Which pixel stands at i: periodic, or mirrored with the last one repeated."""
    return i % n if boundary == "periodic" else min(i % (2 * n), 2 * n - 1 - i % (2 * n))


def every_other(A) -> np.ndarray:
    return blur(A.blur).reshape(*SHAPE, -1)[:: A.factor, :: A.factor].reshape(-1, np.prod(SHAPE))


def fourier(A) -> np.ndarray:
    """exp(-2 pi i (k_1 p_1/6 + k_2 p_2/4))/sqrt(24), real and imaginary parts one behind the other."""
    turns = [np.outer(np.arange(n), np.arange(n)) / Real(n) for n in SHAPE]
    angle = -2 * np.arccos(Real(-1)) * (turns[0][:, None, :, None] + turns[1][None, :, None, :])
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=2) / np.sqrt(Real(np.prod(SHAPE)))
    return (waves * np.asarray(A.mask)[:, :, None, None, None]).reshape(2 * np.prod(SHAPE), -1)


def by_pieces(A) -> np.ndarray:
    """From the entries that are held by rows."""
    held, found = A.by_rows, np.zeros((A.by_rows.count, np.prod(SHAPE)), Real)
    for k, p in np.ndindex(*held.values.shape):
        found[held.rows[p], held.columns[k, p]] += Real(held.values[k, p])
    return found
