"""Which arrays a function's value depends on, from its trace alone: nothing is computed."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.interpreters import partial_eval
from jaxtyping import PyTree


def reads(function: Callable, *args: Any) -> PyTree[bool]:
    """For every leaf of `args`, whether it is an array that the outputs of function(*args) depend on.

    What is computed from a leaf and then dropped does not count. A dependence that cancels, as in x - x, does.
    """
    leaves, structure = jax.tree.flatten(args)
    arrays = [k for k, leaf in enumerate(leaves) if eqx.is_array(leaf)]

    def of_arrays(*values):
        filled = list(leaves)
        for k, value in zip(arrays, values, strict=True):
            filled[k] = value
        return function(*jax.tree.unflatten(structure, filled))

    jaxpr = jax.make_jaxpr(of_arrays)(*(leaves[k] for k in arrays)).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    told = dict(zip(arrays, used, strict=True))
    return jax.tree.unflatten(structure, [told.get(k, False) for k in range(len(leaves))])
