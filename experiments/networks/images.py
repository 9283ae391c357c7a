"""Images of ten kinds, an MLP and a CNN that classify them, and the hyperparameters that both have.

Fashion-MNIST, or scikit-learn's digits: dropout after each hidden layer, input noise, length and number of the holes of
cutout, brightness, contrast, weight decay; 8 hyperparameters for the MLP, 9 for the CNN.
"""

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from bilevel import stn
from bilevel.problems import labelled

ADAM = {"MLP": optax.adam(1e-3), "CNN": optax.adam(3e-3)}
BATCH = 100
WIDTH, CHANNELS, DENSE = 128, (8, 16), 64
DECAY = stn.Positive(1e-5)


class MLP(eqx.Module):
    layers: list[eqx.nn.Linear]
    drops: list[stn.Dropout]

    def __init__(self, side: int, key: PRNGKeyArray):
        sizes, keys = (side**2, WIDTH, WIDTH, 10), jax.random.split(key, 3)
        self.layers = [eqx.nn.Linear(*pair, key=k) for pair, k in zip(itertools.pairwise(sizes), keys, strict=True)]
        self.drops = [stn.Dropout("drop1"), stn.Dropout("drop2")]

    def __call__(self, image: Array, *, key: PRNGKeyArray | None = None) -> Array:
        x, keys = image.ravel(), [None] * 2 if key is None else jax.random.split(key, 2)
        for layer, drop, k in zip(self.layers[:-1], self.drops, keys, strict=True):
            x = drop(jax.nn.relu(layer(x)), key=k)
        return self.layers[-1](x)


class Convolution(eqx.Module):
    """Of (height, width, channels), with one pixel of padding, as a product with patches: XLA's own is many times
    slower inside a compiled loop on CPUs (jax-ml/jax#12868), its derivative with respect to the kernel above all."""

    linear: eqx.nn.Linear
    kernel: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        x = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        reach = len(x) - self.kernel + 1
        places = [slice(i, i + reach, self.stride) for i in range(self.kernel)]
        patches = jnp.concatenate([x[rows, columns] for rows in places for columns in places], axis=-1)
        return jax.vmap(jax.vmap(self.linear))(patches)


class CNN(eqx.Module):
    layers: list[Convolution | eqx.nn.Linear]
    drops: list[stn.Dropout]

    def __init__(self, side: int, key: PRNGKeyArray, width: int = 1):
        one, two, three, four = jax.random.split(key, 4)
        first, second, dense = (width * units for units in (*CHANNELS, DENSE))
        grid = (side - 3) // 3 + 1
        grid = (grid - 1) // 2 + 1
        self.layers = [
            Convolution(eqx.nn.Linear(5 * 5, first, key=one), kernel=5, stride=3),
            Convolution(eqx.nn.Linear(3 * 3 * first, second, key=two), kernel=3, stride=2),
            eqx.nn.Linear(second * grid**2, dense, key=three),
            eqx.nn.Linear(dense, 10, key=four),
        ]
        channels = {"shared": (0, 1)}  # dropped as a whole
        self.drops = [stn.Dropout("drop1", **channels), stn.Dropout("drop2", **channels), stn.Dropout("drop3")]

    def __call__(self, image: Array, *, key: PRNGKeyArray | None = None) -> Array:
        x, keys = jnp.moveaxis(image, 0, -1), [None] * 3 if key is None else jax.random.split(key, 3)
        for i, (layer, drop, k) in enumerate(zip(self.layers[:-1], self.drops, keys, strict=True)):
            x = drop(jax.nn.relu(layer(x.ravel() if i == 2 else x)), key=k)
        return self.layers[-1](x)


NETWORKS = {"MLP": MLP, "CNN": CNN}


def space(model: MLP | CNN, side: int) -> stn.Space:
    return stn.Space(**rates(model.drops), **strengths(side), decay=DECAY)


def rates(drops: list[stn.Dropout]) -> dict[str, stn.AbstractHyperparameter]:
    """All regularisation is weak at the start."""
    return {drop.name: stn.Rate(0.05, high=0.75) for drop in drops}


def strengths(side: int) -> dict[str, stn.AbstractHyperparameter]:
    """Of what `augmented` does."""
    return {
        "noise": stn.Real(0.05, 0, 0.5),
        "length": stn.Integer(side // 8, 0, side // 2),
        "holes": stn.Integer(1, 0, 3),
        "brightness": stn.Real(0.05, 0, 1),
        "contrast": stn.Real(0.05, 0, 1),
    }


def augmented(image: Array, hyper: dict[str, Array], key: PRNGKeyArray) -> Array:
    one, two, three, four = jax.random.split(key, 4)
    image = stn.augment.noise(image, hyper["noise"], one)  # first: XLA would draw it again for each patch of the CNN
    image = stn.augment.brightness(image, hyper["brightness"], two)
    image = stn.augment.contrast(image, hyper["contrast"], three)
    return stn.augment.cutout(image, stn.augment.Holes(hyper["length"], hyper["holes"]), four)


def train_loss(model: Callable, batch: tuple, hyper: dict[str, Array], key: PRNGKeyArray) -> Array:
    logits = noisy_logits(model, augmented, batch[0], hyper, key)
    return cross_entropy(logits, batch[1]) + hyper["decay"] * stn.squared_norm(model)


def noisy_logits(model: Callable, augmented: Callable, images: Array, hyper: dict, key: PRNGKeyArray) -> Array:
    """Of images that `augmented(image, hyper, key)` changes, by a network that drops."""
    one, two = jax.random.split(key, (2, len(images)))
    images = jax.vmap(lambda image, key: augmented(image, hyper, key))(images, one)
    return jax.vmap(lambda image, key: model(image, key=key))(images, two)


def valid_loss(model: Callable, batch: tuple) -> Array:
    return cross_entropy(jax.vmap(model)(batch[0]), batch[1])


def cross_entropy(logits: Array, labels: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@eqx.filter_jit
def _judge(model, images, labels):
    logits = jax.vmap(eqx.nn.inference_mode(model))(images)
    return cross_entropy(logits, labels), jnp.mean(jnp.argmax(logits, 1) == labels)


def judge(model: PyTree, test: tuple) -> dict[str, float]:
    loss, accuracy = _judge(model, *test)
    return {"test_loss": float(loss), "accuracy": float(accuracy)}


@cache
def everything(packaged: bool) -> Any:
    return labelled.digits(np.float32) if packaged else labelled.fashion_mnist(28, np.float32)


def data(packaged: bool, seed: int, sizes: tuple[int, int] = (10_000, 5_000)) -> list[tuple[Array, Array]]:
    """Training, validation (`sizes` of Fashion-MNIST) and test set: images (n, 1, side, side) and labels (n,)."""
    if packaged:
        parts = labelled.split(everything(True), (900, 400, 497), seed=seed)
    else:
        parts = (*labelled.split(everything(False).train, sizes, seed=seed), everything(False).test)
    side = math.isqrt(parts[0].features.shape[1])
    return [(jnp.asarray(part.features.reshape(-1, 1, side, side)), jnp.asarray(part.labels)) for part in parts]


def starts(space: stn.Space) -> dict[str, float | int]:
    return {name: one.start for name, one in zip(space, space.hyperparameters, strict=True)}
