"""Data laid over several devices: same numbers, no solver changed; images come back laid out as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import bilevel
from bilevel._linalg import lbfgs_pairs
from bilevel._outer.programs import Meter
from bilevel.problems import LogisticRegression, TotalVariation

THETA = jnp.array([-3.0, -3.0])


@pytest.fixture(scope="module")
def both():
    """One problem on one device, and over a mesh axis of four."""
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.2, 0.8, (4, 5, 1)) * np.ones((4, 5, 6))
    noisy = clean + 0.1 * rng.standard_normal(clean.shape)
    devices = np.array(jax.devices())
    assert devices.size == 4
    mesh = Mesh(devices, ("images",), axis_types=(AxisType.Auto,))
    layout = NamedSharding(mesh, PartitionSpec("images"))
    return TotalVariation(clean, noisy), TotalVariation(*jax.device_put((clean, noisy), layout)), layout


@pytest.mark.parametrize("method", [bilevel.maid(1.0, 1.0, 1.0), None], ids=["maid", "default"])
def test_solve_on_a_mesh_equals_solve_on_one_device(both, method):
    """theta, x, and every number of the history to 1e-12; x stays spread over the four devices."""
    plain, spread, layout = both
    one, four = (bilevel.solve(problem, THETA, method, max_steps=4) for problem in (plain, spread))
    assert four.x.sharding.is_equivalent_to(layout, 3) and len(four.x.addressable_shards) == 4
    assert four.x.addressable_shards[0].data.shape == (1, 5, 6)
    np.testing.assert_allclose(four.theta, one.theta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(four.x, one.x, rtol=0, atol=1e-12)
    for name in one.history.keys() - {"seconds"}:
        np.testing.assert_allclose(four.history[name], one.history[name], rtol=1e-10, atol=1e-12)


def test_hypergradient_on_a_mesh_equals_that_on_one_device(both):
    """The gradient, its certificate, x and q."""
    plain, spread, layout = both
    one, four = (bilevel.hypergradient(problem, THETA, eps=1e-6, delta=1e-6) for problem in (plain, spread))
    for name in ("value", "value_error", "gradient", "gradient_error", "x", "q"):
        np.testing.assert_allclose(getattr(four, name), getattr(one, name), rtol=1e-10, atol=1e-12)
    assert four.x.sharding.is_equivalent_to(layout, 3) and four.certified


@pytest.mark.full
def test_rows_on_a_mesh_give_what_they_give_on_one_device():
    """Logistic regression, its rows spread: the gradient with its certificate, the weights, the adjoint."""
    rng = np.random.default_rng(1)
    A, y = rng.standard_normal((40, 3)), np.arange(40) % 3
    mesh = Mesh(np.array(jax.devices()), ("rows",), axis_types=(AxisType.Auto,))
    spread = jax.device_put((A, y), NamedSharding(mesh, PartitionSpec("rows")))
    one, four = (
        bilevel.hypergradient(LogisticRegression(*data, *data), jnp.zeros((3, 3)), eps=1e-8, solver=bilevel.NewtonCG())
        for data in ((A, y), spread)
    )
    for name in ("value", "value_error", "gradient", "gradient_error", "x", "q"):
        np.testing.assert_allclose(getattr(four, name), getattr(one, name), rtol=1e-8, atol=1e-11)


def test_a_mesh_compiles_what_one_device_does(both):
    """Once: what the default method keeps from step to step is laid out from the start as it comes back."""
    compiled = []
    for problem in both[:2]:
        jax.clear_caches()
        before = Meter.compilations
        bilevel.solve(problem, THETA, max_steps=4)
        compiled.append(Meter.compilations - before)
    assert compiled[0] == compiled[1] > 0


def test_pairs_spread_along_any_axis_stay_spread():
    """No device holds all of a stack: neither push nor apply gathers."""
    mesh = Mesh(np.array(jax.devices()), ("columns",), axis_types=(AxisType.Auto,))
    v = jax.device_put(
        np.random.default_rng(0).standard_normal((3, 8)), NamedSharding(mesh, PartitionSpec(None, "columns"))
    )
    pairs = lbfgs_pairs.empty(v, 5)
    for function, operands in ((lbfgs_pairs.push, (pairs, v, 2 * v)), (lbfgs_pairs.apply, (pairs, v))):
        text = jax.jit(function).lower(*operands).compile().as_text()
        assert "f64[5,3,2]" in text and "f64[5,3,8]" not in text  # what a device holds of it, and not all
    assert lbfgs_pairs.push(pairs, v, 2 * v).s.sharding.is_equivalent_to(pairs.s.sharding, 3)
