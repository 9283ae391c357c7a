"""Restoration: derivatives for operators x regularisers, certificates against references, colour, sizes, solves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import distance, in_float64, truth
from restoration_cases import COLOUR, EVEN, OPERATORS, REGULARISERS, SEEN, SHAPE, draw, thetas

import bilevel
from bilevel import RESULTS, problems
from bilevel._problem import cross_product, cross_transpose_product, hessian_product, lower_gradient
from bilevel.problems import TV, Blur, Experts, Identity, Linear, Mask, Restoration

EACH = [(operator, regulariser) for operator in OPERATORS for regulariser in REGULARISERS]
FEW = [
    ("blur, odd, reflected", "TV"),
    ("Fourier", "isotropic"),
    ("matrix", "experts"),
    ("identity", "ridge"),
    ("identity", "weak ridge"),
]

# Of `TotalVariation` and `FieldsOfExperts` as they were before they were made of parts, see `fingerprint`.
BEFORE = {
    "TV": [
        41.09764675877128, 12.02793581774042, 9.483082543775016, 10.394813375963977, 0.16479917084977314,
        1.0, 11.87312731383618, 0.5, 61.702769428032504, 101.94974130703744,
        3.2600565438046565, 134.0556985266069, 58.22686902208214, 15.376924112636466,
    ],
    "TV, isotropic, elastic": [
        40.96467424216384, 12.02793581774042, 10.068394835382064, 8.776743482800603, 0.3187441648404398,
        1.22313016014843, 12.09625747398461, 0.5, 87.26089336110354, 74.0934428103952,
        2.8453249316896763, 166.46618143391677, 58.2398979812827, 15.378542916484275,
    ],
    "experts, all": [
        49.47248267676932, 12.02793581774042, 11.26775040411585, 8.832356821448208, 7.351870658575898,
        1.0, 100.67814936884723, 0.5, 2554.271830034656, 2228.1605078215403,
        55.194437156338736, 1506.9124541463354, 893.0998774920627, 1869.7188694046329,
    ],
    "experts, filters fixed": [
        34.11682088246802, 12.02793581774042, 8.942888701887172, 7.69650959600936, 3.936301054670714,
        1.0, 25.919537342211807, 0.5, 319.283978754332, 459.9851435407944,
        4.567117220908848, 287.3600032405906, 29.362752594583984, 43.15387206454857,
    ],
}  # fmt: skip


@jax.jit
def fingerprint(p, theta):
    x, q = (jnp.sin(k * jnp.arange(60) ** 1.5).reshape(2, 5, 6) for k in (1.0, 2.0))
    k, b = p.constants(theta), p.bounds(x, theta, q, jnp.asarray(0.1))

    def norm(tree):
        return jnp.sqrt(sum(jnp.sum(v**2) for v in jax.tree.leaves(tree)))

    products = lower_gradient(p, x, theta), hessian_product(p, x, theta, q), cross_transpose_product(p, x, theta, q)
    return [
        p.lower(x, theta), p.upper(x, theta), *map(norm, products),
        k.mu, k.L, k.L_upper, k.L_hessian, k.rounding_cross, b.J, b.M_H, b.M_J, b.L_J,
    ]  # fmt: skip


@pytest.mark.parametrize("case", BEFORE)
def test_the_identity_is_denoising_as_it_was(case):
    """By the old names with their theta, and by parts with names for theta's entries."""
    clean = 0.5 + 0.5 * np.cos(np.arange(60.0) ** 1.3).reshape(2, 5, 6)
    noisy = clean + 0.1 * np.sin(np.arange(60.0) ** 1.7).reshape(2, 5, 6)
    if case.startswith("TV"):
        options = dict.fromkeys(case.split(", ")[1:], True)
        theta = jnp.asarray([-1.0, -2.0, -1.5])[: 2 + len(options) // 2]
        named = dict(zip(("weight", "smoothing", "elastic"), theta, strict=False))
        old = problems.TotalVariation(clean, noisy, **options)
        parts = Restoration(clean, noisy, TV("isotropic" in options), elastic="elastic" in options)
    else:
        theta = {
            "scale": jnp.asarray(-1.0), "weights": jnp.asarray([0.3, -0.4]), "smoothings": jnp.asarray([-1.0, -2.0]),
            "filters": jnp.cos(jnp.arange(18.0) ** 1.2).reshape(2, 3, 3),
        }  # fmt: skip
        kept = {} if case.endswith("all") else {"filters": theta.pop("filters")}
        options, named = {"fixed": kept, "boundary": "valid" if kept else "reflect"}, theta
        old = problems.FieldsOfExperts(clean, noisy, **options)
        parts = Restoration(clean, noisy, Experts(**options))
    np.testing.assert_allclose(fingerprint(old, theta), BEFORE[case], rtol=1e-12)
    np.testing.assert_allclose(fingerprint(parts, named), BEFORE[case], rtol=1e-12)


@jax.jit
def quotients(problem, x, theta, v, t):
    """Derivatives along (v, t), each beside a difference quotient of fourth order of what it is the derivative of."""

    def differences(f, at, along, h=1e-3):
        a, b, c, d = (f(jax.tree.map(lambda p, w: p + k * h * w, at, along)) for k in (-2, -1, 1, 2))  # noqa: B023
        return jax.tree.map(lambda a, b, c, d: (a - 8 * b + 8 * c - d) / (12 * h), a, b, c, d)

    rho, of_theta = jax.grad(problem.lower, (0, 1))(x, theta)
    inner = jax.tree.map(jnp.vdot, of_theta, t)
    return {
        "rho": (jnp.vdot(rho, v), differences(lambda x: problem.lower(x, theta), x, v)),
        "theta": (sum(jax.tree.leaves(inner)), differences(lambda t: problem.lower(x, t), theta, t)),
        "H": (hessian_product(problem, x, theta, v), differences(lambda x: lower_gradient(problem, x, theta), x, v)),
        "J": (cross_product(problem, x, theta, t), differences(lambda t: lower_gradient(problem, x, t), theta, t)),
    }


@pytest.mark.parametrize(
    ("operator", "regulariser"),
    [pytest.param(*pair, marks=[] if pair in FEW else pytest.mark.full) for pair in EACH],
)
def test_derivatives_are_those_of_differences(operator, regulariser):
    """A few pairs, and every one in `make test-full`; adjoints by themselves are in test_operators.py."""
    rng = np.random.default_rng(1)
    problem, theta = draw(operator, regulariser, rng)
    theta = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) - 1, theta)  # not stiff
    x, v = (jnp.asarray(rng.normal(size=SHAPE)) for _ in range(2))
    t = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), theta)
    for name, (exact, quotient) in quotients(problem, x, theta, v, t).items():
        np.testing.assert_allclose(exact, quotient, atol=1e-7, rtol=1e-7, err_msg=name)


@jax.jit
def reference(problem, theta):
    return truth(problem, theta, problem.guess(theta))


def worst_ratios(operator, regulariser, count, dtype, seed, shape=SHAPE):
    """The largest error / bound of x, value and gradient, and of both by `hypergradient`, over random draws."""
    rng, worst = np.random.default_rng(seed), np.zeros(4)
    kind = {True: "probable", False: "proven"}[operator == "function"]
    for _ in range(count):
        problem, theta = draw(operator, regulariser, rng, dtype, shape)
        exact = reference(*in_float64((problem, theta)))
        eps, delta = 10 ** rng.uniform(-7 if dtype == np.float64 else -3, 0, 2)
        lower = bilevel.solve_lower(problem, theta, eps=eps)
        hyper = bilevel.hypergradient(problem, theta, eps=eps, delta=delta)
        assert lower.certificate == hyper.certificate == kind and hyper.certified
        errors = [
            distance(lower.x, exact.x), distance(hyper.x, exact.x), abs(float(hyper.value) - float(exact.value)),
            distance(hyper.gradient, exact.gradient),
        ]  # fmt: skip
        bounds = [lower.error, hyper.error, hyper.value_error, hyper.gradient_error]
        assert np.all(np.isfinite(bounds)) and float(exact.error) < 1e-9
        worst = np.maximum(worst, np.asarray(errors) / np.asarray(bounds, float))
    return worst


@pytest.mark.parametrize("case", [("Fourier", "TV"), ("identity", "ridge"), ("identity", "weak ridge")])
def test_no_certificate_is_violated(case):
    worst = worst_ratios(*case, 25 if "TV" in case else 6, np.float64, seed=2)
    print(case, worst)
    assert np.all(worst <= 1)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("operator", "regulariser"), EACH)
def test_no_certificate_is_violated_in_3000_draws(operator, regulariser, dtype):
    worst = worst_ratios(operator, regulariser, 46, dtype, seed=3)
    print(operator, regulariser, dtype.__name__, worst)
    assert np.all(worst <= 1)


@pytest.mark.full
@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_no_certificate_is_violated_in_colour(regulariser):
    worst = worst_ratios("blur, reflected", regulariser, 46, np.float64, seed=4, shape=COLOUR)
    print(regulariser, worst)
    assert np.all(worst <= 1)


@jax.jit
def in_colour(problem, x, theta, q):
    """Everything at x, and H and J as matrices."""
    H = jax.jacfwd(lambda x: lower_gradient(problem, x, theta))(x).reshape(x.size, x.size)
    J = jax.jacfwd(lambda theta: lower_gradient(problem, x, theta))(theta)
    J = jnp.stack([leaf.ravel() for leaf in jax.tree.leaves(J)], axis=1)
    at = problem.lower(x, theta), lower_gradient(problem, x, theta), hessian_product(problem, x, theta, q)
    return at, H, J, problem.constants(theta), problem.bounds(x, theta, q, jnp.asarray(1.0))


def plain_variation(problem, x, theta):
    """By its definition, one root a pixel for all channels."""
    x, w, nu = np.asarray(x), np.exp(theta["weight"]) / 2, np.exp(theta["smoothing"])
    dx, dy = np.zeros_like(x), np.zeros_like(x)
    dx[:, :, :-1], dy[:, :-1] = np.diff(x, axis=2), np.diff(x, axis=1)
    sums = [np.sum(d**2, axis=3) for d in (dx, dy)]
    sums = [sum(sums)] if problem.regulariser.isotropic else sums
    return w * sum(np.sum(np.sqrt(s + nu**2)) for s in sums)


@pytest.mark.parametrize("regulariser", ["TV", "isotropic"])
def test_channels_share_a_root(regulariser):
    """The energy, its hand-written derivatives, and constants that do not know how many channels there are."""
    rng = np.random.default_rng(5)
    problem, theta = draw("identity", regulariser, rng, shape=COLOUR)
    theta |= {"weight": jnp.asarray(-0.5), "smoothing": jnp.asarray(-0.7)}
    x, q, z = (jnp.asarray(rng.normal(size=COLOUR)) for _ in range(3))
    (h, rho, Hq), H, J, known, bounds = in_colour(problem, x, theta, q)
    rest = np.sum((x - problem.data) ** 2) / 2 + np.exp(theta["elastic"]) / 2 * np.sum(x**2)
    np.testing.assert_allclose(h, rest + plain_variation(problem, x, theta), rtol=1e-12)
    slope = (problem.lower(x + 1e-4 * z, theta) - problem.lower(x - 1e-4 * z, theta)) / 2e-4
    ends = [in_colour(problem, x + t * q, theta, q)[0][1] for t in (1e-4, -1e-4)]
    bend = (ends[0] - ends[1]) / 2e-4
    np.testing.assert_allclose(jnp.vdot(rho, z), slope, rtol=1e-6)
    np.testing.assert_allclose(Hq, bend, atol=1e-5)
    np.testing.assert_allclose(H @ q.ravel(), Hq.ravel(), atol=1e-12)
    np.testing.assert_allclose(H, H.T, atol=1e-12)
    np.testing.assert_allclose(bounds.J, np.linalg.norm(J, 2), rtol=1e-12)
    grey = Restoration(None, problem.data[..., 0], problem.regulariser, elastic=True).constants(theta)
    for name in ("mu", "L", "L_hessian", "L_cross"):
        np.testing.assert_allclose(getattr(known, name), getattr(grey, name), rtol=1e-14)
    for flat in (x, jnp.zeros_like(x)):
        eigenvalues = np.linalg.eigvalsh(in_colour(problem, flat, theta, q)[1])
        assert known.mu * (1 - 1e-12) <= eigenvalues[0] and eigenvalues[-1] <= known.L
    for far in (1e-3, 0.1, 1.0, 10.0):
        step = far * z / jnp.linalg.norm(z)
        _, H2, J2, _, _ = in_colour(problem, x + step, theta, q)
        assert np.linalg.norm(H - H2, 2) <= known.L_hessian * far
        assert np.linalg.norm((H - H2) @ q.ravel()) <= bounds.M_H * far
        assert np.linalg.norm(J - J2, 2) <= bounds.L_J * far and known.L_cross == bounds.L_J
        assert np.linalg.norm((J - J2).T @ q.ravel()) <= bounds.M_J * far


class AtOnce(NamedTuple):
    h: Any
    g: Any
    rho: Any
    constants: Any
    bounds: Any


@jax.jit
def at_once(problem, x, theta, q):
    h, rho = jax.value_and_grad(problem.lower)(x, theta)
    bounds = problem.bounds(x, theta, q, jnp.asarray(0.1))
    return AtOnce(h, problem.upper(x, theta), rho, problem.constants(theta), bounds)


def test_experts_see_channels_as_images():
    rng = np.random.default_rng(6)
    x, data = (jnp.asarray(rng.normal(size=COLOUR)) for _ in range(2))
    filters = jnp.asarray(rng.normal(size=(2, 2, 2)))
    theta = {name: jnp.asarray(leaf) for name, leaf in thetas("experts", rng, elastic=False).items()}
    R = Experts(fixed={"filters": filters})

    def grey(v):
        return jnp.moveaxis(v, 3, 0)[:, 0]

    colour, two = Restoration(x, data, R), Restoration(grey(x), grey(data), R)
    found, same = at_once(colour, x, theta, x), at_once(two, grey(x), theta, grey(x))
    np.testing.assert_allclose(found.h, same.h, rtol=1e-12)
    np.testing.assert_allclose(grey(found.rho), same.rho, atol=1e-12)
    assert found.constants.L_upper == 1 and same.constants.L_upper == 1 / 2
    for name in ("L", "L_hessian", "L_cross", "rounding_cross"):
        np.testing.assert_allclose(getattr(found.constants, name), getattr(same.constants, name), rtol=1e-12)
    for a, b in zip(jax.tree.leaves(found.bounds), jax.tree.leaves(same.bounds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_images_of_different_sizes():
    """List in, list out; h, g and every bound are those of the images one by one, put together."""
    rng = np.random.default_rng(7)
    clean = [rng.uniform(size=shape) for shape in ((6, 4), (5, 4), (6, 4))]
    noisy = [v + 0.1 * rng.normal(size=v.shape) for v in clean]
    kernel = Blur(EVEN, "reflect")
    problem = Restoration(clean, noisy, TV(), kernel, elastic=True)
    theta = {"weight": jnp.asarray(-2.0), "smoothing": jnp.asarray(-1.0), "elastic": jnp.asarray(-1.0)}
    assert [v.shape for v in problem.data] == [(2, 6, 4), (1, 5, 4)] and problem.count == 3
    for a, b in zip(problem.images(problem.data), noisy, strict=True):
        np.testing.assert_array_equal(a, b)
    alone = [
        Restoration(np.stack(c), np.stack(y), TV(), kernel, elastic=True)
        for c, y in ((clean[::2], noisy[::2]), (clean[1:2], noisy[1:2]))
    ]
    found = bilevel.solve_lower(problem, theta, eps=1e-6)
    assert found.result == RESULTS.converged and found.certificate == "proven"
    both = at_once(problem, found.x, theta, problem.data)
    each = [at_once(p, v, theta, p.data) for p, v in zip(alone, found.x, strict=True)]
    np.testing.assert_allclose(both.h, sum(p.h for p in each))
    np.testing.assert_allclose(both.g, sum(len(v) * p.g for p, v in zip(each, found.x, strict=True)) / 3)
    np.testing.assert_allclose(both.constants.mu, min(p.constants.mu for p in each))
    np.testing.assert_allclose(both.constants.L, max(p.constants.L for p in each))
    assert both.constants.L_upper == 1 / 3
    np.testing.assert_allclose(both.bounds.M_H, max(p.bounds.M_H for p in each))
    np.testing.assert_allclose(both.bounds.M_J, np.hypot(*(p.bounds.M_J for p in each)))
    J = [p.bounds.J for p in each]
    assert max(J) <= both.bounds.J <= np.hypot(*J) * (1 + 1e-12)
    for p in each:
        assert jnp.linalg.norm(p.rho) <= found.error * both.constants.mu
    assert [v.shape for v in problem.images(found.x)] == [v.shape for v in clean]
    assert Restoration(None, noisy[:1], TV()).clean is None


class Backwards(Identity):
    """The next pixel of each row, with the same again for its adjoint, which is wrong."""

    def apply(self, x):
        return x + 0.5 * jnp.roll(x, 1, axis=2)

    def extremes(self, shape):
        return 0.25, 2.25

    def adjoint(self, y):
        return self.apply(y)

    def misfit(self, x, y):
        return super(Identity, self).misfit(x, y)


def test_a_wrong_adjoint_is_found():
    """By `check_problem`: the gradient is not that of differences. A right one says nothing."""
    data = np.random.default_rng(8).uniform(size=(1, 3, 4))
    theta = {"weight": np.array(-2.0), "smoothing": np.array(-1.0)}
    said = " ".join(bilevel.check_problem(Restoration(data, data, TV(), Backwards()), theta))
    assert "gradient of lower does not match finite differences" in said


@pytest.mark.parametrize("case", ["deblurring", "inpainting"])
def test_learning(case):
    """A tiny problem, from a poor start: the run ends with its tolerance met, certified, and f is lower for certain."""
    clean = np.zeros((1, 8, 8))
    clean[:, 2:6, 3:] = 1.0
    rng = np.random.default_rng(9)
    A = Blur(EVEN, "reflect") if case == "deblurring" else Mask(rng.uniform(size=(8, 8)) < 0.7)
    data = np.asarray(A.apply(jnp.asarray(clean + 0.02 * rng.normal(size=clean.shape))))
    problem = Restoration(clean, data, TV(), A, elastic=True)
    assert problem.floor == pytest.approx(np.exp(-6))
    theta0 = {"weight": np.array(-1.0), "smoothing": np.array(-2.0), "elastic": np.array(-2.0)}
    run = bilevel.solve(problem, theta0, bounds=(-8.0, 2.0), max_cost=20_000)
    print(case, run.message, run.value, run.cost, run.theta)
    assert run.result == RESULTS.converged and run.certified
    value, error = (run.history[name] for name in ("value", "value_error"))
    assert value[-1] + error[-1] < 0.8 * (value[0] - error[0])


def test_theta_is_checked():
    problem = Restoration(None, np.zeros(SHAPE), TV(), Mask(SEEN), elastic=True)
    good = {"weight": jnp.zeros(()), "smoothing": jnp.zeros(()), "elastic": jnp.zeros(())}
    without = {name: good[name] for name in ("weight", "smoothing")}
    for theta, words in (
        (jnp.zeros(3), "dict of arrays by name, not"), (without, 'a number "elastic"'),
        (good | {"elastic": jnp.zeros(1)}, 'a number "elastic"'), (good | {"other": jnp.zeros(())}, "dict of numbers"),
        (good | {"weight": jnp.zeros(2)}, "dict of numbers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            problem.lower(problem.data, theta)
    with pytest.raises(ValueError, match="dict of numbers"):
        Restoration(None, np.zeros(SHAPE), TV()).constants(good)
    with pytest.raises(ValueError, match="compares with clean images"):
        problem.upper(problem.data, good)


def test_the_floor_of_the_elastic_weight():
    theta = {"weight": jnp.asarray(-2.0), "smoothing": jnp.asarray(-1.0), "elastic": jnp.asarray(-50.0)}
    for operator, floor, mu in (
        (Identity(), None, 1.0), (Mask(SEEN), None, np.exp(-6)), (Mask(SEEN), 0.1, 0.1), (Blur(EVEN), 0.0, None),
    ):  # fmt: skip
        problem = Restoration(None, np.zeros(SHAPE), TV(), operator, elastic=True, floor=floor)
        known = problem.constants(theta)
        assert mu is None or known.mu == pytest.approx(mu)
        assert problem.parts(theta)[2] == np.exp(-50.0)
    function = Restoration(None, np.zeros(SHAPE), TV(), Linear(lambda x: x, SHAPE[1:]), elastic=True)
    assert function.constants(theta).L is None  # only probable


@jax.jit
def gradient_and_constants(problem, x, theta):
    return lower_gradient(problem, x, theta), problem.constants(theta)


@pytest.mark.parametrize("operator", ["mask", "blur, odd, reflected", "Fourier", "matrix"])
def test_the_gradient_is_as_accurate_as_declared(operator):
    """Computed to u (L ||x|| + rounding) in float32, against float64 of the same data."""
    rng, worst = np.random.default_rng(10), 0.0
    for _ in range(8):
        problem, theta = draw(operator, "TV", rng, np.float32)
        wide = in_float64((problem, theta))
        x = np.asarray(wide[0].guess(theta) + 10 ** rng.uniform(-4, 0) * rng.normal(size=SHAPE), np.float32)
        rho, known = gradient_and_constants(problem, x, theta)
        exact, _ = gradient_and_constants(wide[0], x.astype(float), wide[1])
        terms = 0.0 if known.rounding is None else float(known.rounding)
        bound = 2.0**-24 * (float(known.L) * np.linalg.norm(x) + terms)
        worst = max(worst, float(np.linalg.norm(rho - exact)) / bound)
    print(operator, worst)
    assert worst <= 1
