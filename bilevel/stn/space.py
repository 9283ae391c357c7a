"""The hyperparameters, by name, as one unconstrained vector u; each draw of them perturbs u, never the value.

    value_j = range_j(u_j),     draw: u + e,  e_j = sigma_j N(0, 1),  sigma = scale 2^tanh(rho/2)
    range:  low + (high - low) sigmoid(u)     Rate, Real
            exp(u)                            Positive
            floor(low + (high + 1 - low) sigmoid(u)), at most high     Integer
    entropy of a draw: sum_j log(sigma_j sqrt(2 pi e))

Values only enter the training loss, which need not be differentiable in them; u and rho get gradients through the
network's response (arXiv 1903.03088, section 3.3).
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

LARGEST_EXPONENT = 80.0  # exp of it and of its negative are normal in float32: a wild draw gives a huge value, not inf
REACH = 2.0  # how many times larger or smaller than `scale` a learned sigma may become


class AbstractHyperparameter(eqx.Module):
    """One hyperparameter: where it starts, its range, how far draws go, and who shares a draw.

    `scale`: sigma at the start, positive, in the units of u. `draws`: "example", each example of a batch has its own
    draw, or "batch", all share one.
    """

    start: eqx.AbstractVar[float]
    scale: eqx.AbstractVar[float]
    draws: eqx.AbstractVar[str]

    @abstractmethod
    def unconstrained(self) -> float:
        """The u at which the value is `start`."""

    @abstractmethod
    def value(self, u: Float[Array, "..."]) -> Array:
        """range(u), elementwise; floating, but int32 for `Integer`."""

    def __check_init__(self):
        numbers = [v for v in vars(self).values() if isinstance(v, int | float)]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{self!r}: every number must be finite")
        if not self.scale > 0:
            raise ValueError(f"{self!r}: scale must be positive, it is the standard deviation of the draws")
        if self.draws not in ("example", "batch"):
            raise ValueError(f'{self!r}: draws must be "example" or "batch", not {self.draws!r}')


def _stretch(u, low, high):
    return low + (high - low) * jax.nn.sigmoid(u)


def _unstretch(value, low, high):
    return math.log(value - low) - math.log(high - value)


class Real(AbstractHyperparameter):
    """A number strictly between `low` and `high`: a jitter, a noise level.

    Raises ValueError unless low < start < high.
    """

    start: float = eqx.field(static=True, converter=float)
    low: float = eqx.field(static=True, converter=float)
    high: float = eqx.field(static=True, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not self.low < self.start < self.high:
            raise ValueError(
                f"{self!r}: start must lie strictly between low and high, whose ends are never reached; "
                "move the start inside, or widen the range"
            )

    def unconstrained(self) -> float:
        return _unstretch(self.start, self.low, self.high)

    def value(self, u: Float[Array, "..."]) -> Array:
        return _stretch(u, self.low, self.high)


class Rate(AbstractHyperparameter):
    """A probability of dropping, in (low, high). The cap `high` keeps 1 / (1 - rate) finite.

    Raises ValueError unless 0 <= low < start < high < 1.
    """

    start: float = eqx.field(static=True, converter=float)
    low: float = eqx.field(static=True, default=0.0, converter=float)
    high: float = eqx.field(static=True, default=0.95, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not 0 <= self.low < self.start < self.high < 1:
            raise ValueError(
                f"{self!r}: a rate needs 0 <= low < start < high < 1; to begin without dropping take a small start "
                "such as 0.01"
            )

    def unconstrained(self) -> float:
        return _unstretch(self.start, self.low, self.high)

    def value(self, u: Float[Array, "..."]) -> Array:
        return _stretch(u, self.low, self.high)


class Positive(AbstractHyperparameter):
    """A positive number without a natural scale: a weight decay, an activation penalty. u is its logarithm.

    Raises ValueError unless start > 0.
    """

    start: float = eqx.field(static=True, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not self.start > 0:
            raise ValueError(f"{self!r}: start must be positive; for no penalty take a small one such as 1e-8")

    def unconstrained(self) -> float:
        return math.log(self.start)

    def value(self, u: Float[Array, "..."]) -> Array:
        return jnp.exp(jnp.clip(u, -LARGEST_EXPONENT, LARGEST_EXPONENT))


class Integer(AbstractHyperparameter):
    """An integer from `low` to `high`, both of them reached: each has an interval of u of its own.

    Raises ValueError unless these are integers and low <= start <= high, low < high.
    """

    start: float = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not all(isinstance(number, int) for number in (self.start, self.low, self.high)):
            raise ValueError(f"{self!r}: start, low and high must be integers; use Real for numbers between them")
        if not self.low <= self.start <= self.high or self.low == self.high:
            raise ValueError(f"{self!r}: an integer needs low <= start <= high and low < high")

    def unconstrained(self) -> float:
        """The middle of the interval that `start` owns."""
        return _unstretch(self.start + 0.5, self.low, self.high + 1)

    def value(self, u: Float[Array, "..."]) -> Array:
        # the sigmoid rounds to 1 for large u, where floor gives high + 1
        return jnp.minimum(jnp.floor(_stretch(u, self.low, self.high + 1)).astype(jnp.int32), self.high)


class Space(eqx.Module):
    """The hyperparameters by name: `Space(drop=Rate(0.05), decay=Positive(1e-4), holes=Integer(1, 0, 4))`.

    Vectors of the space have shape (H,) in the order of `names`; every function takes leading axes too, (..., H).
    Raises ValueError when there is none, TypeError for what is no hyperparameter.
    """

    hyperparameters: tuple[AbstractHyperparameter, ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, **named: Any):
        if not named:
            raise ValueError("a space needs at least one hyperparameter, as in stn.Space(drop=stn.Rate(0.05))")
        for name, one in named.items():
            if not isinstance(one, AbstractHyperparameter):
                raise TypeError(
                    f"{name}={one!r} is no hyperparameter: write {name}=stn.Rate(...), stn.Positive(...), "
                    "stn.Real(...) or stn.Integer(...)"
                )
        self.names, self.hyperparameters = tuple(named), tuple(named.values())

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def start(self, dtype: DTypeLike = float) -> tuple[Float[Array, "H"], Float[Array, "H"]]:
        """(u, rho) at which values are the starts and sigma the scales."""
        u = [one.unconstrained() for one in self.hyperparameters]
        return jnp.asarray(u, dtype), jnp.zeros(len(self), dtype)

    def values(self, u: Float[Array, "... H"]) -> dict[str, Float[Array, "..."] | Int[Array, "..."]]:
        """The values at u by name, of shape (...) and u's dtype, int32 for an `Integer`. They carry no gradient."""
        u = jax.lax.stop_gradient(u)
        pairs = zip(self.names, self.hyperparameters, strict=True)
        return {name: one.value(u[..., j]) for j, (name, one) in enumerate(pairs)}

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
