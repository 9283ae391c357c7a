"""Tuning end to end: it learns, stops well, resumes bit for bit, replays its schedule, and refuses what cannot work."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from bilevel import stn
from bilevel._outer.programs import Meter
from bilevel.stn._tune import start
from bilevel.stn.train import Losses

KEY = jax.random.key(0)
SPACE = stn.Space(drop=stn.Rate(0.1), decay=stn.Positive(1e-2))


class Net(eqx.Module):
    one: eqx.nn.Linear
    drop: stn.Dropout
    two: eqx.nn.Linear

    def __init__(self, n, width, classes, name="drop"):
        a, b = jax.random.split(jax.random.key(1))
        self.one, self.two = eqx.nn.Linear(n, width, key=a), eqx.nn.Linear(width, classes, key=b)
        self.drop = stn.Dropout(name)

    def __call__(self, x, *, key=None):
        return self.two(self.drop(jax.nn.tanh(self.one(x)), key=key))


def cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def train_loss(model, batch, hyper, key):
    x, y = batch
    logits = jax.vmap(lambda x, key: model(x, key=key))(x, jax.random.split(key, len(x)))
    return cross_entropy(logits, y) + hyper["decay"] * stn.squared_norm(model)


def valid_loss(model, batch):
    return cross_entropy(jax.vmap(model)(batch[0]), batch[1])


def small(n=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4))
    return x, (x[:, 0] + x[:, 1] > 0).astype(np.int32)


def tune(method=None, model=None, space=SPACE, train=None, valid=None, losses=(train_loss, valid_loss), **options):
    model = stn.convert(Net(4, 5, 2), SPACE, key=KEY) if model is None else model
    train, valid = small(40) if train is None else train, small(24) if valid is None else valid
    return stn.tune(
        model, space, *losses, train, valid, method, **{"key": KEY, "epochs": 2, "batch_size": 10, **options}
    )


@pytest.mark.parametrize("make", [stn.delta_stn, stn.stn])
def test_digits(make):
    """Eight epochs on 600 digits: the loss falls, the hyperparameters move, the model is an ordinary one."""
    x, y = load_digits(return_X_y=True)
    data = ((x / 16).astype(np.float32), y.astype(np.int32))
    train, valid = (tuple(a[part] for a in data) for part in (slice(600), slice(600, 1000)))
    model = stn.convert(jax.tree.map(_single, Net(64, 32, 10)), SPACE, key=KEY)
    method = make(optax.adam(3e-3), hyper=optax.rmsprop(5e-2))
    run = stn.tune(model, SPACE, train_loss, valid_loss, train, valid, method, key=KEY, epochs=8, batch_size=50)
    assert run.completed and run.message == "All epochs were run."
    loss = run.history["valid_loss"]
    assert len(loss) == 8 and loss[-1] < 0.5 * loss[0]
    assert abs(run.values["drop"] - 0.1) > 1e-3 and abs(np.log(run.values["decay"] / 1e-2)) > 1e-2
    assert 0 < run.values["drop"] < 0.95 and np.isfinite(run.history["scale of decay"]).all()
    assert len(run.schedule) == 8 * 12 and run.schedule.values["drop"][0] == np.float32(0.1)
    assert isinstance(run.model.drop, eqx.nn.Dropout) and type(run.model.one) is eqx.nn.Linear
    np.testing.assert_allclose(valid_loss(eqx.nn.inference_mode(run.model), valid), loss[-1], rtol=1e-5)


def _single(leaf):
    return leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    path = tmp_path / "run.npz"
    whole = tune(epochs=4)
    tune(epochs=2, checkpoint=path, resume="auto")
    with pytest.raises(ValueError, match=r"would be overwritten: pass resume=True .*overwrite=True"):
        tune(epochs=4, checkpoint=path)
    seen = []
    resumed = tune(epochs=4, checkpoint=path, resume="auto", callback=lambda run: seen.append(run.latest))
    assert len(seen) == 2
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(whole.history) == set(resumed.history)
    for name in set(whole.history) - {"seconds"}:
        np.testing.assert_array_equal(whole.history[name], resumed.history[name])
    for name, column in whole.schedule.values.items():
        np.testing.assert_array_equal(column, resumed.schedule.values[name])
    for change, words in (
        ({"method": stn.delta_stn(hyper=optax.rmsprop(2e-2))}, "model, losses or method"),
        ({"key": jax.random.key(9)}, "weights, data or key"),
    ):
        with pytest.raises(ValueError, match=words):
            tune(epochs=4, checkpoint=path, resume=True, **change)


def test_hyperparameters_move_after_the_warm_up_and_every_train_steps():
    """10 steps an epoch, one of warm-up, then after every third step: 12, 15, 18, 21, ..."""
    method = stn.delta_stn(hyper=optax.sgd(10.0), train_steps=3, warmup=1)
    run = tune(method, epochs=3, batch_size=4)
    drop = run.schedule.values["drop"]
    assert len(drop) == 30 and (np.flatnonzero(np.diff(drop)) + 1).tolist() == [12, 15, 18, 21, 24, 27]


@pytest.mark.parametrize("make", [stn.delta_stn, stn.stn])
def test_a_run_does_not_depend_on_the_unit_of_a_hyperparameter(make):
    """A decay of 1e-2, or one hundredths: the gates see differences, never the logarithm itself."""
    method = make(hyper=optax.rmsprop(5e-2))
    hundredths = stn.Space(drop=stn.Rate(0.1), decay=stn.Positive(1.0))

    def loss(model, batch, hyper, key):
        return train_loss(model, batch, {**hyper, "decay": 1e-2 * hyper["decay"]}, key)

    one, other = tune(method, epochs=3), tune(method, space=hundredths, losses=(loss, valid_loss), epochs=3)
    assert abs(np.log(one.values["decay"] / 1e-2)) > 1e-2
    np.testing.assert_allclose(other.history["valid_loss"], one.history["valid_loss"], rtol=1e-9)
    np.testing.assert_allclose(np.asarray(other.history["decay"]) / 100, one.history["decay"], rtol=1e-6)


@pytest.mark.parametrize(("draws", "size"), [("example", 1), ("batch", 10)])
def test_who_shares_a_draw(draws, size):
    space = stn.Space(drop=stn.Rate(0.1, draws=draws), decay=stn.Positive(1e-2, draws=draws))
    seen = []

    def loss(model, batch, hyper, key):
        seen.append(batch[0].shape[0])
        assert hyper["decay"].shape == ()
        return train_loss(model, batch, hyper, key)

    tune(stn.stn(), space=space, losses=(loss, valid_loss), epochs=1)
    assert seen[-1] == size


@pytest.mark.parametrize("method", [stn.delta_stn(entropy=0.0), stn.stn(entropy=0.0)], ids=["delta", "stn"])
def test_no_gradient_reaches_a_hyperparameter_whose_gates_are_zero(method):
    model = stn.convert(Net(4, 5, 2), SPACE, key=KEY)
    state = start(model, SPACE, method)
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    losses = Losses(method, SPACE, static, train_loss, valid_loss)

    @jax.jit
    def gradient(alive):  # the gates of "drop" are alive, those of "decay" zero, or the other way round
        gates = lambda tree: [*tree.one.gates.values(), *tree.two.gates.values()]  # noqa: E731
        responses = eqx.tree_at(gates, state.responses, replace_fn=lambda gate: gate + 0.1 * alive)
        params = eqx.combine(state.weights, responses)
        return jax.grad(losses.validation)((state.u, state.rho), params, jax.tree.map(jnp.asarray, small()), KEY)

    for alive in ([1.0, 0.0], [0.0, 1.0]):
        for part in gradient(jnp.asarray(alive)[None]):
            np.testing.assert_array_equal(part != 0, np.asarray(alive, bool))


def test_a_diverging_run_ends_with_its_last_good_epoch(tmp_path):
    path = tmp_path / "run.npz"

    def loss(model, batch, hyper, key):  # finite until the weights have grown
        return train_loss(model, batch, hyper, key) + jnp.where(stn.squared_norm(model) > 1e4, jnp.nan, 0.0)

    growing = optax.chain(optax.sgd(1.0), optax.scale_by_schedule(lambda step: jnp.where(step < 8, 0.01, -1e3)))
    run = tune(stn.delta_stn(growing), losses=(loss, valid_loss), epochs=6, checkpoint=path)
    assert not run.completed and "not finite" in run.message
    assert len(run.history["valid_loss"]) == 2 and np.isfinite(run.history["valid_loss"]).all()
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(run.state))
    with np.load(path) as file:
        np.testing.assert_array_equal(file["history/valid_loss"], run.history["valid_loss"])


def test_a_second_run_compiles_nothing():
    """Other weights and keys, losses written anew: the same programs. Another constant in a loss is not the same."""

    def runs(strength, factor):
        net = jax.tree.map(lambda leaf: factor * leaf if eqx.is_inexact_array(leaf) else leaf, Net(4, 5, 2))
        losses = (lambda *a: train_loss(*a)), (lambda model, batch: strength * valid_loss(model, batch))
        tuned = tune(model=stn.convert(net, SPACE, key=KEY), losses=losses, epochs=1)
        stn.replay(
            net, tuned.schedule, *losses, small(40), small(24), optax.adam(1e-2), key=KEY, epochs=1, batch_size=10
        )
        return tuned.history["valid_loss"][0]

    runs(1.0, 1.0)
    before = Meter.compilations
    first = runs(1.0, 0.5)
    assert Meter.compilations == before
    assert runs(2.0, 0.5) == pytest.approx(2 * first, rel=0.3) and Meter.compilations > before


def test_a_schedule_is_saved_and_replayed(tmp_path):
    run = tune(stn.delta_stn(hyper=optax.rmsprop(0.1)), epochs=3)
    run.schedule.save(tmp_path / "schedule")
    schedule = stn.Schedule.load(tmp_path / "schedule")
    optimiser = optax.adam(1e-2)
    losses = (train_loss, valid_loss, small(40), small(24), optimiser)
    again = stn.replay(Net(4, 5, 2), schedule, *losses, key=KEY, epochs=4, batch_size=10)
    assert again.history["valid_loss"][-1] < again.history["valid_loss"][0]
    for name, column in run.schedule.values.items():
        np.testing.assert_array_equal(again.schedule.values[name], np.append(column, [column[-1]] * 4))
    fixed = stn.replay(Net(4, 5, 2), stn.Schedule.fixed(drop=0.0, decay=0.1), *losses, key=KEY, batch_size=10)
    assert fixed.values == {"drop": 0.0, "decay": 0.1} and len(fixed.history["valid_loss"]) == 10
    with pytest.raises(ValueError, match="one length"):
        stn.Schedule({"a": np.ones(3), "b": np.ones(2)})


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (dict(model=Net(4, 5, 2)), ValueError, r"stn\.convert"),
        (dict(space=stn.Space(drop=stn.Rate(0.1))), ValueError, "converted for 2 .* space has 1"),
        (dict(losses=(train_loss, lambda model, batch: jnp.mean(batch[0] ** 2))), ValueError, "does not depend"),
        (dict(losses=(train_loss, lambda model, batch: jax.vmap(model)(batch[0]))), TypeError, r"valid_loss.*scalar"),
        (dict(losses=(lambda *a: jnp.ones(3), valid_loss)), TypeError, r"train_loss.*scalar"),
        (dict(valid=(np.full((8, 4), np.nan), np.zeros(8, int))), ValueError, "valid_loss is nan"),
        (dict(train=(np.ones((8, 4)), np.zeros(7, int))), ValueError, "train must be .* same leading axis"),
        (dict(valid=(np.ones((0, 4)), np.zeros(0, int))), ValueError, "no examples"),
        (dict(batch_size=41), ValueError, "at most the 40"),
        (dict(epochs=0), ValueError, "at least 1"),
        (dict(resume=True), ValueError, "checkpoint=path"),
        (dict(checkpoint="no such folder/run.npz"), ValueError, "make it first"),
    ],
)
def test_what_cannot_be_tuned_says_why(options, kind, words):
    with pytest.raises(kind, match=words):
        tune(**options)


def test_a_history_keeps_its_own_names():
    space = stn.Space(seconds=stn.Rate(0.1), decay=stn.Positive(1e-2))
    model = stn.convert(Net(4, 5, 2, "seconds"), space, key=KEY)
    with pytest.raises(ValueError, match="rename"):
        tune(model=model, space=space)


@pytest.mark.parametrize(
    "make", [lambda: stn.delta_stn(centred=False), lambda: stn.delta_stn(train_steps=0), lambda: stn.stn(entropy=-1.0)]
)
def test_methods_that_make_no_sense(make):
    with pytest.raises(ValueError, match=r"centred|at least"):
        make()


def test_optimisers_are_of_optax():
    with pytest.raises(TypeError, match=r"optax\.adam"):
        stn.delta_stn(1e-3)
