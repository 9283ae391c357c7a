"""What `Restoration` asks of its parts and its data, once, where it is made."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._operators.base import AbstractOperator
from ._regularisers.base import AbstractRegulariser
from .inputs import channels_last

LEAST = math.exp(-6)


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


def least_weight(
    operator: AbstractOperator, shapes: tuple, elastic: bool, floor: float | None, concavity: float
) -> float:
    """The floor of the elastic weight. Raises ValueError where without it h would not be strongly convex."""
    ends = [operator.extremes(shape)[0] for shape in shapes]
    known = not any(isinstance(low, jax.core.Tracer) for low in ends)
    low = min(map(float, ends)) if known else 0.0
    short = concavity - low  # what e must be above
    if short >= 0 and not elastic:
        why = "is singular, or is not known not to be"
        if concavity:
            why = f"is not known to have eigenvalues of A^T A above {concavity:g}, as this regulariser needs"
        raise ValueError(
            f"{type(operator).__name__} {why}: the lower level would not be strongly convex. Pass elastic=True, and "
            'theta["elastic"], the log of its weight'
        )
    if floor is None:
        return max(short, 0.0) + LEAST if elastic and short > -LEAST else 0.0
    least = max(short, 0.0) if concavity else 0.0
    if not (elastic and least <= floor < math.inf):
        raise ValueError(f"floor is the least elastic weight, finite and at least {least:g}, with elastic=True; "
                         f"not {floor!r}")  # fmt: skip
    return float(floor)
