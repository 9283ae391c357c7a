"""Learning a regulariser for denoising in two phases: quick and uncertified, then certified.

    1. Adam on mini-batches of patches, with loose hypergradients that go on from where their batch was solved last:
           || grad_x h || <= 4e-3 sqrt(numbers in x),     ||H q - grad_x g|| <= 6e-3 sqrt(numbers in x)/patches
    2. `bilevel.solve`, the certified default, on patches that are fixed: f certainly decreases, and by how much.

The first finds in minutes what the second would look for in hours; the second says how far off the first may be.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

import bilevel
from bilevel import AbstractProblem

from ._regularisers.base import AbstractRegulariser
from ._regularisers.tv import TV
from ._restoration import Restoration

Patches = Float[np.ndarray, "n s s"]

BATCH, RATE = 16, 0.05
SLOW = (
    "smoothing",
    "smoothings",
    "gaps",
)  # learnt at a fifth of the rate: they set L and mu, and so what a solve costs


class Step(NamedTuple):
    """theta after a mini-batch, the batch's value before, and the cost so far."""

    theta: PyTree
    value: float
    cost: int


class Accuracy(NamedTuple):
    """Root mean square: of x by `eps`, and of the adjoint's residual by `delta`, over the number of images."""

    eps: float
    delta: float


class Examples(NamedTuple):
    """Patches and their weights, of mean 1."""

    clean: Patches
    noisy: Patches
    weights: Float[np.ndarray, " n"]

    def of(self, chosen, dtype=np.float32) -> "Examples":
        return Examples(*(leaf[chosen].astype(dtype) for leaf in self))


class Weighed(Restoration):
    """g(x) = 1/n sum over patches of w/2 ||x - clean||^2."""

    weights: Float[Array, " n"]

    def __init__(self, examples: Examples, regulariser: AbstractRegulariser):
        super().__init__(examples.clean, examples.noisy, regulariser)
        self.weights = jnp.asarray(examples.weights)

    def upper(self, x, theta):
        return jnp.sum(self.weights * jnp.sum((x - self.clean) ** 2, axis=(1, 2))) / (2 * self.count)

    def constants(self, theta):
        return dataclasses.replace(super().constants(theta), L_upper=jnp.max(self.weights) / self.count)


def examples(images: Sequence[np.ndarray], sigma: float, *, size: int, count: int, seed: int) -> Examples:
    """Patches size x size, or as large as the smallest image, from all images in turn, and with noise.

    Denoisers are judged by the mean of -10 log10(mean squared error) over images. Its derivative weighs the squared
    errors of an image by one over their mean, and so does this, with the errors that total variation makes.
    """
    rng = np.random.default_rng(seed)
    size = min(size, *(side for image in images for side in image.shape))
    clean, weights = np.empty((count, size, size), np.float32), np.empty(count, np.float32)
    errors = [variation_error(image[: 3 * size, : 3 * size], sigma, rng) for image in images[:count]]
    for k in range(count):
        image = images[k % len(images)]
        i, j = (rng.integers(n - size + 1) for n in image.shape)
        clean[k], weights[k] = image[i : i + size, j : j + size], 1 / errors[k % len(images)]
    noisy = (clean + sigma * rng.standard_normal(clean.shape)).astype(np.float32)
    return Examples(clean, noisy, weights / np.mean(weights))


def variation_error(image: np.ndarray, sigma: float, rng: np.random.Generator) -> float:
    """The mean squared error of total-variation denoising."""
    noisy = (image + sigma * rng.standard_normal(image.shape)).astype(np.float32)
    theta = {"weight": np.float32(np.log(1.4 * sigma)), "smoothing": np.float32(-5.0)}
    problem = Restoration(None, noisy[None], TV(isotropic=True))
    found = bilevel.solve_lower(problem, theta, eps=5e-3 * noisy.size**0.5)
    return float(np.mean((found.x[0] - image) ** 2))


def mini_batches(
    given: Examples, regulariser: AbstractRegulariser, theta: PyTree, *, steps: int, seed: int, rate: float = RATE
) -> Iterator[Step]:
    """Adam for denoising; every patch in one of the batches, which stay as they are."""
    rng = np.random.default_rng(seed)
    batches = [Weighed(given.of(group), regulariser) for group in groups(len(given.clean), rng)]
    accuracy = Accuracy(4e-3 / (1 - regulariser.concavity), 6e-3)
    yield from adam(batches, theta, accuracy, steps=steps, rng=rng, rate=rate)


def groups(count: int, rng: np.random.Generator) -> Int[np.ndarray, "batches size"]:
    """What stands in each batch, drawn; a few may be left over."""
    size = min(BATCH, count)
    return rng.permutation(count)[: count // size * size].reshape(-1, size)


def adam(
    batches: Sequence[AbstractProblem], theta: PyTree, accuracy: Accuracy, *, steps: int, rng: np.random.Generator,
    rate: float = RATE,
) -> Iterator[Step]:  # fmt: skip
    """Its rate falls like a cosine; batches have arrays for x, all of one shape."""
    x = jax.eval_shape(batches[0].guess, theta)
    eps, delta = accuracy.eps * x.size**0.5, accuracy.delta * x.size**0.5 / len(x)
    falling = optax.cosine_decay_schedule(rate, steps)
    rates = {True: optax.adam(lambda k: falling(k) / 5), False: optax.adam(falling)}
    rule = optax.multi_transform(rates, {name: name in SLOW for name in theta})
    state, update = rule.init(theta), jax.jit(rule.update)
    warm, order, cost = [(None, None)] * len(batches), [], 0
    for _ in range(steps):
        order = order or list(rng.permutation(len(batches)))
        k = order.pop()
        found = bilevel.hypergradient(batches[k], theta, eps=eps, delta=delta, x0=warm[k][0], q0=warm[k][1])
        warm[k], cost = (found.x, found.q), cost + found.counts.cost
        change, state = update(found.gradient, state, theta)
        theta = optax.apply_updates(theta, change)
        yield Step(theta, float(found.value), cost)


def certified(
    given: Examples, regulariser: AbstractRegulariser, theta: PyTree, *, count: int, max_cost: int
) -> bilevel.Solution:
    """The default method from theta, on the first patches, in float64 where JAX has it."""
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    problem = Weighed(given.of(slice(count), dtype), regulariser)
    start = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), theta)
    return bilevel.solve(problem, start, max_cost=max_cost, progress=False)
