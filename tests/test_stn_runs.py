"""Runs as people make them: loaders, metrics, the best model, a callback that stops, optimisers that watch the loss."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import stn

KEY = jax.random.key(0)
SPACE = stn.Space(noise=stn.Positive(0.1), decay=stn.Positive(1e-2))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(34, 4))
Y = X @ np.array([1.0, -1.0, 0.5, 0.0]) + 0.3 * RNG.normal(size=34)
TRAIN, VALID = (X[:20], Y[:20]), (X[20:], Y[20:])


def squares(model, batch):
    return jnp.mean((jax.vmap(model)(batch[0])[:, 0] - batch[1]) ** 2)


def train_loss(model, batch, hyper, key):
    x = batch[0] + hyper["noise"] * jax.random.normal(key, batch[0].shape)
    return squares(model, (x, batch[1])) + hyper["decay"] * stn.squared_norm(model)


def worst(model, batch):
    return jnp.mean(jnp.abs(jax.vmap(model)(batch[0])[:, 0] - batch[1]))


METHOD = stn.delta_stn(optax.adam(1e-2), hyper=optax.rmsprop(0.05), train_steps=2)


def tune(train=TRAIN, valid=VALID, method=METHOD, **options):
    model = stn.convert(eqx.nn.Linear(4, 1, key=KEY), SPACE, key=KEY)
    options = {"key": KEY, "epochs": 5, "batch_size": 10, "progress": False, **options}
    return stn.tune(model, SPACE, train_loss, squares, train, valid, method, **options)


class Loader:
    """Batches of 8, 8 and 4, in a new order at every pass."""

    def __init__(self, data, seed=0):
        self.data, self.rng = data, np.random.default_rng(seed)

    def __iter__(self):
        order = self.rng.permutation(len(self.data[1]))
        for at in range(0, len(order), 8):
            yield tuple(part[order[at : at + 8]] for part in self.data)


def test_a_loader_trains_on_every_example_and_is_judged_on_every_one():
    run = tune(Loader(TRAIN), Loader(VALID), metrics={"worst": worst})
    assert run.completed and len(run.schedule) == 5 * 3
    assert run.history["valid_loss"][-1] < run.history["valid_loss"][0]
    for name, measure in {"valid_loss": squares, "worst": worst}.items():
        np.testing.assert_allclose(run.history[name][-1], measure(run.model, VALID), rtol=1e-10)
    assert abs(np.log(run.values["decay"] / 1e-2)) > 1e-3
    again = tune(lambda: Loader(TRAIN, 1), lambda: Loader(VALID, 1))
    assert again.completed and len(again.history["valid_loss"]) == 5


def test_a_loader_of_the_same_batches_makes_the_steps_of_arrays():
    """Full batches, no draws that matter: the first order of examples is all that differs."""
    schedule = stn.Schedule.fixed(noise=0.0, decay=0.1)
    options = {"key": KEY, "epochs": 4, "batch_size": 20, "progress": False}
    model = eqx.nn.Linear(4, 1, key=KEY)
    ends = [
        stn.replay(model, schedule, train_loss, squares, train, valid, optax.sgd(0.1), **options)
        for train, valid in ((TRAIN, VALID), (lambda: [TRAIN], lambda: [VALID]))
    ]
    np.testing.assert_allclose(ends[0].history["valid_loss"], ends[1].history["valid_loss"], rtol=1e-12)


def test_the_best_model_is_kept_and_patience_ends_the_run(tmp_path):
    growing = optax.sgd(lambda step: jnp.where(step < 6, 0.05, -0.05))
    method = stn.delta_stn(growing, responses=optax.adam(1e-2))
    path = tmp_path / "run.npz"
    run = tune(method=method, epochs=20, patience=2, checkpoint=path)
    loss = run.history["valid_loss"]
    assert "did not fall" in run.message and len(loss) == run.best_epoch + 3 < 20
    np.testing.assert_allclose(squares(run.best, VALID), loss.min(), rtol=1e-10)
    assert squares(run.model, VALID) > squares(run.best, VALID)
    again = tune(method=method, epochs=20, patience=2, checkpoint=path, resume="auto")
    assert len(again.history["valid_loss"]) == len(loss) and eqx.tree_equal(again.best, run.best)


def test_the_callback_has_a_model_and_stops():
    seen = []

    def callback(run):
        seen.append((float(squares(run.model, VALID)), float(run.latest["valid_loss"])))
        return len(seen) == 2

    run = tune(callback=callback)
    assert run.message == "The callback returned True." and len(run.history["valid_loss"]) == 2
    np.testing.assert_allclose(*np.array(seen).T, rtol=1e-10)


def test_an_optimiser_may_watch_the_loss():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.9)
    run = tune(method=stn.delta_stn(optax.chain(optax.adam(1e-2), plateau)))
    assert run.completed and float(run.state.optimisers[0][1].scale) < 1


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (dict(train=lambda: iter([]), valid=lambda: [VALID]), ValueError, "train has no batches"),
        (dict(train=iter([TRAIN]), valid=lambda: [VALID]), ValueError, "train=lambda"),
        (dict(train=lambda: [TRAIN]), ValueError, "both come in batches"),
        (dict(metrics={"decay": worst}), ValueError, "another column 'decay'"),
        (dict(patience=0), ValueError, "patience must be at least 1"),
    ],
)
def test_what_cannot_be_run_says_why(options, kind, words):
    with pytest.raises(kind, match=words):
        tune(**options)
