"""Affine best responses of lower-level problems: what they fit, what they guess, and tuning through them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems_for_tests import Counted, Undeclared, distance, random_nested, random_robust, random_tv, truth
from test_checkpoint import assert_same
from test_descent import check_truth, quadratic, quadratic_truth, run
from test_hypergradient import DECLARED, nonzero, real

import bilevel
from bilevel import RESULTS, FittedResponse, Previous
from bilevel._outer.response import Responding, pull_back, respond, turn
from bilevel.problems import Quadratic

THETA = jnp.array([0.5, -1.0, 2.0])


def fitted(problem, theta, x, how, directions=None):
    """The response after one long fit around (theta, x), along `directions` if given."""
    memory = how.init(theta, x)
    if directions is not None:
        memory = type(memory)(directions, *(getattr(memory, n) for n in ("columns", "velocity", "age", "L")))
    return jax.jit(lambda memory, theta, x: how.fit(memory, problem, theta, x))(memory, theta, x)


def dense(response, x, theta):
    """K as a matrix (x, theta), for arrays."""
    return np.stack([respond(response, e) for e in jnp.eye(theta.size)], axis=1)


def exact_K(problem):
    """-H^{-1} J by least squares, in NumPy."""
    A2, A3 = np.asarray(problem.A2), np.asarray(problem.A3)
    return -np.linalg.lstsq(A2, A3, rcond=None)[0]


# --- K


@pytest.mark.parametrize("declared", [DECLARED["all"], ("mu",)], ids=["L declared", "L unknown"])
def test_full_K_is_the_derivative_of_xhat(declared):
    """Quadratic: K = -H^{-1} J, guesses are xhat(theta + e) for every e, and K^T grad_x g is grad f, to 1e-6; x far
    from xhat while K is fitted changes nothing."""
    problem = quadratic()
    response = fitted(Undeclared(problem, declared), THETA, 100 * jnp.ones(4), FittedResponse(3, steps=400))
    K = exact_K(problem)
    assert np.abs(K).max() > 0.1
    np.testing.assert_allclose(dense(response, jnp.zeros(4), THETA), K, atol=1e-6)
    here, e = problem.closed_form(THETA), jnp.array([3.0, 20.0, -7.0])
    guess = Responding(FittedResponse(3)).guess(response, THETA, jnp.asarray(here.x), THETA + e)
    np.testing.assert_allclose(guess, problem.closed_form(THETA + e).x, atol=1e-5)
    g_x = jax.grad(problem.upper)(jnp.asarray(here.x), THETA)
    np.testing.assert_allclose(pull_back(response, g_x), here.gradient, atol=1e-5)


def test_any_basis_of_full_rank_fits_the_same_K_and_a_lower_rank_its_projection():
    """K_r = K V V^T for orthonormal V: r = d changes nothing, r < d sees its span and nothing else."""
    problem, K = quadratic(), exact_K(quadratic())
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (3, 3)))[0].T
    for rank in (3, 2, 1):
        V = basis[:rank]
        response = fitted(problem, THETA, jnp.zeros(4), FittedResponse(rank, steps=400), V)
        np.testing.assert_allclose(dense(response, jnp.zeros(4), THETA), K @ (V.T @ V), atol=1e-6)
    assert np.abs(K - K @ (V.T @ V)).max() > 0.1


def test_turning_keeps_what_is_known_of_the_new_span():
    """v_1 is the new direction, V stays orthonormal, K' = K V'^T V'; a zero direction changes nothing."""
    how = FittedResponse(2, steps=400)
    response = fitted(quadratic(), THETA, jnp.zeros(4), how)
    move = jnp.array([1.0, 2.0, -2.0])
    after = turn(response, move)
    V = np.asarray(after.directions)
    np.testing.assert_allclose(V[0], move / 3, rtol=1e-12)
    np.testing.assert_allclose(V @ V.T, np.eye(2), atol=1e-12)
    before = dense(response, jnp.zeros(4), THETA)
    np.testing.assert_allclose(dense(after, jnp.zeros(4), THETA), before @ V.T @ V, atol=1e-12)
    again = turn(after, 0 * move)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(after), strict=True))
    full = fitted(quadratic(), THETA, jnp.zeros(4), FittedResponse(3))
    assert turn(full, move) is full


def nonlinear(name):
    rng = np.random.default_rng(3)
    problem, theta = (random_tv if name == "tv" else random_robust)(rng, np.float64)
    return problem, jnp.array([-2.0, -2.5]) if name == "tv" else jnp.linspace(-1.0, 1.0, theta.size)


@pytest.mark.parametrize("name", ["tv", "robust"])
def test_guesses_are_of_second_order(name):
    """||x + K e - xhat(theta + e)|| falls with ||e||^2 where sigma is small; K's own error with sigma^2."""
    problem, theta = nonlinear(name)
    exact = jax.jit(lambda theta, x: truth(problem, theta, x).x)
    x = exact(theta, problem.guess(theta))
    how = FittedResponse(theta.size, steps=600, sigma=1e-4)
    response = fitted(problem, theta, x, how)
    e = jnp.linspace(1, 2, theta.size) / (1.5 * theta.size**0.5)
    sizes = (0.08, 0.04, 0.02)
    guess = Responding(how).guess
    errors = [distance(guess(response, theta, x, theta + t * e), exact(theta + t * e, x)) for t in sizes]
    assert errors[0] > 1e-6
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), 2, atol=0.2)
    K = respond(response, e)
    bias = [
        distance(respond(fitted(problem, theta, x, FittedResponse(theta.size, steps=600, sigma=sigma)), e), K)
        for sigma in (0.2, 0.1)
    ]
    assert bias[1] > 1e-5
    assert 1.8 < np.log2(bias[0] / bias[1]) < 2.2


def test_pytrees():
    """x and theta as nested trees, rank below and at their size: the same K as on flat arrays."""
    nested, theta = random_nested(np.random.default_rng(5), np.float64)
    x, t = nested.flat(nested.guess(theta), theta)
    e = jnp.linspace(-1, 1, 6)
    for rank in (2, 6):
        how = FittedResponse(rank, steps=5)
        one = fitted(nested, theta, nested.guess(theta), how)
        V = one.directions["weight"][:, None], one.directions["penalties"][0], one.directions["penalties"][1][:, None]
        other = fitted(nested.robust, t, x, how, jnp.concatenate(V, axis=1))
        K_e, _ = nested.flat(respond(one, nested.shape_theta(e)), theta)
        assert distance(K_e, respond(other, e)) < 1e-12 < 0.01 < optax.tree.norm(K_e)


# --- predictors


def test_a_predictor_that_lies_costs_time_and_no_truth():
    """Guesses that are nowhere near: the certificates hold all the same."""
    thetas, infos = run(quadratic(), 3 * jnp.ones(3), bilevel.maid(predictor=Liar()), max_steps=8)
    assert len(thetas) == 9
    check_truth(quadratic(), quadratic_truth, thetas, infos)


class Liar(Previous):
    def guess(self, memory, theta, x, trial):
        return x + 5 * jnp.cos(jnp.arange(x.size, dtype=x.dtype))


# --- self-tuning


def well_conditioned():
    """f(theta) = 1/2 ||A1 (b - S theta) - b1||^2 with conditions of at most 2.3, and its minimiser."""
    rng = np.random.default_rng(0)
    Q1, Q2, Q3 = np.linalg.qr(rng.standard_normal((3, 6, 3)))[0]
    problem = Quadratic(Q1, Q2 * [1, 1.2, 1.5], Q2 @ np.linalg.qr(Q3[:3])[0], *rng.standard_normal((2, 6)))
    A1, K = np.asarray(problem.A1), exact_K(problem)
    r = np.asarray(problem.b1) - A1 @ problem.closed_form(jnp.zeros(3)).x
    return problem, jnp.asarray(np.linalg.lstsq(A1 @ K, r, rcond=None)[0])


def tune(problem, theta0, method=None, **options):
    method = bilevel.self_tuning() if method is None else method
    return bilevel.solve(problem, theta0, method, **dict(progress=False) | options)


def test_self_tuning_reaches_the_optimum_and_certifies_it():
    """theta to 1e-3 of the closed form; converged only with a certificate, which the true gradient obeys."""
    problem, best = well_conditioned()
    solution = tune(problem, jnp.ones(3), tol=1e-4, max_cost=40_000)
    assert solution.converged and solution.certified
    assert solution.gradient_norm + solution.gradient_error <= 1e-4
    assert np.linalg.norm(problem.closed_form(solution.theta).gradient) <= 1e-4
    np.testing.assert_allclose(solution.theta, best, atol=1e-3)
    h = solution.history
    assert np.all(np.isinf(h["gradient_error"][:10])) and np.all(np.isfinite(h["step"][:-1]))
    for k in (0, len(h["value"]) // 2, -1):
        assert h["value_error"][k] > 0
    assert abs(solution.value - problem.closed_form(solution.theta).value) <= solution.value_error


def test_without_a_certificate_nothing_is_claimed():
    """A budget's end: the gradient's error is infinite, the value's interval true, `certified` about that alone."""
    problem, _ = well_conditioned()
    for declared, certified in ((DECLARED["all"], True), (("mu", "L"), False)):
        solution = tune(Undeclared(problem, declared), jnp.ones(3), max_steps=4)
        assert solution.result == RESULTS.max_steps_reached and solution.steps == 4
        assert np.isinf(solution.gradient_error) and np.isfinite(solution.gradient_norm)
        assert solution.certified is certified
        assert abs(solution.value - problem.closed_form(solution.theta).value) <= solution.value_error


def test_a_z_that_sees_too_little_is_not_taken_for_convergence():
    """H = diag(1, 100), J = 1: the one direction of K misses most of grad f = -(1, 0.3), and ||z|| = 0.33.

    A tolerance of 0.9 is denied by a certificate; with all of K none is even asked for; one of 1.1 is granted."""
    diagonal = [np.diag(v) for v in ([1.0, 1.0], [1.0, 10.0], [1.0, 0.1])]
    problem, start = Quadratic(*diagonal, np.array([-1.0, -30.0]), np.zeros(2)), jnp.zeros(2)
    np.testing.assert_allclose(problem.closed_form(start).gradient, [-1.0, -0.3], atol=1e-12)

    def solution(rank, tol):
        method = bilevel.self_tuning(optax.sgd(1e-9), rank=rank, steps=100)
        return tune(problem, start, method, tol=tol, max_steps=2)

    denied = solution(1, 0.9)
    assert denied.result == RESULTS.max_steps_reached
    assert denied.history["gradient_norm"][0] - denied.history["gradient_error"][0] > 0.9
    np.testing.assert_allclose(denied.history["gradient_norm"][1], 0.333, atol=1e-3)
    assert np.all(np.isinf(solution(2, 0.9).history["gradient_error"]))
    granted = solution(1, 1.1)
    assert granted.converged and granted.gradient_norm + granted.gradient_error <= 1.1


def test_a_box_is_never_left():
    """The optimum is outside: theta ends on the bound, and stationarity is the projected gradient's."""
    problem, best = well_conditioned()
    lo, hi = best - 10, best + jnp.array([10.0, -0.5, 10.0])
    seen = []
    solution = tune(
        problem, hi - 1, bounds=(lo, hi), tol=1e-3, max_cost=40_000,
        callback=lambda state, info: seen.append(np.all((lo <= state.theta) & (state.theta <= hi))),
    )  # fmt: skip
    assert solution.converged and all(seen)
    assert solution.theta[1] == hi[1]
    gradient = problem.closed_form(solution.theta).gradient
    assert gradient[1] < 0 and np.abs(gradient[[0, 2]]).max() <= 1e-3


def test_a_run_that_diverges_ends_at_its_last_finite_point():
    problem, theta = nonlinear("robust")
    solution = tune(problem, theta, bilevel.self_tuning(optax.sgd(1e4)), max_steps=50)
    assert solution.result == RESULTS.non_finite
    assert np.all(np.isfinite(solution.theta)) and np.isfinite(solution.value)


def test_resume_equals_uninterrupted(tmp_path):
    """Killed by either budget and resumed: the same bits; another learning rate is refused."""
    problem, theta = nonlinear("robust")
    path = tmp_path / "run.npz"
    method = bilevel.self_tuning(rank=3)
    for short in (dict(max_steps=3), dict(max_cost=150)):
        tune(problem, theta, method, checkpoint=path, **short)
        resumed = tune(problem, theta, method, checkpoint=path, resume=True, max_steps=6)
        assert_same(resumed, tune(problem, theta, method, max_steps=6))
        path.unlink()
    tune(problem, theta, bilevel.self_tuning(rank=3), checkpoint=path, max_steps=1)
    with pytest.raises(ValueError, match="another run, its method differ"):
        tune(problem, theta, bilevel.self_tuning(optax.adam(0.2), rank=3), checkpoint=path, resume=True)


def test_float32_stays_float32():
    problem, theta = random_robust(np.random.default_rng(3), np.float32)
    solution = tune(problem, jnp.clip(theta, -1, 1), max_steps=3)
    assert solution.theta.dtype == solution.x.dtype == np.float32 and solution.steps == 3
    assert solution.value < solution.history["value"][0] and solution.value_error < 0.1


# --- counts


METHODS = {
    "self-tuning, full": bilevel.self_tuning(steps=2),
    "self-tuning, rank 2": bilevel.self_tuning(rank=2, steps=3),
    "maid, secants": bilevel.maid(predictor=bilevel.Secants()),
}


@pytest.mark.parametrize("declared", ["all", pytest.param("nothing", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", METHODS)
def test_counts_are_real_calls(name, declared):
    problem, theta = nonlinear("robust")
    counted = Counted(problem, DECLARED[declared])
    out, made = real(lambda: tune(counted, theta, METHODS[name], max_steps=4, tol=0.0))
    assert out.result == RESULTS.max_steps_reached and made["lower_gradients"] > 4
    assert made == nonzero(out.counts)


def test_max_cost_is_never_exceeded():
    problem, theta = nonlinear("robust")
    counted = Counted(problem, DECLARED["all"])
    for max_cost in (1, 7, 40, 60, 95, 180):
        out, made = real(lambda: tune(counted, theta, METHODS["self-tuning, rank 2"], max_cost=max_cost, tol=0.0))  # noqa: B023
        assert out.result == RESULTS.max_cost_reached
        assert sum(made.values()) <= max_cost and made == nonzero(out.counts)


# --- bad input


@pytest.mark.parametrize("make, words", [
    (lambda: FittedResponse(0), "rank must be at least 1, not 0"),
    (lambda: FittedResponse(2, steps=1), "steps must be at least 2, not 1"),
    (lambda: FittedResponse(2, sigma=0.0), "sigma must be positive and finite, not 0.0"),
    (lambda: FittedResponse(2, sigma=float("nan")), "sigma must be positive"),
    (lambda: bilevel.self_tuning(rank=0), "rank must be at least 1"),
    (lambda: bilevel.self_tuning(steps=0), "steps must be at least 2"),
    (lambda: bilevel.self_tuning(sigma=-1.0), "sigma must be positive"),
])  # fmt: skip
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_part_in_the_wrong_place_is_named():
    with pytest.raises(TypeError, match="predictor must be an AbstractPredictor, not FittedResponse"):
        # past the constructor, where jaxtyping's own check would come first
        eqx.tree_at(lambda method: method.predictor, bilevel.maid(), FittedResponse(3)).__check_init__()


def test_an_optimiser_must_be_one():
    with pytest.raises(TypeError, match=r"optax\.adam\(0\.1\), not 0\.1"):
        bilevel.self_tuning(0.1)
