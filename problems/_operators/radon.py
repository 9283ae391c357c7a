"""The parallel-beam Radon transform as a sparse matrix, by hand.

    (A x)_{a, s} = sum over pixels (i, j) of x_ij tri(u - s),    u = c_j cos a + r_i sin a,    tri(t) = max(1 - |t|, 0)

c and r are the pixel's column and row from the image's middle, s the detectors, one a pixel wide; a pixel is shared by
the two detectors next to it. Each row of a sum is then a line integral, with the pixel's width as unit.
"""

import numpy as np
from jax.typing import ArrayLike


def radon_matrix(size: int, angles: ArrayLike, detectors: int | None = None):
    """The transform of `size` x `size` images at angles in radians, a SciPy csr_array for `Matrix(., (size, size))`.

    Its rows are the angles, in each the detectors: (angles detectors, size^2), float64; by default as many detectors as
    see the whole diagonal, ceil(sqrt(2) size) + 1. Raises ImportError without SciPy (`pip install scipy`), and
    ValueError for sizes and angles.
    """
    try:
        from scipy import sparse
    except ImportError as error:
        raise ImportError("radon_matrix makes a SciPy sparse matrix: pip install scipy") from error
    angles = np.asarray(angles, np.float64)
    if size < 2 or angles.ndim != 1 or angles.size == 0 or not np.isfinite(angles).all():
        raise ValueError("radon_matrix takes a size of at least 2 and a vector of finite angles, in radians")
    detectors = int(np.ceil(2**0.5 * size)) + 1 if detectors is None else detectors
    r, c = np.meshgrid(*(np.arange(size) - (size - 1) / 2,) * 2, indexing="ij")
    place = np.outer(np.cos(angles), c.ravel()) + np.outer(np.sin(angles), r.ravel()) + (detectors - 1) / 2
    left = np.floor(place).astype(int)
    right_share = place - left
    angle, pixel = np.indices(place.shape)
    parts = []
    for detector, share in ((left, 1 - right_share), (left + 1, right_share)):
        seen = (detector >= 0) & (detector < detectors) & (share > 0)
        parts.append((angle[seen] * detectors + detector[seen], pixel[seen], share[seen]))
    rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sparse.coo_array((values, (rows, columns)), shape=(len(angles) * detectors, size**2)).tocsr()
