"""Linear maps of images: adjoint and eigenvalues against dense matrices, values against SciPy, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from restoration_cases import EVEN, FREQUENCIES, ODD, OPERATORS, SEEN, SHAPE, made
from scipy import ndimage, sparse

from bilevel import problems
from bilevel.problems import Blur, Identity, Linear, Mask, MaskedFourier, Matrix, Restoration, SuperResolution
from bilevel.problems._restoration_checks import parts

EXACT = {"identity", "mask", "blur", "blur, narrow", "blur, reflected", "super", "Fourier"}
SINGULAR = {"mask", "blur, odd, reflected", "super", "super, reflected", "Fourier", "matrix", "function"}


@jax.jit
def dense(operator, basis):
    """A and A^T of one image as matrices, and the declared eigenvalues."""
    columns = jax.lax.map(lambda e: operator.apply(e[None])[0], basis)
    units = jnp.eye(columns[0].size, dtype=basis.dtype).reshape(-1, *columns.shape[1:])
    rows = jax.lax.map(lambda e: operator.adjoint(e[None])[0], units)
    extremes = operator.extremes((1, *basis.shape[1:]))
    return columns.reshape(len(basis), -1).T, rows.reshape(len(units), -1).T, extremes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_and_eigenvalues_are_those_of_the_matrix(name, dtype):
    """<A x, y> = <x, A^T y> on all unit vectors; eigenvalues inside what is declared, and equal where that is exact."""
    operator, u = made(name, dtype), np.finfo(dtype).eps
    A, At, (low, high) = jax.device_get(dense(operator, jnp.eye(24, dtype=dtype).reshape(24, 6, 4)))
    assert A.dtype == At.dtype == dtype
    np.testing.assert_allclose(At, A.T, atol=20 * u)
    eigenvalues = np.linalg.eigvalsh(A.T.astype(float) @ A)
    noise = 100 * u * eigenvalues[-1]
    assert low <= max(eigenvalues[0], 0) + (0 if low == 0 else noise) and eigenvalues[-1] <= high * (1 + 100 * u)
    assert operator.proven == (name != "function") and (float(low) == 0) == (name in SINGULAR)
    if name in EXACT:
        np.testing.assert_allclose([low, high], eigenvalues[[0, -1]], atol=10 * noise)
    assert high <= (10 if name in ("matrix", "super, reflected", "blur, odd, reflected") else 2.1) * eigenvalues[-1]


@pytest.mark.parametrize("name", ["mask", "blur, odd, reflected", "Fourier", "matrix"])
def test_channels_are_mapped_one_by_one(name):
    operator, x = OPERATORS[name](), jnp.asarray(np.random.default_rng(3).normal(size=(*SHAPE, 2)))
    axis = 2 if name == "matrix" else 3

    @jax.jit
    def mapped(operator, x):
        y = operator.apply(x)
        return y, jnp.stack([operator.apply(x[..., k]) for k in range(2)], axis=axis), operator.adjoint(y)

    y, each, back = mapped(operator, x)
    np.testing.assert_allclose(y, each, atol=1e-14)
    assert operator.image_shape(y.shape) == x.shape
    np.testing.assert_allclose(jnp.vdot(y, y), jnp.vdot(x, back))


def test_convolutions_are_those_of_scipy():
    x = np.random.default_rng(4).normal(size=SHAPE)
    for boundary, mode in (("periodic", "wrap"), ("reflect", "reflect")):
        for kernel in (EVEN, np.random.default_rng(5).normal(size=(5, 3))):
            expected = np.stack([ndimage.convolve(image, kernel, mode=mode) for image in x])
            np.testing.assert_allclose(Blur(kernel, boundary).apply(jnp.asarray(x)), expected, atol=1e-14)
            few = SuperResolution(kernel, 2, boundary).apply(jnp.asarray(x))
            np.testing.assert_allclose(few, expected[:, ::2, ::2], atol=1e-14)


def test_the_radon_transform():
    """Mass is kept in every view; a disc casts its chords; sparse and dense make the same operator."""
    size, angles = 24, np.linspace(0, np.pi, 7, endpoint=False)
    A = problems.radon_matrix(size, angles)
    assert sparse.issparse(A) and A.shape == (7 * 35, size**2)
    r, c = np.meshgrid(*(np.arange(size) - 11.5,) * 2, indexing="ij")
    disc = (r**2 + c**2 < 81).astype(float)
    views = (A @ disc.ravel()).reshape(7, 35)
    np.testing.assert_allclose(views.sum(axis=1), disc.sum())
    chords = 2 * np.sqrt(np.maximum(81 - (np.arange(35) - 17.0) ** 2, 0))
    assert np.max(np.abs(views - chords)) < 3.5  # pixels, where the disc is steepest
    x = jnp.asarray(np.random.default_rng(6).normal(size=(2, size, size)))
    one, other = Matrix(A, (size, size)), Matrix(A.toarray(), (size, size))
    np.testing.assert_allclose(one.apply(x), np.asarray(x).reshape(2, -1) @ A.T.toarray(), atol=1e-12)
    np.testing.assert_array_equal(one.apply(x), other.apply(x))
    assert problems.radon_matrix(size, angles, 11).shape == (77, size**2)
    with pytest.raises(ValueError, match="in radians"):
        problems.radon_matrix(size, 0.5)


def test_a_function_may_hold_arrays_and_bring_its_transpose():
    A = jnp.asarray(np.random.default_rng(7).normal(size=(5, 24)))

    def forward(A, x):
        return x.reshape(len(x), 24) @ A.T

    def backward(A, y):
        return (y @ A).reshape(-1, 6, 4)

    partial = jax.tree_util.Partial
    one, other = Linear(partial(forward, A), (6, 4)), Linear(partial(forward, A), (6, 4), partial(backward, A))
    assert len(jax.tree.leaves(one)) == 2 and one.image_shape((3, 5)) == (3, 6, 4)
    y = jnp.asarray(np.random.default_rng(8).normal(size=(3, 5)))
    np.testing.assert_allclose(one.adjoint(y), other.adjoint(y), atol=1e-14)
    top = np.linalg.norm(A, 2) ** 2
    assert all(top <= operator.largest <= 2.1 * top for operator in (one, other))


Y = np.random.default_rng(9).normal(size=SHAPE)
Z = Y + 0j
TV = problems.TV()


def restore(operator, data=Y, clean=None, regulariser=TV, **options):
    return Restoration(clean, data, regulariser, operator, **options)


BAD = {
    "empty mask": (lambda: Mask(0 * SEEN), ValueError, "not a single pixel"),
    "empty frequencies": (lambda: MaskedFourier(0 * SEEN), ValueError, "not a single pixel"),
    "grey mask": (lambda: Mask(0.5 * SEEN), ValueError, r"mask > 0\.5"),
    "mask of another size": (lambda: restore(Mask(SEEN[:5]), elastic=True), ValueError, r"mask has shape \(5, 4\)"),
    "frequencies, size": (lambda: restore(MaskedFourier(SEEN[:5]), Z, elastic=True), ValueError, r"frequencies is \(5"),
    "real Fourier data": (lambda: restore(MaskedFourier(FREQUENCIES), elastic=True), TypeError, "are complex: pass"),
    "complex data": (lambda: restore(Identity(), Z), TypeError, r"complex128 where real.*np\.abs\(data\)"),
    "large kernel": (lambda: restore(Blur(np.ones((7, 1)))), ValueError, "does not fit into images"),
    "kernel": (lambda: Blur(np.ones(3)), ValueError, r"kernel must be \(height, width\)"),
    "kernel of integers": (lambda: Blur(np.ones((3, 3), int)), TypeError, "pass floats"),
    "boundary": (lambda: Blur(EVEN, "wrap"), ValueError, '"periodic" or "reflect"'),
    "factor": (lambda: SuperResolution(ODD, 1), ValueError, "at least 2"),
    "matrix, columns": (lambda: Matrix(np.ones((3, 9)), (6, 4)), ValueError, "as many columns as pixels"),
    "matrix of zeros": (lambda: Matrix(np.zeros((3, 24)), (6, 4)), ValueError, "matrix is zero"),
    "matrix, data": (lambda: restore(Matrix(np.ones((3, 24)), (6, 4)), elastic=True), ValueError, "matrix of 3 rows"),
    "not linear": (lambda: Linear(lambda x: x**2, (6, 4)), ValueError, "no linear function"),
    "zero": (lambda: Linear(lambda x: 0 * x, (6, 4)), ValueError, "not zero"),
    "mixes images": (lambda: Linear(lambda x: x.sum(), (6, 4)), ValueError, "keep the first axis"),
    "function, data": (lambda: restore(Linear(lambda x: x[:, 1:], (6, 4)), elastic=True), ValueError, "do not fit"),
    "singular": (lambda: restore(Mask(SEEN)), ValueError, "Mask is singular.*elastic=True"),
    "floor": (lambda: restore(Mask(SEEN), elastic=True, floor=-1.0), ValueError, "floor is the least"),
    "floor alone": (lambda: restore(Identity(), floor=0.1), ValueError, "with elastic=True"),
    "NaN": (lambda: restore(Identity(), np.where(SEEN, Y, np.nan)), ValueError, "data holds NaN"),
    "NaN where measured": (lambda: restore(Mask(~SEEN), np.where(SEEN, Y, np.nan)), ValueError, "data holds NaN"),
    "clean NaN": (lambda: restore(Identity(), Y, Y * np.nan), ValueError, "clean holds NaN"),
    "clean, shape": (lambda: restore(Identity(), Y, Y[:1]), ValueError, r"clean is \(1, 6, 4\)"),
    "clean, dtype": (lambda: restore(Identity(), Y, Y.astype(np.float32)), TypeError, "clean is float32, data float64"),
    "one image": (lambda: restore(Identity(), Y[0]), ValueError, r"data\[None\] for one image"),
    "one picture": (lambda: restore(Identity(), np.zeros((9, 8, 3))), ValueError, r"data\[None\] for one picture"),
    "no images": (lambda: restore(Identity(), Y[:0]), ValueError, "one image at least"),
    "bytes": (lambda: restore(Identity(), Y.astype(np.uint8)), TypeError, "divide by 255"),
    "a class": (lambda: parts(TV, Identity), TypeError, r"pass Identity\(\.\.\.\)"),
    "not a regulariser": (lambda: parts(1, Identity()), TypeError, "regulariser must be a"),
    "lists, lengths": (lambda: restore(Identity(), [*Y], [Y[0]]), ValueError, "as many images each"),
    "lists and stacks": (lambda: restore(Identity(), [*Y], Y), TypeError, "a list of both, or stacks"),
    "sizes, mask": (lambda: restore(Mask(SEEN), [Y[0], Y[1, 1:]], elastic=True), ValueError, "mask has shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    make, error, words = BAD[case]
    with pytest.raises(error, match=f"(?s){words}"):
        make()


def test_data_that_were_not_measured_are_not_read():
    hidden = np.where(SEEN, Y, np.nan)
    np.testing.assert_array_equal(restore(Mask(SEEN), hidden[:1], elastic=True).data, np.where(SEEN, Y[:1], 0))
    problem = restore(MaskedFourier(FREQUENCIES), np.where(FREQUENCIES, Z, np.nan), elastic=True)
    assert problem.data.shape == (*SHAPE, 2) and np.isfinite(problem.data).all()
