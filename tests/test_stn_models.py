"""Models as people write them: each converts and agrees with its materialised self, or is refused with the remedy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import stn
from bilevel.stn._bind import responses, set_rates
from bilevel.stn.linearise import linearised

KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 6)
SPACE = stn.Space(drop=stn.Rate(0.2), decay=stn.Positive(1e-3))
E = jnp.array([0.3, -0.2])
X = jax.random.normal(KEY, (4,))


def linear(n, m, key=KEY):
    return eqx.nn.Linear(n, m, key=key)


class Own(eqx.nn.Linear):
    """Code of its own about Equinox's weights."""

    def __call__(self, x, *, key=None):
        return jax.nn.softmax(self.weight, axis=1) @ x + self.bias


class Inherits(eqx.nn.Linear):
    pass


class Checks(eqx.Module):
    """Asks what its layers are."""

    layers: list

    def __call__(self, x, *, key=None):
        for layer in self.layers:
            if isinstance(layer, eqx.nn.Dropout):
                x = layer(x, key=key)
            elif isinstance(layer, eqx.nn.Linear):
                x = jax.nn.tanh(layer(x))
            else:
                raise TypeError(type(layer))
        return x


class Tied(eqx.Module):
    """A GRU whose embedding is its output matrix, by eqx.nn.Shared."""

    shared: eqx.nn.Shared
    cell: eqx.nn.GRUCell

    def __init__(self):
        embed, out = eqx.nn.Embedding(7, 4, key=KEYS[0]), eqx.nn.Linear(4, 7, use_bias=False, key=KEYS[1])
        self.shared = eqx.nn.Shared((embed, out), lambda pair: pair[1].weight, lambda pair: pair[0].weight)
        self.cell = eqx.nn.GRUCell(4, 4, key=KEYS[2])

    def __call__(self, words):
        embed, out = self.shared()
        step = lambda h, i: (self.cell(embed(i), h),) * 2  # noqa: E731
        return jax.vmap(out)(jax.lax.scan(step, jnp.zeros(4), words)[1])


class ByHand(eqx.Module):
    """An LSTM tied to its table by `table.weight`."""

    table: eqx.nn.Embedding
    cell: eqx.nn.LSTMCell

    def __call__(self, words):
        def step(state, i):
            state = self.cell(self.table(i), state)
            return state, self.table.weight @ state[0]

        return jax.lax.scan(step, (jnp.zeros(4), jnp.zeros(4)), words)[1]


class LoRA(eqx.Module):
    """A frozen matrix and two raw factors."""

    frozen: eqx.nn.Linear
    down: jax.Array
    up: jax.Array

    def __call__(self, x):
        return self.frozen(x) + self.up @ (self.down @ x)


class Block(eqx.Module):
    mix: eqx.nn.Linear
    drop: stn.Dropout

    def __init__(self, key):
        self.mix, self.drop = linear(4, 4, key), stn.Dropout("drop")

    def __call__(self, x, key):
        return x + self.drop(jax.nn.tanh(self.mix(x)), key=key)


class RootDrop(eqx.Module):
    """A dropout of its own beside a stack that is scanned over."""

    drop: stn.Dropout
    blocks: Block

    def __call__(self, x, *, key):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        step = lambda x, a: (eqx.combine(a[0], static)(x, a[1]), None)  # noqa: E731
        return self.drop(jax.lax.scan(step, x, (arrays, jax.random.split(key, 3)))[0], key=key)


class Frozen(eqx.Module):
    body: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.body, self.norm = linear(4, 4), eqx.nn.BatchNorm(4, "batch", mode="batch")


def frozen():
    model, state = eqx.nn.make_with_state(Frozen)()
    return eqx.tree_at(lambda m: m.norm.inference, model, True), state


def ensemble(model):
    return eqx.filter_vmap(lambda one, x, key: one(x, key), in_axes=(eqx.if_array(0), None, None))(model, X, KEY)


def stack():
    return eqx.filter_vmap(Block)(jax.random.split(KEY, 3))


WORDS = jnp.array([1, 4, 0, 6])
MODELS = {
    "tuple": (lambda: (linear(4, 3), linear(3, 2)), lambda m: m[1](jax.nn.tanh(m[0](X))), {}),
    "list": (lambda: [linear(4, 3), linear(3, 2)], lambda m: m[1](jax.nn.tanh(m[0](X))), {}),
    "dict": (lambda: {"a": linear(4, 3), "b": linear(3, 2)}, lambda m: m["b"](jax.nn.tanh(m["a"](X))), {}),
    "ensemble": (stack, ensemble, {}),
    "root dropout": (lambda: RootDrop(stn.Dropout("drop"), stack()), lambda m: m(X, key=KEY), {}),
    "GRU tied by Shared": (Tied, lambda m: m(WORDS), {}),
    "LSTM tied by hand": (
        lambda: ByHand(eqx.nn.Embedding(7, 4, key=KEYS[0]), eqx.nn.LSTMCell(4, 4, key=KEYS[1])),
        lambda m: m(WORDS), {},
    ),
    "LoRA": (lambda: LoRA(linear(4, 4), jnp.ones((2, 4)), jnp.zeros((4, 2))), lambda m: m(X),
             {"arrays": True, "where": lambda path, _: "frozen" not in path}),
    "isinstance": (lambda: Checks([linear(4, 3), stn.Dropout("drop"), Inherits(3, 2, key=KEY)]),
                   lambda m: m(X, key=KEY), {}),
    "subclasses": (lambda: eqx.nn.Sequential([Own(4, 3, key=KEY), linear(3, 2)]), lambda m: m(X), {}),
    "WeightNorm": (lambda: eqx.nn.WeightNorm(linear(4, 3)), lambda m: m(X), {}),
}  # fmt: skip


def moved(model):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a, mine: a + 0.3 * rng.normal(size=a.shape) if mine else a, model, responses(model))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_agrees_with_itself_materialised(name):
    """Untouched at step 0; at e with its effective weights; its linearised call has the value and slope at e = 0."""
    make, call, options = MODELS[name]
    values = {"drop": jnp.asarray(0.3), "decay": jnp.asarray(0.1)}
    plain, model = make(), stn.convert(make(), SPACE, key=KEY, **options)

    @jax.jit
    def run(e):
        before = call(set_rates(plain, values)), call(stn.bind(model, e, values))
        bound = stn.bind(moved(model), e, values)
        wrapped = linearised(set_rates(moved(model), values), e)
        return before, call(bound), call(stn.effective(bound)), call(stn.effective(wrapped)), call(wrapped)

    before, bound, own, unwrapped, first = run(E)
    np.testing.assert_allclose(*before, rtol=0, atol=1e-12)
    np.testing.assert_allclose(bound, own, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(unwrapped, own, rtol=0, atol=1e-14)
    assert np.abs(bound - before[0]).max() > 1e-3
    np.testing.assert_allclose(run(1e-5 * E)[1], run(1e-5 * E)[4], rtol=0, atol=1e-8)
    assert first.shape == bound.shape
    ordinary = stn.materialise(moved(model), E, values)
    assert jax.tree.structure(stn.effective(ordinary)) == jax.tree.structure(ordinary)


def test_frozen_batch_norm_responds_and_one_in_training_is_refused():
    model, state = frozen()
    converted = stn.convert(model, SPACE, key=KEY)
    call = lambda m: m.norm(m.body(X), state)[0]  # noqa: E731
    bound = stn.bind(moved(converted), E)
    np.testing.assert_allclose(call(bound), call(stn.effective(bound)), rtol=1e-12)
    assert not np.allclose(bound.norm.weight, model.norm.weight)
    training = eqx.tree_at(lambda m: m.norm.inference, model, False)
    with pytest.raises(ValueError, match=r"\.norm is a BatchNorm: its statistics change .* eqx\.tree_at"):
        stn.convert(training, SPACE, key=KEY)
