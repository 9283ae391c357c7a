"""Learning from pixels left out: independence, a closed form, its mean, derivatives, the interval."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel.problems import TV, JInvariant, data

SIGMA, SIZE = 0.1, 16
CLEAN = data.photographs(SIZE).pixels[:3]
NOISY = data.add_noise(CLEAN, SIGMA, seed=1)
START = {"weight": jnp.asarray(-3.0), "smoothing": jnp.asarray(-3.0)}
# the answer to y is then y/(1 + e)
NONE = {"weight": jnp.asarray(-40.0), "smoothing": jnp.asarray(0.0), "elastic": jnp.asarray(0.0)}


def test_what_denoises_a_pixel_has_not_seen_it():
    """Each pixel is in one set, once; other noise there changes neither data nor answer."""
    problem = JInvariant(NOISY, TV(), stride=3)
    assert problem.chosen.shape == (9, 3, SIZE, SIZE)
    np.testing.assert_array_equal(np.sum(problem.chosen, axis=0), 1)
    few = JInvariant(NOISY, TV(), stride=3, masks=2, seed=4)
    assert np.max(np.sum(few.chosen, axis=0)) == 1 and not np.array_equal(few.chosen[:, 0], few.chosen[:, 1])
    for k in (0, 5, 8):
        other = np.where(np.asarray(problem.chosen[k]), NOISY + 1, NOISY)
        changed = JInvariant(other, TV(), stride=3)
        np.testing.assert_array_equal(*(np.split(np.asarray(p.data), 9)[k] for p in (problem, changed)))
    at = np.asarray(problem.chosen[0, 0])
    (i, j), y = np.argwhere(at)[7], NOISY[0]
    near = y[i - 1, j] + y[i + 1, j] + y[i, j - 1] + y[i, j + 1]
    far = y[i - 1, j - 1] + y[i - 1, j + 1] + y[i + 1, j - 1] + y[i + 1, j + 1]
    np.testing.assert_allclose(problem.data[0, i, j], near / 6 + far / 12)
    np.testing.assert_array_equal(problem.data[0][~at], y[~at])


def test_a_closed_form():
    """A quadratic regulariser: x_k = y_k/(1 + e), least where 1/(1 + e) = <m, y>/<m, m>, m the means."""
    y = data.add_noise(CLEAN - 0.5, 0.4, seed=2)
    problem = JInvariant(y, TV(), elastic=True, stride=2)
    m = np.sum(np.where(problem.chosen, np.asarray(problem.data).reshape(4, *y.shape), 0), axis=0)
    low, high = NONE | {"elastic": -9.0}, NONE | {"elastic": 3.0}
    found = bilevel.solve(problem, NONE, bounds=(low, high), tol=1e-7)
    share = np.vdot(m, y) / np.vdot(m, m)
    assert 0.1 < share < 0.9 and found.converged and found.certified
    np.testing.assert_allclose(np.exp(found.theta["elastic"]), 1 / share - 1, rtol=1e-5)
    np.testing.assert_allclose(found.value, np.sum((share * m - y) ** 2) / 6, rtol=1e-8)


@pytest.mark.parametrize("masks", [None, 1])
def test_its_mean_is_the_risk_and_half_the_noise(masks):
    """Over many images, within its own standard error, of noise that is not normal."""
    sigma, pixels = 0.2, 64
    rng = np.random.default_rng(0)
    clean = rng.uniform(size=(400, 8, 8))
    noisy = clean + sigma * 3**0.5 * rng.uniform(-1, 1, clean.shape)
    problem = JInvariant(noisy, TV(), elastic=True, masks=masks)
    x = problem.data / 2  # the answer for e = 1, but for the weight
    np.testing.assert_allclose(bilevel.solve_lower(problem, NONE, eps=1e-8).x, x, atol=1e-8)
    chosen = np.asarray(problem.chosen)
    missed = np.where(chosen, np.asarray(x).reshape(-1, *clean.shape) - clean, 0)
    share = 16 / len(chosen)
    risk = share * np.sum(missed**2, axis=(0, 2, 3)) / 2
    each = share * np.sum(np.where(chosen, np.asarray(x).reshape(-1, *clean.shape) - noisy, 0) ** 2, axis=(0, 2, 3)) / 2
    assert float(problem.upper(x, NONE)) == pytest.approx(each.mean())
    differs = each - risk - sigma**2 * pixels / 2
    assert abs(differs.mean()) <= 3 * differs.std() / len(differs) ** 0.5


def test_gradients_are_those_of_differences_and_the_interval_holds():
    problem = JInvariant(NOISY, TV(), masks=1)
    found = bilevel.hypergradient(problem, START, eps=1e-7, delta=1e-9)
    f = {}
    for shift in (-1e-4, 1e-4):
        theta = START | {"weight": START["weight"] + shift}
        f[shift] = float(problem.upper(bilevel.solve_lower(problem, theta, eps=1e-8).x, theta))
    slope = (f[1e-4] - f[-1e-4]) / 2e-4
    assert abs(float(found.gradient["weight"]) - slope) <= 1e-5 * abs(slope)
    tight = bilevel.solve_lower(problem, START, eps=1e-9).x
    loose = bilevel.hypergradient(problem, START, eps=1e-2)
    assert loose.certified and abs(loose.value - float(problem.upper(tight, START))) <= loose.value_error


def test_colour_and_float32_stay():
    colour = np.stack([NOISY, NOISY], axis=-1).astype(np.float32)
    problem = JInvariant(colour, TV(), masks=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(problem) if eqx.is_inexact_array(leaf)} == {np.dtype(np.float32)}
    assert problem.data.shape == (6, SIZE, SIZE, 2)
    np.testing.assert_array_equal(problem.data[..., 0], problem.data[..., 1])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((list(NOISY), {}), ValueError, "not a list"),
        ((NOISY, {"stride": 1}), ValueError, "at least 2, not 1"),
        ((NOISY, {"masks": 17}), ValueError, "from 1 to stride.2 = 16, not 17"),
        ((NOISY[0], {}), ValueError, "pass .n, height, width."),
        ((NOISY[:, :3], {}), ValueError, "at least stride = 4"),
        (((NOISY * 255).astype(np.uint8), {}), TypeError, "divide by 255"),
    ],
)
def test_misuse(arguments, error, said):
    with pytest.raises(error, match=said):
        JInvariant(arguments[0], TV(), **arguments[1])
