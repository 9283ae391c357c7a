"""What a linear map must know to stand in 1/2 ||A x - y||^2."""

import abc
import functools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..inputs import floats

Stack = Float[Array, "n ..."]  # images (n, height, width) or (n, height, width, channels), or the data of each
Shape = tuple[int, ...]


class AbstractOperator(eqx.Module):
    """A linear map A from a stack of images, (n, height, width) or (n, height, width, channels), to data (n, ...).

    An operator of your own is a subclass with `apply` and `extremes`, in a file of its own; `image_shape` if its data
    have another shape than its images, `adjoint` where you know a faster one than JAX's transposition. `A.misfit(x, y)`
    has the gradient A^T (A x - y) by that `adjoint`: `bilevel.check_problem` finds one that is wrong.

    - `proven`: class attribute, whether `extremes` is. If not, results are labelled "probable".
    - `rounding`: class attribute; A and A^T are computed to u rounding ||A|| ||v||, u the unit roundoff.
    """

    proven: ClassVar[bool] = True
    rounding: ClassVar[float] = 8.0

    @abc.abstractmethod
    def apply(self, x: Stack) -> Stack:
        """A x."""

    @abc.abstractmethod
    def extremes(self, shape: Shape) -> tuple[ArrayLike, ArrayLike]:
        """Below the smallest and above the largest eigenvalue of A^T A, on one stack of images of that shape."""

    def adjoint(self, y: Stack) -> Stack:
        """A^T y; `<A x, y> = <x, A^T y>`."""
        images = jax.ShapeDtypeStruct(self.image_shape(y.shape), y.dtype)
        return jax.linear_transpose(self.apply, images)(y)[0]

    def image_shape(self, shape: Shape) -> Shape:
        """The shape of the images that have data of this shape. Raises ValueError if none have."""
        return shape

    def measured(self, data: ArrayLike) -> Stack:
        """The data as they stand in the misfit, real and finite. Raises TypeError and ValueError."""
        return floats("data", data)

    def misfit(self, x: Stack, y: Stack) -> Float[Array, ""]:
        """1/2 ||A x - y||^2."""
        return misfit(self, x, y)


@jax.custom_jvp
def misfit(operator, x, y):
    return jnp.sum((operator.apply(x) - y) ** 2) / 2


@functools.partial(misfit.defjvp, symbolic_zeros=True)
def misfit_jvp(primals, tangents):
    (operator, x, y), (of_operator, v, dy) = primals, tangents
    if not given(of_operator):
        raise NotImplementedError("an operator is given: there is no derivative in its own arrays")
    r = operator.apply(x) - y
    value = jnp.sum(r**2) / 2
    change = jnp.zeros_like(value)
    if not isinstance(v, SymbolicZero):
        change += jnp.sum(operator.adjoint(r) * v)
    if not isinstance(dy, SymbolicZero):
        change -= jnp.sum(r * dy)
    return value, change


def given(tangents):
    """Whether nothing is to be differentiated in what these are the tangents of."""
    return all(_zero(leaf) for leaf in jax.tree.leaves(tangents, is_leaf=_zero))


def _zero(leaf):
    return isinstance(leaf, SymbolicZero)
