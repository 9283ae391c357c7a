"""Exact total variation: closed forms, a reference in long double, certificates, and descent on certified values."""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import RESULTS
from bilevel.problems import ExactTotalVariation, TotalVariation, data

SHAPE = 7, 6
EITHER = pytest.mark.parametrize("isotropic", [False, True])


def differences(x):
    dx, dy = np.zeros_like(x), np.zeros_like(x)
    dx[:, :-1], dy[:-1] = x[:, 1:] - x[:, :-1], x[1:] - x[:-1]
    return dx, dy


def adjoint(px, py):
    out = np.zeros_like(px)
    out[:, :-1] -= px[:, :-1]
    out[:, 1:] += px[:, :-1]
    out[:-1] -= py[:-1]
    out[1:] += py[:-1]
    return out


def reference(y, a, isotropic, steps=6000):
    """(x, a bound of its error) by plain accelerated projection in long double, and P(x) - D(p)."""
    y, one = y.astype(np.longdouble), np.longdouble(1)
    px, py = np.zeros_like(y), np.zeros_like(y)
    qx, qy, t = px, py, one
    for _ in range(steps):
        dx, dy = differences(y - adjoint(qx, qy))
        nx, ny = qx + dx / 8, qy + dy / 8
        size = np.maximum(1, np.sqrt(nx**2 + ny**2) / a) if isotropic else 1
        nx, ny = (nx / size, ny / size) if isotropic else (np.clip(nx, -a, a), np.clip(ny, -a, a))
        longer = (1 + np.sqrt(1 + 4 * t**2)) / 2
        qx, qy, t = nx + (t - 1) / longer * (nx - px), ny + (t - 1) / longer * (ny - py), longer
        px, py = nx, ny
    x = y - adjoint(px, py)
    dx, dy = differences(x)
    size = np.sqrt(dx**2 + dy**2) if isotropic else np.abs(dx) + np.abs(dy)
    gap = np.sum((x - y) ** 2) / 2 + a * np.sum(size) - np.sum(y**2) / 2 + np.sum(x**2) / 2
    return x, float(np.sqrt(max(gap, 0)))


@EITHER
def test_a_step_comes_closer_by_its_length_over_its_area(isotropic):
    y = np.zeros((2, 8, 6))
    y[0, :, 3:] = 1
    y[1, 4:] = 1
    problem = ExactTotalVariation(None, y, isotropic=isotropic)
    for a in (0.1, 0.4):
        ours = bilevel.solve_lower(problem, np.log(a), eps=1e-6)
        truth = np.stack([np.where(y[0] > 0, 1 - a / 3, a / 3), np.where(y[1] > 0, 1 - a / 4, a / 4)])
        assert ours.result == RESULTS.converged and ours.certified
        assert np.linalg.norm(ours.x - truth) <= ours.error <= 1e-6
    flat = bilevel.solve_lower(problem, np.log(3.0), eps=1e-6).x
    np.testing.assert_allclose(flat, 0.5, atol=1e-6)


def violations(draws, seed, isotropic):
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(draws):
        y, clean = rng.random(SHAPE), rng.random(SHAPE)
        a, eps = 10 ** rng.uniform(-2, -0.3), 10 ** rng.uniform(-7, -1)
        hg = bilevel.hypergradient(ExactTotalVariation(clean[None], y[None], isotropic=isotropic), np.log(a), eps=eps)
        x, off = reference(y, a, isotropic, steps=2000)
        distance = float(np.linalg.norm(np.asarray(hg.x[0], np.longdouble) - x))
        value, slack = float(np.sum((x - clean) ** 2) / 2), 2 * float(np.linalg.norm(x - clean)) * off
        found += distance > float(hg.error) + off
        found += abs(float(hg.value) - value) > float(hg.value_error) + slack
        assert hg.result == RESULTS.converged and float(hg.error) <= eps
    return found


@EITHER
def test_certificates_hold(isotropic):
    assert violations(6, 0, isotropic) == 0


@pytest.mark.full
@EITHER
def test_certificates_hold_in_a_thousand_draws(isotropic):
    assert violations(500, 1, isotropic) == 0


@pytest.fixture(scope="module")
def photographs():
    clean = data.photographs(24).pixels[:2]
    return clean, data.add_noise(clean, 0.1, seed=0)


def test_descent_finds_the_best_weight_and_tells_the_truth(photographs):
    problem = ExactTotalVariation(*photographs, isotropic=True)
    solution = bilevel.solve(problem, np.log(0.3), bounds=(-6.0, 1.0))
    assert solution.result == RESULTS.settled and solution.certified and not solution.converged
    values, errors = solution.history["value"], solution.history["value_error"]
    assert np.all(values[1:] + errors[1:] < values[:-1] - errors[:-1])
    f = bilevel.hypergradient(problem, solution.theta, eps=1e-6)
    assert abs(f.value - solution.value) <= f.value_error + solution.value_error
    for other in solution.theta + np.array([-0.1, 0.1]):
        assert bilevel.hypergradient(problem, other, eps=1e-6).value > solution.value * (1 - 1e-4)


def test_z_and_smoothed_total_variation_are_near(photographs):
    exact, theta = ExactTotalVariation(*photographs, isotropic=True), np.log(0.08)
    at, above, below = (bilevel.hypergradient(exact, theta + d, eps=1e-6) for d in (0.0, 1e-3, -1e-3))
    np.testing.assert_allclose(at.gradient, (above.value - below.value) / 2e-3, rtol=0.05)
    smoothed = TotalVariation(*photographs, isotropic=True)
    near = bilevel.hypergradient(smoothed, np.array([theta + np.log(2), np.log(1e-4)]), eps=1e-4)
    np.testing.assert_allclose(at.value, near.value, rtol=1e-3)
    np.testing.assert_allclose(exact.lower(at.x, jnp.asarray(theta)), smoothed.lower(
        at.x, jnp.array([theta + np.log(2), np.log(1e-9)])), rtol=1e-5)  # fmt: skip


def test_other_images_are_denoised_and_a_budget_is_kept(photographs):
    clean, noisy = photographs
    problem = ExactTotalVariation(clean[:1], noisy[:1])
    found = problem.denoise(np.log(0.05), noisy)
    assert found.result == RESULTS.converged and found.x.shape == noisy.shape
    capped = bilevel.solve_lower(problem, np.log(0.05), eps=1e-12, max_cost=100)
    assert capped.result == RESULTS.max_cost_reached and capped.lower_gradients <= 100
    assert np.linalg.norm(capped.x - found.x[:1]) <= capped.error + found.error


def test_inputs(photographs):
    clean, noisy = photographs
    with pytest.raises(ValueError, match="theta must be one number"):
        bilevel.solve_lower(ExactTotalVariation(None, noisy), np.zeros(2))
    with pytest.raises(ValueError, match="pass them, ExactTotalVariation"):
        bilevel.solve(ExactTotalVariation(None, noisy), 0.0)
    with pytest.raises(ValueError, match=r"noisy\[None\]"):
        ExactTotalVariation(None, noisy[0])
    with pytest.raises(TypeError, match="lower level of ExactTotalVariation has a kink"):
        bilevel.solve(ExactTotalVariation(clean, noisy), -2.0, bilevel.maid())


def test_float32_ends_at_its_floor(photographs):
    clean, noisy = (v.astype(np.float32) for v in photographs)
    lower = bilevel.solve_lower(ExactTotalVariation(clean, noisy), np.float32(-2.5), eps=1e-9)
    tight = bilevel.solve_lower(ExactTotalVariation(*photographs), -2.5, eps=1e-6)
    assert lower.result == RESULTS.accuracy_floor
    assert np.linalg.norm(lower.x - tight.x) <= lower.error + tight.error < 0.05
