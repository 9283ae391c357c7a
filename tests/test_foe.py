"""Fields of Experts: derivatives are those of a plain convolution, every proven constant holds where it hurts."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import batched, stack, truth

from bilevel import RESULTS, NewtonCG, check_problem, problems
from bilevel._certificate.gradient import differentiate
from bilevel._certificate.value import evaluate
from bilevel._outer.programs import UNLIMITED
from bilevel._problem import cross_product, cross_transpose_product, hessian_product, lower_gradient
from bilevel.problems._regularisers import patches
from bilevel.problems.foe import FieldsOfExperts, dct_filters, initial
from experiments.paper.foe_runs import ZeroMean

LEAVES = ("scale", "weights", "smoothings", "filters")
SHAPE = (2, 6, 7)
# Learned leaves and boundary: all, each leaf once without another, odd and even filters.
CASES = {
    "all": (LEAVES, "valid", 3),
    "all, reflect": (LEAVES, "reflect", 3),
    "all, even, reflect": (LEAVES, "reflect", 2),
    "logs": (LEAVES[:3], "valid", 2),
    "scale": (("scale",), "reflect", 3),
    "weights, smoothings": (LEAVES[1:3], "reflect", 2),
    "filters": (("filters",), "valid", 3),
}
cases = pytest.mark.parametrize("case", CASES)
some = pytest.mark.parametrize("case", ["all", "all, even, reflect", "weights, smoothings"])
most = pytest.mark.parametrize("case", ["all", "all, reflect", "logs", "weights, smoothings", "filters"])


def normal(seed, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def images(seed, shape=SHAPE):
    return np.random.default_rng(seed).uniform(size=shape)


def leaves(rng, K, s):
    """A random theta: weights from e^-5 to e^2, smoothings from e^-4 to 1, filters with and without a mean."""
    filters = 0.5 * rng.normal(size=(K, s, s))
    return {
        "scale": jnp.asarray(rng.uniform(-4, 1)),
        "weights": jnp.asarray(rng.uniform(-1, 1, K)),
        "smoothings": jnp.asarray(rng.uniform(-4, 0, K)),
        "filters": jnp.asarray(filters - rng.integers(2) * filters.mean(axis=(1, 2), keepdims=True)),
    }


def make(case, shape=SHAPE, K=3, seed=0):
    learned, boundary, s = CASES[case]
    every = leaves(np.random.default_rng(seed), K, s)
    fixed = {name: every[name] for name in LEAVES if name not in learned}
    problem = FieldsOfExperts(images(1, shape), images(2, shape), fixed=fixed, boundary=boundary)
    return problem, {name: every[name] for name in learned}


class Plain(FieldsOfExperts):
    """The same problem as a convolution of the whole stack, left to JAX to differentiate."""

    def lower(self, x, theta):
        t = theta | self.fixed
        s = t["filters"].shape[1]
        before, after = (s - 1) // 2, s // 2
        y = jnp.pad(x, ((0, 0), (before, after), (before, after)), "reflect") if self.boundary == "reflect" else x
        d = jax.lax.conv(y[:, None], t["filters"][:, None], (1, 1), "VALID")
        nu = jnp.exp(t["smoothings"])[None, :, None, None]
        roots = jnp.sum(jnp.sqrt(d**2 + nu**2), axis=(0, 2, 3))
        return jnp.sum((x - self.noisy) ** 2) / 2 + jnp.exp(t["scale"]) / 2 * (jnp.exp(t["weights"]) @ roots)


def plain(problem):
    return Plain(problem.clean, problem.noisy, fixed=problem.fixed, boundary=problem.boundary)


def direction(seed, theta):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), theta)


def inner(a, b):
    return sum(jnp.vdot(u, v) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def assert_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, u), v in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(u, v, err_msg=str(path), **tolerance)


@cases
def test_energy_is_its_definition(case):
    """h by loops over images, filters and pixels."""
    problem, theta = make(case)
    t, x = jax.device_get(theta | problem.fixed), np.asarray(normal(3))
    s = t["filters"].shape[1]
    h = np.sum((x - problem.noisy) ** 2) / 2
    for image in x:
        if problem.boundary == "reflect":
            image = np.pad(image, ((s - 1) // 2, s // 2), mode="reflect")
        for weight, smoothing, c in zip(t["weights"], t["smoothings"], t["filters"], strict=True):
            for i in range(image.shape[0] - s + 1):
                for j in range(image.shape[1] - s + 1):
                    root = np.sqrt(np.sum(c * image[i : i + s, j : j + s]) ** 2 + np.exp(smoothing) ** 2)
                    h += np.exp(t["scale"] + weight) / 2 * root
    np.testing.assert_allclose(problem.lower(jnp.asarray(x), theta), h, rtol=1e-12)


@some
def test_derivatives_are_those_of_a_convolution(case):
    """In all modes; and H is symmetric, J^T q the transpose of J v."""
    problem, theta = make(case)
    x, v, t = normal(3), normal(4), direction(5, theta)

    def unrolled(problem, theta):  # two gradient steps, differentiated through
        def step(y, _):
            return y - 0.01 * lower_gradient(problem, y, theta), None

        return jnp.sum(v * jax.lax.scan(step, x, length=2)[0])

    @jax.jit
    def everything(problem):
        return {
            "h": problem.lower(x, theta),
            "both": jax.grad(problem.lower, argnums=(0, 1))(x, theta),
            "Hv, Hx by vmap": jax.vmap(lambda v: hessian_product(problem, x, theta, v))(jnp.stack([v, x])),
            "Jt": cross_product(problem, x, theta, t),
            "JTv": cross_transpose_product(problem, x, theta, v),
            "JTv by reverse": jax.vjp(lambda theta: lower_gradient(problem, x, theta), theta)[1](v),
            "unrolled": jax.grad(unrolled, argnums=1)(problem, theta),
        }

    found = everything(problem)
    assert_close(found, everything(plain(problem)), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(jnp.vdot(v, found["Jt"]), inner(found["JTv"], t), rtol=1e-11)
    Hv, Hx = found["Hv, Hx by vmap"]
    np.testing.assert_allclose(jnp.vdot(x, Hv), jnp.vdot(v, Hx), rtol=1e-11)


@jax.jit
def matrices(problem, x, theta):
    """H and J, and their derivatives in x, as NumPy would write them: (n, n), (n, d), (n, n, n), (n, d, n)."""

    def at(x):
        H = jax.jacfwd(lambda x: lower_gradient(problem, x, theta))(x).reshape(x.size, x.size)
        J = jax.jacfwd(lambda theta: lower_gradient(problem, x, theta))(theta)
        return H, jnp.concatenate([leaf.reshape(x.size, -1) for leaf in jax.tree.leaves(J)], axis=1)

    return at(x), jax.tree.map(lambda v: v.reshape(*v.shape[:2], x.size), jax.jacfwd(at)(x))


@jax.jit
def bounds_of(problem, x, theta, q, radius):
    return problem.bounds(x, theta, q, jnp.asarray(radius, q.dtype)), problem.constants(theta)


def largest(T, rng, starts=3, steps=30):
    """A large |T[u, v, z]| over unit vectors by alternating maximisation, and its z."""
    best = 0.0, None
    for _ in range(starts):
        v, z = rng.normal(size=T.shape[1]), rng.normal(size=T.shape[2])
        for _ in range(steps):
            v /= np.linalg.norm(v)
            u = T @ z @ v
            u /= np.linalg.norm(u)
            v = u @ (T @ z)
            z = np.einsum("i,ijk,j->k", u, T, v / np.linalg.norm(v))
            size = np.linalg.norm(z)
            z /= size
        best = max(best, (size, z), key=lambda pair: pair[0])
    return best


@most
def test_constants_hold_against_adversarial_points(case):
    """Derivatives at a point against the bounds with radius 0, differences over a distance against those with that
    radius: from points where phi''' is largest (t about 1/2), large ones and flat ones, along the worst directions."""
    shape = (2, 4, 4)
    rng = np.random.default_rng(7)
    worst = dict.fromkeys(["L", "L_H", "J", "M_H", "M_J", "L_J"], 0.0)
    for trial in range(4):
        problem, theta = make(case, shape, K=2, seed=trial)
        x = normal(trial, shape) * 10.0 ** rng.uniform(-3, 0.5) + (trial % 2)
        q = normal(trial + 10, shape) * jnp.asarray([1.0, 10.0 ** rng.uniform(-2, 2)])[:, None, None]
        (H, J), (dH, dJ) = jax.device_get(matrices(problem, x, theta))
        here, known = bounds_of(problem, x, theta, q, 0.0)
        assert known.L_cross is None or known.L_cross == here.L_J
        spectrum, flat_q = np.linalg.eigvalsh(H), np.asarray(q).ravel()
        dHq, dJq = np.einsum("ijk,j->ik", dH, flat_q), np.einsum("ijk,i->jk", dJ, flat_q)
        cube, along_H = largest(dH, rng)
        cross, along_J = largest(dJ, rng)
        assert known.mu == 1 and spectrum[0] >= 1 - 1e-9
        found = {
            "L": spectrum[-1] / known.L, "L_H": cube / known.L_hessian, "J": np.linalg.norm(J, 2) / here.J,
            "M_H": np.linalg.norm(dHq, 2) / here.M_H, "M_J": np.linalg.norm(dJq, 2) / here.M_J, "L_J": cross / here.L_J,
        }  # fmt: skip
        worst = {name: max(worst[name], float(found[name])) for name in worst}

        directions = [along_H, along_J, np.linalg.svd(dHq)[2][0], np.linalg.svd(dJq)[2][0], rng.normal(size=x.size)]
        for z in [sign * z / np.linalg.norm(z) for z in directions for sign in (1, -1)]:
            distance = 10.0 ** rng.uniform(-3, 1)
            (H2, J2), _ = jax.device_get(matrices(problem, x + distance * z.reshape(shape), theta))
            ball, _ = bounds_of(problem, x, theta, q, distance)
            assert np.linalg.norm(H - H2, 2) <= known.L_hessian * distance * (1 + 1e-9)
            assert np.linalg.norm(J - J2, 2) <= ball.L_J * distance * (1 + 1e-9)
            assert np.linalg.norm((H - H2) @ flat_q) <= ball.M_H * distance * (1 + 1e-9)
            assert np.linalg.norm((J - J2).T @ flat_q) <= ball.M_J * distance * (1 + 1e-9)
    print(case, {name: f"{value:.2f}" for name, value in worst.items()})
    assert max(worst.values()) <= 1 + 1e-9, worst
    assert worst["J"] >= (0.4 if "filters" in theta else 0.7), worst  # what makes or breaks omega


@pytest.mark.parametrize("boundary", ["valid", "reflect"])
def test_L_is_nearly_reached(boundary):
    """On a flat image, phi'' = 1: the largest eigenvalue comes close to L ("reflect" pays its factor 4)."""
    rng = np.random.default_rng(0)
    problem = FieldsOfExperts(None, np.full((1, 12, 12), 0.5), boundary=boundary)
    theta = leaves(rng, 3, 3)
    theta["filters"] -= jnp.mean(theta["filters"], axis=(1, 2), keepdims=True)
    H = jax.jit(jax.jacfwd(lambda x: lower_gradient(problem, x, theta)))(problem.noisy).reshape(144, 144)
    ratio = np.linalg.eigvalsh(H)[-1] / problem.constants(theta).L
    assert (0.85 if boundary == "valid" else 0.2) <= ratio <= 1


@eqx.filter_jit
@partial(eqx.filter_vmap, in_axes=eqx.if_array(0))
def run(problem, theta, eps, delta, x0, q0):
    point = evaluate(problem, NewtonCG(), theta, x0, eps, jnp.asarray(UNLIMITED))
    return point, differentiate(problem, theta, point.lower, q0, delta, jnp.asarray(UNLIMITED))


true = batched(lambda problem, theta: truth(problem, theta, problem.guess(theta)))


@pytest.mark.parametrize("case", ["all", "all, even, reflect", "logs"])
def test_no_certificate_is_violated(case):
    """||x - xhat|| <= eps, |g(x) - f| <= value_error, ||z - grad f|| <= omega on 35 draws each of theta, image, eps,
    delta and warm start, against Newton's method with dense Hessians."""
    count, shape = 35, (2, 5, 5)
    rng = np.random.default_rng(8)
    draws = []
    for seed in range(count):
        problem, theta = make(case, shape, K=2, seed=100 + seed)
        clean = np.zeros(shape) + rng.uniform()
        clean[:, : rng.integers(1, 5)] = rng.uniform()
        noisy = clean + 0.1 * rng.normal(size=shape)
        draws.append((FieldsOfExperts(clean, noisy, fixed=problem.fixed, boundary=problem.boundary), theta))
    problem, theta = stack(draws)
    exact = jax.device_get(true(problem, theta))
    assert np.max(exact.error) < 1e-11
    eps, delta = (jnp.asarray(10 ** rng.uniform(-9, 0, count)) for _ in range(2))
    x0 = exact.x + rng.normal(size=exact.x.shape) * 10 ** rng.uniform(-4, 0, (count, 1, 1, 1))
    point, z = jax.device_get(run(problem, theta, eps, delta, jnp.asarray(x0), jnp.asarray(x0)))
    assert point.certified and z.certificate == "proven" and np.all(point.lower.error <= eps)

    def distance(a, b):
        return np.sqrt(
            sum(
                np.sum((u - v).reshape(count, -1) ** 2, axis=1)
                for u, v in zip(*map(jax.tree.leaves, (a, b)), strict=True)
            )
        )

    errors = [distance(point.lower.x, exact.x), np.abs(point.value - exact.value), distance(z.gradient, exact.gradient)]
    bounds = [point.lower.error, point.value_error, z.error]
    print(case, "median bound/error", [float(np.median(b / e)) for e, b in zip(errors, bounds, strict=True)])
    for error, bound in zip(errors, bounds, strict=True):
        assert np.all(np.isfinite(bound)) and np.all(error <= bound)
    assert np.all(point.value - point.below <= exact.value)


def test_upper_level_and_denoise():
    problem, theta = make("logs")
    x = normal(3)
    np.testing.assert_allclose(problem.upper(x, theta), np.sum((x - problem.clean) ** 2) / 4)
    assert problem.constants(theta).L_upper == 1 / 2 and problem.constants(theta).convex_upper
    np.testing.assert_array_equal(problem.guess(theta), problem.noisy)
    with pytest.raises(ValueError, match="clean images"):
        FieldsOfExperts(None, problem.noisy).upper(x, theta)
    found, exact = problem.denoise(theta, problem.clean), problem.denoise(theta, problem.clean, eps=1e-9)
    assert found.result == RESULTS.converged and found.error <= 1e-3 * x.size**0.5
    assert np.linalg.norm(found.x - exact.x) <= found.error + exact.error


def test_starting_filters():
    theta = initial(0)
    assert {name: leaf.shape for name, leaf in theta.items()} == {
        "scale": (), "weights": (48,), "smoothings": (48,), "filters": (48, 7, 7),
    }  # fmt: skip
    assert theta["scale"] == -3 and np.all(theta["weights"] == -3) and np.all(theta["smoothings"] == -3.5)
    np.testing.assert_allclose(jnp.mean(theta["filters"], axis=(1, 2)), 0, atol=1e-15)
    np.testing.assert_allclose(jnp.std(theta["filters"]), 7**-0.5, rtol=0.05)
    assert_close(initial(jax.random.key(0)), theta)
    assert initial(1, 5, 3, np.float32)["filters"].dtype == jnp.float32

    learnt = {"weight": jnp.asarray(-1.5), "smoothing": jnp.asarray(-3.0)}
    x = jnp.zeros((1, 8, 7)).at[0, 2:5, 3:5].set(0.7)  # it is total variation, but where x ends
    theta = problems.Experts().start(learnt, size=3)
    assert theta["filters"].shape == (8, 3, 3) and theta["scale"] == -1.5
    np.testing.assert_allclose(problems.Experts().value(x, theta), problems.TV().value(x, learnt), rtol=1e-3)
    with pytest.raises(ValueError, match="room for"):
        problems.Experts().start(size=2)

    filters = dct_filters(5).reshape(24, 25)
    np.testing.assert_allclose(filters @ filters.T, np.eye(24), atol=1e-14)
    np.testing.assert_allclose(filters.sum(axis=1), 0, atol=1e-14)
    fixed = {"filters": dct_filters(3), "weights": np.zeros(8), "smoothings": np.full(8, -3.0)}
    problem = FieldsOfExperts(images(0), images(1), fixed=fixed)
    assert np.isfinite(problem.lower(problem.noisy, {"scale": jnp.asarray(-2.0)}))


def test_float32_stays_float32():
    problem, theta = make("all")
    x, v = normal(3), normal(4)
    single, theta_, x_, v_ = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (problem, theta, x, v))

    @jax.jit
    def everything(problem, x, theta, v):
        return (
            problem.lower(x, theta),
            lower_gradient(problem, x, theta),
            hessian_product(problem, x, theta, v),
            cross_transpose_product(problem, x, theta, v),
            problem.constants(theta),
            problem.bounds(x, theta, v, jnp.ones_like(theta["scale"])),
        )

    singles, doubles = everything(single, x_, theta_, v_), everything(problem, x, theta, v)
    for a, b in zip(jax.tree.leaves(singles), jax.tree.leaves(doubles), strict=True):
        assert a.dtype == jnp.float32 and b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_sharding_over_images_is_kept():
    """Each device maps over its own images: no image travels, and the sums are those of one device."""
    mesh = jax.make_mesh((4,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("images"))
    shape, theta = (8, 6, 7), leaves(np.random.default_rng(0), 3, 3)
    whole = FieldsOfExperts(images(0, shape), images(1, shape))
    clean, noisy = (jax.device_put(v, split) for v in (whole.clean, whole.noisy))
    problem = FieldsOfExperts(clean, noisy)
    assert problem.shards == 4 and whole.shards == 1
    compiled = jax.jit(lower_gradient).lower(problem, noisy, theta).compile()
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    gradient = compiled(problem, noisy, theta)
    assert gradient.sharding.is_equivalent_to(split, 3)
    np.testing.assert_allclose(gradient, jax.jit(lower_gradient)(whole, whole.noisy, theta), atol=1e-12)
    for f in (cross_transpose_product, lambda p, x, theta, q: p.bounds(x, theta, q, jnp.asarray(0.1))):
        assert_close(
            jax.jit(f)(problem, noisy, theta, clean), jax.jit(f)(whole, whole.noisy, theta, whole.clean), rtol=1e-9
        )


def test_made_under_jit():
    y, theta = jnp.asarray(images(0)), leaves(np.random.default_rng(0), 2, 3)
    made = jax.jit(lambda y: FieldsOfExperts(None, y).lower(y, theta))
    np.testing.assert_allclose(made(y), FieldsOfExperts(None, y).lower(y, theta))


GOOD = images(0)
BAD = {
    "one image": (GOOD[0], GOOD[0], ValueError, r"noisy\[None\]"),
    "colour": (np.zeros((8, 9, 3)), np.zeros((8, 9, 3)), ValueError, r"np\.moveaxis\(noisy, -1, 0\)"),
    "shapes": (GOOD, GOOD[:1], ValueError, "same shape"),
    "integers": ((GOOD * 255).astype(np.uint8), GOOD, TypeError, "divide by 255"),
    "mixed": (GOOD, GOOD.astype(np.float32), TypeError, r"noisy\.astype\(clean\.dtype\)"),
    "nan": (GOOD, np.where(GOOD > 0.5, np.nan, GOOD), ValueError, "NaN or infinite"),
    "clean above 1": (GOOD * 255, GOOD, ValueError, "divide by 255"),
    "noisy to 255": (GOOD, GOOD * 255, ValueError, "divide by 255"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images(case):
    clean, noisy, error, message = BAD[case]
    with pytest.raises(error, match=message):
        FieldsOfExperts(clean, noisy)


def test_bad_options():
    with pytest.raises(ValueError, match=r'boundary must be "valid" or "reflect", not .wrap.'):
        FieldsOfExperts(GOOD, GOOD, boundary="wrap")
    with pytest.raises(ValueError, match="the fixed weights hold NaN"):
        FieldsOfExperts(GOOD, GOOD, fixed={"weights": np.array([np.nan])})
    with jax.enable_x64(False), pytest.raises(TypeError, match="jax_enable_x64"):
        FieldsOfExperts(GOOD, GOOD)


def without(theta, name):
    return {k: v for k, v in theta.items() if k != name}


THETA = leaves(np.random.default_rng(0), 2, 3)
BAD_THETA = {
    "an array": (jnp.zeros(3), {}, "theta must be a dict"),
    "a leaf is missing": (without(THETA, "scale"), {}, "but for the fixed"),
    "a leaf too many": (THETA | {"bias": jnp.zeros(())}, {}, "bias"),
    "a leaf twice": (THETA, {"scale": 0.0}, r"but for the fixed \['scale'\]"),
    "unknown and fixed": (THETA, {"bias": 0.0}, "bias"),
    "scale": (THETA | {"scale": jnp.zeros(1)}, {}, "must have the shapes"),
    "weights": (THETA | {"weights": jnp.zeros(3)}, {}, "must have the shapes"),
    "one smoothing": (THETA | {"smoothings": jnp.zeros(())}, {}, "must have the shapes"),
    "not square": (THETA | {"filters": jnp.zeros((2, 3, 2))}, {}, "must have the shapes"),
    "flat filters": (THETA | {"filters": jnp.zeros((2, 9))}, {}, "must have the shapes"),
    "no filters": ({n: v[:0] if v.ndim else v for n, v in THETA.items()}, {}, "at least 1"),
    "fixed ones do not fit": (without(THETA, "filters"), {"filters": np.zeros((3, 3, 3))}, "must have the shapes"),
    "too large": (THETA | {"filters": jnp.zeros((2, 7, 7))}, {}, r"7 x 7 do not fit into images of \(6, 7\)"),
}


@pytest.mark.parametrize("case", BAD_THETA)
def test_bad_theta(case):
    theta, fixed, message = BAD_THETA[case]
    problem = FieldsOfExperts(GOOD, GOOD, fixed=fixed)
    for f in (lambda t: problem.lower(problem.noisy, t), problem.constants):
        with pytest.raises(ValueError, match=message):
            f(theta)


@pytest.mark.parametrize("boundary", ["valid", pytest.param("reflect", marks=pytest.mark.full)])
def test_filters_less_their_means_keep_the_bounds(boundary):
    """The experiment's class projects theta: constants and bounds proven for all filters hold for it."""
    every = leaves(np.random.default_rng(3), 3, 3)
    scale = {"scale": every.pop("scale")}
    problem = ZeroMean(images(1), images(2), fixed=scale, boundary=boundary)
    shifted = every | {"filters": every["filters"] + 0.7}
    x = normal(3)
    np.testing.assert_allclose(problem.lower(x, every), problem.lower(x, shifted), rtol=1e-12)
    assert check_problem(problem, every) == []


@pytest.mark.parametrize("boundary", ["valid", "reflect"])
def test_strips_and_blocks_change_nothing(boundary, monkeypatch):
    """Energy, gradients, a Hessian product, constants and bounds: whole, and in strips of 3 rows with a rest of 2."""
    rng = np.random.default_rng(3)
    noisy = rng.uniform(0, 1, (1, 13 if boundary == "valid" else 11, 9))
    problem, theta = FieldsOfExperts(None, noisy, boundary=boundary), initial(0, 8, 3)
    q = jnp.asarray(rng.standard_normal(noisy.shape))

    def numbers():
        x = problem.guess(theta)

        def everything(x, q):
            slopes = jax.grad(problem.lower, argnums=(0, 1))
            moved = jax.jvp(lambda x: slopes(x, theta), (x,), (q,))
            return problem.lower(x, theta), moved, problem.constants(theta), problem.bounds(x, theta, q, jnp.ones(()))

        return jax.jit(everything)(x, q)

    whole = numbers()
    monkeypatch.setattr(patches, "WHOLE", 20)
    monkeypatch.setattr(patches, "STRIP", 27)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), numbers(), whole)
