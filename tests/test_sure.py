"""Stein's estimate of the risk: as the objective that it is, and as an estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel.problems import TV, Restoration, Sure, data

SIGMA, SIZE = 0.1, 24
CLEAN = data.photographs(SIZE).pixels[:6]
NOISY = data.add_noise(CLEAN, SIGMA, seed=1)
START = {"weight": jnp.asarray(-3.0), "smoothing": jnp.asarray(-3.0)}


def test_gradients_are_those_of_differences_and_the_interval_holds():
    problem = Sure(NOISY, SIGMA, TV())
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


def test_its_mean_is_the_risk():
    """A quadratic regulariser has a linear answer x = y / (1 + e), whose risk is known: SURE less the error, over many
    images, is zero within its own standard error."""
    sigma, e = 0.2, 0.5
    clean = np.random.default_rng(0).uniform(size=(400, 8, 8))
    noisy = data.add_noise(clean, sigma, seed=2)
    none = {"weight": jnp.asarray(-40.0), "smoothing": jnp.asarray(0.0), "elastic": jnp.log(e)}
    problem = Sure(noisy, sigma, TV(), elastic=True)
    x = bilevel.solve_lower(problem, none, eps=1e-8).x
    np.testing.assert_allclose(problem.denoised(x), noisy / (1 + e), atol=1e-8)
    answer, pixels = noisy / (1 + e), 64
    error = np.sum((answer - clean) ** 2, axis=(1, 2)) / 2
    # its trace is exact: signs square to one, and dx/dy is a multiple of the identity
    exact = np.sum((answer - noisy) ** 2, axis=(1, 2)) / 2 + sigma**2 * pixels * (1 / (1 + e) - 1 / 2)
    assert abs(float(problem.upper(x, none)) - exact.mean()) <= 1e-6
    differs = exact - error
    assert abs(differs.mean()) <= 3 * differs.std() / len(differs) ** 0.5


def test_what_it_learns_is_nearly_as_good_as_with_clean_images():
    """Within 0.1 dB, on images that it has not seen."""
    ends = {}
    for name, problem in {"sure": Sure(NOISY, SIGMA, TV()), "clean": Restoration(CLEAN, NOISY, TV())}.items():
        ends[name] = bilevel.solve(problem, START, bounds=(-8.0, 0.0), max_steps=40)
        assert ends[name].certified and ends[name].history["value"][-1] <= ends[name].history["value"][0]
    clean = data.photographs(SIZE).pixels[6:12]
    unseen = Restoration(clean, data.add_noise(clean, SIGMA, seed=3), TV())
    psnr = {
        name: data.psnr(bilevel.solve_lower(unseen, end.theta, eps=1e-3).x, clean).mean() for name, end in ends.items()
    }
    assert psnr["sure"] >= psnr["clean"] - 0.1
    assert psnr["sure"] >= data.psnr(unseen.data, clean).mean() + 1


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((NOISY, 0.0, TV()), ValueError, "sigma must be positive"),
        ((NOISY, jnp.nan, TV()), ValueError, "sigma must be positive"),
        ((list(NOISY), SIGMA, TV()), ValueError, "not a list"),
        (((NOISY * 255).astype(np.uint8), SIGMA, TV()), TypeError, "divide by 255"),
        ((NOISY[0], SIGMA, TV()), ValueError, "no stack"),
    ],
)
def test_misuse(arguments, error, said):
    with pytest.raises(error, match=said):
        Sure(*arguments)


def test_float32_stays():
    problem = Sure(NOISY.astype(np.float32), SIGMA, TV())
    assert {leaf.dtype for leaf in jax.tree.leaves(problem)} == {np.dtype(np.float32)}
