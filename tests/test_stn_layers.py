"""Every response layer: the same at step 0, batched without batching weights, differentiable, and materialised."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import stn
from bilevel.stn._bind import responses, set_offset
from bilevel.stn.layers import PARAMETERS
from bilevel.stn.linearise import linearised

KEY = jax.random.key(7)
SPACE = stn.Space(a=stn.Positive(1.0), b=stn.Positive(1.0), c=stn.Positive(1.0))
E = jnp.array([0.3, -0.2, 0.5])


class Recurrent(eqx.Module):
    """Three steps, so that h matters."""

    cell: eqx.Module

    def __call__(self, xs):
        h = jnp.zeros(self.cell.hidden_size)  # read from the cell, as Equinox's own example does
        state = (h, h) if "LSTM" in type(self.cell).__name__ + type(getattr(self.cell, "base", None)).__name__ else h
        return jax.lax.scan(lambda state, x: (self.cell(x, state), state), state, xs)[0]


def sizes(n):
    return (2, *(5,) * n)


LAYERS = {
    "Linear": (eqx.nn.Linear(4, 3, key=KEY), (4,)),
    "Linear without bias": (eqx.nn.Linear(4, 3, use_bias=False, key=KEY), (4,)),
    "Linear scalars": (eqx.nn.Linear("scalar", "scalar", key=KEY), ()),
    "Embedding": (eqx.nn.Embedding(6, 3, key=KEY), int),
    "LSTMCell": (Recurrent(eqx.nn.LSTMCell(2, 3, key=KEY)), (3, 2)),
    "LSTMCell without bias": (Recurrent(eqx.nn.LSTMCell(2, 3, use_bias=False, key=KEY)), (3, 2)),
    "GRUCell": (Recurrent(eqx.nn.GRUCell(2, 3, key=KEY)), (3, 2)),
    "Conv1d": (eqx.nn.Conv1d(2, 3, 3, padding=1, stride=2, key=KEY), sizes(1)),
    "Conv2d": (eqx.nn.Conv2d(2, 4, 3, groups=2, padding_mode="CIRCULAR", padding="SAME", key=KEY), sizes(2)),
    "Conv2d without bias": (eqx.nn.Conv2d(2, 3, 3, use_bias=False, key=KEY), sizes(2)),
    "Conv3d": (eqx.nn.Conv3d(2, 3, 2, key=KEY), sizes(3)),
    "ConvTranspose1d": (eqx.nn.ConvTranspose1d(2, 3, 3, stride=2, key=KEY), sizes(1)),
    "ConvTranspose2d": (eqx.nn.ConvTranspose2d(2, 3, 2, key=KEY), sizes(2)),
    "ConvTranspose3d": (eqx.nn.ConvTranspose3d(2, 3, 2, key=KEY), sizes(3)),
    "LayerNorm": (eqx.nn.LayerNorm((2, 3)), (2, 3)),
    "LayerNorm without bias": (eqx.nn.LayerNorm(4, use_bias=False), (4,)),
    "GroupNorm": (eqx.nn.GroupNorm(2, 4), (4, 3)),
    "RMSNorm": (eqx.nn.RMSNorm(4), (4,)),
    "Linear, rank 2": (eqx.nn.Linear(40, 30, key=KEY), (40,)),
    "LSTMCell, rank 2": (Recurrent(eqx.nn.LSTMCell(20, 30, key=KEY)), (3, 20)),
    "GRUCell, rank 2": (Recurrent(eqx.nn.GRUCell(20, 30, key=KEY)), (3, 20)),
}


def convert(name):
    return stn.convert(LAYERS[name][0], SPACE, key=jax.random.key(1), rank=2 if "rank" in name else None)


def batch(shape, n=4):
    if shape is int:
        return jnp.arange(n)
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, *shape)))


def moved(model, size=0.3):
    """The model after some training: no weight or gate of the response is zero any more."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf, mine: leaf + size * rng.normal(size=leaf.shape) if mine else leaf, model, responses(model)
    )


@pytest.fixture(params=LAYERS)
def case(request):
    layer, shape = LAYERS[request.param]
    return layer, convert(request.param), batch(shape)


def test_every_kind_of_layer_is_tried():
    tried = {type(layer.cell if isinstance(layer, Recurrent) else layer) for layer, _ in LAYERS.values()}
    assert set(PARAMETERS) - tried == {eqx.nn.Conv, eqx.nn.ConvTranspose}  # the parents of those tried


def test_step_0_changes_no_bit(case):
    layer, converted, x = case
    run = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))
    for model in (converted, stn.bind(converted, E)):
        for before, after in zip(jax.tree.leaves(run(layer, x)), jax.tree.leaves(run(model, x)), strict=True):
            np.testing.assert_array_equal(before, after)


def test_batched_offsets_equal_a_loop_and_materialised_weights(case):
    _, converted, x = case
    model = moved(converted)
    offsets = jnp.asarray(np.random.default_rng(2).normal(size=(len(x), 3)))
    run = eqx.filter_jit(lambda model, e, x: stn.bind(model, e)(x))
    batched = eqx.filter_jit(jax.vmap(lambda e, x: stn.bind(model, e)(x)))(offsets, x)
    looped = [run(model, e, one) for e, one in zip(offsets, x, strict=True)]
    settle = eqx.filter_jit(lambda model, e, x: stn.materialise(model, e)(x))
    ordinary = [settle(model, e, one) for e, one in zip(offsets, x, strict=True)]
    for other in (looped, ordinary):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), batched, stacked)
    jax.tree.map(lambda a, b: np.testing.assert_array_compare(np.not_equal, a, b), looped[0], looped[1])


def test_materialised_models_are_ordinary(case):
    layer, converted, _ = case
    assert jax.tree.structure(stn.materialise(converted, E)) == jax.tree.structure(layer)


def test_jvp_is_the_difference_quotient_and_the_linear_mode_has_it_too(case):
    _, converted, x = case
    model, e0, h = moved(converted), jnp.array([0.1, 0.2, -0.1]), 1e-6

    @eqx.filter_jit
    def flat(model, offset, linear=False):
        y = jax.vmap(set_offset(model, offset, linear))(x)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(y)])

    _, at_e0 = jax.jvp(lambda e: flat(model, e), (e0,), (E,))
    quotient = (flat(model, e0 + h * E) - flat(model, e0 - h * E)) / (2 * h)
    np.testing.assert_allclose(at_e0, quotient, rtol=1e-7, atol=1e-8)
    y, dy = jax.jvp(lambda e: flat(model, e), (0 * E,), (E,))
    fast_y, fast_dy = jax.jvp(lambda e: flat(model, e, linear=True), (0 * E,), (E,))
    np.testing.assert_allclose(fast_y, y, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(fast_dy, dy, rtol=1e-12, atol=1e-13)


def test_gradients_of_the_linearised_call_are_those_of_the_jvp(case):
    """The linear mode drops terms that are zero; none of their derivatives may be missing."""
    _, converted, x = case
    model = moved(converted)
    trained, rest = eqx.partition(model, responses(model))

    def plain(trained):
        model = eqx.combine(trained, rest)
        y, dy = jax.jvp(lambda e: jax.vmap(set_offset(model, e))(x), (0 * E,), (E,))
        return sum(jnp.sum(jnp.sin(a + b)) for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(dy), strict=True))

    def by_call(trained):
        model = linearised(eqx.combine(trained, rest), E)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(jax.vmap(model)(x)))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12),
        jax.jit(jax.grad(by_call))(trained), jax.jit(jax.grad(plain))(trained),
    )  # fmt: skip


def test_weights_stay_unbatched_under_vmap():
    """No array of the program has one matrix per example: 50 examples, 30 x 40 weights."""
    model = moved(stn.convert(eqx.nn.MLP(40, 40, 30, 2, key=KEY), SPACE, key=KEY))

    def loss(model, offsets, x):
        def one(e, x):
            bound = stn.bind(model, e)
            return jnp.sum(bound(x) ** 2) + stn.squared_norm(bound)

        return jnp.mean(jax.vmap(one)(offsets, x))

    x, offsets = jnp.ones((50, 40)), jnp.ones((50, 3))
    arrays, static = eqx.partition(model, eqx.is_array)
    gradient = jax.grad(lambda arrays: loss(eqx.combine(arrays, static), offsets, x))
    text = jax.jit(gradient).lower(arrays).as_text()
    shapes = [[int(n) for n in shape.split("x")] for shape in re.findall(r"tensor<([\dx]+)xf64>", text)]
    largest = max(math.prod(shape) for shape in shapes)
    assert largest <= 50 * 40


@pytest.mark.parametrize("name", LAYERS)
def test_squared_norm_is_that_of_the_materialised_weights(name):
    layer, _ = LAYERS[name]
    model = moved(convert(name))
    squares = lambda tree: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))  # noqa: E731
    for offset in (E, None):
        expected = squares(stn.materialise(model, offset))
        np.testing.assert_allclose(stn.squared_norm(stn.bind(model, offset)), expected, rtol=1e-13)
    np.testing.assert_allclose(stn.squared_norm(layer), squares(layer), rtol=1e-13)


def test_rows_in_common_are_fewer_numbers():
    """Of a layer of 40 by 30 and three hyperparameters: 2 rows of 40 and 30 x 2 gates, for 30 rows and 30 gates."""
    linear = convert("Linear, rank 2")
    assert linear.weights["weight"].shape == (2, 40) and linear.gates["weight"].shape == (60, 3)
    both = eqx.nn.MLP(40, 3, 30, 1, key=KEY)
    model = stn.convert(both, SPACE, key=KEY, rank=3)
    assert model.layers[0].weights["weight"].shape == (3, 40)
    assert model.layers[1].weights["weight"].shape == (3, 30)  # a row for each: in common these would save nothing
    assert model.layers[1].gates["weight"].shape == (3, 3)
    chosen = stn.convert(both, SPACE, key=KEY, rank=lambda path, layer: 1 if path == ".layers[1]" else None)
    assert [len(layer.weights["weight"]) for layer in chosen.layers] == [30, 1]
    stacked = eqx.filter_vmap(lambda key: eqx.nn.Linear(40, 30, key=key))(jax.random.split(KEY, 2))
    model = moved(stn.convert(stacked, SPACE, key=KEY, rank=2))
    assert model.weights["weight"].shape == (2, 2, 40)
    found = eqx.filter_vmap(lambda layer: stn.bind(layer, E)(jnp.ones(40)))(model)
    expected = eqx.filter_vmap(lambda layer: layer(jnp.ones(40)))(stn.materialise(model, E))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("rank", [0, True, lambda path, layer: -1, lambda path, layer: 1.5])
def test_a_rank_that_is_none_is_refused(rank):
    with pytest.raises(ValueError, match="rank must be a positive integer or None"):
        stn.convert(eqx.nn.Linear(40, 30, key=KEY), SPACE, key=KEY, rank=rank)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_model_keeps_its_dtype(dtype):
    model = moved(stn.convert(eqx.nn.MLP(4, 2, 8, 1, dtype=dtype, key=KEY), SPACE, key=KEY))
    model = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, model)
    assert stn.bind(model, E)(jnp.ones(4, dtype)).dtype == dtype


def test_layers_without_parameters_are_left_alone():
    layer = eqx.nn.Sequential([eqx.nn.LayerNorm(3, use_weight=False, use_bias=False), eqx.nn.Linear(3, 3, key=KEY)])
    converted = stn.convert(layer, SPACE, key=KEY)
    assert type(converted[0]) is eqx.nn.LayerNorm and type(converted[1]).__name__ == "Response"
