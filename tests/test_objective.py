"""f and grad f inside other people's loops: right, under every transformation, and NaN or an error where they are not.

    h(x, theta) = 1/2 ||A x - b - C s||^2 + e^t/2 ||x||^2,     g(x, theta) = 1/2 ||V x - v||^2 + 0.05 ||s||^2

theta = {"t": (), "s": (2,)}: xhat, f and grad f by dense linear algebra.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jaxtyping import Array, Float
from problems_for_tests import distance, random_tv
from test_inputs import NoGuess, Plain

import bilevel
from bilevel._outer.programs import Meter

EPS, DELTA = 1e-3, 2e-3
SECOND, DATA = "no second derivative", "in the data of its problem"


class Ridge(bilevel.AbstractProblem):
    A: Float[Array, "m n"]
    b: Float[Array, " m"]
    C: Float[Array, "m 2"]
    V: Float[Array, "k n"]
    v: Float[Array, " k"]
    extremes: Float[Array, " 2"]

    def __init__(self, seed=0, dtype=np.float64):
        rng = np.random.default_rng(seed)
        draws = (rng.standard_normal(shape).astype(dtype) for shape in ((12, 5), 12, (12, 2), (8, 5), 8))
        self.A, self.b, self.C, self.V, self.v = (jnp.asarray(draw) for draw in draws)
        sigma = np.linalg.svd(np.asarray(self.A, np.float64), compute_uv=False)
        self.extremes = jnp.asarray(sigma[[-1, 0]] ** 2 * [1 - 1e-5, 1 + 1e-5], dtype)

    def lower(self, x, theta):
        return jnp.sum((self.A @ x - self.b - self.C @ theta["s"]) ** 2) / 2 + jnp.exp(theta["t"]) * jnp.sum(x**2) / 2

    def upper(self, x, theta):
        return jnp.sum((self.V @ x - self.v) ** 2) / 2 + 0.05 * jnp.sum(theta["s"] ** 2)

    def guess(self, theta):
        return jnp.zeros_like(self.A[0])

    def constants(self, theta):
        penalty = jnp.exp(theta["t"])
        least, largest = self.extremes
        return bilevel.Constants(
            mu=least + penalty, L=largest + penalty, L_upper=jnp.sum(self.V**2), L_upper_theta=0.0,
            L_hessian=0.0, L_cross=penalty, convex_upper=True,
        )  # fmt: skip


RIDGE = Ridge()
F = bilevel.objective(RIDGE, eps=EPS, delta=DELTA)
TIGHT = bilevel.objective(RIDGE, eps=1e-11)
THETA = {"t": jnp.asarray(0.3), "s": jnp.asarray([0.5, -1.0])}


def closed_form(problem, theta):
    """f, grad f, and the most that they may be off at (EPS, DELTA): ||grad g(x)|| moves by L_g EPS from x to xhat."""
    A, b, C, V, v = (np.asarray(a, np.float64) for a in (problem.A, problem.b, problem.C, problem.V, problem.v))
    penalty, s = np.exp(float(theta["t"])), np.asarray(theta["s"], np.float64)
    H = A.T @ A + penalty * np.eye(A.shape[1])
    x = np.linalg.solve(H, A.T @ (b + C @ s))
    g_x, L_g, mu = V.T @ (V @ x - v), np.sum(V**2), np.linalg.eigvalsh(H)[0]
    q = np.linalg.solve(H, g_x)
    J = np.column_stack([penalty * x, -A.T @ C])
    gradient = {"t": -J[:, 0] @ q, "s": 0.1 * s - J[:, 1:].T @ q}
    value_error = (np.linalg.norm(g_x) + L_g * EPS) * EPS + L_g * EPS**2 / 2
    eta = (DELTA + L_g * EPS) / mu
    omega = np.linalg.norm(J, 2) * eta + penalty * (np.linalg.norm(q) * EPS + EPS * eta)
    return np.sum((V @ x - v) ** 2) / 2 + 0.05 * s @ s, gradient, value_error, omega


def same(a, b, rtol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), a, b)


def all_nan(tree):
    return all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("t, s", [(0.3, (0.5, -1.0)), (-4.0, (0.0, 2.0)), (3.0, (-1.0, 1.0))])
def test_value_and_gradient_are_as_near_as_asked(t, s):
    theta = {"t": t, "s": np.asarray(s)}
    value, gradient, value_error, omega = closed_form(RIDGE, theta)
    computed, z = jax.value_and_grad(F)(theta)
    assert computed == F(theta)
    assert 0 < abs(float(computed) - value) <= value_error
    assert 0 < distance(z, gradient) <= omega
    same(jax.value_and_grad(TIGHT)(theta), (value, gradient))


@pytest.mark.full
def test_total_variation_is_as_by_hypergradient():
    """The same numbers, so what is certified of those holds of these; tight ones lie within that bound."""
    problem, theta = random_tv(np.random.default_rng(0), np.float64)
    theta = jnp.asarray([-2.0, -3.0])
    certified = bilevel.hypergradient(problem, theta, eps=1e-2, delta=1e-2)
    value, z = jax.value_and_grad(bilevel.objective(problem, eps=1e-2))(theta)
    same((value, z), (certified.value, certified.gradient))
    value, z = jax.value_and_grad(bilevel.objective(problem, eps=1e-10))(theta)
    assert 0 < abs(float(value - certified.value)) <= float(certified.value_error)
    assert 0 < distance(z, certified.gradient) <= float(certified.gradient_error)


def test_every_transformation_gives_the_same():
    value, z = jax.value_and_grad(F)(THETA)
    same(jax.grad(F)(THETA), z)
    same(jax.jit(F)(THETA), value)
    direction = {"t": jnp.asarray(2.0), "s": jnp.asarray([1.0, -1.0])}
    slope = 2 * z["t"] + z["s"][0] - z["s"][1]
    same(jax.jvp(F, (THETA,), (direction,)), (value, slope))
    same(jax.linearize(F, THETA)[1](direction), slope)
    same(jax.vjp(F, THETA)[1](jnp.asarray(3.0))[0], jax.tree.map(lambda leaf: 3 * leaf, z))
    # a part of theta, and a function around f
    same(jax.grad(lambda t: jnp.log(F({**THETA, "t": t})))(THETA["t"]), z["t"] / value)


def test_vmap_gives_each_its_own():
    """Easy and hard side by side, and two that cannot be solved: these are NaN, and no others."""
    t = jnp.asarray([0.3, -6.0, jnp.nan, 6.0, 800.0, 1.0])
    thetas = {"t": t, "s": jnp.outer(jnp.arange(6.0), jnp.asarray([0.5, -1.0]))}
    values, z = jax.jit(jax.vmap(jax.value_and_grad(F)))(thetas)
    for k in range(6):
        theta, z_k = jax.tree.map(lambda leaf: leaf[k], (thetas, z))  # noqa: B023
        same((values[k], z_k), jax.value_and_grad(F)(theta))
        assert all_nan((values[k], z_k)) if k in (2, 4) else jnp.isfinite(values[k])


@pytest.fixture(scope="module")
def best():
    """min f over (t, s) by BFGS on the closed form."""

    def f(flat):
        value, gradient, *_ = closed_form(RIDGE, {"t": flat[0], "s": flat[1:]})
        return value, np.append(gradient["t"], gradient["s"])

    return scipy.optimize.minimize(f, np.array([0.3, 0.5, -1.0]), jac=True, tol=1e-9)


def test_adam_by_optax_reaches_the_minimum(best):
    optimiser = optax.adam(optax.cosine_decay_schedule(0.2, 300))

    def step(carry, _):
        theta, state = carry
        value, z = jax.value_and_grad(TIGHT)(theta)
        updates, state = optimiser.update(z, state)
        return (optax.apply_updates(theta, updates), state), value

    (theta, _), values = jax.jit(lambda c: jax.lax.scan(step, c, None, 300))((THETA, optimiser.init(THETA)))
    assert values[-1] == pytest.approx(best.fun, rel=1e-6) and values[0] > 1.05 * best.fun
    np.testing.assert_allclose(np.append(theta["t"], theta["s"]), best.x, rtol=1e-3)


def test_scipy_reaches_the_minimum(best):
    def f(flat):
        return TIGHT({"t": flat[0], "s": flat[1:]})

    found = scipy.optimize.minimize(jax.value_and_grad(f), np.array([0.3, 0.5, -1.0]), jac=True, tol=1e-9)
    assert found.fun == pytest.approx(best.fun, rel=1e-9)
    np.testing.assert_allclose(found.x, best.x, rtol=1e-4)


def test_float32_has_its_dtype_and_its_floor():
    """theta of SciPy's float64, or a Python float, is cast; a gradient has theta's dtype. What cannot be had is NaN."""
    problem = Ridge(dtype=np.float32)
    theta = {"t": 0.3, "s": np.asarray([0.5, -1.0])}
    value, gradient, value_error, omega = closed_form(problem, theta)
    computed, z = jax.value_and_grad(bilevel.objective(problem, eps=EPS, delta=DELTA))(theta)
    assert computed.dtype == np.float32 and z["s"].dtype == np.float64
    assert abs(float(computed) - value) <= value_error and distance(z, gradient) <= omega
    beyond = bilevel.objective(problem, eps=1e-30)
    assert all_nan(jax.value_and_grad(beyond)(theta)) and all_nan(beyond(theta))
    half = bilevel.objective(problem, eps=EPS, delta=1e-30)  # x alone is near enough
    assert half(theta) == computed and all_nan(jax.value_and_grad(half)(theta))


class Hidden(bilevel.AbstractProblem):
    """h = 1/2 sum_i d_i (x_i - theta)^2 with mu left to Lanczos, which finds the least of many d only roughly."""

    d: Float[Array, " n"]

    def lower(self, x, theta):
        return jnp.sum(self.d * (x - theta) ** 2) / 2

    def upper(self, x, theta):
        return jnp.sum((x - 1) ** 2) / 2

    def guess(self, theta):
        return jnp.zeros_like(self.d)

    def constants(self, theta):
        L = jnp.max(self.d)
        return bilevel.Constants(L=L, L_upper=1.0, L_hessian=0.0, L_cross=0.0, convex_upper=True)


def test_an_estimated_mu_is_lowered_and_the_solve_goes_on():
    """x moves on where conjugate gradients meet less curvature than the estimate, and then is near enough."""
    problem, eps = Hidden(jnp.geomspace(1.0, 1e6, 200)), 1e-3

    def f(delta):  # at theta = 2 of 200 (theta - 1)^2 / 2
        return jax.value_and_grad(bilevel.objective(problem, eps=eps, delta=delta))(2.0)

    (unseen, _), (value, z) = f(1e9), f(1e-6)  # q = 0 is near enough for the first, and nothing of H is met
    assert 0 < abs(value - 100) < abs(unseen - 100)
    assert abs(value - 100) <= 200**0.5 * eps + eps**2
    assert z == pytest.approx(200, rel=1e-3)


class Thin(Plain):
    def constants(self, theta):
        return bilevel.Constants(mu=1.0, L=1.0, metric=jnp.full_like(theta, 0.5))


def test_no_number_where_nothing_is_known_of_x():
    """mu is not positive; more than h curves, as conjugate gradients find out; a metric below 1."""
    for least in (-10.0, 100.0):
        wrong = eqx.tree_at(lambda problem: problem.extremes, RIDGE, jnp.asarray([least, 200.0]))
        assert all_nan(jax.value_and_grad(bilevel.objective(wrong, eps=1.0, delta=1e-9))(THETA))
    assert jnp.isnan(bilevel.objective(Thin(jnp.ones(2)), eps=1e-3)(jnp.ones(2)))


def total(tree):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "twice",
    [
        jax.hessian(F),
        jax.grad(lambda theta: total(jax.grad(F)(theta))),
        jax.grad(lambda theta: total(jax.jit(jax.grad(F))(theta))),
        jax.jacfwd(jax.jacfwd(F)),
        lambda theta: jax.jvp(jax.grad(F), (theta,), (theta,)),
        jax.grad(lambda theta: total(jax.lax.scan(lambda t, _: (jax.grad(F)(t), None), theta, None, 2)[0])),
        jax.vmap(jax.hessian(F), axis_size=2, in_axes=None),
    ],
)  # fmt: skip
def test_a_second_derivative_is_an_error(twice):
    with pytest.raises(TypeError, match=f"{SECOND}.*L-BFGS.*stop_gradient"):
        twice(THETA)


def test_where_the_gradient_counts_as_constant_there_is_no_second_derivative():
    z = jax.grad(F)(THETA)
    step = jax.grad(lambda theta: total(jax.grad(F)(jax.lax.stop_gradient(theta))) * theta["t"])(THETA)
    same(step, {"t": total(z), "s": jnp.zeros(2)})


def of_data(b, theta=THETA):
    return bilevel.objective(eqx.tree_at(lambda problem: problem.b, RIDGE, b), eps=EPS, delta=DELTA)(theta)


@pytest.mark.parametrize(
    "call",
    [
        jax.grad(of_data),
        jax.grad(jax.jit(of_data)),
        jax.grad(of_data, argnums=(0, 1)),
        lambda b, theta: jax.jvp(lambda b: of_data(b, theta), (b,), (b,)),
        jax.grad(lambda b, theta: total(jax.grad(of_data, argnums=1)(b, theta))),
    ],
)
def test_a_derivative_in_the_data_is_an_error(call):
    with pytest.raises(TypeError, match=f"{DATA}.*stop_gradient"):
        call(RIDGE.b, THETA)


TRACED = {
    "jit": lambda f, theta: jax.jit(f)(theta),
    "vmap": lambda f, theta: jax.vmap(f)(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), theta)),
    "grad": lambda f, theta: jax.grad(f)(theta),
}


@pytest.mark.parametrize("transform", TRACED)
def test_what_certifies_itself_names_the_objective_where_it_is_traced(transform):
    theta = {"t": jnp.asarray(0.0), "s": jnp.zeros(2)}
    for call in (
        lambda theta: bilevel.solve(RIDGE, theta).value,
        lambda theta: bilevel.hypergradient(RIDGE, theta, eps=EPS, delta=DELTA).value,
        lambda theta: bilevel.solve_lower(RIDGE, theta, eps=EPS).error,
        lambda theta: jnp.asarray(bilevel.check_problem(RIDGE, theta)),
    ):
        with pytest.raises(TypeError, match=r"traced by jit, vmap or grad.*bilevel\.objective"):
            TRACED[transform](call, theta)


def test_data_may_be_traced():
    """Arguments of what is jitted, or one problem a lane."""
    b = jnp.stack([RIDGE.b, RIDGE.b + 1, 2 * RIDGE.b])
    values = jax.jit(jax.vmap(of_data))(b)
    assert len(set(values.tolist())) == 3
    same(values, jnp.stack([of_data(each) for each in b]))


def test_other_numbers_compile_nothing():
    """theta, eps, delta and data."""
    other, problem = jax.tree.map(lambda leaf: leaf + 1, THETA), Ridge(1)

    def run(theta, *objectives):
        return jax.block_until_ready([(f(theta), jax.value_and_grad(f)(theta)) for f in objectives])

    run(THETA, F, bilevel.objective(problem, eps=0.1))
    before = Meter.compilations
    run(other, F, bilevel.objective(problem, eps=1e-2, delta=1e-7))
    assert Meter.compilations == before


def products(jaxpr):
    """Every product of matrices in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        )
        for value in inner:
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                yield from products(getattr(value, "jaxpr", value))


def test_products_are_in_full_precision():
    """Where f is a part of somebody else's program, too."""
    highest = (jax.lax.Precision.HIGHEST,) * 2
    found = list(products(jax.make_jaxpr(jax.vmap(jax.value_and_grad(F), axis_size=2, in_axes=None))(THETA).jaxpr))
    assert len(found) > 10 and set(found) == {highest}


ONE = jnp.ones(2)
NAN = np.array([1.0, np.nan])
ERRORS = {
    "eps": (lambda f: f(eps=0.0), ValueError, "eps must be positive"),
    "eps NaN": (lambda f: f(eps=np.nan), ValueError, "eps must be positive"),
    "delta": (lambda f: f(delta=-1.0), ValueError, "delta must be positive"),
    "no problem": (lambda f: f(lambda x, theta: 0.0), TypeError, "problem"),
    "data NaN": (lambda f: f(Plain(NAN)), ValueError, "a field of Plain holds NaN"),
    "data mixed": (lambda f: f(Plain(ONE, np.ones(2, np.float32))), TypeError, "mix float32, float64"),
    "no start": (lambda f: f(NoGuess(ONE))(ONE), TypeError, "no starting point"),
    "integers": (lambda f: f()(np.array([1, 2])), TypeError, "theta holds int64, but must hold floats"),
    "an integer": (lambda f: f()(1), TypeError, "theta holds int.*write -5.0 for -5"),
    "complex": (lambda f: f()(1j * ONE), TypeError, "theta is complex"),
    "empty": (lambda f: f()({}), ValueError, "theta holds no arrays"),
    "vector": (lambda f: f(Plain(ONE, flavour="vector"))(ONE), TypeError, "Plain.lower must return a scalar"),
    "narrow": (lambda f: f(Plain(ONE, flavour="wide"))(ONE), TypeError, "Plain.lower must return.*float64.*float32"),
    "structure": (lambda f: f()({"a": ONE}), TypeError, ""),
}


@pytest.mark.parametrize("call, error, words", ERRORS.values(), ids=ERRORS.keys())
def test_bad_input_is_an_error(call, error, words):
    def f(problem=None, eps=1e-3, **options):
        return bilevel.objective(Plain(ONE) if problem is None else problem, eps=eps, **options)

    with pytest.raises(error, match=f"(?s){words}"):
        call(f)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap], ids=lambda t: t.__name__)
@pytest.mark.parametrize("case", ["no start", "vector", "narrow"])
def test_bad_input_is_the_same_error_under_transformations(transform, case):
    call, error, words = ERRORS[case]

    def f(problem):
        theta = jnp.ones((3, 2)) if transform is jax.vmap else ONE
        return lambda _: transform(bilevel.objective(problem, eps=1e-3))(theta)

    with pytest.raises(error, match=f"(?s){words}"):
        call(f)
