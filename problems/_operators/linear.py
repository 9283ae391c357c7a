"""Any linear function."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel._linalg.lanczos import lanczos_steps, largest_eigenvalue

from .base import AbstractOperator


class Linear(AbstractOperator):
    """`Linear(function, shape)`: A x = function(x), of a whole stack, linear in x, each image by itself.

    - `function`: traceable by JAX. Arrays are best held in an `equinox.Module` or a `jax.tree_util.Partial`.
    - `shape`: of one image, (height, width) or (height, width, channels).
    - `transpose`: y -> A^T y; by default JAX's transposition.

    The largest eigenvalue of A^T A is found by Lanczos here, once, for the starting point and the rounding; what rests
    on it is labelled "probable" (it fails with a probability of at most 1e-10), 0 is below the smallest. Raises
    ValueError for a function that is not linear or does not take a stack of one image.
    """

    function: Callable
    transpose: Callable | None
    largest: float
    shape: tuple[int, ...] = eqx.field(static=True)
    proven = False

    def __init__(self, function: Callable, shape: tuple[int, ...], transpose: Callable | None = None):
        self.function, self.transpose, self.shape = _tree(function), transpose and _tree(transpose), tuple(shape)
        self.largest, like = 0.0, jnp.zeros((1, *self.shape))
        try:
            data = jax.eval_shape(self.function, like)
            if len(data.shape) < 2 or data.shape[0] != 1:
                raise ValueError(f"of one image it makes {data.shape}, not (1, ...): keep the first axis")
            jax.eval_shape(self.adjoint, data)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"no linear function of a stack {like.shape}, or without a transpose: {error}") from error
        steps = lanczos_steps(like.size)
        largest = jax.jit(lambda: largest_eigenvalue(lambda v: self.adjoint(self.apply(v)), like, steps)[0])
        self.largest = float(largest())
        if not 0 < self.largest < float("inf"):
            raise ValueError(f"the norm of the function is {self.largest**0.5:g}: is it linear, and not zero?")

    def apply(self, x):
        return self.function(x)

    def adjoint(self, y):
        return super().adjoint(y) if self.transpose is None else self.transpose(y)

    def extremes(self, shape):
        return 0.0, self.largest

    def image_shape(self, shape):
        return (shape[0], *self.shape)


def _tree(function):
    """As a pytree: a plain function is structure, one that holds arrays its leaves."""
    return function if jax.tree.leaves(function) != [function] else jax.tree_util.Partial(function)
