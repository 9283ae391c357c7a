"""Networks as they are published: each converts, tunes three epochs, and then agrees with itself materialised."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_stn_models import ByHand, Tied

from bilevel import stn

pytestmark = pytest.mark.full  # seconds each to compile
KEYS = iter(jax.random.split(jax.random.key(7), 100))
SPACE = stn.Space(drop=stn.Rate(0.2), decay=stn.Positive(1e-3))
LABELS = np.arange(12) % 3
IMAGES = np.random.default_rng(0).normal(size=(12, 1, 8, 8)) + LABELS[:, None, None, None]
WORDS = np.random.default_rng(1).integers(0, 7, (12, 5))


def conv(n, m, size=3, stride=1):
    return eqx.nn.Conv2d(n, m, size, stride, padding=size // 2 if stride == 1 or size == 3 else 0, key=next(KEYS))


def linear(n, m):
    return eqx.nn.Linear(n, m, key=next(KEYS))


class Attends(eqx.Module):
    """A block of a transformer: x + attention(norm(x)), then x + mlp(norm(x))."""

    norms: list
    attention: eqx.nn.MultiheadAttention
    mlp: list
    drop: stn.Dropout

    def __init__(self, width):
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
        self.attention = eqx.nn.MultiheadAttention(2, width, key=next(KEYS))
        self.mlp, self.drop = [linear(width, 2 * width), linear(2 * width, width)], stn.Dropout("drop")

    def __call__(self, x, key):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        y = jax.vmap(lambda v: self.mlp[1](jax.nn.gelu(self.mlp[0](self.norms[1](v)))))(x)
        return x + self.drop(y, key=key)


class ViT(eqx.Module):
    """Patches of 4 x 4, a token for the class and places, both raw arrays."""

    patches: eqx.nn.Conv2d
    token: jax.Array
    places: jax.Array
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, width=8):
        self.patches, self.head = conv(1, width, 4, 4), linear(width, 3)
        self.token, self.places = (0.1 * jax.random.normal(next(KEYS), (n, width)) for n in (1, 5))
        self.blocks = [Attends(width), Attends(width)]

    def __call__(self, x, key=None):
        patches = self.patches(x)
        x = jnp.concatenate([self.token, patches.reshape(len(patches), -1).T]) + self.places
        for i, block in enumerate(self.blocks):
            x = block(x, None if key is None else jax.random.fold_in(key, i))
        return self.head(x[0])


class ResNet(eqx.Module):
    """x + norm(conv(relu(norm(conv(x))))), pooled."""

    stem: eqx.nn.Conv2d
    convs: list
    norms: list
    drop: stn.Dropout
    head: eqx.nn.Linear

    def __init__(self, norm):
        self.stem, self.convs, self.head = conv(1, 4, 3, 2), [conv(4, 4), conv(4, 4)], linear(4, 3)
        self.norms, self.drop = [norm(), norm()], stn.Dropout("drop")

    def normed(self, i, x):
        return self.norms[i](x)

    def __call__(self, x, key=None):
        x = self.stem(x)
        y = jax.nn.relu(self.normed(0, self.convs[0](x)))
        x = jax.nn.relu(x + self.normed(1, self.convs[1](y)))
        return self.head(self.drop(jnp.mean(x, axis=(1, 2)), key=key))


STATES = {}  # by kind: what Equinox keeps apart from the model, statistics of a training before


def frozen(kind):
    model, STATES[kind] = eqx.nn.make_with_state(kind)()
    return model


class FrozenResNet(ResNet):
    def __init__(self):
        super().__init__(lambda: eqx.nn.BatchNorm(4, "batch", mode="batch", inference=True))

    def normed(self, i, x):
        return self.norms[i](x, STATES[FrozenResNet])[0]


class UNet(eqx.Module):
    """Down, up, and the way past both; its pixels are averaged for a class."""

    down: list
    up: eqx.nn.ConvTranspose2d
    last: eqx.nn.Conv2d
    drop: stn.Dropout

    def __init__(self):
        self.down, self.last = [conv(1, 4), conv(4, 8, 3, 2)], conv(8, 3, 1)
        self.up, self.drop = eqx.nn.ConvTranspose2d(8, 4, 2, 2, key=next(KEYS)), stn.Dropout("drop")

    def __call__(self, x, key=None):
        fine = jax.nn.relu(self.down[0](x))
        coarse = self.drop(jax.nn.relu(self.down[1](fine)), key=key)
        return jnp.mean(self.last(jnp.concatenate([fine, self.up(coarse)])), axis=(1, 2))


class Spectral(eqx.Module):
    """A layer of bounded slope, frozen."""

    layer: eqx.nn.SpectralNorm
    drop: stn.Dropout

    def __init__(self):
        self.layer = eqx.nn.SpectralNorm(linear(64, 3), "weight", inference=True, key=next(KEYS))
        self.drop = stn.Dropout("drop")

    def __call__(self, x, key=None):
        return self.layer(self.drop(x.reshape(-1), key=key), STATES[Spectral])[0]


class Language(eqx.Module):
    """A model of words with dropout on its scores; it drops its own last word's."""

    body: eqx.Module
    drop: stn.Dropout

    def __call__(self, words, key=None):
        return self.drop(self.body(words), key=key)


ZOO = {
    "ViT": (ViT, IMAGES, {"arrays": True}),
    "ResNet, GroupNorm": (lambda: ResNet(lambda: eqx.nn.GroupNorm(2, 4)), IMAGES, {}),
    "ResNet, frozen BatchNorm": (lambda: frozen(FrozenResNet), IMAGES, {}),
    "UNet": (UNet, IMAGES, {}),
    "frozen SpectralNorm": (lambda: frozen(Spectral), IMAGES, {}),
    "GRU tied by Shared": (lambda: Language(Tied(), stn.Dropout("drop")), WORDS, {}),
    "LSTM tied by hand": (
        lambda: Language(
            ByHand(eqx.nn.Embedding(7, 4, key=next(KEYS)), eqx.nn.LSTMCell(4, 4, key=next(KEYS))), stn.Dropout("drop")
        ),
        WORDS, {},
    ),
}  # fmt: skip


def scores(model, x, key=None):
    """Of each example: classes, or the words that come next."""
    return jax.vmap(model)(x) if key is None else jax.vmap(model)(x, jax.random.split(key, len(x)))


def loss(found, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, labels))


@pytest.mark.parametrize("name", ZOO)
def test_a_network_is_tuned_and_agrees_with_itself_materialised(name):
    make, x, options = ZOO[name]
    words = x is WORDS
    data = (x[:, :-1], x[:, 1:]) if words else (x, LABELS)

    def train_loss(model, batch, hyper, key):
        return loss(scores(model, batch[0], key), batch[1]) + hyper["decay"] * stn.squared_norm(model)

    def valid_loss(model, batch):
        return loss(scores(model, batch[0]), batch[1])

    model = stn.convert(make(), SPACE, key=next(KEYS), **options)
    method = stn.delta_stn(optax.adam(1e-2), hyper=optax.adam(1e-1), train_steps=1)
    run = stn.tune(
        model, SPACE, train_loss, valid_loss, data, data, method, key=jax.random.key(0), epochs=3, batch_size=4,
        progress=False,
    )  # fmt: skip
    assert run.completed and len(run.history["valid_loss"]) == 3 and np.isfinite(run.history["valid_loss"]).all()
    assert all(run.history[name][-1] != run.history[name][0] for name in SPACE)
    e, values = jnp.array([0.3, -0.2]), {name: jnp.asarray(run.values[name]) for name in SPACE}
    trained = eqx.nn.inference_mode(run.network)
    found, own = (scores(m, data[0]) for m in (stn.bind(trained, e, values), stn.materialise(trained, e, values)))
    np.testing.assert_allclose(found, own, rtol=1e-12, atol=1e-12)
    assert np.abs(found - scores(stn.materialise(trained, 0 * e, values), data[0])).max() > 1e-6
