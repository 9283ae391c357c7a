"""Ridge regularisers: the definition, the bound on the concave part against dense eigenvalues, constants, bad theta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from restoration_cases import thetas

from bilevel import problems
from bilevel._problem import lower_gradient
from bilevel.problems import Mask, Restoration, Ridge
from bilevel.problems._regularisers import ridge_kernels
from bilevel.problems._regularisers.ridge import bend
from bilevel.problems._regularisers.ridge_filters import Parts, bases, generators, powers

SHAPE = (1, 7, 5)


def theta_of(weak, seed, size=3):
    rng = np.random.default_rng(seed)
    start = Ridge(weak=weak).start(size)
    return {
        name: leaf + rng.normal(size=leaf.shape) * (1 if name == "filters" else 0.7) for name, leaf in start.items()
    }


def plain(x, theta, parts):
    """By its definition, filter by filter, pixel by pixel."""
    total, K, size = 0.0, len(parts.a), parts.taps.shape[1]
    for image in np.asarray(x):
        X, (height, width) = np.pad(image, size // 2, mode="symmetric"), image.shape
        for k, c in enumerate([*parts.taps, *parts.taps[:, :, ::-1]]):
            i = k % K
            t = sum(c[r, s] * X[r : r + height, s : s + width] for r in range(size) for s in range(size))
            total += parts.a[i] * np.sum(np.sqrt(t**2 + parts.nu[i] ** 2))
            if parts.b is not None:
                total -= parts.b[i] * np.sum(np.sqrt(t**2 + parts.wide[i] ** 2))
    return total


@pytest.mark.parametrize("size", [3, 5])
def test_the_filters(size):
    """An orthonormal basis in two halves; the start's filters and their mirror images are unit vectors of zero mean."""
    both = bases(size)
    flat = both.reshape(-1, size**2)
    np.testing.assert_allclose(flat @ flat.T, np.eye(size**2 - 1), atol=1e-12)
    for half, sign in zip(both, (1, -1), strict=True):
        np.testing.assert_allclose(half[:, ::-1, ::-1], sign * half, atol=1e-12)
    taps = np.asarray(generators(Ridge().start(size)["filters"]))
    np.testing.assert_allclose(np.sum(taps**2, axis=(1, 2)), 1)
    np.testing.assert_allclose(np.sum(taps, axis=(1, 2)), 0, atol=1e-12)
    span = np.concatenate([taps, taps[:, :, ::-1]]).reshape(-1, size**2)
    assert len(span) == size**2 - 1 and np.linalg.matrix_rank(span) >= size**2 - 1 - size


@pytest.mark.parametrize(("weak", "strip"), [(False, 2**12), (True, 2**12), (True, 10)])
def test_the_value_is_by_definition(weak, strip, monkeypatch):
    """In one strip of rows, and in several."""
    monkeypatch.setattr(ridge_kernels, "STRIP", strip)
    x, theta, R = np.random.default_rng(1).uniform(size=(2, 7, 5)), theta_of(weak, 2, 5), Ridge(weak=weak)
    np.testing.assert_allclose(R.value(jnp.asarray(x), theta), plain(x, theta, R.parts(theta)), rtol=1e-12)


def padded(size, n):
    """The matrix of np.pad(., "symmetric") along one axis."""
    return np.eye(n)[np.pad(np.arange(n), size // 2, mode="symmetric")]


@pytest.mark.parametrize("shape", [(3, 3), (4, 7), (9, 5), (12, 12)])
def test_the_largest_eigenvalue_is_bounded(shape):
    """sum_i k_i C_i^T C_i as a matrix, for filters that are drawn: at most the bound, and diagonal in the DCT's basis.
    For filters that are not paired with their mirror images the boundary would cost up to a third."""
    rng, near = np.random.default_rng(3), 0.0
    height, width = shape
    pad = np.kron(padded(3, height), padded(3, width)).reshape(height + 2, width + 2, -1)
    dct = [np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n) for n in shape]
    dct = np.kron(*(c / np.linalg.norm(c, axis=1, keepdims=True) for c in dct))
    for _ in range(20):
        taps, k = generators(jnp.asarray(rng.normal(size=(2, 2, 4)))), 10 ** rng.uniform(-2, 0, 4)
        bound, taps = float(jnp.max(k @ powers(taps))), np.asarray(taps)
        Q = np.zeros((height * width,) * 2)
        for c, weight in zip([*taps, *taps[:, :, ::-1]], [*k, *k], strict=True):
            C = sum(c[r, s] * pad[r : r + height, s : s + width] for r in range(3) for s in range(3))
            C = C.reshape(-1, height * width)
            Q += weight * C.T @ C
        rotated = dct @ Q @ dct.T
        np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-12)
        near = max(near, np.max(np.diag(rotated)) / bound)
    print(shape, near)
    assert 0.9 < near <= 1


def test_the_grid_bounds_every_frequency():
    rng = np.random.default_rng(4)
    for size in (3, 7):
        taps = generators(jnp.asarray(rng.normal(size=(2, 3, (size**2 - 1) // 2))))
        fine = np.abs(np.fft.fft2(np.asarray(taps), s=(1024, 1024))) ** 2
        fine = fine + fine[:, -np.arange(1024)]
        assert np.max(fine.sum(0)) <= float(jnp.max(powers(taps).sum(0))) <= 1.03 * np.max(fine.sum(0))


@jax.jit
def matrices(problem, x, theta):
    H = jax.jacfwd(lambda x: lower_gradient(problem, x, theta))(x).reshape(x.size, x.size)
    J = jax.jacfwd(lambda theta: lower_gradient(problem, x, theta))(theta)
    return H, jnp.concatenate([leaf.reshape(x.size, -1) for leaf in jax.tree.leaves(J)], axis=1)


@jax.jit
def known_at(problem, x, theta, q, radius):
    return problem.constants(theta), problem.bounds(x, theta, q, radius)


@pytest.mark.parametrize("weak", [False, True])
def test_constants_and_bounds_hold(weak):
    """Against H and J as matrices, flat images and rough ones, near and far."""
    rng, ratios = np.random.default_rng(5), []
    for draw in range(12):
        theta = {name: jnp.asarray(leaf) for name, leaf in thetas("weak ridge", rng, elastic=False).items()}
        theta = theta if weak else {name: theta[name] for name in ("weights", "smoothings", "filters")}
        x = jnp.asarray(10 ** rng.uniform(-3, 0) * rng.normal(size=SHAPE) * (draw > 0))
        q, z = (jnp.asarray(rng.normal(size=SHAPE)) for _ in range(2))
        problem, far = Restoration(None, x, Ridge(weak=weak)), 10 ** rng.uniform(-4, 1)
        (known, bounds), step = known_at(problem, x, theta, q, far), far * z / jnp.linalg.norm(z)
        (H, J), (H2, J2) = (matrices(problem, v, theta) for v in (x, x + step))
        eigenvalues, q = np.linalg.eigvalsh(H), q.ravel()
        assert known.mu <= eigenvalues[0] * (1 + 1e-12) and known.mu >= (0.1 if weak else 1) * (1 - 1e-12)
        ratios.append([
            eigenvalues[-1] / known.L, np.linalg.norm(H - H2, 2) / (known.L_hessian * far),
            np.linalg.norm(J, 2) / (bounds.J + 1e-300), np.linalg.norm((H - H2) @ q) / (bounds.M_H * far),
            np.linalg.norm((J - J2).T @ q) / (bounds.M_J * far), np.linalg.norm(J - J2, 2) / (bounds.L_J * far),
        ])  # fmt: skip
    print(weak, np.max(ratios, axis=0))
    assert np.max(ratios) <= 1 + 1e-12


def test_theta_and_operators_that_do_not_fit():
    R, y = Ridge(weak=True), np.zeros((1, 8, 8))
    theta, problem = R.start(3), Restoration(None, y, R)
    one = jnp.zeros((2, 1))
    for wrong, words in (
        (Ridge().start(3), "dict of"), (theta | {"gaps": one}, r"filters \(2, m, n\), the others \(2, m\)"),
        (dict.fromkeys(theta, one) | {"filters": jnp.ones((2, 1, 5))}, "n = .* coefficients, s odd"),
        (R.start(9), "9 x 9 do not fit"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            problem.lower(problem.data, wrong)
    with pytest.raises(ValueError, match="odd and at least 3"):
        R.start(4)
    seen = Mask(np.eye(8, dtype=bool))
    with pytest.raises(ValueError, match=r"above 0\.9, as this regulariser needs"):
        Restoration(None, y, R, seen)
    with pytest.raises(ValueError, match=r"at least 0\.9"):
        Restoration(None, y, R, seen, elastic=True, floor=0.5)
    masked = Restoration(None, y, R, seen, elastic=True)
    assert masked.floor == pytest.approx(0.9 + np.exp(-6))
    known, _ = known_at(masked, masked.data, theta | {"elastic": jnp.asarray(-50.0)}, masked.data, 1.0)
    assert known.mu >= np.exp(-6) * (1 - 1e-6)
    assert problems.Ridge is Ridge


def test_how_far_the_potential_bends():
    """Against a grid: the closed form is the supremum, and 0 where there is none above 0."""
    rng = np.random.default_rng(6)
    a, nu, gap, v = (
        jnp.asarray(10 ** rng.uniform(low, high, 50)) for low, high in ((-3, 0), (-4, 0), (-3, 1), (-2, 0))
    )
    parts = Parts(jnp.zeros((50, 3, 3)), a, nu, a * v, nu + gap)
    t = np.concatenate([[0], np.geomspace(1e-6, 1e3, 20_000)])[:, None]
    a, nu, b, wide = (np.asarray(leaf) for leaf in parts[1:])
    bent = b * wide**2 / (t**2 + wide**2) ** 1.5 - a * nu**2 / (t**2 + nu**2) ** 1.5
    k, largest = np.asarray(bend(parts)), np.maximum(np.max(bent, axis=0), 0)
    assert np.all(largest <= k * (1 + 1e-12)) and np.any(largest == 0)
    inside = np.argmax(bent, axis=0) > 0
    np.testing.assert_allclose(largest[inside], k[inside], rtol=1e-5, atol=1e-12)
