"""What is a vector here: a pytree of arrays, such as x or theta."""

from jaxtyping import Array, Float, PyTree

Scalar = Float[Array, ""]
Vector = PyTree[Float[Array, "..."]]
Box = tuple[Vector, Vector] | None  # (lo, hi) that theta stays between
