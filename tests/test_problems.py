"""What the four problems promise alike: what is refused, JAX's strict modes, derivatives in the data, rounding."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse
from problems_for_tests import in_float64
from scipy import sparse as scipy_sparse

import bilevel
from bilevel._problem import cross_product, hessian_product, lower_gradient
from bilevel.problems import FieldsOfExperts, LogisticRegression, Quadratic, TotalVariation

CLASSES = 3
rng = np.random.default_rng(0)


def logistic(rows, features, valid=5, shape=None):
    """With a column of zeros, one of ones and one twice, where there is room for them."""

    def make(dtype):
        A, A_valid = (np.resize([0.0, 1.0, 0.3, 0.3, -2.0], (n, features)).astype(dtype) for n in (rows, valid))
        A[:, 2:] *= np.linspace(1, 2, rows, dtype=dtype)[:, None]
        problem = LogisticRegression(A, np.arange(rows) % CLASSES, A_valid, np.arange(valid) % CLASSES)
        theta = np.linspace(-9, 0, features)[:, None] if shape is None else np.full(shape, -2.0)
        return problem, jnp.asarray(theta, dtype)

    return make


def denoising(kind, theta, **options):
    """A flat image and one of two pieces, clean and noisy the same."""

    def make(dtype):
        clean = np.full((2, 6, 5), 0.5, dtype)
        clean[1, 2:] = 0
        return kind(clean, clean, **options), jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), theta)

    return make


def quadratic(rows, n, d):
    """An upper level that reads nothing of x, one that theta does not move."""

    def make(dtype):
        b = np.ones(rows, dtype)
        return Quadratic(np.zeros((rows, n), dtype), np.eye(rows, n, dtype=dtype), np.zeros((rows, d), dtype), b, b), (
            jnp.ones(d, dtype)
        )

    return make


THETA = {"scale": -2.0, "weights": [-3.0, -3.0], "smoothings": [-3.5, 0.0], "filters": [[[1.0, -1], [0, 0]], np.eye(2)]}
THETA = jax.tree.map(np.asarray, THETA, is_leaf=lambda leaf: isinstance(leaf, list))
CASES = {
    "logistic": logistic(12, 5),
    "logistic, a penalty a class": logistic(12, 5, shape=(1, CLASSES)),
    "logistic, wide": logistic(4, 9, valid=1),
    "logistic, wide, one penalty": logistic(4, 9, valid=1, shape=()),
    "logistic, one column": logistic(6, 1),
    "total variation": denoising(TotalVariation, np.array([-3.0, -3.0])),
    "isotropic, elastic": denoising(TotalVariation, np.array([-3.0, -3.0, -2.0]), isotropic=True, elastic=True),
    "Fields of Experts": denoising(FieldsOfExperts, THETA),
    "Fields of Experts, reflected": denoising(FieldsOfExperts, THETA, boundary="reflect"),
    "quadratic": quadratic(4, 3, 2),
    "quadratic, one of each": quadratic(1, 1, 1),
}
each_case = pytest.mark.parametrize("case", CASES)


def everything(problem, x, theta, q):
    """All that the engine asks of a problem."""
    inverse = problem.preconditioner(x, theta)
    return {
        "h": problem.lower(x, theta), "g": jax.value_and_grad(problem.upper, argnums=(0, 1))(x, theta),
        "rho": lower_gradient(problem, x, theta), "Hq": hessian_product(problem, x, theta, q),
        "J": cross_product(problem, x, theta, jax.tree.map(jnp.ones_like, theta)),
        "constants": problem.constants(theta), "bounds": problem.bounds(x, theta, q, jnp.asarray(0.1, x.dtype)),
        "Pq": None if inverse is None else inverse(q),
    }  # fmt: skip


@each_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_rests_on_dtype_promotion(case, dtype):
    """Traced where JAX refuses to mix dtypes; and every number has the dtype of the data."""
    problem, theta = CASES[case](dtype)
    x = problem.guess(theta)
    with jax.numpy_dtype_promotion("strict"):
        CASES[case](dtype)
        shapes = eqx.filter_eval_shape(everything, problem, x, theta, x)
        if isinstance(problem, LogisticRegression):
            assert problem.accuracy(x, problem.A, problem.y).dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes) if hasattr(leaf, "dtype")} == {np.dtype(dtype)}


@each_case
def test_data_without_information_give_finite_numbers(case):
    """In float32, with JAX looking for NaN and infinities: nothing is divided by zero, no constant is negative."""
    with jax.debug_nans(True), jax.debug_infs(True):
        problem, theta = CASES[case](np.float32)
        x = problem.guess(theta)
        found = eqx.filter_jit(everything)(problem, x, theta, jnp.ones_like(x))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    assert all(np.all(leaf >= 0) for leaf in jax.tree.leaves((found["constants"], found["bounds"])))


@pytest.mark.parametrize("case", ["logistic", "isotropic, elastic", "Fields of Experts", "quadratic"])
def test_the_value_has_a_derivative_in_the_data(case):
    """Of all fields at once, under jit: what g does not read has a derivative of zero, what it reads that of a
    difference quotient along the data."""
    problem, theta = CASES[case](np.float64)
    x = problem.guess(theta) + jnp.asarray(rng.standard_normal(problem.guess(theta).shape))
    derivative = eqx.filter_jit(eqx.filter_grad(lambda problem: problem.upper(x, theta)))(problem)
    data, static = eqx.partition(problem, eqx.is_inexact_array)
    read = {".valid.A", ".clean", ".A1", ".b1"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(derivative):
        assert np.any(leaf) == (jax.tree_util.keystr(path) in read), path

    def moved(t):
        return eqx.combine(jax.tree.map(lambda v: v * (1 + t) + t, data), static).upper(x, theta)

    along = sum(jnp.vdot(d, v + 1) for d, v in zip(*map(jax.tree.leaves, (derivative, data)), strict=True))
    assert abs(along) > 1e-3
    np.testing.assert_allclose(along, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-6)


def draws(case, count=12):
    """Problems in float32 whose terms cancel, each with points from its minimiser to far off."""
    for k in range(count):
        offset = [0.0, 1.0, 100.0][k % 3]
        if case == "logistic":
            A = (offset + rng.standard_normal((60, 5))).astype(np.float32)
            y = np.concatenate([np.arange(CLASSES), rng.integers(0, CLASSES, 57)])
            problem, theta = LogisticRegression(A, y, A, y), jnp.asarray(rng.uniform(-8, 0, (5, CLASSES)), jnp.float32)
        elif case == "quadratic":
            A1, A2, A3 = rng.standard_normal((3, 12, 4))
            theta = offset * rng.standard_normal(4)
            data = A1, A2, A3, A1[:, 0], A3 @ theta + A2 @ rng.standard_normal(4)
            problem = Quadratic(*(v.astype(np.float32) for v in data))
            theta = jnp.asarray(theta, jnp.float32)
        else:
            kind = TotalVariation if case == "total variation" else FieldsOfExperts
            clean = np.full((1, 8, 8), rng.uniform())
            clean[:, :4] = rng.uniform()
            noisy = clean + 0.1 * rng.standard_normal(clean.shape)
            problem = kind(clean.astype(np.float32), noisy.astype(np.float32))
            theta = THETA if kind is FieldsOfExperts else rng.uniform([-8, -6], [1, 0])
            theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), theta)
        exact, start = in_float64((problem, theta)), problem.guess(theta)
        best = bilevel.solve_lower(*exact, eps=1e-6, solver=bilevel.NewtonCG()).x
        for distance in (0, 1e-3, 1):
            yield problem, theta, jnp.asarray(best + distance * rng.standard_normal(start.shape), jnp.float32)
        if case == "logistic":
            yield problem, theta, start


@pytest.mark.parametrize("case", ["logistic", "total variation", "Fields of Experts", "quadratic"])
def test_the_gradient_is_as_accurate_as_declared(case):
    """Computed to u (L ||x|| + rounding) in float32, measured against float64 of the same data; and for those that
    declare `rounding` L ||x|| alone would not do."""
    gradient = eqx.filter_jit(lambda problem, theta, x: (lower_gradient(problem, x, theta), problem.constants(theta)))
    u, worst, without = 2.0**-24, 0.0, 0.0
    for problem, theta, x in draws(case):
        rho, constants = gradient(problem, theta, x)
        exact, _ = gradient(*in_float64((problem, theta, x)))
        error, size = np.linalg.norm(rho - exact), float(constants.L) * np.linalg.norm(x)
        terms = 0.0 if constants.rounding is None else float(constants.rounding)
        worst = max(worst, error / (u * (size + terms)))
        without = max(without, error / (u * size) if size else np.inf)
    print(case, "error / bound", worst, "without rounding", without)
    assert worst <= 1
    assert without > 1 or constants.rounding is None


EYE, ONE, IMAGE, LABELS = np.eye(3), np.ones(3), np.full((2, 6, 5), 0.5), np.array([0, 1, 2])
FEATURES = {
    "logistic": lambda change: LogisticRegression(change(EYE), LABELS, EYE, LABELS),
    "logistic, valid": lambda change: LogisticRegression(EYE, LABELS, change(EYE), LABELS),
    "quadratic": lambda change: Quadratic(EYE, change(EYE), EYE, ONE, ONE),
}
MAKE = FEATURES | {
    "total variation": lambda change: TotalVariation(IMAGE, change(IMAGE)),
    "Fields of Experts": lambda change: FieldsOfExperts(change(IMAGE), IMAGE),
}


class Todense:
    """A sparse array of another library."""

    def todense(self):
        raise AssertionError("nobody asked")


DTYPES = {
    "complex": (lambda v: v + 0j, TypeError, "complex128"),
    "half": (lambda v: v.astype(np.float16), TypeError, r"float16.*astype\(np.float64\)"),
    "bfloat16": (lambda v: v.astype(jnp.bfloat16), TypeError, r"bfloat16.*astype\(np.float64\)"),
    "integers": (lambda v: v.astype(int), TypeError, r"int64.*astype\("),
    "strings": (lambda v: v.astype(str), TypeError, "<U"),
    "masked": (lambda v: np.ma.masked_equal(v, v.flat[0]), ValueError, r"masked.*\.filled\("),
}
SPARSE = {
    "csr_matrix": (scipy_sparse.csr_matrix, TypeError, r"sparse.*pass \w+\.toarray\(\)"),
    "csr_array": (scipy_sparse.csr_array, TypeError, r"sparse.*pass \w+\.toarray\(\)"),
    "BCOO": (sparse.BCOO.fromdense, TypeError, r"sparse.*pass \w+\.todense\(\)"),
    "another's": (lambda v: Todense(), TypeError, r"sparse.*pass \w+\.todense\(\)"),
}
ANOTHER = {"another's": SPARSE["another's"]}  # tests/test_sparse.py has those that linear models take
PAIRS = (MAKE, DTYPES), (("quadratic",), SPARSE), (("logistic", "logistic, valid"), ANOTHER)
REFUSED = [(p, *c) for names, kinds in PAIRS for p in names for c in kinds.items()]


@pytest.mark.parametrize(
    ("problem", "change", "answer"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_would_be_read_as_something_else_is_refused(problem, change, answer):
    convert, error, words = answer
    with pytest.raises(error, match=f"(?s){words}") as raised:
        MAKE[problem](convert)
    if change in SPARSE:
        assert "astype" not in str(raised.value)


def test_one_dtype():
    with pytest.raises(TypeError, match="mix float32 and float64"):
        Quadratic(EYE, EYE.astype(np.float32), EYE, ONE, ONE)


def test_fixed_filters_are_numbers():
    """Whatever kind of real number they are, they become the images'; complex ones are not cut."""
    for filters in (np.ones((1, 2, 2), int), np.ones((1, 2, 2), np.float16), jnp.ones((1, 2, 2), jnp.bfloat16)):
        assert FieldsOfExperts(IMAGE, IMAGE, fixed={"filters": filters}).fixed["filters"].dtype == np.float64
    for filters in (np.ones((1, 2, 2), complex), np.full((1, 2, 2), "1")):
        with pytest.raises(TypeError, match=r"the fixed filters are .*real numbers"):
            FieldsOfExperts(IMAGE, IMAGE, fixed={"filters": filters})
