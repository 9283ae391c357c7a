"""What a regulariser must know to stand in a lower level."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import Bounds, Constants

Stack = Float[Array, "n height width *channels"]
Scalar = Float[Array, ""]
Theta = dict[str, Array]


class AbstractRegulariser(eqx.Module):
    """R(x, theta) of a stack of images (n, height, width) or (n, height, width, channels), twice differentiable in x.

    A regulariser of your own is a subclass with `value` and `check`, in a file of its own; `constants` and `bounds` for
    certificates, in the words of `bilevel.Constants` and `bilevel.Bounds`, of R alone: `mu` is 0 for a convex R; one
    that is not says by `concavity` how far. What they leave out is estimated, and labelled so. theta is a dict of
    arrays by name; `Restoration` adds "elastic".
    """

    @property
    def concavity(self) -> float:
        """A number for which R + concavity/2 ||x||^2 is convex, whatever theta is; R(-x) = R(x) if it is not 0."""
        return 0.0

    @abc.abstractmethod
    def check(self, theta: Theta, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless theta has the leaves and shapes that this takes, on a stack of that shape."""

    @abc.abstractmethod
    def value(self, x: Stack, theta: Theta) -> Scalar:
        """R(x, theta), summed over the images."""

    def constants(self, theta: Theta, shape: tuple[int, ...], reach: Scalar) -> Constants:
        """mu, L, L_hessian, L_cross and rounding_cross of R on stacks of that shape; `reach` >= ||x||, for rounding."""
        return Constants()

    def bounds(self, x: Stack, theta: Theta, q: Stack, radius: Scalar) -> Bounds:
        """As those of `AbstractProblem`, of R. J may be left out where `columns` has them all."""
        known, norm_q = self.constants(theta, x.shape, jnp.zeros_like(radius)), jnp.linalg.norm(q)
        return Bounds(
            M_H=None if known.L_hessian is None else known.L_hessian * norm_q,
            M_J=None if known.L_cross is None else known.L_cross * norm_q,
            L_J=known.L_cross,
        )

    def columns(self, x: Stack, theta: Theta) -> list[Stack] | None:
        """Those of d2R/dxdtheta, where they are few: ||J|| is then exact."""
        return None

    def bind(self, data: Array) -> "AbstractRegulariser":
        """This regulariser, for images that are laid out over devices as the data are."""
        return self


def few_numbers(theta: Theta, names: tuple[str, ...]) -> None:
    """Raises ValueError unless theta holds one number by each of the names."""
    shapes = {name: jnp.shape(leaf) for name, leaf in theta.items()}
    if shapes != dict.fromkeys(names, ()):
        raise ValueError(f"theta must be a dict of numbers {list(names)}, not of the shapes {shapes}")
