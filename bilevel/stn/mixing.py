"""Augmentations of labels and of whole batches, whose strengths are traced, so that they can be tuned.

    smooth_labels   (1 - s) onehot(y) + s / K                                  (arXiv 1512.00567, section 7)
    mixup           l (x, t) + (1 - l) (x, t)[order],   l ~ Beta(s, s)         (arXiv 1710.09412)

Mixup pairs the examples of a batch, so its strength is drawn with `draws="batch"`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Real


def smooth_labels(labels: Int[Array, "..."], classes: int, strength: Real[Array, ""] | float) -> Float[Array, "... K"]:
    """Targets for `optax.softmax_cross_entropy`; s in [0, 1]."""
    return (1 - strength) * jax.nn.one_hot(labels, classes) + strength / classes


def mixup(batch: PyTree, strength: Real[Array, ""] | float, key: PRNGKeyArray) -> PyTree:
    """`batch`: a tree of floating arrays with one leading axis, such as (images, smooth_labels(...)); s >= 0, 0 is no
    mixing. Raises TypeError for integers, which have no mixture."""
    one, two = jax.random.split(key)
    leaves = jax.tree.leaves(batch)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise TypeError(
            "mixup mixes floating arrays: turn labels into targets by stn.smooth_labels(labels, classes, 0.0)"
        )
    share = jax.random.beta(one, jnp.maximum(strength, 1e-3), jnp.maximum(strength, 1e-3))
    share = jnp.where(strength > 0, jnp.maximum(share, 1 - share), 1)  # the larger one stays at home
    order = jax.random.permutation(two, len(leaves[0]))
    return jax.tree.map(lambda leaf: (share * leaf + (1 - share) * leaf[order]).astype(leaf.dtype), batch)
