"""What `inverse` restores: images to learn from and to test on, the operators, and what these let through.

All data are made by the operator that restores them, with normal noise of 0.01 and by fixed seeds.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bilevel import problems
from bilevel.problems import data
from experiments.imaging.bsd68_runs import images as berkeley
from experiments.imaging.bsd68_runs import needs as needs_berkeley

SIGMA = 0.01
BRAIN, DIGEST = "mri/colin27.npz", "a0a1d43bacb904a8e595849abc6fdf6fa1b98afd27ffe0c1acf86bbc0a66bd78"
# of 21 axial slices of one head, those of one list at least 3 from those of the other
LEARN, TEST = (0, 1, 8, 9, 16), (4, 5, 12, 13, 19)
TASKS = ("deblurring", "inpainting", "masked Fourier", "tomography")
OF_BERKELEY = TASKS[:2]
SIZES, ANGLES = {"masked Fourier": 96, "tomography": 128}, 60
STEPS = {"masked Fourier": 1, "tomography": 2}  # of the lists above; every other slice


class Level(NamedTuple):
    """Images, what was measured of them, and by what."""

    clean: np.ndarray
    data: np.ndarray
    operator: problems.AbstractOperator

    def problem(self, regulariser: problems.AbstractRegulariser) -> problems.Restoration:
        return problems.Restoration(*self[:2], regulariser, self.operator, elastic=True)


class Setting(NamedTuple):
    """To learn from, for total variation and for the ridge (None: it is not learnt), and to test on."""

    learn: Level
    few: Level | None
    test: Level


def needs() -> None:
    """Raises FileNotFoundError where data are missing, and says what to fetch."""
    needs_berkeley()
    path = Path(os.environ["BILEVEL_DATA"], BRAIN)
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != DIGEST:
        raise FileNotFoundError(
            f"{BRAIN} (slices: (21, 192, 192), 2 x 2 means of axial slices of ch2better in Debian's mricron-data; "
            f"SHA-256 {DIGEST}) is not in the folder that BILEVEL_DATA names."
        )


def setting(task: str, packaged: bool, smoke: bool) -> Setting:
    """Of one of the tasks. Berkeley: 16 crops 64 x 64 and 12 of 40 x 40 of BSD400, central crops 48 x 48 of BSD68."""
    if task in OF_BERKELEY:
        train, test = berkeley(packaged, smoke)
        sizes = ((2, 24), (2, 16), (2, 24)) if smoke else ((16, 64), (12, 40), (68, 48))
        step = max(1, len(train) // sizes[0][0])
        levels = [
            level(task, crops(found, *size), seed)
            for seed, (found, size) in enumerate(zip((train[::step], train[::step], test), sizes, strict=True))
        ]
        return Setting(*levels)
    if packaged:
        found = data.photographs(24 if smoke else 64).pixels
        train, test = found[:4], found[4:]
    else:
        slices = np.load(Path(os.environ["BILEVEL_DATA"], BRAIN))["slices"].astype(float)
        train, test = slices[list(LEARN)], slices[list(TEST)]
        train, test = (np.stack([resized(x, SIZES[task]) for x in v[:: STEPS[task]]]) for v in (train, test))
    learn = level(task, train, 0)
    return Setting(learn, learn if task == "masked Fourier" else None, level(task, test, 2))


def crops(found: list[np.ndarray], count: int, size: int) -> np.ndarray:
    """The central pixels of the first images."""
    corners = [[(side - size) // 2 for side in image.shape] for image in found[:count]]
    return np.stack([x[i : i + size, j : j + size] for x, (i, j) in zip(found, corners, strict=False)]).astype(float)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    found = Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return np.asarray(found, float)


def level(task: str, clean: np.ndarray, seed: int) -> Level:
    operator = OPERATORS[task](clean.shape, seed)
    exact, rng = np.asarray(operator.apply(np.asarray(clean))), np.random.default_rng(seed + 10)
    noisy = exact + SIGMA * rng.standard_normal(exact.shape)
    if task == "masked Fourier":  # pairs of real numbers, here as they were measured
        noisy = noisy[..., 0] + 1j * noisy[..., 1]
    return Level(clean, noisy, operator)


def blur(shape: tuple[int, ...], seed: int) -> problems.Blur:
    """Gaussian, 9 x 9, of standard deviation 1.6; mirrored at the border."""
    k = np.exp(-(np.arange(-4, 5) ** 2) / (2 * 1.6**2))
    return problems.Blur(np.outer(k, k) / np.sum(k) ** 2, boundary="reflect")


def holes(shape: tuple[int, ...], seed: int) -> problems.Mask:
    """Half of the pixels, others in every image."""
    return problems.Mask(np.random.default_rng(seed).uniform(size=shape) < 0.5)


def lines(shape: tuple[int, ...], seed: int) -> problems.MaskedFourier:
    """A quarter of the columns of k-space: the lowest twelfth, and others drawn, the same for learning and testing."""
    width = shape[2]
    low = np.abs(np.fft.fftfreq(width)) * 24 < 1
    free = np.flatnonzero(~low)
    drawn = np.random.default_rng(0).choice(free, max(0, width // 4 - int(low.sum())), replace=False)
    low[drawn] = True
    return problems.MaskedFourier(np.broadcast_to(low, shape[1:3]))


def angles(shape: tuple[int, ...], seed: int) -> problems.Matrix:
    """As many detectors as see the diagonal; divided by its norm's bound, so that A^T A <= 1."""
    A = problems.radon_matrix(shape[1], np.arange(ANGLES) * np.pi / ANGLES)
    sums = [float(np.max(np.abs(A).sum(axis=k))) for k in (0, 1)]
    return problems.Matrix(A / (sums[0] * sums[1]) ** 0.5, shape[1:3])


OPERATORS: dict[str, Callable] = dict(zip(TASKS, (blur, holes, lines, angles), strict=True))
