"""What `Restoration` asks of its parts and its data, once, where it is made."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._operators.base import AbstractOperator
from ._regularisers.base import AbstractRegulariser
from .inputs import channels_last


def parts(regulariser: object, operator: object) -> None:
    """Raises TypeError unless both are what their places are for."""
    for name, part, kind in (
        ("regulariser", regulariser, AbstractRegulariser),
        ("operator", operator, AbstractOperator),
    ):
        if not isinstance(part, kind):
            made = f"{part.__name__}(...)" if isinstance(part, type) else f"a subclass of problems.{kind.__name__}"
            raise TypeError(f"{name} must be a problems.{kind.__name__}, not {part!r}: pass {made}")


def of_dtype(part: eqx.Module, dtype: jnp.dtype) -> eqx.Module:
    """The part with its floating arrays in a dtype."""
    return jax.tree.map(lambda v: jnp.asarray(v, dtype) if eqx.is_inexact_array(v) else v, part)


def image_shape(operator: AbstractOperator, data: Array) -> tuple[int, ...]:
    """The shape of the images that the data are of. Raises ValueError unless data and operator fit each other."""
    shape, name = operator.image_shape(data.shape), type(operator).__name__
    if len(shape) == 2:
        raise ValueError(f"data of shape {data.shape} are no stack: pass data[None] for one image")
    if len(shape) == 3 and channels_last(shape):
        raise ValueError(
            f"data have shape {data.shape}: a picture with its {shape[2]} channels last would be read as {shape[0]} "
            "grey images; pass data[None] for one picture, (n, height, width, channels)"
        )
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(
            f"data of shape {data.shape} with {name} are of images {shape}: pass (n, height, width) or (n, height, "
            "width, channels), and one image at least"
        )
    try:
        made = jax.eval_shape(operator.apply, jax.ShapeDtypeStruct(shape, data.dtype))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}.apply failed on images {shape} of {data.dtype}: {error}") from error
    if (made.shape, made.dtype) != (data.shape, data.dtype):
        raise ValueError(
            f"{name} makes {made.dtype}{list(made.shape)} of images {shape}, and the data are "
            f"{data.dtype}{list(data.shape)}: they do not fit"
        )
    return shape


def alike(clean: Array, shape: tuple[int, ...], data: Array) -> None:
    """Raises ValueError unless the clean images have that shape, TypeError unless they have the dtype of the data."""
    if clean.shape != shape:
        raise ValueError(f"clean is {clean.shape}, and the data {data.shape} are of images {shape}: pass those")
    if clean.dtype != data.dtype:
        raise TypeError(f"clean is {clean.dtype}, data {data.dtype}: pass data.astype of clean's precision")


def least(operator: AbstractOperator, shape: tuple[int, ...]) -> float:
    """A lower bound of A^T A's smallest eigenvalue, 0 where it is not known yet."""
    low = operator.extremes(shape)[0]
    return 0.0 if isinstance(low, jax.core.Tracer) else float(low)
