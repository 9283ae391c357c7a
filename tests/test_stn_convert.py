"""Conversion of whole models: nested, stacked, with layers that drop; what is refused, and how the error helps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import stn
from bilevel.stn._bind import responses
from bilevel.stn.layers import Response

KEY = jax.random.key(3)
SPACE = stn.Space(drop=stn.Rate(0.2), other=stn.Rate(0.5), decay=stn.Positive(1e-3))
E = jnp.array([0.3, -0.2, 0.5])


def linear(n, m):
    return eqx.nn.Linear(n, m, key=KEY)


class Block(eqx.Module):
    mix: eqx.nn.Linear
    drop: stn.Dropout
    norm: eqx.nn.LayerNorm

    def __init__(self, key):
        self.mix, self.drop = eqx.nn.Linear(6, 6, key=key), stn.Dropout("drop")
        self.norm = eqx.nn.LayerNorm(6)

    def __call__(self, x, key):
        return x + self.drop(jax.nn.tanh(self.mix(self.norm(x))), key=key)


class Stacked(eqx.Module):
    """Blocks made under vmap and scanned over, a Sequential, and a dictionary of layers."""

    blocks: Block
    heads: dict[str, eqx.Module]

    def __call__(self, x, *, key):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        def step(x, block):
            arrays, key = block
            return eqx.combine(arrays, static)(x, key), None

        x, _ = jax.lax.scan(step, x, (arrays, jax.random.split(key, 4)))
        return {name: head(x) for name, head in self.heads.items()}


def stacked():
    heads = {"class": eqx.nn.Sequential([linear(6, 5), eqx.nn.Lambda(jax.nn.relu), linear(5, 3)]), "size": linear(6, 1)}
    return Stacked(eqx.filter_vmap(Block)(jax.random.split(KEY, 4)), heads)


def moved(model):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a, mine: a + 0.3 * rng.normal(size=a.shape) if mine else a, model, responses(model))


def test_nested_and_stacked_modules_run_as_written():
    model = stn.convert(stacked(), SPACE, key=KEY)
    values = SPACE.values(SPACE.start()[0])
    x, key = jnp.arange(6.0), jax.random.key(5)
    run = eqx.filter_jit(lambda model, e: stn.bind(model, e, values)(x, key=key))
    before = eqx.filter_jit(lambda model: stn.bind(model, None, values)(x, key=key))(stacked_with_its_stack())
    jax.tree.map(np.testing.assert_array_equal, run(model, E), before)
    ordinary = stn.materialise(moved(model), E, values)
    assert type(ordinary.blocks.mix) is eqx.nn.Linear and ordinary.blocks.drop == eqx.nn.Dropout(float(values["drop"]))
    after = eqx.filter_jit(lambda model: model(x, key=key))(ordinary)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), run(moved(model), E), after)
    np.testing.assert_array_compare(np.not_equal, after["class"], before["class"])


def stacked_with_its_stack():
    """The model before conversion; its dropout sits in a stack, which `convert` would have found out."""
    return eqx.tree_at(lambda m: m.blocks.drop, stacked(), stn.Dropout("drop"))


@pytest.mark.parametrize(
    "model",
    [
        eqx.nn.MLP(3, 2, 4, 3, key=KEY),
        eqx.nn.MLP(3, "scalar", 4, 3, scan=True, key=KEY),
        eqx.nn.Sequential([linear(3, 4), eqx.nn.LayerNorm(4), eqx.nn.Lambda(jax.nn.relu), linear(4, 2)]),
        eqx.nn.MLP(3, 2, 4, 3, activation=eqx.nn.PReLU(), key=KEY),
    ],
    ids=["MLP", "MLP under scan", "Sequential", "MLP with PReLU"],
)
def test_models_of_equinox(model):
    converted = stn.convert(model, SPACE, key=KEY, where=lambda path, layer: "negative_slope" not in path)
    x = jnp.array([0.3, -1.0, 2.0])
    run = eqx.filter_jit(lambda model: model(x))
    np.testing.assert_array_equal(run(stn.bind(converted, E)), run(model))
    np.testing.assert_allclose(
        eqx.filter_jit(lambda m: stn.bind(m, E)(x))(moved(converted)),
        run(stn.materialise(moved(converted), E)),
        rtol=1e-12,
    )


def test_attention_and_its_dropout():
    model = eqx.nn.MultiheadAttention(2, 4, dropout_p=0.5, key=KEY)
    converted = stn.convert(model, SPACE, key=KEY, dropout="drop")
    assert isinstance(converted.dropout, stn.Dropout) and isinstance(converted.query_proj, Response)
    x = jax.random.normal(KEY, (5, 4))
    run = eqx.filter_jit(lambda model: eqx.nn.inference_mode(model)(x, x, x))
    np.testing.assert_array_equal(run(converted), run(model))
    values = {"drop": jnp.asarray(0.5)}
    run = eqx.filter_jit(lambda model: model(x, x, x, key=KEY))
    np.testing.assert_array_equal(run(stn.bind(converted, E, values)), run(model))


def test_the_predicate_and_the_names_of_dropout_layers():
    model = eqx.nn.Sequential([linear(3, 3), eqx.nn.Dropout(0.1), linear(3, 3), eqx.nn.Dropout(0.7)])
    kept = stn.convert(model, SPACE, key=KEY, where=lambda path, layer: "[2]" not in path)
    assert isinstance(kept[0], Response) and type(kept[2]) is eqx.nn.Linear and kept[1].p == 0.1
    named = stn.convert(model, SPACE, key=KEY, dropout=lambda path: "drop" if "[1]" in path else "other")
    assert (named[1].name, named[3].name) == ("drop", "other")


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
def test_keep_rates_are_those_of_each_example(rate):
    """Examples of one batch have their own rates; kept entries are scaled so that the mean stays."""
    rates, n = jnp.array([rate, rate / 2, 0.95]), 40_000
    drop = jax.jit(jax.vmap(lambda r, key: stn.bind(stn.Dropout("drop"), None, {"drop": r})(jnp.ones(n), key=key)))
    kept = drop(rates, jax.random.split(KEY, 3))
    for row, r in zip(kept, rates, strict=True):
        assert abs(float(jnp.mean(row > 0)) - (1 - r)) < 5 * float(jnp.sqrt(r * (1 - r) / n))
        np.testing.assert_allclose(row[row > 0], 1 / (1 - r), rtol=1e-12)


def test_a_shared_mask_is_the_same_along_its_axes():
    y = stn.bind(stn.Dropout("drop", shared=(0,)), None, {"drop": 0.5})(jnp.ones((20, 30)), key=KEY)
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:1], y.shape))
    assert 0 < float(jnp.mean(y > 0)) < 1


def test_word_dropout_drops_words():
    embed = stn.convert(stn.EmbeddingDropout(eqx.nn.Embedding(9, 3, key=KEY), "drop"), SPACE, key=KEY)
    words = jnp.array([1, 4, 1, 7, 4, 8, 2, 0])
    bound = stn.bind(moved(embed), E, {"drop": jnp.asarray(0.5)})
    rows = jax.jit(lambda key: jax.vmap(lambda i: bound(i, key=key))(words))(KEY)
    whole = jax.vmap(bound.layer)(words)
    kept = np.any(rows != 0, axis=1)
    np.testing.assert_allclose(rows, np.where(kept[:, None], 2 * whole, 0))
    assert 0 < kept.sum() < len(kept) and kept[0] == kept[2] and kept[1] == kept[4]


@pytest.mark.parametrize("where", ["weight_ih", "weight_hh"])
def test_drop_connect_drops_weights_and_their_responses_alike(where):
    cell = stn.DropConnect(eqx.nn.LSTMCell(2, 3, key=KEY), "drop", where)
    bound = stn.bind(moved(stn.convert(cell, SPACE, key=KEY)), E, {"drop": jnp.asarray(0.5)})
    h, x = (jnp.ones(3), jnp.ones(3)), jnp.ones(2)
    dropped = bound(key=KEY)
    mask = getattr(dropped.base, where) != 0
    assert 0 < int(mask.sum()) < mask.size
    whole = bound.layer.materialise()
    expected = eqx.tree_at(lambda c: getattr(c, where), whole, jnp.where(mask, 2 * getattr(whole, where), 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), dropped(x, h), expected(x, h))
    undropped = eqx.nn.inference_mode(bound)()(x, h)  # W x + s * (W' x), and whole has (W + diag(s) W') x
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), undropped, whole(x, h))


class Custom(eqx.Module):
    body: eqx.nn.Linear
    positions: jax.Array


@pytest.mark.filterwarnings("ignore:When `eqx.nn.BatchNorm")
@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: Custom(linear(2, 2), jnp.ones((5, 2))), {}, r"\.positions is an array of shape \(5, 2\)[\s\S]*where="),
        (lambda: eqx.nn.Sequential([linear(2, 2), eqx.nn.BatchNorm(2, "b", mode="batch")]), {}, "GroupNorm"),
        (lambda: [linear(2, 2), eqx.nn.BatchNorm(2, "b", mode="batch")], {"where": lambda path, _: "[0]" in path},
         r"\[1\] is a BatchNorm"),
        (lambda: eqx.nn.SpectralNorm(linear(2, 2), "weight", key=KEY), {}, "SpectralNorm: .* Freeze it"),
        (lambda: eqx.nn.Linear(2, 2, dtype=complex, key=KEY), {}, "complex.*two real arrays"),
        (lambda: eqx.nn.Lambda(jax.nn.relu), {}, "no layer"),
        (lambda: linear(2, 2), {"where": lambda path, layer: False}, "no layer"),
        (lambda: [linear(2, 2), stn.Dropout("dorp")], {}, r"'dorp', but the space has only 'drop'"),
        (lambda: [linear(2, 2), eqx.nn.Dropout(0.1)], {"dropout": "dorp"}, "'dorp'"),
        (lambda: stn.convert(linear(2, 2), SPACE, key=KEY), {}, "responds already"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(make, options, words):
    with pytest.raises(ValueError, match=words):
        stn.convert(make(), SPACE, key=KEY, **options)


def test_what_was_left_out_is_trained_without_a_response():
    model = stn.convert(
        Custom(linear(2, 2), jnp.ones((5, 2))), SPACE, key=KEY, where=lambda path, _: path != ".positions"
    )
    assert isinstance(model.body, Response) and isinstance(model.positions, jax.Array)


def test_a_layer_that_drops_says_what_it_lacks():
    drop = stn.Dropout("drop")
    with pytest.raises(RuntimeError, match=r"stn\.bind"):
        drop(jnp.ones(3), key=KEY)
    with pytest.raises(RuntimeError, match="key"):
        stn.bind(drop, None, {"drop": 0.5})(jnp.ones(3))
    with pytest.raises(ValueError, match="'drop', which is not among other"):
        stn.bind(drop, None, {"other": 0.5})
    np.testing.assert_array_equal(eqx.nn.inference_mode([drop])[0](jnp.ones(3)), jnp.ones(3))
