"""The hyperparameter space: starts, ranges, draws, and the errors for what is no space."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import stn

SPACE = stn.Space(
    drop=stn.Rate(0.05),
    decay=stn.Positive(1e-4, scale=0.3),
    jitter=stn.Real(0.2, -1, 1, scale=2.0, draws="batch"),
    holes=stn.Integer(1, 0, 4),
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_start_where_they_were_told(dtype):
    u, rho = SPACE.start(dtype)
    values = SPACE.values(u)
    assert u.dtype == rho.dtype == values["drop"].dtype == dtype
    for name, start in dict(drop=0.05, decay=1e-4, jitter=0.2).items():
        np.testing.assert_allclose(values[name], start, rtol=10 * np.finfo(dtype).eps)
    assert values["holes"] == 1 and values["holes"].dtype == jnp.int32
    np.testing.assert_allclose(SPACE.sigma(rho), [0.5, 0.3, 2.0, 0.5], rtol=10 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_draw_leaves_its_range(dtype):
    u = jnp.asarray(np.array([-1e30, -1e3, -50, 0, 50, 1e3, 1e30], dtype))
    values = SPACE.values(jnp.stack([u] * 4, axis=-1))
    assert all(bool(jnp.all(jnp.isfinite(value))) for value in values.values())
    assert float(jnp.max(1 / (1 - values["drop"]))) < 21
    assert bool(jnp.all(values["decay"] > 0))
    assert values["holes"][0] == 0 and values["holes"][-1] == 4


@pytest.mark.parametrize(("low", "high"), [(0, 4), (-2, 1), (0, 1), (3, 24)])
def test_integers_reach_both_ends_and_nothing_else(low, high):
    space = stn.Space(k=stn.Integer(low, low, high))
    found = space.values(jnp.linspace(-12, 12, 4001)[:, None])["k"]
    assert sorted(set(found.tolist())) == list(range(low, high + 1))
    for start in range(low, high + 1):
        space = stn.Space(k=stn.Integer(start, low, high))
        assert space.values(space.start()[0])["k"] == start


def test_draws_have_their_scale_and_those_of_a_batch_are_one():
    _, rho = SPACE.start()
    e = SPACE.draw(rho, jax.random.key(0), 20_000)
    sigma = SPACE.sigma(rho)
    for j in (0, 1, 3):  # six standard errors of a mean and of a standard deviation
        assert abs(float(jnp.mean(e[:, j]))) < 6 * float(sigma[j]) / math.sqrt(len(e))
        assert abs(float(jnp.std(e[:, j]) / sigma[j]) - 1) < 6 / math.sqrt(2 * len(e))
    assert len(set(e[:, 2].tolist())) == 1 and float(e[0, 2]) != 0


def test_draws_are_differentiable_in_the_scales_and_values_are_not():
    u, rho = SPACE.start()
    one = jax.grad(lambda rho: jnp.sum(SPACE.draw(rho, jax.random.key(1), 1)))(rho)
    noise = SPACE.draw(rho, jax.random.key(1), 1)[0] / SPACE.sigma(rho)
    np.testing.assert_allclose(one, noise * SPACE.sigma(rho) * math.log(2) / 2, rtol=1e-12)  # d 2^tanh(rho/2) at 0
    assert not np.any(jax.grad(lambda u: SPACE.values(u)["drop"] + SPACE.values(u)["decay"])(u))


def test_entropy_is_that_of_the_normal_distribution():
    _, rho = SPACE.start()
    expected = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in (0.5, 0.3, 2.0, 0.5))
    np.testing.assert_allclose(SPACE.entropy(rho), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: stn.Space(), "at least one"),
        (lambda: stn.Rate(0.0), "small start"),
        (lambda: stn.Rate(0.5, 0, 1.0), "high < 1"),
        (lambda: stn.Rate(-0.1), "0 <= low"),
        (lambda: stn.Rate(math.nan), "a rate needs"),
        (lambda: stn.Positive(0.0), "positive"),
        (lambda: stn.Positive(1.0, scale=0.0), "scale"),
        (lambda: stn.Positive(math.inf), "finite"),
        (lambda: stn.Real(1.0, 0, 1), "strictly"),
        (lambda: stn.Integer(5, 0, 4), "low <= start"),
        (lambda: stn.Integer(0, 0, 0), "low < high"),
        (lambda: stn.Integer(1.5, 0, 4), "Real"),
        (lambda: stn.Rate(0.1, draws="epoch"), "example"),
    ],
)
def test_wrong_spaces_say_what_to_write(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_vector_is_its_entries_under_one_name():
    space = stn.Space(decay=stn.Vector(stn.Positive(1e-3, scale=0.3), 3), drop=stn.Rate(0.05))
    u, rho = space.start()
    assert len(space) == 4 and space.names == ("decay[0]", "decay[1]", "decay[2]", "drop")
    np.testing.assert_allclose(space.sigma(rho), [0.3, 0.3, 0.3, 0.5])
    values = space.values(jnp.stack([u, u + jnp.array([0.0, 1.0, 2.0, 0.0])]))
    assert values["decay"].shape == (2, 3) and values["drop"].shape == (2,)
    np.testing.assert_allclose(values["decay"][1], 1e-3 * np.exp([0, 1, 2]))
    with pytest.raises(TypeError, match=r"of what|each"):  # jaxtyping's own check comes first
        stn.Vector(1e-3, 10)
    with pytest.raises(ValueError, match="positive integer"):
        stn.Vector(stn.Positive(1e-3), 0)


def test_a_number_is_no_hyperparameter():
    with pytest.raises(TypeError, match=r"drop=stn\.Rate"):
        stn.Space(drop=0.1)


def test_sigma_stays_within_twice_and_half_of_its_start():
    ends = SPACE.sigma(jnp.array([[-50.0] * 4, [50.0] * 4]))
    np.testing.assert_allclose(ends, np.outer([0.5, 2], [0.5, 0.3, 2.0, 0.5]), rtol=1e-12)


@pytest.mark.parametrize("one", [stn.LogReal(1e-3, 1e-6, 1.0), stn.AtLeast(2.0, 1.5), stn.Free(-3.0, unit=2.0)])
def test_more_ranges_start_where_told_and_stay_inside(one):
    space = stn.Space(it=one)
    np.testing.assert_allclose(space.values(space.start()[0])["it"], one.start, rtol=1e-12)
    ends = space.values(jnp.array([[-30.0], [0.1], [30.0]]))["it"]
    assert bool(jnp.all(jnp.diff(ends) > 0)) and bool(jnp.all(ends >= getattr(one, "low", -jnp.inf)))


def test_a_range_of_ones_own():
    class Odd(stn.AbstractHyperparameter):
        """An odd integer, started at 3."""

        start: float = 3
        scale: float = 0.5
        draws: str = "example"

        def unconstrained(self):
            return math.log(3)

        def value(self, u):
            return 2 * jnp.floor(jnp.exp(u) / 2).astype(jnp.int32) + 1

    space = stn.Space(kernel=Odd())
    assert space.values(space.start()[0])["kernel"] == 3


def test_labels_are_smoothed_and_batches_mixed():
    targets = stn.smooth_labels(jnp.array([0, 2]), 3, 0.3)
    np.testing.assert_allclose(targets, [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], rtol=1e-6)
    batch = jnp.arange(6.0), targets[jnp.array([0, 1, 0, 1, 0, 1])]
    x, t = stn.mixup(batch, 0.8, jax.random.key(1))
    np.testing.assert_allclose(x.mean(), 2.5, rtol=1e-12)
    np.testing.assert_allclose(t.sum(1), np.ones(6), rtol=1e-6)
    assert float(jnp.max(jnp.abs(x - batch[0]))) > 0
    jax.tree.map(np.testing.assert_array_equal, stn.mixup(batch, 0.0, jax.random.key(1)), batch)
    with pytest.raises(TypeError, match=r"stn\.smooth_labels"):
        stn.mixup((batch[0], jnp.arange(6)), 0.5, jax.random.key(0))
