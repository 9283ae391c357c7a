"""What would tune something else without a word is an error before the first step, or right."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import stn
from bilevel.stn._tune import prepare
from bilevel.stn.checks_losses import check_losses

KEY = jax.random.key(0)
SPACE = stn.Space(drop=stn.Rate(0.1), decay=stn.Positive(1e-6))
RNG = np.random.default_rng(0)
DATA = jnp.asarray(RNG.normal(size=(30, 4))), jnp.asarray(RNG.integers(0, 2, 30))


class Net(eqx.Module):
    one: eqx.nn.Linear
    drop: stn.Dropout
    two: eqx.nn.Linear

    def __call__(self, x, *, key=None):
        return self.two(self.drop(jax.nn.tanh(self.one(x)), key=key))


def net(dtype=None):
    linear = lambda n, m: eqx.nn.Linear(n, m, dtype=dtype, key=KEY)  # noqa: E731
    return Net(linear(4, 5), stn.Dropout("drop"), linear(5, 2))


def each(model, batch, key):
    scores = jax.vmap(lambda x, key: model(x, key=key))(batch[0], jax.random.split(key, len(batch[0])))
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1])


def loss(penalty=stn.squared_norm, mean=jnp.mean):
    def train_loss(model, batch, hyper, key):
        return mean(each(model, batch, key)) + hyper["decay"] * penalty(model)

    return train_loss


def valid_loss(model, batch):
    return jnp.mean(each(model, batch, KEY))


def check(train_loss, valid_loss=valid_loss, space=SPACE, model=None):
    model = stn.convert(net() if model is None else model, space, key=KEY)
    losses, state = prepare(model, space, stn.delta_stn(), train_loss, valid_loss)
    check_losses(losses, state, DATA, DATA, KEY)


def leaves(model):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def of_linear(model):
    is_linear = lambda node: isinstance(node, eqx.nn.Linear)  # noqa: E731
    return sum(jnp.sum(node.weight**2) for node in jax.tree.leaves(model, is_leaf=is_linear) if is_linear(node))


def raw_linear(model):
    is_linear = lambda node: type(node) is eqx.nn.Linear  # noqa: E731
    return sum(jnp.sum(node.weight**2) for node in jax.tree.leaves(model, is_leaf=is_linear) if is_linear(node))


@pytest.mark.parametrize(
    "penalty",
    [
        leaves,
        pytest.param(raw_linear, marks=pytest.mark.full),
        pytest.param(lambda model: optax.tree.norm(eqx.filter(model, eqx.is_inexact_array)), marks=pytest.mark.full),
        lambda model: leaves(stn.materialise(model)),
    ],
    ids=["leaves", "kinds of layers", "optax", "materialise"],
)
def test_a_penalty_over_leaves_is_refused_and_right_over_the_effective_model(penalty):
    with pytest.raises(ValueError, match=r"train_loss.* reads the model's leaves.*stn\.effective\(model\)"):
        check(loss(penalty))
    check(loss(lambda model: penalty(stn.effective(model))))


def test_a_recipe_by_isinstance_is_right_as_it_is():
    check(loss(of_linear))


def test_effective_weights_are_those_at_the_hyperparameters():
    model = stn.convert(net(), SPACE, key=KEY)
    model = eqx.tree_at(lambda m: m.one.gates["weight"], model, replace_fn=lambda gate: gate + 1)
    e = jnp.array([0.2, 0.1])
    found = jax.grad(lambda e: leaves(stn.effective(stn.bind(model, e))))(e)
    np.testing.assert_allclose(found, jax.grad(lambda e: stn.squared_norm(stn.bind(model, e)))(e), rtol=1e-12)
    ordinary = net()
    assert eqx.tree_equal(stn.effective(ordinary), ordinary)


WEIGHTS = jnp.array([1.0, 5.0])


def weighted(model, batch, hyper, key):
    weight = WEIGHTS[batch[1]]
    return jnp.sum(weight * each(model, batch, key)) / jnp.sum(weight) + hyper["decay"] * stn.squared_norm(model)


def contrast(model, batch, hyper, key):
    return jnp.mean(jax.nn.logsumexp(-each(model, batch, key))) + hyper["decay"] * stn.squared_norm(model)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ((weighted, valid_loss), "train_loss"),
        ((contrast, valid_loss), "train_loss"),
        ((loss(), lambda model, batch: jnp.sqrt(valid_loss(model, batch))), r"valid_loss\(model, batch\)"),
    ],
    ids=["class weights", "contrast", "root"],
)
def test_a_loss_that_is_no_mean_needs_draws_for_the_batch(losses, words):
    with pytest.raises(ValueError, match=rf'{words}.* is no mean over examples.*draws="batch"'):
        check(*losses)
    shared = stn.Space(drop=stn.Rate(0.1, draws="batch"), decay=stn.Positive(1e-6, draws="batch"))
    if losses[0] is weighted:
        check(*losses, space=shared)


def test_values_that_nothing_reads_are_named():
    space = stn.Space(drop=stn.Rate(0.1), decay=stn.Positive(1e-6), rate=stn.Positive(1e-3))
    with pytest.raises(ValueError, match=r"does not read 'rate'.*learning rate"):
        check(loss(), space=space)
    with pytest.raises(ValueError, match=r"does not read 'drop'.*inference_mode\(model, value=False\)"):
        check(loss(), model=eqx.nn.inference_mode(net()))
    with pytest.warns(UserWarning, match=r"same.* at 16 values of 'decay'"):
        check(lambda *args: loss(lambda model: 0.0 * stn.squared_norm(model))(*args))


@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.full)])
def test_hyperparameters_move_whatever_the_weights_are(dtype):
    model = stn.convert(net(dtype), SPACE, key=KEY)
    method = stn.delta_stn(optax.adam(1e-2), hyper=optax.rmsprop(1e-3), train_steps=1)
    data = (DATA[0].astype(jnp.float32), DATA[1])
    run = stn.tune(
        model, SPACE, loss(), valid_loss, data, data, method, key=KEY, epochs=4, batch_size=10, progress=False
    )
    assert run.completed and run.state.u.dtype == jnp.float64  # as JAX has it here
    assert run.model.one.weight.dtype == dtype and run.values["drop"] != pytest.approx(0.1, abs=1e-6)
    assert run.history["valid_loss"][-1] < run.history["valid_loss"][0]
