"""The hyperparameters, by name, as one unconstrained vector u; each draw of them perturbs u, never the value.

    value_j = range_j(u_j),     draw: u + e,  e_j = sigma_j N(0, 1),  sigma = scale 2^tanh(rho/2)
    entropy of a draw: sum_j log(sigma_j sqrt(2 pi e))

Ranges: `ranges.py`. Values only enter the training loss, which need not be differentiable in them; u and rho get
gradients through the network's response (arXiv 1903.03088, section 3.3).
"""

import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .hyperparameter import AbstractHyperparameter

REACH = 2.0  # how many times larger or smaller than `scale` a learned sigma may become


class Vector(eqx.Module):
    """`size` hyperparameters of one kind under one name: with `Space(decay=Vector(Positive(1e-3), 10))`
    `hyper["decay"]` has shape (10,): a penalty for each feature. In histories they are decay[0], decay[1], ...

    Raises TypeError unless `each` is a hyperparameter, ValueError unless `size` is a positive integer.
    """

    each: AbstractHyperparameter
    size: int = eqx.field(static=True)

    def __check_init__(self):
        if not isinstance(self.each, AbstractHyperparameter):
            raise TypeError(f"{self!r}: of what? Write stn.Vector(stn.Positive(1e-3), 10)")
        if not isinstance(self.size, int) or not self.size >= 1:
            raise ValueError(f"{self!r}: size must be a positive integer")


class Space(eqx.Module):
    """The hyperparameters by name: `Space(drop=Rate(0.05), decay=Positive(1e-4), holes=Integer(1, 0, 4))`.

    Vectors of the space have shape (H,) in the order of `names`, which has the entries of a `Vector` one by one; every
    function takes leading axes too, (..., H). Raises ValueError when there is none, TypeError for what is no
    hyperparameter.
    """

    hyperparameters: tuple[AbstractHyperparameter, ...]
    names: tuple[str, ...] = eqx.field(static=True)
    sizes: dict[str, int | None] = eqx.field(static=True)

    def __init__(self, **named: Any):
        if not named:
            raise ValueError("a space needs at least one hyperparameter, as in stn.Space(drop=stn.Rate(0.05))")
        names, entries = [], []
        for name, one in named.items():
            if not isinstance(one, AbstractHyperparameter | Vector):
                raise TypeError(
                    f"{name}={one!r} is no hyperparameter: write {name}=stn.Rate(...), stn.Positive(...), "
                    "stn.Real(...), stn.Integer(...), or stn.Vector(...) of these"
                )
            vector = isinstance(one, Vector)
            names += [f"{name}[{k}]" for k in range(one.size)] if vector else [name]
            entries += [one.each] * one.size if vector else [one]
        self.names, self.hyperparameters = tuple(names), tuple(entries)
        self.sizes = {name: one.size if isinstance(one, Vector) else None for name, one in named.items()}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def start(self, dtype: DTypeLike = float) -> tuple[Float[Array, "H"], Float[Array, "H"]]:
        """(u, rho) at which values are the starts and sigma the scales."""
        u = [one.unconstrained() for one in self.hyperparameters]
        return jnp.asarray(u, dtype), jnp.zeros(len(self), dtype)

    def values(self, u: Float[Array, "... H"]) -> dict[str, Array]:
        """The values at u by name, of shape (...), or (..., size) for a `Vector`, and u's dtype, int32 for an
        `Integer`. They carry no gradient."""
        u, values, j = jax.lax.stop_gradient(u), {}, 0
        for name, size in self.sizes.items():
            entries = u[..., j] if size is None else u[..., j : j + size]
            values[name] = self.hyperparameters[j].value(entries)
            j += size or 1
        return values

    def sigma(self, rho: Float[Array, "... H"]) -> Float[Array, "... H"]:
        """The standard deviations of the draws."""
        scales = jnp.broadcast_to(jnp.asarray([one.scale for one in self.hyperparameters], rho.dtype), rho.shape)
        return scales * jnp.exp(math.log(REACH) * jnp.tanh(rho / 2))

    def draw(self, rho: Float[Array, "H"], key: PRNGKeyArray, size: int) -> Float[Array, "size H"]:
        """`size` perturbations e of u, differentiable in rho; a hyperparameter drawn per batch has equal ones."""
        noise = jax.random.normal(key, (size, len(self)), rho.dtype)
        shared = jnp.asarray([one.draws == "batch" for one in self.hyperparameters])
        return self.sigma(rho)[None] * jnp.where(shared[None], noise[:1], noise)

    def entropy(self, rho: Float[Array, "H"]) -> Float[Array, ""]:
        """The entropy of a draw."""
        return jnp.sum(jnp.log(self.sigma(rho)) + 0.5 * math.log(2 * math.pi * math.e))

    @property
    def shared(self) -> bool:
        """Whether every hyperparameter is drawn once per batch."""
        return all(one.draws == "batch" for one in self.hyperparameters)
