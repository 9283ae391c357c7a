"""Learning a regulariser for denoising in two phases: quick and uncertified, then certified.

    1. Adam on mini-batches of patches, with loose hypergradients that go on from where their batch was solved last:
           || grad_x h || <= 4e-3 sqrt(numbers in x),     ||H q - grad_x g|| <= 6e-3 sqrt(numbers in x)/patches
    2. `bilevel.solve`, the certified default, on patches that are fixed: f certainly decreases, and by how much.

The first finds in minutes what the second would look for in hours; the second says how far off the first may be.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float, PyTree

import bilevel

from ._regularisers.base import AbstractRegulariser
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


def patches(images: Sequence[np.ndarray], sigma: float, *, size: int, count: int, seed: int) -> tuple[Patches, Patches]:
    """Clean patches size x size, or as large as the smallest image, from all images in turn, and with noise."""
    rng = np.random.default_rng(seed)
    size = min(size, *(side for image in images for side in image.shape))
    clean = np.empty((count, size, size), np.float32)
    for k in range(count):
        image = images[k % len(images)]
        i, j = (rng.integers(n - size + 1) for n in image.shape)
        clean[k] = image[i : i + size, j : j + size]
    return clean, (clean + sigma * rng.standard_normal(clean.shape)).astype(np.float32)


def mini_batches(
    clean: Patches, noisy: Patches, regulariser: AbstractRegulariser, theta: PyTree, *, steps: int, seed: int
) -> Iterator[Step]:
    """Adam, its rate falling like a cosine; every patch in one of the batches, which stay as they are."""
    rng, cost = np.random.default_rng(seed), 0
    size = min(BATCH, len(clean))
    groups = rng.permutation(len(clean))[: len(clean) // size * size].reshape(-1, size)
    batches = [Restoration(clean[g], noisy[g], regulariser) for g in groups]
    root = noisy[0].size ** 0.5 * size**0.5
    eps, delta = 4e-3 * root / (1 - regulariser.concavity), 6e-3 * root / size
    rate = optax.cosine_decay_schedule(RATE, steps)
    rates = {True: optax.adam(lambda k: rate(k) / 5), False: optax.adam(rate)}
    adam = optax.multi_transform(rates, {name: name in SLOW for name in theta})
    state, update = adam.init(theta), jax.jit(adam.update)
    warm, order = [(None, None)] * len(batches), []
    for _ in range(steps):
        order = order or list(rng.permutation(len(batches)))
        k = order.pop()
        found = bilevel.hypergradient(batches[k], theta, eps=eps, delta=delta, x0=warm[k][0], q0=warm[k][1])
        warm[k], cost = (found.x, found.q), cost + found.counts.cost
        change, state = update(found.gradient, state, theta)
        theta = optax.apply_updates(theta, change)
        yield Step(theta, float(found.value), cost)


def certified(
    clean: Patches, noisy: Patches, regulariser: AbstractRegulariser, theta: PyTree, *, max_cost: int
) -> bilevel.Solution:
    """The default method from theta, in float64 where JAX has it."""
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    problem = Restoration(clean.astype(dtype), noisy.astype(dtype), regulariser)
    start = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), theta)
    return bilevel.solve(problem, start, max_cost=max_cost, progress=False)
