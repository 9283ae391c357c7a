"""Many at once: hyperparameters under one name, batches accumulated into one step, examples over many devices."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bilevel import stn

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = X @ np.array([1.0, -1.0, 0.0]) + 0.3 * RNG.normal(size=40)
TRAIN, VALID = (X[:24], Y[:24]), (X[24:], Y[24:])
OPTIONS = {"key": KEY, "epochs": 3, "batch_size": 8, "progress": False}


def squares(model, batch):
    return jnp.mean((jax.vmap(model)(batch[0])[:, 0] - batch[1]) ** 2)


def tune(space, decays, train=TRAIN, valid=VALID):
    def train_loss(model, batch, hyper, key):
        return squares(model, batch) + jnp.sum(decays(hyper) * stn.effective(model).weight[0] ** 2)

    model = stn.convert(eqx.nn.Linear(3, 1, use_bias=False, key=KEY), space, key=KEY)
    method = stn.delta_stn(optax.adam(1e-2), hyper=optax.rmsprop(0.05), train_steps=1)
    return stn.tune(model, space, train_loss, squares, train, valid, method, **OPTIONS)


@pytest.mark.full
def test_a_vector_is_tuned_as_its_entries_are(tmp_path):
    one = stn.Positive(1e-2)
    run = tune(stn.Space(decay=stn.Vector(one, 3)), lambda hyper: hyper["decay"])
    apart = tune(stn.Space(a=one, b=one, c=one), lambda hyper: jnp.stack([hyper["a"], hyper["b"], hyper["c"]]))
    np.testing.assert_array_equal(run.values["decay"], [apart.values[name] for name in "abc"])
    assert len(set(run.values["decay"])) == 3
    np.testing.assert_array_equal(run.history["decay[1]"], apart.history["b"])
    np.testing.assert_array_equal(run.schedule.values["decay"][:, 2], apart.schedule.values["c"])
    run.schedule.save(tmp_path / "schedule.npz")
    again = stn.Schedule.load(tmp_path / "schedule.npz")
    assert len(again) == 9 and again.at(3)["decay"].shape == (3,)


def plain(optimiser, batch_size, train=TRAIN, valid=VALID):
    def train_loss(model, batch, hyper, key):
        return squares(model, batch) + hyper["decay"] * jnp.sum(model.weight**2)

    model = eqx.nn.Linear(3, 1, use_bias=False, key=KEY)
    options = OPTIONS | {"batch_size": batch_size}
    return stn.replay(
        model, stn.Schedule.fixed(decay=0.1), train_loss, squares, train, valid, optimiser, **options
    ).model.weight


def test_batches_are_accumulated_by_optax():
    accumulated = plain(optax.MultiSteps(optax.sgd(0.1), 3), 8)
    np.testing.assert_allclose(accumulated, plain(optax.sgd(0.1), 24), rtol=1e-7)  # means in float32


@pytest.mark.full
def test_examples_over_four_devices_give_what_one_gives():
    mesh = jax.make_mesh((4,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("examples"))
    over = jax.device_put((TRAIN, VALID), rows)
    np.testing.assert_allclose(plain(optax.sgd(0.1), 8, *over), plain(optax.sgd(0.1), 8), rtol=1e-12)
    space, decays = stn.Space(decay=stn.Positive(1e-2)), lambda hyper: hyper["decay"]
    runs = [tune(space, decays, *data) for data in (over, (TRAIN, VALID))]
    np.testing.assert_allclose(*(run.values["decay"] for run in runs), rtol=1e-12)
    np.testing.assert_allclose(*(run.history["valid_loss"] for run in runs), rtol=1e-12)
