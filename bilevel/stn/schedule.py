"""The hyperparameters that a run went through, one value for each training step, to keep and to train with again."""

import os

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class Schedule(eqx.Module):
    """`values`: by name, an array of shape (steps,), or (steps, size) for a `Vector`; integers for an `Integer`.
    `Schedule.fixed(drop=0.3)` is constant.

    Raises ValueError when there is none, or when their lengths differ.
    """

    values: dict[str, np.ndarray]

    def __check_init__(self):
        shapes = {name: np.shape(column) for name, column in self.values.items()}
        lengths = {shape[:1] for shape in shapes.values()}
        if len(lengths) != 1 or lengths <= {(), (0,)} or any(len(shape) > 2 for shape in shapes.values()):
            raise ValueError(
                f"a schedule needs arrays (steps,) or (steps, size) of one length, by name; it got shapes {shapes}"
            )

    @classmethod
    def fixed(cls, **values: float) -> "Schedule":
        """The same values at every step."""
        return cls({name: np.asarray([value]) for name, value in values.items()})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Schedule":
        """What `save` wrote. Raises OSError where there is no such file."""
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return cls({name: file[name] for name in file.files})

    def save(self, path: str | os.PathLike) -> None:
        """One .npz at exactly this path."""
        with open(path, "wb") as file:
            np.savez(file, **self.values)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def at(self, step: int | Array) -> dict[str, Array]:
        """The values at a step, which may be traced; the last ones hold for ever."""
        step = jnp.minimum(step, len(self) - 1)
        return {name: jnp.asarray(column)[step] for name, column in self.values.items()}
