"""Total variation: the hand-written derivatives are the derivatives, and every proven constant holds where it hurts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel
from bilevel._problem import cross_product, cross_transpose_product, hessian_product, lower_gradient
from bilevel.problems import TotalVariation
from bilevel.problems._regularisers.tv_kernels import adjoint_differences, differences

OPTIONS = [{}, {"isotropic": True}, {"elastic": True}, {"isotropic": True, "elastic": True}]
options = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: "+".join(option) or "plain")
extremes = pytest.mark.parametrize("option", [OPTIONS[0], OPTIONS[3]], ids=["plain", "isotropic+elastic"])
SHAPE = (3, 5, 6)


def normal(seed, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def images(seed, shape=SHAPE):
    return np.random.default_rng(seed).uniform(size=shape)


def make(option, shape=SHAPE):
    theta = jnp.asarray([-1.0, -0.7, -1.5])[: 3 if option.get("elastic") else 2]
    return TotalVariation(images(0, shape), images(1, shape), **option), theta


def energy(problem, x, theta):
    """h from its definition, one image at a time, left to JAX to differentiate."""
    w, nu = jnp.exp(theta[0]) / 2, jnp.exp(theta[1])

    def one(image, noisy):
        dx = jnp.concatenate([image[:, 1:] - image[:, :-1], jnp.zeros((image.shape[0], 1))], axis=1)
        dy = jnp.concatenate([image[1:] - image[:-1], jnp.zeros((1, image.shape[1]))], axis=0)
        if problem.isotropic:
            roots = jnp.sqrt(dx**2 + dy**2 + nu**2)
        else:
            roots = jnp.sqrt(dx**2 + nu**2) + jnp.sqrt(dy**2 + nu**2)
        return jnp.sum((image - noisy) ** 2) / 2 + w * jnp.sum(roots)

    h = jnp.sum(jax.vmap(one)(x, problem.noisy))
    return h + jnp.exp(theta[2]) / 2 * jnp.sum(x**2) if problem.elastic else h


class Plain(TotalVariation):
    """The same problem without hand-written rules."""

    def lower(self, x, theta):
        return energy(self, x, theta)


products = {"H": jax.jit(hessian_product), "J": jax.jit(cross_product), "JT": jax.jit(cross_transpose_product)}


def plain(problem):
    return Plain(problem.clean, problem.noisy, isotropic=problem.isotropic, elastic=problem.elastic)


@options
def test_derivatives_are_those_of_the_energy(option):
    problem, theta = make(option)
    x, v, t = normal(2), normal(3), normal(4, theta.shape)

    def unrolled(problem, theta):  # two gradient steps, differentiated through
        def step(y, _):
            return y - 0.1 * lower_gradient(problem, y, theta), None

        return jnp.sum(v * jax.lax.scan(step, x, length=2)[0])

    @jax.jit
    def everything(problem):
        return {
            "h": problem.lower(x, theta),
            "gradient": lower_gradient(problem, x, theta),
            "theta gradient": jax.grad(problem.lower, argnums=1)(x, theta),
            "both": jax.grad(problem.lower, argnums=(0, 1))(x, theta),
            "Hv": hessian_product(problem, x, theta, v),
            "Jt": cross_product(problem, x, theta, t),
            "JTv": cross_transpose_product(problem, x, theta, v),
            "JTv by reverse": jax.vjp(lambda theta: lower_gradient(problem, x, theta), theta)[1](v),
            "unrolled": jax.grad(unrolled, argnums=1)(problem, theta),
            "vmap": jax.vmap(lambda x: hessian_product(problem, x, theta, v))(jnp.stack([x, v])),
        }

    fast, slow = everything(problem), everything(plain(problem))
    assert jax.tree.structure(fast) == jax.tree.structure(slow)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=str(path))


@options
def test_products_are_transposes(option):
    problem, theta = make(option)
    x, v, u, t = normal(2), normal(3), normal(5), normal(4, theta.shape)
    Jt, JTv = products["J"](problem, x, theta, t), products["JT"](problem, x, theta, v)
    np.testing.assert_allclose(jnp.vdot(v, Jt), jnp.vdot(JTv, t), rtol=1e-12)
    Hv, Hu = products["H"](problem, x, theta, v), products["H"](problem, x, theta, u)
    np.testing.assert_allclose(jnp.vdot(u, Hv), jnp.vdot(v, Hu), rtol=1e-12)


def test_differences_have_their_adjoint():
    x, px, py = normal(2), normal(3), normal(4)
    dx, dy = differences(x)
    np.testing.assert_array_equal(dx[:, :, :-1], x[:, :, 1:] - x[:, :, :-1])
    np.testing.assert_array_equal(dy[:, :-1], x[:, 1:] - x[:, :-1])
    assert not dx[:, :, -1].any() and not dy[:, -1].any()
    np.testing.assert_allclose(jnp.vdot(dx, px) + jnp.vdot(dy, py), jnp.vdot(x, adjoint_differences(px, py)))


@options
def test_nothing_wraps_around(option):
    """H couples a pixel to its neighbours in the same image alone (isotropic: diagonal ones too)."""
    problem, theta = make(option)
    reach = np.zeros(SHAPE, bool)
    for n, i, j in [(0, 0, 0), (1, 2, 5), (2, 4, 5), (1, 4, 0)]:
        reach[n, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = True
        v = jnp.zeros(SHAPE).at[n, i, j].set(1.0)
        Hv = products["H"](problem, normal(2), theta, v)
        assert not Hv[~reach].any() and Hv[n, i, j] > 0
        reach[:] = False


def test_theta_derivatives_do_not_pay_for_x():
    """A stored flux (the barrier) marks a gradient in x; symbolic zeros leave it out where it is not asked for."""
    problem, theta = make({})
    x = normal(2)

    def fluxes(f, *args):
        return str(jax.make_jaxpr(f)(*args)).count("optimization_barrier")

    assert fluxes(jax.grad(problem.lower), x, theta) == 1
    assert fluxes(jax.grad(problem.lower, argnums=1), x, theta) == 0


@jax.jit
def matrices(problem, x, theta):
    size = x.size
    H = jax.jacfwd(lambda x: lower_gradient(problem, x, theta))(x).reshape(size, size)
    J = jax.jacfwd(lambda theta: lower_gradient(problem, x, theta))(theta).reshape(size, -1)
    return H, J


@options
def test_the_hessian_lies_between_mu_and_L_and_reaches_both(option):
    problem, theta = make(option, (1, 12, 12))
    constants = problem.constants(theta)
    flat = jnp.zeros((1, 12, 12))
    for x in (normal(2, flat.shape), 30 * normal(3, flat.shape), flat):
        eigenvalues = np.linalg.eigvalsh(matrices(problem, x, theta)[0])
        assert constants.mu * (1 - 1e-12) <= eigenvalues[0] and eigenvalues[-1] <= constants.L * (1 + 1e-12)
    assert eigenvalues[0] <= constants.mu * (1 + 1e-12) and eigenvalues[-1] >= 0.95 * constants.L


@jax.jit
def bounds_of(problem, x, theta, q):
    return problem.bounds(x, theta, q, jnp.ones_like(theta[0]))


@options
def test_J_is_its_norm(option):
    problem, theta = make(option)
    x = normal(2)
    exact = np.linalg.norm(matrices(problem, x, theta)[1], 2)
    np.testing.assert_allclose(bounds_of(problem, x, theta, x).J, exact, rtol=1e-12)


@extremes
def test_lipschitz_constants_hold_against_a_search(option):
    """Ascent on quotient/bound over x, x' and a direction, from random starts: close to 1, never above.

    The quotients of H and of J are those of their derivative along x' - x, the worst ones.
    """
    shape = (2, 4, 5)
    problem, theta = make(option, shape)
    known = problem.constants(theta)
    norm = jnp.linalg.norm

    def along(f, x, z):
        return jax.jvp(f, (x,), (z,))[1]

    def ratios(points):
        (x1, z1, v1), (x2, z2, q2), (x3, z3, t3), (x4, z4, q4) = points
        at2, at4 = (problem.bounds(x, theta, q, jnp.asarray(1.0)) for x, q in ((x2, q2), (x4, q4)))
        dH = along(lambda x: hessian_product(problem, x, theta, v1), x1, z1)
        dHq = along(lambda x: hessian_product(problem, x, theta, q2), x2, z2)
        dJ = along(lambda x: cross_product(problem, x, theta, t3), x3, z3)
        dJq = along(lambda x: cross_transpose_product(problem, x, theta, q4), x4, z4)
        return jnp.stack(
            [
                norm(dH.ravel()) / (known.L_hessian * norm(z1.ravel()) * norm(v1.ravel())),
                norm(dHq.ravel()) / (at2.M_H * norm(z2.ravel())),
                norm(dJ.ravel()) / (known.L_cross * norm(z3.ravel()) * norm(t3)),
                norm(dJq) / (at4.M_J * norm(z4.ravel())),
            ]
        )

    rng = np.random.default_rng(0)

    def start():
        return jnp.asarray(rng.normal(size=shape))

    starts = [
        [(0.3 * start(), start(), jnp.asarray(rng.normal(size=theta.shape)) if k == 2 else start()) for k in range(4)]
        for _ in range(12)
    ]
    flat, unravel = ravel_pytree(starts[0])
    flat = jnp.stack([ravel_pytree(s)[0] for s in starts])

    @jax.jit
    @jax.vmap
    def search(p):
        def objective(p):
            r = ratios(unravel(p))
            return jnp.sum(jnp.log(r)), r

        def step(carry, _):
            p, m, s = carry
            g, r = jax.grad(objective, has_aux=True)(p)
            m, s = 0.9 * m + 0.1 * g, 0.99 * s + 0.01 * g**2
            return (p + 0.05 * m / (jnp.sqrt(s) + 1e-12), m, s), r

        return jax.lax.scan(step, (p, jnp.zeros_like(p), jnp.zeros_like(p)), length=200)[1]

    best = jnp.max(search(flat), axis=(0, 1))
    assert (best <= 1 + 1e-9).all(), best
    assert (best >= jnp.asarray([0.65, 0.75, 0.8, 0.85])).all(), best  # or the search has not searched


@options
def test_bounds_hold_between_two_points(option):
    """The inequalities as the certificate uses them, with differences and not derivatives, at all distances."""
    problem, theta = make(option)
    x, q = normal(2), normal(3)
    bounds = bounds_of(problem, x, theta, q)
    known = problem.constants(theta)
    H, J = matrices(problem, x, theta)
    for k, distance in enumerate((1e-3, 0.1, 1.0, 10.0)):
        z = normal(10 + k)
        z = z * (distance / jnp.linalg.norm(z.ravel()))
        H_there, J_there = matrices(problem, x + z, theta)
        assert np.linalg.norm(H - H_there, 2) <= known.L_hessian * distance
        assert np.linalg.norm(J - J_there, 2) <= bounds.L_J * distance
        assert np.linalg.norm((H - H_there) @ q.ravel()) <= bounds.M_H * distance
        assert np.linalg.norm((J - J_there).T @ q.ravel()) <= bounds.M_J * distance
    norm_q = np.linalg.norm(q.ravel())
    assert bounds.M_H / norm_q <= known.L_hessian and bounds.M_J / norm_q <= known.L_cross * (1 + 1e-12)


def test_upper_level():
    problem, theta = make({})
    x = normal(2)
    np.testing.assert_allclose(problem.upper(x, theta), np.sum((x - problem.clean) ** 2) / 6)
    known = problem.constants(theta)
    assert known.L_upper == 1 / 3 and known.L_upper_theta == 0 and known.convex_upper
    np.testing.assert_array_equal(problem.guess(theta), problem.noisy)
    with pytest.raises(ValueError, match="clean images"):
        TotalVariation(None, problem.noisy).upper(x, theta)


@extremes
def test_float32_stays_float32(option):
    problem, theta = make(option)
    x, v = normal(2), normal(3)
    single, theta_, x_, v_ = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (problem, theta, x, v))

    @jax.jit
    def everything(problem, x, theta, v):
        return (
            problem.lower(x, theta),
            lower_gradient(problem, x, theta),
            hessian_product(problem, x, theta, v),
            cross_transpose_product(problem, x, theta, v),
            problem.constants(theta),
            problem.bounds(x, theta, v, theta[0]),
        )

    singles, doubles = everything(single, x_, theta_, v_), everything(problem, x, theta, v)
    for a, b in zip(jax.tree.leaves(singles), jax.tree.leaves(doubles), strict=True):
        assert a.dtype == jnp.float32 and b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_sharding_over_images_is_kept():
    mesh = jax.make_mesh((4,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("images"))
    whole = TotalVariation(images(0, (8, 6, 7)), images(1, (8, 6, 7)))
    problem = TotalVariation(jax.device_put(whole.clean, split), jax.device_put(whole.noisy, split))
    assert problem.noisy.sharding == split and problem.clean.sharding == split
    theta = jnp.asarray([-1.0, -1.0])
    gradient = jax.jit(lower_gradient)(problem, problem.noisy, theta)
    assert gradient.sharding.is_equivalent_to(split, 3)
    np.testing.assert_allclose(gradient, jax.jit(lower_gradient)(whole, whole.noisy, theta), atol=1e-14)
    split_up, at_once = (bounds_of(p, p.noisy, theta, p.clean) for p in (problem, whole))
    for a, b in zip(jax.tree.leaves(split_up), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_made_under_jit():
    y = jnp.asarray(images(0))
    made = jax.jit(lambda y: TotalVariation(None, y).lower(y, jnp.asarray([-1.0, -1.0])))
    np.testing.assert_allclose(made(y), TotalVariation(None, y).lower(y, jnp.asarray([-1.0, -1.0])))


@options
def test_denoise(option):
    clean = np.zeros((1, 16, 16))
    clean[:, 4:12, 4:12] = 1.0
    noisy = clean + 0.1 * np.random.default_rng(0).normal(size=clean.shape)
    trained, _ = make(option)
    theta = jnp.asarray([-2.0, -3.0, -6.0])[: 3 if trained.elastic else 2]
    found = trained.denoise(theta, noisy)
    assert found.result == bilevel.RESULTS.converged and found.error <= 1e-3 * 16
    assert np.linalg.norm(found.x - clean) < 0.5 * np.linalg.norm(noisy - clean)
    exact = trained.denoise(theta, noisy, eps=1e-10)
    assert np.linalg.norm(found.x - exact.x) <= found.error + exact.error


GOOD = images(0)
COLOUR = GOOD.T
BAD = {
    "one image": (GOOD[0], GOOD[0], ValueError, r"noisy\[None\]"),
    "a line": (GOOD[0, 0], GOOD[0, 0], ValueError, r"stack \(n, height, width\)"),
    "channels first": (GOOD[None], GOOD[None], ValueError, r"height, width\).*noisy\.reshape\(-1, 5, 6\)"),
    "colour": (
        COLOUR,
        COLOUR,
        ValueError,
        r"noisy\[None\] to problems\.Restoration.*np\.moveaxis\(noisy, -1, 0\), or one grey.*noisy\.swapaxes\(1, 2",
    ),
    "alpha": (COLOUR, COLOUR[..., [0, 1, 2, 0]], ValueError, r"(?s)4 channels last.*np\.moveaxis"),
    "grey and alpha": (COLOUR, COLOUR[..., :2], ValueError, r"2 channels last .*np\.moveaxis\(noisy, -1, 0\)\. \("),
    "one channel": (COLOUR, COLOUR[..., :1], ValueError, r"1 channels last.*np\.moveaxis\(noisy, -1, 0\)"),
    "colour pictures": (
        COLOUR[None],
        COLOUR[None],
        ValueError,
        r"np\.moveaxis\(noisy, -1, 1\)\.reshape\(-1, 6, 5\), or colour to",
    ),
    "empty": (GOOD[:0], GOOD[:0], ValueError, "at least one image"),
    "thin": (GOOD[:, :1], GOOD[:, :1], ValueError, "2 x 2"),
    "shapes": (GOOD, GOOD[:2], ValueError, "same shape"),
    "integers": ((GOOD * 255).astype(np.uint8), GOOD, TypeError, "divide by 255"),
    "integers in noisy": (GOOD, (GOOD * 255).astype(np.uint8), TypeError, "divide by 255"),
    "booleans": (GOOD > 0.5, GOOD, TypeError, "divide by 255"),
    "half": (GOOD.astype(np.float16), GOOD, TypeError, "float32 or float64"),
    "mixed": (GOOD, GOOD.astype(np.float32), TypeError, r"noisy\.astype\(clean\.dtype\)"),
    "mixed jax": (GOOD, jnp.asarray(GOOD, jnp.float32), TypeError, r"noisy\.astype\(clean\.dtype\)"),
    "nan": (GOOD, np.where(GOOD > 0.5, np.nan, GOOD), ValueError, "NaN or infinite"),
    "inf": (np.where(GOOD > 0.5, np.inf, GOOD), GOOD, ValueError, "NaN or infinite"),
    "clean above 1": (GOOD * 255, GOOD, ValueError, "divide by 255"),
    "clean below 0": (GOOD - 0.5, GOOD, ValueError, r"not in \[0, 1\]"),
    "noisy to 255": (GOOD, GOOD * 255, ValueError, "divide by 255"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images(case):
    clean, noisy, error, message = BAD[case]
    with pytest.raises(error, match=message):
        TotalVariation(clean, noisy)


def test_channels_in_front_are_images():
    """What the error says to write works; and small images stay images, whatever their last axis."""
    for pictures in (np.moveaxis(COLOUR, -1, 0), (COLOUR @ [0.299, 0.587, 0.114])[None], COLOUR.swapaxes(1, 2)):
        assert TotalVariation(pictures, pictures).noisy.shape == pictures.shape
    several = np.moveaxis(COLOUR[None], -1, 1).reshape(-1, 6, 5)
    np.testing.assert_array_equal(TotalVariation(None, several).noisy, GOOD.swapaxes(1, 2))
    for shape in ((2, 4, 4), (1, 3, 4), (9, 4, 3), (4, 9, 3), (1, 9, 3), (9, 9, 5)):
        assert TotalVariation(None, np.zeros(shape)).noisy.shape == shape


def test_float64_images_in_32_bits():
    with jax.enable_x64(False):
        with pytest.raises(TypeError, match="jax_enable_x64"):
            TotalVariation(GOOD, GOOD)
        TotalVariation(GOOD.astype(np.float32), GOOD.astype(np.float32))


@options
@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (4,)])
def test_bad_theta(option, shape):
    problem, theta = make(option)
    right = rf"shape \({theta.size},\): log weight, log smoothing" + (", log elastic" if problem.elastic else ";")
    for f in (lambda t: problem.lower(problem.noisy, t), problem.constants):
        with pytest.raises(ValueError, match=right):
            f(jnp.zeros(shape))
